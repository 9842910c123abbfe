"""What a receiver does beside its requests: it takes changed secrets without a restart, and writes down which were used.
The worker does the same, so that it watches and recovers the sources that there are.

The files the sources come from are looked at every second and on SIGHUP; each process looks for itself. What
they say is taken whole or not at all: while it cannot be right the last good sources stay in force, and an alert of our
own says so. A value given as a plain environment variable cannot change in a running process; name a file instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from service import own_alerts, secret_changes
from service.errors import ConfigError, Unavailable
from service.observe import log as logger
from service.own_alerts import OwnAlert
from service.redact import redact_text
from service.runtime import Runtime, last_words, stop
from service.settings import Environment, load_sources
from service.sources import Source, open_sources
from service.store import log, readers, secrets
from service.store.session import begin

LOOK_SECONDS = 1.0
SETTLE_SECONDS = 0.2  # a file that just changed may be in the middle of being written
FLUSH_SECONDS = 3.0
TOLD_SECONDS = 60.0  # a problem that lasts is told again: another host's receiver may have ended the alert
RULE_ID = "sources-not-taken"
ABOUT = "sources"


@asynccontextmanager
async def kept_current(runtime: Runtime, variables: Mapping[str, str] | None) -> AsyncIterator[None]:
    """While the block runs; `variables` None means that the sources are not from there and stay as they are."""
    tasks = [asyncio.create_task(write_uses(runtime), name="secret-uses")]
    if variables is not None:
        tasks.append(asyncio.create_task(Watch(runtime, variables).run(), name="sources"))
    try:
        yield
    finally:
        for task in tasks:
            await stop(task)
        await last_words(flush(runtime))


class SourceFiles:
    """The files that the sources come from, as they were when last read."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._marks: dict[Path, bytes | None] | None = None

    def changed(self) -> bool:
        return self._marks is None or any(mark_of(path) != mark for path, mark in self._marks.items())

    def read(self) -> dict[str, Source]:
        """Raises ConfigError; a file that was not come to because of it stays one of those that are looked at."""
        env = Environment(self._variables)
        try:
            return open_sources(load_sources(env))
        finally:
            before = {path: mark_of(path) for path in self._marks or {} if path not in env.files}
            self._marks = before | env.files


def mark_of(path: Path) -> bytes | None:
    """By content: a mounted secret is often replaced with the same size and time."""
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return None


class Watch:
    """`run` is a task of a receiver or a worker. `problem` is why the newest files are not taken, None when they are."""

    def __init__(self, runtime: Runtime, variables: Mapping[str, str]) -> None:
        self._runtime = runtime
        self._files = SourceFiles(variables)
        self._told: bool | None = None  # None: an earlier process may have left its alert open
        self._told_at = 0.0
        self.problem: str | None = None
        self._noted: dict[str, dict[str, str]] | None = None

    async def run(self) -> None:
        asked = asyncio.Event()
        with on_hangup(asked):
            while True:
                try:
                    await self.look()
                except Unavailable as exc:
                    logger.warning("sources.alert_waits", code=exc.code)
                except Exception as exc:  # noqa: BLE001 - the loop's edge: logged whole, and looked at again
                    logger.error("sources.watch_failed", error=type(exc).__name__, exc_info=exc)
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await asked.wait()
                    asked.clear()
                    logger.info("sources.asked_to_look")
                except TimeoutError:
                    pass

    async def look(self) -> None:
        # In a thread: a file on a network that hangs must not stop the front door.
        if await asyncio.to_thread(self._files.changed):
            await asyncio.sleep(SETTLE_SECONDS)
            try:
                self._take(await asyncio.to_thread(self._files.read))
                self.problem = None
            except ConfigError as exc:
                self.problem = redact_text(str(exc))  # it goes into logs, an alert and a channel
                logger.error("sources.not_taken", problem=self.problem)
        bad = self.problem is not None
        if self._told is not bad or (bad and time.monotonic() - self._told_at > TOLD_SECONDS):
            await self._tell(self.problem)
            self._told, self._told_at = bad, time.monotonic()
        live = secret_changes.live_secrets(self._runtime.sources)
        if live != self._noted:
            await secret_changes.note(self._runtime.engine, live)
            self._noted = live

    def _take(self, new: Mapping[str, Source]) -> None:
        old = self._runtime.sources
        if old and not new:
            raise ConfigError("no source would be left; to switch all of them off, restart without them")
        if keys_of(old) != keys_of(new):
            self._runtime.sources.swap(new)
            logger.info(
                "sources.changed",
                secrets={name: [secret.name for secret in source.secrets] for name, source in new.items()},
                replaced=replaced(old, new),
            )

    async def _tell(self, problem: str | None) -> None:
        async with begin(self._runtime.engine) as conn:
            await own_alerts.lock(conn)
            now, notifiers = await readers.clock(conn), list(self._runtime.notifiers)
            if problem is None:
                out = await own_alerts.close_own(conn, RULE_ID, keep=(), now=now, notifiers=notifiers)
            else:
                wanted = OwnAlert(
                    rule_id=RULE_ID,
                    about=ABOUT,
                    severity="P2",
                    summary=f"The changed sources cannot be right, so the last good ones stay in force: {problem}",
                    what_to_do="Mend the file: it is looked at every second. Restart nothing before: it would not start.",
                )
                out = await own_alerts.open_own(conn, [wanted], now=now, notifiers=notifiers)
            await log.append(conn, out.decisions)


def keys_of(sources: Mapping[str, Source]) -> dict[str, tuple[object, ...]]:
    """What makes two sets of sources the same: names, order and keys of secrets, provider and gate."""
    return {
        name: (source.provider.name, source.gate is not None, tuple((one.name, one.key) for one in source.secrets))
        for name, source in sources.items()
    }


def replaced(old: Mapping[str, Source], new: Mapping[str, Source]) -> list[str]:
    """`source/secret` of every name that now stands for another key."""
    was = {(name, one.name): one.key for name, source in old.items() for one in source.secrets}
    now = {(name, one.name): one.key for name, source in new.items() for one in source.secrets}
    return [f"{name}/{secret}" for (name, secret), key in now.items() if was.get((name, secret), key) != key]


@contextmanager
def on_hangup(asked: asyncio.Event) -> Iterator[None]:
    """SIGHUP means "look now". Only a process's main thread may have it so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what is left of us to do must not end by it


async def write_uses(runtime: Runtime) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        await flush(runtime)


async def flush(runtime: Runtime) -> None:
    """What was noted since the last time; what cannot be written now waits."""
    uses = runtime.uses.take()
    if not uses:
        return
    try:
        async with begin(runtime.engine) as conn:
            await secrets.save(conn, uses, datetime.now(UTC))
    except Unavailable as exc:
        runtime.uses.put_back(uses)
        logger.warning("secrets.uses_wait", code=exc.code)
    except Exception as exc:  # noqa: BLE001 - advice to a person is no reason to stop; it is logged whole and tried again
        runtime.uses.put_back(uses)
        logger.error("secrets.uses_not_written", error=type(exc).__name__, exc_info=exc)
