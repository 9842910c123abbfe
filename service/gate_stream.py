"""The gate's changes as server-sent events: one look at the database a few dozen times a second for all clients of this
process, and none while there is no client.

It looks rather than listens: a look costs a tenth of a millisecond, tells commits and evaluation alike, and needs neither
Redis nor a word from whoever commits. Format: HTML Living Standard, "Server-sent events".
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import orjson
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from service.errors import Gone, Unavailable
from service.event import AccountKey, rfc3339
from service.gate import BEHIND_AFTER_SECONDS
from service.gate_asking import ANSWER_SECONDS, Asker
from service.gate_changes import Change, Subject
from service.gate_reader import Reader
from service.observe import log as logger
from service.store import readers
from service.store.session import begin

STREAMS = "gate_streams"  # where the lifespan leaves them in the app's state
LOOK_SECONDS = 0.02
NET_SECONDS = 1.0  # rows that a clock which was put back hides from the look are found at least this often
RETRY_SECONDS = 0.25
CLIENTS_MAX = 200  # of one process
QUEUE_FRAMES_MAX = 1000  # of one client, who is closed beyond it and resumes by its id
REPLAYS_MAX = 4
HEARTBEAT_SECONDS = 15.0
CLIENT_RETRY_MS = 1000
DATABASE_AWAY = "the database cannot be asked now"


@dataclass(frozen=True, slots=True)
class Filter:
    """`account_id` as it was written; `account` once it is known whose it is."""

    workflow_id: str | None = None
    account_id: str | None = None
    account: AccountKey | None = None

    def passes(self, subject: Subject) -> bool:
        if self.workflow_id is not None and self.account_id is not None:
            if self.account is None and None in subject:  # of a pair that cannot be told yet, its parts
                return subject.workflow_id == self.workflow_id or self._is_mine(subject.account)
            return subject.workflow_id == self.workflow_id and self._is_mine(subject.account)
        if self.workflow_id is not None:
            return subject.workflow_id == self.workflow_id
        return self.account_id is None or self._is_mine(subject.account)

    def knowing(self, changes: Sequence[Change]) -> Filter:
        """With the account that its id turned out to be, once one of that id appears."""
        if self.account_id is None or self.account is not None:
            return self
        keys = (change.subject.account for change in changes)
        return replace(self, account=next((key for key in keys if self._is_mine(key)), None))

    def _is_mine(self, key: AccountKey | None) -> bool:
        if key is None:
            return False
        return key == self.account if self.account is not None else self.account_id in (key.account_id, str(key))


@dataclass(eq=False, slots=True)
class Client:
    only: Filter
    start: int  # what comes after it is to be told
    seen: int  # up to here others have been told: what lies between is to be replayed
    frames: deque[bytes] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    def push(self, frame: bytes) -> None:
        if len(self.frames) >= QUEUE_FRAMES_MAX:
            self.close()
        elif not self.closed:
            self.frames.append(frame)
            self.wake.set()

    def close(self) -> None:
        self.closed = True
        self.wake.set()

    def take(self) -> bytes:
        taken = b"".join(self.frames)
        self.frames.clear()
        return taken


class Streams:
    """`open` a client and iterate over its bytes; `run` is the task that looks; `close` ends every stream."""

    def __init__(self, engine: AsyncEngine, asker: Asker) -> None:
        self._engine = engine
        self._asker = asker
        self._clients: set[Client] = set()
        self._coming = 0
        self._wanted = asyncio.Event()
        self._started = asyncio.Event()
        self._reader: Reader | None = None
        self._evaluated = 0
        self._net_at = 0.0
        self._behind: str | None = None
        self._replays = asyncio.Semaphore(REPLAYS_MAX)
        self._closed = False

    async def run(self) -> None:
        try:
            while True:
                await self._wanted.wait()
                try:
                    await self._look()
                    wait_seconds = LOOK_SECONDS
                except (Unavailable, DBAPIError) as exc:
                    if self._behind != DATABASE_AWAY:
                        logger.warning("gate.stream_blind", error=type(exc).__name__)
                    self._say_behind(DATABASE_AWAY)
                    wait_seconds = RETRY_SECONDS
                if not self._clients and not self._coming:
                    self._reader, self._behind = None, None
                    self._started.clear()
                    self._wanted.clear()
                await asyncio.sleep(wait_seconds)
        finally:
            self.close()

    def close(self) -> None:
        self._closed = True
        for client in self._clients:
            client.close()

    async def open(self, only: Filter, last_id: int | None) -> Client:
        """Who leaves says so (`leave`). Raises `Unavailable`, and Gone when the log does not hold what comes after it."""
        if self._closed or len(self._clients) + self._coming >= CLIENTS_MAX:
            raise Unavailable(f"this process serves no more than {CLIENTS_MAX} streams", code="too_many_streams")
        self._coming += 1
        try:
            if last_id is not None:
                moved = await self._asker.moved()
                if not moved.retained <= last_id <= moved.progress.given:
                    raise Gone(
                        "the log does not hold what comes after this Last-Event-ID; open the stream without it, then ask "
                        "GET /v1/gate",
                        code="last_event_id_expired",
                    )
            self._wanted.set()
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._started.wait()
        except TimeoutError:
            raise Unavailable("the log cannot be read now", code="database_unavailable") from None
        finally:
            self._coming -= 1
        assert self._reader is not None
        start = self._reader.cursor if last_id is None else last_id
        client = Client(only, start, start if last_id is None else self._reader.read)
        self._clients.add(client)
        if self._behind is not None:
            client.push(behind_frame(self._behind))
        return client

    def leave(self, client: Client) -> None:
        self._clients.discard(client)

    async def frames(self, client: Client) -> AsyncGenerator[bytes, None]:
        """Bytes for its wire until it is closed, empty ones each time that its token should be looked at again."""
        yield b"retry: %d\nid: %d\nevent: ready\ndata: {}\n\n" % (CLIENT_RETRY_MS, client.start)
        if client.start < client.seen:
            async with aclosing(self._replay(client)) as replay:
                async for frames in replay:
                    yield frames
        beat_at = time.monotonic() + HEARTBEAT_SECONDS
        while not client.closed:
            if client.frames:
                yield client.take()
            elif (left := beat_at - time.monotonic()) > 0:
                client.wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await client.wake.wait()
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + HEARTBEAT_SECONDS
                yield b""
                if not client.frames and self._reader is not None:
                    # An id without data tells nobody anything, and is where a client resumes of whom nothing changed.
                    yield b": heartbeat\nid: %d\n\n" % self._reader.cursor

    async def _replay(self, client: Client) -> AsyncGenerator[bytes, None]:
        """What was told to others while it was away."""
        reader = Reader(client.start)
        async with self._replays:
            while reader.read < client.seen and not client.closed:
                was, read = reader.cursor, reader.read
                async with begin(self._engine) as conn:
                    step = await reader.step(conn, self._evaluated, pairs([client]))
                    # Asked after the page was read: what retention takes away it says before it does.
                    if read < await readers.position(conn, readers.RETENTION):
                        client.close()  # it comes again with its id, and is told
                        return
                if frames := answer_frames(client.only, step.changes, was, reader.cursor):
                    yield b"".join(frames)
                if reader.read == read:
                    return

    async def _look(self) -> None:
        moved = await self._asker.moved()
        evaluated = moved.progress.evaluated
        if self._reader is None:
            self._reader = Reader(evaluated)
        reader = self._reader
        found = moved.newest is not None and moved.newest > reader.read
        released = bool(reader.pending) and reader.pending[0].position <= evaluated
        overdue = moved.progress.given > reader.read and time.monotonic() >= self._net_at
        more = found or released or overdue
        if more:
            self._net_at = time.monotonic() + NET_SECONDS
        # From the first page on: whoever comes between two of them is told by a replay what was released with the first.
        self._evaluated = evaluated
        while more:
            was = reader.cursor
            async with begin(self._engine) as conn:
                step = await reader.step(conn, evaluated, pairs(self._clients))
                # With nothing awaited since: the connection may be lost as it is given back, and no step tells it again.
                self._tell(step.changes, was, reader.cursor)
            more = step.more
        self._started.set()
        seconds = await self._asker.lag_seconds(moved.progress)
        self._say_behind(
            f"events wait to be evaluated for more than {BEHIND_AFTER_SECONDS:.0f} s"
            if seconds > BEHIND_AFTER_SECONDS
            else None
        )

    def _tell(self, changes: Sequence[Change], was: int, cursor: int) -> None:
        for client in self._clients:
            for frame in answer_frames(client.only, changes, was, cursor):
                client.push(frame)
            client.only = client.only.knowing(changes)

    def _say_behind(self, why: str | None) -> None:
        if why != self._behind:
            self._behind = why
            for client in self._clients:
                client.push(behind_frame(why))


def pairs(clients: Iterable[Client]) -> set[Subject]:
    return {
        Subject(client.only.workflow_id, client.only.account)
        for client in clients
        if client.only.workflow_id is not None and client.only.account is not None
    }


def answer_frames(only: Filter, changes: Sequence[Change], was: int, cursor: int) -> list[bytes]:
    """The last one's id says that all of them are told; who breaks off before it gets them again."""
    mine = [change for change in changes if only.passes(change.subject)]
    return [answer_frame(one, cursor if number == len(mine) else was) for number, one in enumerate(mine, 1)]


def answer_frame(change: Change, cursor: int) -> bytes:
    account, answer = change.subject.account, change.answer
    data = {
        "workflow_id": change.subject.workflow_id,
        "account_id": account.account_id if account else None,
        "source": account.source if account else None,
        "environment_id": account.environment_id if account else None,
        "allow": answer.allow,
        "reason": answer.reason,
        "detail": answer.detail,
        "alert_ids": list(answer.alert_ids),
        "position": change.position,
        "at": rfc3339(change.at),
    }
    return b"id: %d\nevent: answer\ndata: %b\n\n" % (cursor, orjson.dumps(data))


def behind_frame(why: str | None) -> bytes:
    return b"event: behind\ndata: %b\n\n" % orjson.dumps({"behind": why is not None, "detail": why})


@asynccontextmanager
async def opened(engine: AsyncEngine, asker: Asker) -> AsyncIterator[Streams]:
    streams = Streams(engine, asker)
    task = asyncio.create_task(streams.run(), name="gate.streams")
    try:
        yield streams
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
