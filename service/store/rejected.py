"""Requests that a known source's front door refused, and quarantined receipts: listed, replayed, bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Row,
    Table,
    Text,
    Uuid,
    and_,
    case,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import BigInteger

from service.store.tables import Instant, conflicts, events, metadata, receipts

KEPT_BYTES_MAX = (
    50 * 1024 * 1024
)  # of each source, in shares: what anyone can send must not push out what may be genuine
KEPT_FOR = timedelta(hours=24)
ROW_BYTES = 512  # what a row costs beside what it holds, so that the bytes bound the rows too
PRUNE_LOCK = 7_305_201_007
PRUNED_MAX = 10_000  # rows a sweep takes out at once
# No secret mends the rest: a missing, doubled or malformed header, a time that was wrong, a refusal by the second gate.
MENDABLE = ("signature_wrong", "no_secret")
CLOCK = ("timestamp_too_old", "timestamp_in_future")
SHARES = {"mendable": 0.6, "clock": 0.2, "other": 0.2}

rejected = Table(
    "rejected",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("source", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("headers", JSONB, nullable=False),
    Column("body", LargeBinary),  # null when it was larger than is kept
    Column("body_bytes", Integer, nullable=False),
    Index("ix_rejected_source_received_at", "source", "received_at"),
)
# What a limit of rate or bytes left out, counted by the hour.
not_kept = Table(
    "rejected_not_kept",
    metadata,
    Column("source", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("hour", Instant, nullable=False),
    Column("requests", BigInteger, nullable=False),
    PrimaryKeyConstraint("source", "reason", "hour"),
)
# A quarantined receipt that could be read later, and the event it became.
replays = Table(
    "replays",
    metadata,
    Column("event_row_id", Uuid(as_uuid=False), primary_key=True),
    Column("replayed_as", Uuid(as_uuid=False), nullable=False),
    Column("at", Instant, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """`received_at` by the receiver's clock, to which its timestamp was held."""

    source: str
    reason: str
    received_at: datetime
    headers: Mapping[str, str]
    body: bytes | None
    body_bytes: int

    @property
    def stored_bytes(self) -> int:
        """At most; nearly what `prune` counts."""
        return ROW_BYTES + len(self.body or b"") + sum(len(name) + len(value) for name, value in self.headers.items())


async def keep(conn: AsyncConnection, batch: Sequence[Rejected]) -> None:
    if batch:
        names = ("source", "reason", "received_at", "headers", "body", "body_bytes")
        await conn.execute(insert(rejected), [{name: getattr(one, name) for name in names} for one in batch])


def share_of(reason: str) -> str:
    """Which part of its source's bytes it takes."""
    return "mendable" if reason in MENDABLE else "clock" if reason in CLOCK else "other"


async def count_not_kept(conn: AsyncConnection, counts: Mapping[tuple[str, str], int]) -> None:
    """By source and reason; in one order for everybody, since rows are locked in it."""
    if not counts:
        return
    statement = insert(not_kept)
    await conn.execute(
        statement.values(hour=func.date_trunc("hour", func.now())).on_conflict_do_update(
            index_elements=("source", "reason", "hour"),
            set_={"requests": not_kept.c.requests + statement.excluded.requests},
        ),
        [{"source": source, "reason": reason, "requests": count} for (source, reason), count in sorted(counts.items())],
    )


async def prune(conn: AsyncConnection, now: datetime) -> int:
    """Takes out what is over a day old, and each source's oldest beyond the bytes of their share; how many rows. One at
    a time does it."""
    if not (await conn.execute(select(func.pg_try_advisory_xact_lock(PRUNE_LOCK)))).scalar_one():
        return 0
    old = select(rejected.c.id).where(rejected.c.received_at < now - KEPT_FOR).limit(PRUNED_MAX)
    gone = (await conn.execute(delete(rejected).where(rejected.c.id.in_(old)))).rowcount
    newer_bytes = func.sum(
        # Neither is read for it: the length of stored bytes and the size of a stored value are in the row itself.
        func.coalesce(func.length(rejected.c.body), 0) + func.pg_column_size(rejected.c.headers) + ROW_BYTES
    )
    share = case((rejected.c.reason.in_(MENDABLE), "mendable"), (rejected.c.reason.in_(CLOCK), "clock"), else_="other")
    sized = select(
        rejected.c.id,
        share.label("share"),
        newer_bytes.over(
            partition_by=(rejected.c.source, share), order_by=(rejected.c.received_at.desc(), rejected.c.id.desc())
        ).label("bytes"),
    ).subquery()
    most = case({name: int(KEPT_BYTES_MAX * part) for name, part in SHARES.items()}, value=sized.c.share)
    beyond = select(sized.c.id).where(sized.c.bytes > most).limit(PRUNED_MAX)
    taken = await conn.execute(
        delete(rejected).where(rejected.c.id.in_(beyond)).returning(rejected.c.source, rejected.c.reason)
    )
    left_out = Counter((row.source, row.reason) for row in taken)
    await count_not_kept(conn, left_out)
    await conn.execute(delete(not_kept).where(not_kept.c.hour < now - KEPT_FOR - timedelta(hours=1)))
    return int(gone + left_out.total())


async def listed(
    conn: AsyncConnection,
    *,
    source: str | None,
    reason: str | None,
    since: datetime | None,
    before: tuple[datetime, int] | None = None,
    limit: int,
) -> Sequence[Row[Any]]:
    """Newest first, without headers and bodies."""
    query = select(
        rejected.c.id, rejected.c.source, rejected.c.reason, rejected.c.received_at, rejected.c.body_bytes
    ).order_by(rejected.c.received_at.desc(), rejected.c.id.desc())
    if before is not None:
        query = query.where(func.row(rejected.c.received_at, rejected.c.id) < func.row(*before))
    return (await conn.execute(narrowed(query, source, reason, since).limit(limit))).all()


async def summary(
    conn: AsyncConnection, *, source: str | None, reason: str | None, since: datetime | None
) -> Sequence[Row[Any]]:
    """(source, reason, requests, first_at, last_at), most frequent first."""
    query = select(
        rejected.c.source,
        rejected.c.reason,
        func.count().label("requests"),
        func.min(rejected.c.received_at).label("first_at"),
        func.max(rejected.c.received_at).label("last_at"),
    ).group_by(rejected.c.source, rejected.c.reason)
    return (await conn.execute(narrowed(query, source, reason, since).order_by(func.count().desc()).limit(100))).all()


async def left_out(
    conn: AsyncConnection, *, source: str | None, reason: str | None, since: datetime | None
) -> dict[tuple[str, str], int]:
    """How many were not kept, by source and reason; counted by whole hours."""
    query = select(not_kept.c.source, not_kept.c.reason, func.sum(not_kept.c.requests))
    if source is not None:
        query = query.where(not_kept.c.source == source)
    if reason is not None:
        query = query.where(not_kept.c.reason == reason)
    if since is not None:
        query = query.where(not_kept.c.hour > since - timedelta(hours=1))
    found = await conn.execute(query.group_by(not_kept.c.source, not_kept.c.reason))
    return {(row[0], row[1]): int(row[2]) for row in found}


def narrowed(query: Any, source: str | None, reason: str | None, since: datetime | None) -> Any:
    if source is not None:
        query = query.where(rejected.c.source == source)
    if reason is not None:
        query = query.where(rejected.c.reason == reason)
    return query.where(rejected.c.received_at >= since) if since is not None else query


async def to_verify_again(
    conn: AsyncConnection, *, after_id: int, source: str | None, since: datetime | None, limit: int
) -> Sequence[Row[Any]]:
    """Whole ones that another secret may verify, oldest first, locked: two replays at once never take the same."""
    query = (
        select(rejected)
        .where(rejected.c.id > after_id, rejected.c.body.is_not(None), rejected.c.reason.in_(MENDABLE))
        .order_by(rejected.c.id)
    )
    return (
        await conn.execute(narrowed(query, source, None, since).limit(limit).with_for_update(skip_locked=True))
    ).all()


async def forget(conn: AsyncConnection, ids: Sequence[int]) -> None:
    if ids:
        await conn.execute(delete(rejected).where(rejected.c.id.in_(list(ids))))


async def quarantined(
    conn: AsyncConnection,
    *,
    source: str | None = None,
    since: datetime | None = None,
    event_row_id: str | None = None,
    before: tuple[datetime, int] | None = None,
    after: tuple[datetime, int] | None = None,
    limit: int,
    waiting_only: bool = False,
) -> Sequence[Row[Any]]:
    """Receipts of quarantined events with what they were replayed as; newest first, or oldest first after `after`.

    Headers and body come only with `waiting_only`: a page of a thousand bodies would be a gigabyte."""
    query = (
        select(
            events.c.id,
            events.c.position,
            events.c.source,
            events.c.received_at,
            events.c.details,
            *((receipts.c.headers, receipts.c.body) if waiting_only else ()),
            func.length(receipts.c.body).label("body_bytes"),
            receipts.c.body_sha256,
            receipts.c.secret_name,
            receipts.c.attempted_at,
            func.coalesce(receipts.c.first_received_at, receipts.c.received_at).label("came_at"),
            events.c.event_id,
            replays.c.replayed_as,
        )
        .join(
            receipts,
            and_(receipts.c.event_row_id == events.c.id, receipts.c.received_at == events.c.received_at),
        )
        .outerjoin(replays, replays.c.event_row_id == events.c.id)
        .where(events.c.kind == "quarantine")
    )
    if source is not None:
        query = query.where(events.c.source == source)
    if since is not None:
        query = query.where(events.c.received_at >= since)
    if event_row_id is not None:
        query = query.where(events.c.id == event_row_id)
    if waiting_only:
        query = query.where(replays.c.event_row_id.is_(None))
    place = (events.c.received_at, events.c.position)
    if before is not None:
        query = query.where(func.row(*place) < func.row(*before))
    if after is not None:
        query = query.where(func.row(*place) > func.row(*after))
    newest_first = after is None
    query = query.order_by(*(column.desc() if newest_first else column for column in place)).limit(limit)
    rows: Sequence[Row[Any]] = (await conn.execute(query)).all()  # type: ignore[assignment]
    return rows


async def replayed(conn: AsyncConnection, event_row_id: str, replayed_as: str, at: datetime) -> None:
    await conn.execute(
        insert(replays)
        .values(event_row_id=event_row_id, replayed_as=replayed_as, at=at)
        .on_conflict_do_nothing(index_elements=("event_row_id",))
    )


async def came(conn: AsyncConnection, event_row_id: str, body_sha256: bytes, at: datetime) -> None:
    """Of a request that this transaction took in: when it came. Whether it was the first of its event or another body
    under its identity; where it was there already nothing is changed."""
    for table in (receipts, conflicts):
        await conn.execute(
            update(table)
            .where(
                table.c.event_row_id == event_row_id,
                table.c.body_sha256 == body_sha256,
                table.c.received_at >= func.now(),  # the transaction's start
                table.c.received_at > at,
            )
            .values(first_received_at=at)
        )
