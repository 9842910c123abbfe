"""Keeps the parts of `authwatch up` running: started once in order, started again when they end, stopped in order."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from service import children
from service.errors import AuthwatchError, ConfigError

READY_SECONDS = 60.0
BACKOFF_FIRST_SECONDS, BACKOFF_MAX_SECONDS = 0.2, 5.0
FIRST_STARTS_MAX = 6  # ends in a row without ever having been ready, about 6 s of them: it will not get better
STEADY_SECONDS = 10.0  # who ran this long begins again with the shortest wait
EXIT_CONFIG = 2  # a mistake in the configuration: starting again can not mend it


class PartFailed(AuthwatchError):
    """A part did not start the first time; the message carries its own last words."""

    code = "part_failed"


class Stopped(Exception):
    """We were asked to stop while still starting."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """`spawn` starts the process, each time in the same place; `is_ready` answers at once; `last_words` is what the
    process said last, for the person who must mend it."""

    name: str
    spawn: Callable[[], subprocess.Popen[bytes]]
    is_ready: Callable[[], bool]
    last_words: Callable[[], str] = lambda: ""
    stop_plan: children.StopPlan = ((signal.SIGTERM, 15.0),)


@dataclass
class _Running:
    part: Part
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_again_at: float = 0.0
    ends_in_a_row: int = 0
    was_ready: bool = False


class Supervisor:
    def __init__(self, *, say: Callable[[str], None], stop_asked: Callable[[], bool]) -> None:
        self._say = say
        self._stop_asked = stop_asked
        self._running: list[_Running] = []

    def start(self, *parts: Part) -> None:
        """Starts these together and returns once all are ready. Raises PartFailed or ConfigError, or Stopped when
        asked to stop."""
        new = [_Running(part) for part in parts]
        for running in new:
            self._running.append(running)
            self._spawn(running)
        deadline = time.monotonic() + READY_SECONDS
        while missing := [running for running in new if not running.was_ready]:
            if self._stop_asked():
                raise Stopped
            self._tend()
            for running in missing:
                if running.process is not None and running.part.is_ready():
                    running.was_ready = True
            if time.monotonic() > deadline:
                raise PartFailed(
                    f"{missing[0].part.name} did not become ready within {READY_SECONDS:.0f} s"
                    + _said(missing[0].part.last_words())
                )
            time.sleep(children.POLL_SECONDS)

    def watch(self) -> None:
        """Starts again what ends by itself, until asked to stop."""
        while not self._stop_asked():
            self._tend()
            time.sleep(children.POLL_SECONDS)

    def stop(self) -> None:
        """Ends all, in the reverse order of their start, each within the time of its stop plan."""
        while self._running:
            running = self._running.pop()
            if running.process is not None:
                children.stop(running.process, running.part.stop_plan)

    def _tend(self) -> None:
        for running in self._running:
            if running.process is None:
                if time.monotonic() >= running.start_again_at:
                    self._spawn(running)
            elif (status := running.process.poll()) is not None and not self._stop_asked():
                self._ended(running, f"ended ({_how(status)})", status)

    def _spawn(self, running: _Running) -> None:
        running.started_at = time.monotonic()
        try:
            running.process = running.part.spawn()
        except (OSError, AuthwatchError) as error:
            self._ended(running, f"could not be started: {error}", None)

    def _ended(self, running: _Running, how: str, status: int | None) -> None:
        running.process = None
        words = "" if running.was_ready else _said(running.part.last_words())
        if status == EXIT_CONFIG and not running.was_ready:
            raise ConfigError(f"{running.part.name} cannot start{words}")
        if time.monotonic() - running.started_at >= STEADY_SECONDS:
            running.ends_in_a_row = 0
        if not running.was_ready and running.ends_in_a_row + 1 >= FIRST_STARTS_MAX:
            raise PartFailed(f"{running.part.name} {how}{words}; it was started {FIRST_STARTS_MAX} times")
        wait_seconds = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * 2.0**running.ends_in_a_row)
        running.ends_in_a_row = min(running.ends_in_a_row + 1, 10)
        running.start_again_at = time.monotonic() + wait_seconds
        self._say(f"{running.part.name} {how}{words}; starting it again in {wait_seconds:g} s")


def _said(words: str) -> str:
    return f": {words}" if words else ""


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return signal.Signals(-status).name if -status in list(signal.Signals) else f"signal {-status}"
