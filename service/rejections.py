"""What the front door refused at a known source, kept for whoever has to find out why: never on the way of an answer.

A flood of forged requests must neither fill the database nor hide the genuine ones whose secret we do not know: what is
kept in a second is bounded for each source and reason, each keeps its own share of the bytes, and what is left out is
counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from service.errors import Unavailable
from service.headers import SIGNATURE_HEADERS
from service.limits import RateLimit
from service.observe import log
from service.store import readers
from service.store.rejected import Rejected, count_not_kept, keep, prune, share_of
from service.store.session import begin

KEPT_PER_SECOND_MAX = 20  # of each source and reason, in each process
WAITING_MAX = 100  # of each source and share
BODY_BYTES_KEPT_MAX = 64 * 1024
HEADER_BYTES_KEPT_MAX = 64 * 1024
WRITE_SECONDS = 0.5
BATCH_MAX = 100
# The sweep prunes too; a receiver does it for what it wrote itself, so that the bound holds while no worker runs.
PRUNE_AFTER_BYTES = 5 * 1024 * 1024
KEPT_HEADERS = SIGNATURE_HEADERS | {b"content-type", b"user-agent"}


class Rejections:
    def __init__(self) -> None:
        # By source and share, so that neither pushes out another's while the database is away.
        self._waiting: defaultdict[tuple[str, str], deque[Rejected]] = defaultdict(deque)
        self._not_kept: Counter[tuple[str, str]] = Counter()
        self._limits: dict[tuple[str, str], RateLimit] = {}
        self._bytes_since_prune = 0

    def note(
        self, source: str, reason: str, headers: Sequence[tuple[bytes, bytes]], body: bytes, received_at: datetime
    ) -> None:
        """`source` and `reason` are ours, never a caller's; at most KEPT_PER_SECOND_MAX of each pair are kept."""
        limit = self._limits.setdefault((source, reason), RateLimit(KEPT_PER_SECOND_MAX))
        if not limit.take(time.monotonic()):
            self._not_kept[source, reason] += 1
            return
        waiting = self._waiting[source, share_of(reason)]
        if len(waiting) >= WAITING_MAX:
            oldest = waiting.popleft()
            self._not_kept[source, oldest.reason] += 1
        waiting.append(
            Rejected(
                source=source,
                reason=reason,
                received_at=received_at,
                headers=signature_headers(headers),
                body=body if len(body) <= BODY_BYTES_KEPT_MAX else None,
                body_bytes=len(body),
            )
        )

    async def run(self, engine: AsyncEngine) -> None:
        """For ever: writes what waits. While the database is away it waits, and the oldest go first."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            await self.write(engine)

    async def write(self, engine: AsyncEngine) -> None:
        batch, counts = self._take()
        if not batch and not counts:
            return
        try:
            async with begin(engine) as conn:
                await keep(conn, batch)
                await count_not_kept(conn, counts)
        except (Unavailable, asyncio.CancelledError) as exc:
            self._put_back(batch, counts)
            if isinstance(exc, asyncio.CancelledError):
                raise
            log.warning("rejections.wait", count=sum(map(len, self._waiting.values())))
            return
        except Exception as exc:  # noqa: BLE001 - what helps a diagnosis may be lost, and must not end the task
            self._put_back([], counts + Counter((one.source, one.reason) for one in batch))
            log.error("rejections.not_written", count=len(batch), error=type(exc).__name__, exc_info=exc)
            return
        self._bytes_since_prune += sum(one.stored_bytes for one in batch)
        if self._bytes_since_prune > PRUNE_AFTER_BYTES:
            await self._prune(engine)

    def _take(self) -> tuple[list[Rejected], Counter[tuple[str, str]]]:
        """The oldest of each in turn, and what is to be counted."""
        batch: list[Rejected] = []
        while len(batch) < BATCH_MAX and (waiting := [each for each in self._waiting.values() if each]):
            batch += [each.popleft() for each in waiting[: BATCH_MAX - len(batch)]]
        counts, self._not_kept = self._not_kept, Counter()
        return batch, counts

    def _put_back(self, batch: Sequence[Rejected], counts: Counter[tuple[str, str]]) -> None:
        self._not_kept.update(counts)
        for one in reversed(batch):
            waiting = self._waiting[one.source, share_of(one.reason)]
            if len(waiting) < WAITING_MAX:
                waiting.appendleft(one)
            else:
                self._not_kept[one.source, one.reason] += 1

    async def _prune(self, engine: AsyncEngine) -> None:
        try:
            async with begin(engine) as conn:
                await prune(conn, await readers.clock(conn))
            self._bytes_since_prune = 0
        except Exception as exc:  # noqa: BLE001 - tried again after the next batch
            log.error("rejections.not_pruned", error=type(exc).__name__, exc_info=exc)


def signature_headers(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """What a verification needs and a diagnosis helps; nothing else of an unknown caller's is kept."""
    kept: dict[str, str] = {}
    left = HEADER_BYTES_KEPT_MAX
    for name, value in headers:
        if name not in KEPT_HEADERS:
            continue
        left -= len(name) + len(value)
        if left >= 0:
            kept.setdefault(name.decode("latin-1"), value.decode("latin-1").replace("\x00", ""))
    return kept


def diagnosis(reason: str) -> str | None:
    """What most likely happened, and the mend."""
    return DIAGNOSES.get(reason)


DIAGNOSES = {
    "signature_wrong": "Fresh and well-formed, but made with no secret we have: the secret was probably rotated at the"
    " provider. Put the new one in, then run `authwatch replay --rejected`.",
    "signature_missing": "Without the three signature headers: not the provider, or a proxy on the way drops them.",
    "signature_malformed": "The signature header is not one of Standard Webhooks: not the provider, or a proxy changes it.",
    "timestamp_too_old": "Signed over five minutes ago: the sender's clock or ours is wrong, or somebody replays requests.",
    "timestamp_in_future": "Signed over five minutes ahead: the sender's clock or ours is wrong.",
}
