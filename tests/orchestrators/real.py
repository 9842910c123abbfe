"""A real orchestrator as the scenarios need it: tests/orchestrators/scenarios.py runs all of them against any `RealServer`.

A new one adds one file of its name beside this one with a class of this shape, and three lines in test_<kind>.py. All of it
is synchronous: what is under test runs in processes of its own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from service.children import choose_port, die_with_parent, spawn

ROOT = Path(__file__).resolve().parents[2]
LOOK_SECONDS = 0.25
STOP_SECONDS_MAX = 30.0
INSTALL_SECONDS_MAX = 1_800
SAY_EVERY_SECONDS = 30.0
LOG_CHARS_SHOWN = 3_000


class RealServer(Protocol):
    """One orchestrator, installed from its package, on loopback. Made once for a file of tests.

    `ref` is always what a user writes into `orchestrator.ref` of PUT /v1/workflows. What is asked of the server is asked of
    the server itself at `url`, never through Authwatch or its door.
    """

    kind: str  # as in the config section
    versions: Mapping[str, str]  # package -> version, as installed; printed and quoted by the docs
    url: str  # http://127.0.0.1:PORT, the same after every start
    quiet_seconds: float  # so long without a start shows that the schedule is off; longer than its period
    # Whether a workflow renamed there is still the same one to `ref` or to what was recorded with the pause. True: the resume
    # reaches it under its new name. False: it is a new workflow, which the resume must not touch, and the old one is gone.
    rename_keeps: bool

    def start(self) -> None:
        """Back once it answers with its credentials. Its data are those of before, and its port too."""

    def stop(self) -> None:
        """By its process id, and all of its children with it. Data are kept."""

    def section(self, url: str) -> Mapping[str, Any]:
        """The section of AUTHWATCH_CONFIG, for this server reached at `url` (the scenarios put a door in front of it). Secrets
        stand in it as `${NAME}`."""

    def environment(self) -> Mapping[str, str]:
        """NAME -> secret, for `section`."""

    def create(self, name: str, *, busy: bool = False) -> str:
        """A workflow with a schedule, switched on. Its ref. `busy`: it starts real work every few seconds, as `works` counts;
        else as rarely as will do, so that it takes no time from the others."""

    def create_many(self, count: int, prefix: str) -> Sequence[str]:
        """As `create`, cheaply; the refs of all."""

    def is_paused(self, ref: str) -> bool: ...

    def looks(self, ref: str) -> Any:
        """All of it that a resume has to put back (schedules and which of them are active, the active version...), to be
        compared with == before the pause and after the resume. Nothing that changes by itself."""

    def pause(self, ref: str) -> None:
        """As a person does it there."""

    def resume(self, ref: str) -> None:
        """As a person does it there."""

    def rename(self, ref: str, name: str) -> str:
        """As a person would; the ref that a user would write from now on."""

    def delete(self, ref: str) -> None: ...

    def break_credentials(self) -> None:
        """From now on the server refuses what Authwatch holds (expired, revoked, changed). It may be restarted for it."""

    def mend_credentials(self) -> None:
        """What Authwatch holds is taken again, without a restart of Authwatch."""

    def is_change(self, method: str, path: str) -> bool:
        """Whether this call of Authwatch changes whether a workflow is paused: the door holds its answer, or counts it."""

    def works(self, ref: str) -> int:
        """How often the work has really begun, by the schedule, since it was made `busy`: by what the work itself wrote or, where
        running it here would cost too much, by the runs that the server says it has started or booked and not taken back."""


# What every one of them needs: a cache of its own, a free port, readiness, an end by process id.


def cache(kind: str) -> Path:
    """Where this kind is installed: AUTHWATCH_ORCHESTRATORS_CACHE, else .cache/orchestrators in the repository, else, where
    that may not be written, the user's own cache."""
    named = os.environ.get("AUTHWATCH_ORCHESTRATORS_CACHE")
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "authwatch" / "orchestrators"
    for base in [Path(named)] if named else [ROOT / ".cache" / "orchestrators", own]:
        folder = base / kind
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise AssertionError(f"nowhere to install {kind}: name a folder with AUTHWATCH_ORCHESTRATORS_CACHE")


def say(text: str) -> None:
    """A line of progress, past pytest's capture: installing takes minutes."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.__stderr__, flush=True)


def install(kind: str, pins: Path, make: Callable[[Path], None]) -> Path:
    """The folder with the installation that `pins` (a file of exact versions) says. `make(folder)` fills an empty one, and is
    only called where the one there is not whole, or of other pins. Two at once wait for each other."""
    folder = cache(kind)
    done, wanted = folder / "done", f"{sys.version}\n{pins.read_text(encoding='utf-8')}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists() and done.read_text(encoding="utf-8") == wanted:
            return folder / "installed"
        done.unlink(missing_ok=True)
        shutil.rmtree(folder / "installed", ignore_errors=True)
        (folder / "installed").mkdir()
        began = time.monotonic()
        say(f"{kind}: installing what {pins.name} says into {folder}; minutes, the first time")
        make(folder / "installed")
        done.write_text(wanted, encoding="utf-8")
        say(f"{kind}: installed in {time.monotonic() - began:.0f} s")
    return folder / "installed"


def run(words: Sequence[str | Path], *, cwd: Path, log: Path, env: Mapping[str, str] | None = None) -> None:
    """A command of an installation, to its end, saying now and then that it still runs."""
    began = said = time.monotonic()
    with log.open("ab") as out:
        process = spawn(words, env=env if env is not None else clean_environment(), stdout=out, stderr=out, cwd=cwd)
        while process.poll() is None:
            time.sleep(LOOK_SECONDS)
            if time.monotonic() - said > SAY_EVERY_SECONDS:
                said = time.monotonic()
                say(f"  still at it after {said - began:.0f} s: {' '.join(map(str, words))[:100]}")
            if time.monotonic() - began > INSTALL_SECONDS_MAX:
                process.kill()
    if process.wait() != 0:
        raise AssertionError(f"{' '.join(map(str, words))} ended with {process.returncode}:\n{tail(log)}")


def venv(folder: Path, requirements: Path) -> Path:
    """A virtual environment of this Python with exactly these requirements; its `bin`."""
    log = folder.parent / "install.log"
    run([sys.executable, "-m", "venv", folder / "venv"], cwd=folder, log=log)
    words = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    if "--hash=" in requirements.read_text(encoding="utf-8"):
        # All of it is listed. Left to itself pip asks for a hash of `sqlalchemy[asyncio]` beside that of `sqlalchemy`.
        words.append("--no-deps")
    run([folder / "venv" / "bin" / "python", *words, "-r", requirements], cwd=folder, log=log)
    return folder / "venv" / "bin"


def clean_environment(**more: str) -> dict[str, str]:
    """What a server gets of ours: no setting of Authwatch, of this Python or of another installation of the same server."""
    kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY")
    more_kept = ("no_proxy", "PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "npm_config_registry")
    return {name: os.environ[name] for name in (*kept, *more_kept) if name in os.environ} | {
        "HOME": os.environ.get("HOME", "/tmp"),
        **more,
    }


@dataclass
class Process:
    """A server that can be stopped and started again, with the same words. It leads a session of its own, so that its end is
    the end of all of its children, and of nothing else."""

    words: Sequence[str | Path]
    folder: Path
    env: Mapping[str, str]
    ready: Callable[[], bool]
    ready_seconds_max: float = 300.0
    name: str = "server"
    _running: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        if self._running is not None:
            return
        parent = os.getpid()
        with self.log.open("ab") as out:
            self._running = subprocess.Popen(
                [str(word) for word in self.words],
                cwd=self.folder,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM),
            )
        began = time.monotonic()
        while not self.ready():
            if self._running.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self._running.returncode}:\n{tail(self.log)}")
            if time.monotonic() - began > self.ready_seconds_max:
                self.stop()
                raise AssertionError(f"{self.name} was not ready in {self.ready_seconds_max:g} s:\n{tail(self.log)}")
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(running.pid, how)  # its own session: the group has the id of its leader
            except ProcessLookupError:
                break
            try:
                running.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                continue
        running.wait()


def tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-LOG_CHARS_SHOWN:] if log.exists() else ""


def free_port() -> int:
    return choose_port("127.0.0.1")


@contextmanager
def running(server: RealServer) -> Iterator[RealServer]:
    say(f"{server.kind}: starting {', '.join(f'{name} {version}' for name, version in server.versions.items())}")
    began = time.monotonic()
    server.start()
    say(f"{server.kind}: answers at {server.url} after {time.monotonic() - began:.0f} s")
    try:
        yield server
    finally:
        server.stop()
