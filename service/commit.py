"""Group commit: concurrent receipts share one statement and one commit; each caller waits for its own outcome.

Nothing is answered before the commit that holds it. The queue is bounded; past its bound callers are shed at once.
When to send: at once when nothing is under way, so that a lone request waits for nobody; else as soon as a handful
waits, up to a few batches ahead, so that Postgres never idles between two. Many tiny commits would only take the
processor from the receiver.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

import psycopg
from sqlalchemy.exc import DBAPIError

from service.errors import Unavailable
from service.observe import log as logger
from service.store.log import Kept, Receipt
from service.store.pipeline import Outcome, Pipeline
from service.store.wire import encode_row

QUEUE_RECEIPTS_MAX = 10_000
QUEUE_BYTES_MAX = 128 * 1024 * 1024  # each body counts twice: as it came and as it goes
BATCH_RECEIPTS_MAX = 500
BATCH_BYTES_MAX = 8 * 1024 * 1024
BATCHES_FLYING_MAX = 3
RECEIPT_BYTES_MORE = 4096  # what a receipt takes beside its bytes, roughly: headers, fields, the waiting request
WORTH_SENDING = 8  # receipts that make another batch worth its commit while one is under way
# Shorter than the provider's patience (10 s by its documentation), so that it hears 503 and not silence.
COMMIT_WAIT_SECONDS = 8
WATCH_SECONDS = 0.25
MEND_PAUSE_SECONDS = 0.1
ATTEMPTS_MAX = 2
# SQLSTATE classes and codes that say "not now" about the server, not about the rows: no resources, lock or statement
# timed out, rolled back by a deadlock, shutting down, read-only, an operator's intervention.
NOT_NOW = ("08", "25006", "40", "53", "55", "57", "58", "F0", "XX")


class Answer(Protocol):
    """Who waits for an outcome: an `asyncio.Future`, or anything that is told one of the two, once."""

    def done(self) -> bool: ...

    def set_result(self, result: Waiting, /) -> None: ...

    def set_exception(self, exception: Exception, /) -> None: ...


class Waiting:
    """A receipt on its way to the log. `kept` is there once it is committed; `since` is `time.monotonic()` at arrival."""

    __slots__ = ("answer", "attempts", "kept", "receipt", "row", "since", "size")

    kept: Kept

    def __init__(self, receipt: Receipt, since: float, answer: Answer) -> None:
        self.receipt = receipt
        self.row = row = encode_row(receipt)
        self.size = 2 * len(row) + RECEIPT_BYTES_MORE
        self.since = since
        self.answer = answer
        self.attempts = 0


class Committer:
    """`commit` from any request; `run` is the task that watches over the waits."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Pipeline]],
        make_partitions: Callable[[], Awaitable[None]],
        on_commit: Callable[[Sequence[Waiting]], None],
    ) -> None:
        self._connect = connect
        self._make_partitions = make_partitions
        self._on_commit = on_commit
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._flying: deque[list[Waiting]] = deque()
        self._parts: deque[list[Waiting]] = deque()  # of a batch that was refused, to find the row it was refused for
        self._pipeline: Pipeline | None = None
        self._mending: asyncio.Task[None] | None = None
        self._scheduled = False
        self._closed = False
        # A batch without receipts, on its way to show that receipts could go: at most one, whoever asks.
        self._ping: asyncio.Future[Outcome] | None = None
        self._pinged_at = 0.0

    def commit(self, receipt: Receipt, since: float, answer: Answer) -> None:
        """`answer` gets the receipt back, with what became of it; `since` is its arrival. Raises `Unavailable` when full.

        `Unavailable`, now or then: nothing was kept as far as we know; a later duplicate is harmless.
        """
        waiting = Waiting(receipt, since, answer)
        if len(self._waiting) >= QUEUE_RECEIPTS_MAX or self._waiting_bytes + waiting.size > QUEUE_BYTES_MAX:
            raise Unavailable("too many receipts are waiting for the database; send it again", code="queue_full")
        self._waiting.append(waiting)
        self._waiting_bytes += waiting.size
        if not self._scheduled:  # after what is being read in this turn, so that it shares the batch
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send)

    async def run(self) -> None:
        """Connects ahead of the first request, and cuts off who waited too long; a hung connection is given up."""
        self._mend(self._open)
        try:
            while True:
                await asyncio.sleep(WATCH_SECONDS)
                self._cut_off(time.monotonic() - COMMIT_WAIT_SECONDS)
        finally:
            self._closed = True
            if self._mending is not None:
                # Waited for, so that a connection half open is closed and not left to be found by the server's patience.
                self._mending.cancel()
                await asyncio.gather(self._mending, return_exceptions=True)
            if self._pipeline is not None:
                self._pipeline.fail("closing")
            refuse(self._take_all(), Unavailable("this receiver is stopping; send it again", code="stopping"))

    async def ping(self, timeout_seconds: float) -> None:
        """Raises `Unavailable` unless a batch without receipts goes the way that receipts go and is committed in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._pipeline is None or self._pipeline.broken:
                    self._mend(self._open)
                    await asyncio.sleep(MEND_PAUSE_SECONDS)
                if self._ping is None:
                    self._ping = asyncio.get_running_loop().create_future()
                    self._pinged_at = time.monotonic()
                    self._pipeline.send([], self._pong)
                outcome = (
                    await asyncio.shield(self._ping) if self._ping is not None else Outcome(error="connection_lost")
                )
        except TimeoutError:
            raise database_unavailable() from None
        if outcome.error is not None:
            raise database_unavailable()

    def _pong(self, outcome: Outcome) -> None:
        ping, self._ping = self._ping, None
        if ping is not None:
            ping.set_result(outcome)

    def _send(self) -> None:
        self._scheduled = False
        if self._mending is not None or self._closed:
            return
        if self._pipeline is None or self._pipeline.broken:
            if self._waiting or self._parts:
                self._mend(self._open)
            return
        while self._parts and not self._flying and not self._pipeline.broken:
            part = [one for one in self._parts.popleft() if not one.answer.done()]
            if part:
                self._fly(self._pipeline, part)
        # A connection may be found lost by the sending itself.
        while self._waiting and not self._parts and not self._pipeline.broken and self._worth_sending():
            batch = self._take()
            if batch:
                self._fly(self._pipeline, batch)

    def _worth_sending(self) -> bool:
        return not self._flying or (len(self._waiting) >= WORTH_SENDING and len(self._flying) < BATCHES_FLYING_MAX)

    def _take(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        while self._waiting and len(batch) < BATCH_RECEIPTS_MAX and size < BATCH_BYTES_MAX:
            one = self._waiting.popleft()
            self._waiting_bytes -= one.size
            if not one.answer.done():  # the caller gave up: it has had its 503 and nothing is kept for it
                batch.append(one)
                size += one.size
        return batch

    def _fly(self, pipeline: Pipeline, batch: list[Waiting]) -> None:
        self._flying.append(batch)
        # Each answer knows its batch: by order alone, one answer that never came would be taken for the next one's.
        pipeline.send([one.row for one in batch], partial(self._landed, batch))

    def _landed(self, batch: list[Waiting], outcome: Outcome) -> None:
        self._flying.remove(batch)
        if outcome.error is not None:
            self._refused(batch, outcome)
        else:
            others = outcome.others
            for number, one in enumerate(batch):
                receipt_id = one.receipt.id
                one.kept = kept(receipt_id, others.get(number)) if others else Kept(receipt_id, True, True)
                if not one.answer.done():
                    one.answer.set_result(one)
            self._on_commit(batch)
        self._send()

    def _refused(self, batch: list[Waiting], outcome: Outcome) -> None:
        if outcome.sqlstate is None or outcome.missing_partition:
            self._once_more(batch)
            if outcome.missing_partition:
                self._mend(self._make_partitions)
        elif outcome.sqlstate.startswith(NOT_NOW):
            refuse(batch, database_unavailable())
        elif len(batch) > 1:  # one bad row never fails its neighbours: by halves it is soon alone
            middle = len(batch) // 2
            self._parts.extendleft((batch[middle:], batch[:middle]))
        else:
            logger.error("receipt.refused_by_database", sqlstate=outcome.sqlstate)
            refuse(
                batch, Unavailable("the database refused this receipt", code="store_refused", retry_after_seconds=60)
            )

    def _once_more(self, batch: list[Waiting]) -> None:
        """Safe after a lost answer: rows of a first try that did commit are found by their own ids."""
        for one in batch:
            one.attempts += 1
        refuse([one for one in batch if one.attempts >= ATTEMPTS_MAX], database_unavailable())
        self._put_back([one for one in batch if one.attempts < ATTEMPTS_MAX])

    def _put_back(self, batch: Sequence[Waiting]) -> None:
        self._waiting.extendleft(reversed(batch))
        self._waiting_bytes += sum(one.size for one in batch)

    def _mend(self, work: Callable[[], Awaitable[None]]) -> None:
        """Connecting or making partitions: one at a time, and nothing is sent meanwhile."""
        if self._mending is None and not self._closed:
            self._mending = asyncio.get_running_loop().create_task(self._work(work), name="commit.mend")

    async def _work(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (psycopg.Error, DBAPIError, OSError, TimeoutError, Unavailable) as exc:
            logger.warning("commit.unavailable", error=type(exc).__name__)
            refuse(self._take_all(), database_unavailable())
            await asyncio.sleep(MEND_PAUSE_SECONDS)
        finally:
            self._mending = None
        self._send()

    async def _open(self) -> None:
        self._pipeline = await self._connect()

    def _take_all(self) -> list[Waiting]:
        everything = [*(one for part in self._parts for one in part), *self._waiting]
        self._parts.clear()
        self._waiting.clear()
        self._waiting_bytes = 0
        return everything

    def _cut_off(self, before: float) -> None:
        late = Unavailable("the database did not answer in time; send it again", code="commit_timeout")
        if self._flying and self._flying[0][0].since < before:
            refuse([one for batch in self._flying for one in batch], late)
            if self._pipeline is not None:
                self._pipeline.fail("timeout")
        elif self._ping is not None and self._pinged_at < before and self._pipeline is not None:
            self._pipeline.fail("timeout")  # nobody waits in it, and it would take the next receipts for nothing
        for part in self._parts:
            refuse([one for one in part if one.since < before], late)
        while self._waiting and self._waiting[0].since < before:
            one = self._waiting.popleft()
            self._waiting_bytes -= one.size
            refuse([one], late)


def kept(row_id: str, other: tuple[str, bool] | None) -> Kept:
    if other is None or other[0] == row_id:
        return Kept(row_id, True, True)
    return Kept(other[0], False, other[1])


def refuse(batch: Sequence[Waiting], error: Unavailable) -> None:
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(error)


def database_unavailable() -> Unavailable:
    return Unavailable("the database cannot take this now; send it again", code="database_unavailable")
