"""Where each sink stands in the log, under a lease; what it refused for good, and what it was perhaps sent twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Row, and_, bindparam, delete, func, literal, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import Event
from service.store import log
from service.store.readers import RETENTION
from service.store.tables import Instant, events, poison, readers

PREFIX = "sink:"
REASON_CHARS_MAX = 500
PAGE_ROWS_MIN, PAGES_MAX = 200, 50  # of a sink that wants little: so many rows are passed over in one transaction
ITEMS_COUNTED_MAX = 1_000_000
# A sink that failed so often is asked with few items, until it takes them.
BREAKER_FAILURES = 5


def reader_name(sink: str) -> str:
    return PREFIX + sink


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A sink that is ours until `until`. `in_doubt`: so many of the items after `position` may have arrived already;
    `refused_in_a_row`: items it refused since it last took one."""

    name: str
    position: int
    until: datetime
    failures_in_a_row: int
    last_code: str | None
    refused_in_a_row: int
    in_doubt: int


class Page(NamedTuple):
    """What is to be sent next, and up to where the log is dealt with once it is."""

    items: list[Event]
    upto: int


class Behind(NamedTuple):
    """A sink that stood at `position` since `moved_at`, while the log lost what comes after it, up to `floor`."""

    sink: str
    position: int
    floor: int
    moved_at: datetime


class Bad(NamedTuple):
    position: int
    event_row_id: str
    reason: str


retention = readers.alias("retention")
PRUNED = (
    select(readers.c.name, readers.c.position, retention.c.position.label("floor"), readers.c.moved_at)
    .join(retention, and_(retention.c.name == RETENTION, retention.c.position > readers.c.position))
    .where(readers.c.name.in_(bindparam("names", expanding=True)))
    .order_by(readers.c.name)
)
# As of when the lock is granted: another worker may have said it meanwhile.
PRUNED_LOCKED = PRUNED.with_for_update(of=readers)


async def is_pruned(conn: AsyncConnection, sink: str) -> bool:
    """Whether the log has dropped some of what this sink has not passed yet."""
    return (await conn.execute(PRUNED, {"names": [reader_name(sink)]})).first() is not None


async def skip_pruned(conn: AsyncConnection, sinks: Sequence[str], now: datetime) -> list[Behind]:
    """Moves those sinks to where the log begins, and says which they were and where they stood."""
    rows = (await conn.execute(PRUNED_LOCKED, {"names": [reader_name(sink) for sink in sinks]})).all()
    found = [Behind(row.name.removeprefix(PREFIX), row.position, row.floor, row.moved_at) for row in rows]
    for behind in found:
        await conn.execute(
            update(readers)
            .where(readers.c.name == reader_name(behind.sink))
            .values(position=behind.floor, moved_at=now, in_doubt=0)
        )
    return found


async def claim(conn: AsyncConnection, name: str, now: datetime, duration: timedelta) -> Claimed | None:
    """Makes the sink's row if it is new (from the log's beginning); None while it is claimed or backing off."""
    beginning = func.coalesce(
        select(readers.c.position).where(readers.c.name == RETENTION).scalar_subquery(), literal(0, BigInteger)
    )
    await conn.execute(insert(readers).values(name=name, position=beginning, moved_at=now).on_conflict_do_nothing())
    row = (
        await conn.execute(
            update(readers)
            .where(
                readers.c.name == name,
                or_(readers.c.lease_until.is_(None), readers.c.lease_until <= now),
                or_(readers.c.next_attempt_at.is_(None), readers.c.next_attempt_at <= now),
            )
            # Whoever had it before and never said what became of it may have sent it.
            .values(
                lease_until=now + duration,
                sent_again=readers.c.sent_again + readers.c.again_under_way,
                again_under_way=0,
            )
            .returning(readers)
        )
    ).first()
    if row is None:
        return None
    return Claimed(
        name=name,
        position=row.position,
        until=row.lease_until,
        failures_in_a_row=row.failures_in_a_row,
        last_code=row.last_code,
        refused_in_a_row=row.refused_in_a_row,
        in_doubt=row.in_doubt,
    )


async def next_page(conn: AsyncConnection, position: int, wants: Callable[[Event], bool], most: int) -> Page:
    """At most `most` items that are wanted, in the log's order; nothing that is wanted lies before `upto` but they."""
    items: list[Event] = []
    rows_max = max(most, PAGE_ROWS_MIN)
    for _ in range(PAGES_MAX):
        rows = await log.read_after(conn, position, rows_max)
        for row in rows:
            if len(items) == most:
                return Page(items, position)
            if wants(row):
                items.append(row)
            position = row.position
        if len(rows) < rows_max:
            break
    return Page(items, position)


def ours(claimed: Claimed) -> Any:
    """A lease that ran out is somebody else's."""
    return and_(readers.c.name == claimed.name, readers.c.lease_until == claimed.until)


async def sending(conn: AsyncConnection, claimed: Claimed, items: int) -> None:
    """Before they go: should we end now, whoever comes next knows that so many may have arrived, and how many of them
    for one more time."""
    await conn.execute(
        update(readers)
        .where(ours(claimed))
        .values(in_doubt=max(items, claimed.in_doubt), again_under_way=min(items, claimed.in_doubt))
    )


# Whoever moved the position meanwhile (`replay`) is not undone.
SHIPPED = text(
    """
    UPDATE readers SET lease_until = NULL, next_attempt_at = NULL, failures_in_a_row = 0, last_code = NULL,
        last_error = NULL, last_ok_at = :now,
        refused_in_a_row = CASE WHEN position = :was THEN :refused ELSE refused_in_a_row END,
        in_doubt = CASE WHEN position = :was THEN :in_doubt ELSE in_doubt END,
        moved_at = CASE WHEN position = :was THEN :now ELSE moved_at END,
        sent_again = sent_again + :again,
        again_under_way = 0,
        position = CASE WHEN position = :was THEN :upto ELSE position END
    WHERE name = :name AND lease_until = :until
    """
).bindparams(bindparam("now", type_=Instant), bindparam("until", type_=Instant))


async def shipped(
    conn: AsyncConnection,
    claimed: Claimed,
    upto: int,
    now: datetime,
    *,
    items: int = 0,
    bad: Sequence[Bad] = (),
    refused_in_a_row: int = 0,
    in_doubt: int = 0,
) -> None:
    """The sink took `items` up to `upto`, but for `bad`, which is put aside; `in_doubt` of what comes next may have arrived.
    What was put aside there before, and is taken now, no longer is. Nothing of it is written once the lease is lost:
    somebody else sends the same items, and says what became of them."""
    moved = await conn.execute(
        SHIPPED,
        {
            "name": claimed.name,
            "until": claimed.until,
            "was": claimed.position,
            "upto": upto,
            "now": now,
            "refused": refused_in_a_row,
            "in_doubt": max(in_doubt, claimed.in_doubt - items) if items else claimed.in_doubt,
            "again": min(items + in_doubt, claimed.in_doubt) if items else 0,
        },
    )
    if not moved.rowcount:
        return
    await conn.execute(
        delete(poison).where(
            poison.c.reader == claimed.name, poison.c.position > claimed.position, poison.c.position <= upto
        )
    )
    if bad:
        await conn.execute(
            insert(poison).on_conflict_do_nothing(),
            [
                {
                    "reader": claimed.name,
                    "position": one.position,
                    "event_row_id": one.event_row_id,
                    "reason": one.reason[:REASON_CHARS_MAX],
                    "at": now,
                }
                for one in bad
            ],
        )


async def idle(conn: AsyncConnection, claimed: Claimed, now: datetime) -> None:
    """There is nothing to send."""
    await conn.execute(update(readers).where(ours(claimed)).values(lease_until=None, last_ok_at=now))


async def failed(
    conn: AsyncConnection,
    claimed: Claimed,
    next_attempt_at: datetime,
    code: str,
    error: str,
    *,
    in_doubt: int,
) -> None:
    """`in_doubt`: items of this try that may have arrived. Those of a try before it stay so."""
    await conn.execute(
        update(readers)
        .where(ours(claimed))
        .values(
            lease_until=None,
            next_attempt_at=next_attempt_at,
            failures_in_a_row=readers.c.failures_in_a_row + 1,
            last_code=code,
            last_error=error[:REASON_CHARS_MAX],
            in_doubt=max(claimed.in_doubt, in_doubt),
            sent_again=readers.c.sent_again + (readers.c.again_under_way if in_doubt else 0),
            again_under_way=0,
        )
    )


async def let_go(conn: AsyncConnection, claimed: Claimed) -> None:
    """We end in the middle of it; what was sent stays in doubt."""
    await conn.execute(update(readers).where(ours(claimed)).values(lease_until=None))


async def states(conn: AsyncConnection, sinks: Sequence[str]) -> dict[str, Row[Any]]:
    """By the sink's name; one that never shipped has no row."""
    names = [reader_name(sink) for sink in sinks]
    rows = await conn.execute(select(readers).where(readers.c.name.in_(names)))
    return {row.name.removeprefix(PREFIX): row for row in rows}


async def replay(conn: AsyncConnection, sink: str, to: int, now: datetime) -> int:
    """Moves the sink back to `to`, from where it goes on at once; how many rows of the log lie between, counted up to
    ITEMS_COUNTED_MAX. Whoever sends meanwhile finishes that and moves nothing."""
    name = reader_name(sink)
    was = (await conn.execute(select(readers.c.position).where(readers.c.name == name).with_for_update())).scalar_one()
    count = await count_between(conn, to, was)
    await conn.execute(
        update(readers)
        .where(readers.c.name == name)
        .values(
            position=to,
            moved_at=now,
            next_attempt_at=None,
            failures_in_a_row=0,
            refused_in_a_row=0,
            in_doubt=0,
            sent_again=readers.c.sent_again + count,
        )
    )
    return count


async def count_between(conn: AsyncConnection, after: int, upto: int) -> int:
    """Rows of the log, counted up to ITEMS_COUNTED_MAX."""
    between = select(events.c.position).where(events.c.position > after, events.c.position <= upto)
    counted = select(func.count()).select_from(between.limit(ITEMS_COUNTED_MAX).subquery())
    return int((await conn.execute(counted)).scalar_one())


async def put_aside(
    conn: AsyncConnection, *, sink: str | None, before: tuple[datetime, str, int] | None, limit: int
) -> list[Row[Any]]:
    """Newest first; `before` is (at, reader, position) of the last one seen."""
    query = select(poison).where(poison.c.reader.startswith(PREFIX))
    if sink is not None:
        query = query.where(poison.c.reader == reader_name(sink))
    if before is not None:
        query = query.where(tuple_(poison.c.at, poison.c.reader, poison.c.position) < before)
    newest = query.order_by(poison.c.at.desc(), poison.c.reader.desc(), poison.c.position.desc()).limit(limit)
    return list(await conn.execute(newest))


async def put_aside_since(conn: AsyncConnection, since: datetime) -> dict[str, int]:
    """By the sink's name."""
    rows = await conn.execute(
        select(poison.c.reader, func.count()).where(poison.c.at >= since).group_by(poison.c.reader)
    )
    return {row[0].removeprefix(PREFIX): row[1] for row in rows}
