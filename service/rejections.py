"""What the front door refused at a known source, kept for whoever has to find out why: never on the way of an answer.

A flood of forged requests must neither fill the database nor hide the genuine ones whose secret we do not know: what is
kept in a second is bounded for each source and reason, and each keeps its own share.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from service.errors import Unavailable
from service.headers import SIGNATURE_HEADERS
from service.limits import RateLimit
from service.observe import log
from service.store import readers
from service.store.rejected import Rejected, keep, prune
from service.store.session import begin

KEPT_PER_SECOND_MAX = 20  # of each source and reason, in each process
WAITING_MAX = 400
BODY_BYTES_KEPT_MAX = 64 * 1024
HEADER_BYTES_KEPT_MAX = 64 * 1024
WRITE_SECONDS = 0.5
BATCH_MAX = 100
# The sweep prunes too; a receiver does it for what it wrote itself, so that the bound holds while no worker runs.
PRUNE_AFTER_BYTES = 5 * 1024 * 1024
KEPT_HEADERS = SIGNATURE_HEADERS | {b"content-type", b"user-agent"}


class Rejections:
    def __init__(self) -> None:
        self._waiting: deque[Rejected] = deque(maxlen=WAITING_MAX)
        self._limits: dict[tuple[str, str], RateLimit] = {}
        self._bytes_since_prune = 0

    def note(
        self, source: str, reason: str, headers: Sequence[tuple[bytes, bytes]], body: bytes, received_at: datetime
    ) -> None:
        """`source` and `reason` are ours, never a caller's; at most KEPT_PER_SECOND_MAX of each pair are kept."""
        limit = self._limits.setdefault((source, reason), RateLimit(KEPT_PER_SECOND_MAX))
        if not limit.take(time.monotonic()):
            return
        self._waiting.append(
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
        batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
        if not batch:
            return
        try:
            async with begin(engine) as conn:
                await keep(conn, batch)
        except (Unavailable, asyncio.CancelledError) as exc:
            self._waiting.extendleft(reversed(batch[: WAITING_MAX - len(self._waiting)]))
            if isinstance(exc, asyncio.CancelledError):
                raise
            log.warning("rejections.wait", count=len(self._waiting))
            return
        except Exception as exc:  # noqa: BLE001 - what helps a diagnosis may be lost, and must not end the task
            log.error("rejections.not_written", count=len(batch), error=type(exc).__name__, exc_info=exc)
            return
        self._bytes_since_prune += sum(one.stored_bytes for one in batch)
        if self._bytes_since_prune > PRUNE_AFTER_BYTES:
            await self._prune(engine)

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
