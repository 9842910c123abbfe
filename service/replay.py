"""What was put aside is taken in after a mend: quarantined receipts that an adapter can read now, rejected requests that
a live secret verifies now, as of when they were received.

What is taken has the origin `recovery`: it waited for us and not for its sender, so its lag is no sign of late delivery.
Our own probe stays a probe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncEngine

from service.errors import PayloadUnreadable, SignatureInvalid
from service.event import ProviderEvent, judge_clock
from service.sources import Source
from service.store import log, readers, rejected
from service.store.log import Receipt
from service.store.session import begin

BATCH_MAX = 100
BATCHES_MAX = 100_000
ORIGIN = "recovery"


@dataclass(slots=True)
class Replayed:
    """`left` counts by the reason why."""

    looked_at: int = 0
    taken: int = 0
    known: int = 0
    left: dict[str, int] = field(default_factory=dict)

    def leave(self, reason: str) -> None:
        self.left[reason] = self.left.get(reason, 0) + 1


async def replay_quarantined(
    engine: AsyncEngine,
    sources: Mapping[str, Source],
    *,
    source: str | None = None,
    since: datetime | None = None,
    event_row_id: str | None = None,
    dry_run: bool = False,
    progress: Callable[[Replayed], None] = lambda _: None,
) -> Replayed:
    """Oldest first, a transaction for each batch: killed in the middle and run again, nothing is taken twice."""
    done = Replayed()
    after = (datetime(2000, 1, 1, tzinfo=UTC), 0)
    for _ in range(BATCHES_MAX):
        async with begin(engine) as conn:
            rows = await rejected.quarantined(
                conn,
                source=source,
                since=since,
                event_row_id=event_row_id,
                after=after,
                limit=BATCH_MAX,
                waiting_only=True,
            )
            now = await readers.clock(conn)
            read = [(row, receipt) for row in rows if (receipt := read_again(row, sources, now, done)) is not None]
            if read and not dry_run:
                kept = await log.accept(conn, [receipt for _, receipt in read])
                for (row, receipt), one in zip(read, kept, strict=True):
                    await rejected.came(conn, one.id, receipt.body_sha256, row.came_at)
                    await rejected.replayed(conn, str(row.id), one.id, now)
                    done.known += not one.accepted
        done.looked_at += len(rows)
        done.taken += len(read)
        progress(done)
        if len(rows) < BATCH_MAX:
            break
        after = (rows[-1].received_at, rows[-1].position)
    return done


def read_again(row: Row[Any], sources: Mapping[str, Source], now: datetime, done: Replayed) -> Receipt | None:
    found = sources.get(row.source)
    if found is None:
        done.leave("source_gone")
        return None
    try:
        event = found.provider.normalise(row.body, row.event_id or "")
    except PayloadUnreadable as exc:
        done.leave(exc.code)
        return None
    return make_receipt(found, row.event_id or "", event, row, row.secret_name, row.attempted_at, now)


async def replay_rejected(
    engine: AsyncEngine,
    sources: Mapping[str, Source],
    *,
    source: str | None = None,
    since: datetime | None = None,
    dry_run: bool = False,
    progress: Callable[[Replayed], None] = lambda _: None,
) -> Replayed:
    """What verifies now goes in and leaves the store in one transaction; the rest stays for its day."""
    done = Replayed()
    after_id = 0
    for _ in range(BATCHES_MAX):
        async with begin(engine) as conn:
            rows = await rejected.to_verify_again(conn, after_id=after_id, source=source, since=since, limit=BATCH_MAX)
            genuine = [(row, receipt) for row in rows if (receipt := verify_again(row, sources, done)) is not None]
            if genuine and not dry_run:
                kept = await log.accept(conn, [receipt for _, receipt in genuine])
                for (row, receipt), one in zip(genuine, kept, strict=True):
                    await rejected.came(conn, one.id, receipt.body_sha256, row.received_at)
                    done.known += not one.accepted
                await rejected.forget(conn, [row.id for row, _ in genuine])
        done.looked_at += len(rows)
        done.taken += len(genuine)
        progress(done)
        if len(rows) < BATCH_MAX:
            break
        after_id = rows[-1].id
    return done


def verify_again(row: Row[Any], sources: Mapping[str, Source], done: Replayed) -> Receipt | None:
    found = sources.get(row.source)
    if found is None:
        done.leave("source_gone")
        return None
    headers = [
        (name.encode("latin-1", "replace"), text.encode("latin-1", "replace")) for name, text in row.headers.items()
    ]
    try:
        # Our own verifier alone: the SDK as a second gate knows no time but now, and would refuse what waited.
        verified = found.provider.verify(headers, row.body, found.secrets, row.received_at)
    except SignatureInvalid as exc:
        done.leave(exc.code)
        return None
    try:
        event = found.provider.normalise(row.body, verified.message_id)
    except PayloadUnreadable as exc:
        event = ProviderEvent(
            event_id=verified.message_id, type="quarantine", kind="quarantine", details={"reason": exc.code}
        )
    return make_receipt(
        found, verified.message_id, event, row, verified.secret_name, verified.attempted_at, row.received_at
    )


def make_receipt(
    source: Source,
    message_id: str,
    event: ProviderEvent,
    row: Row[Any],
    secret_name: str | None,
    attempted_at: datetime | None,
    now: datetime,
) -> Receipt:
    occurred_at, suspect = judge_clock(event.occurred_at, now)
    return Receipt(
        source=source.name,
        origin="probe" if source.origin_of(message_id) == "probe" else ORIGIN,
        event=replace(event, occurred_at=occurred_at),
        clock_suspect=suspect,
        headers=row.headers,
        body=row.body,
        body_sha256=hashlib.sha256(row.body).digest(),
        secret_name=secret_name,
        attempted_at=attempted_at,
    )
