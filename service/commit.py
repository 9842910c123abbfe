"""Group commit: concurrent receipts share one statement and one commit; each caller waits for its own outcome.

Nothing is answered before the commit that holds it. The queue is bounded; past its bound callers are shed at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from service.errors import AuthwatchError, Unavailable
from service.observe import log as logger
from service.store import log
from service.store.log import Kept, Receipt
from service.store.session import begin

QUEUE_RECEIPTS_MAX = 10_000
QUEUE_BYTES_MAX = 64 * 1024 * 1024
BATCH_RECEIPTS_MAX = 500
BATCH_BYTES_MAX = 8 * 1024 * 1024
# Shorter than the provider's patience (10 s by its documentation), so that it hears 503 and not silence.
COMMIT_WAIT_SECONDS = 8
ATTEMPTS_MAX = 2


class Committer:
    """`commit` from any request; `run` is the one task that talks to the database."""

    def __init__(self, engine: AsyncEngine, on_commit: Callable[[], None]) -> None:
        self._engine = engine
        self._on_commit = on_commit
        self._waiting: deque[tuple[Receipt, asyncio.Future[Kept]]] = deque()
        self._waiting_bytes = 0
        self._wanted = asyncio.Event()

    async def commit(self, receipt: Receipt) -> Kept:
        """Raises `Unavailable` when nothing was kept as far as we know; a later duplicate is then harmless."""
        if len(self._waiting) >= QUEUE_RECEIPTS_MAX or self._waiting_bytes + len(receipt.body) > QUEUE_BYTES_MAX:
            raise Unavailable("too many receipts are waiting for the database; send it again", code="queue_full")
        future: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
        self._waiting.append((receipt, future))
        self._waiting_bytes += len(receipt.body)
        self._wanted.set()
        try:
            async with asyncio.timeout(COMMIT_WAIT_SECONDS):
                return await future
        except TimeoutError as exc:
            raise Unavailable("the database did not answer in time; send it again", code="commit_timeout") from exc

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._waiting:
                await self._flush(self._take())

    def _take(self) -> list[tuple[Receipt, asyncio.Future[Kept]]]:
        batch: list[tuple[Receipt, asyncio.Future[Kept]]] = []
        size = 0
        while self._waiting and len(batch) < BATCH_RECEIPTS_MAX and size < BATCH_BYTES_MAX:
            receipt, future = self._waiting.popleft()
            self._waiting_bytes -= len(receipt.body)
            if not future.done():  # the caller gave up: it has had its 503 and nothing is kept for it
                batch.append((receipt, future))
                size += len(receipt.body)
        return batch

    async def _flush(self, batch: Sequence[tuple[Receipt, asyncio.Future[Kept]]]) -> None:
        if not batch:
            return
        try:
            kept = await self._store([receipt for receipt, _ in batch])
        except Unavailable as exc:
            for _, future in batch:
                if not future.done():
                    future.set_exception(exc)
            return
        except (DBAPIError, AuthwatchError, ValueError) as exc:
            # One bad row never fails its neighbours: each is tried alone, and only the bad one is refused.
            if len(batch) > 1:
                for one in batch:
                    await self._flush([one])
                return
            logger.error(
                "receipt.refused_by_database",
                error=type(exc).__name__,
                sqlstate=getattr(getattr(exc, "orig", None), "sqlstate", None),
            )
            if not batch[0][1].done():
                batch[0][1].set_exception(
                    Unavailable("the database refused this receipt", code="store_refused", retry_after_seconds=60)
                )
            return
        for (_, future), outcome in zip(batch, kept, strict=True):
            if not future.done():
                future.set_result(outcome)
        self._on_commit()

    async def _store(self, receipts: Sequence[Receipt]) -> list[Kept]:
        """Tried twice: a connection that broke since its last use, or a day without its partition, is mended at once.

        The second try after a lost answer is safe: rows of the first that did commit are found by their own ids.
        """
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                async with begin(self._engine) as conn:
                    return await log.accept(conn, receipts)
            except Unavailable:
                if attempt == ATTEMPTS_MAX:
                    raise
            except DBAPIError as exc:
                if attempt == ATTEMPTS_MAX or not log.partition_is_missing(exc):
                    raise
                async with begin(self._engine) as conn:
                    await log.ensure_partitions(conn)
        raise AssertionError("unreachable")
