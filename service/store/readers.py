"""Where each reader of the log stands, under a row lock or a lease; the sinks' own steps are in `shipping.py`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Row, bindparam, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.tables import heartbeats, poison, readers

EVALUATOR = "evaluator"
RETENTION = "retention"  # its position: whatever is at or before it may be gone from the log


async def clock(conn: AsyncConnection) -> datetime:
    """The database's clock, the one that `received_at` is read from."""
    now: datetime = (await conn.execute(CLOCK)).scalar_one()
    return now


TAKE = select(readers.c.position).where(readers.c.name == bindparam("reader")).with_for_update(skip_locked=True)
MOVE = (
    update(readers)
    .where(readers.c.name == bindparam("reader"))
    .values(
        position=bindparam("to"),
        moved_at=func.clock_timestamp(),
        last_ok_at=func.clock_timestamp(),
        failures_in_a_row=0,
        last_code=None,
        last_error=None,
    )
)
CLOCK = select(func.clock_timestamp())


async def take(conn: AsyncConnection, name: str) -> int | None:
    """The reader's position, locked until the transaction ends; None while another process holds it."""
    row = (await conn.execute(TAKE, {"reader": name})).first()
    return row.position if row else None


async def position(conn: AsyncConnection, name: str) -> int:
    return (await conn.execute(select(readers.c.position).where(readers.c.name == name))).scalar_one_or_none() or 0


async def move(conn: AsyncConnection, name: str, to: int) -> None:
    await conn.execute(MOVE, {"reader": name, "to": to})


async def lease(conn: AsyncConnection, name: str, now: datetime, duration: timedelta) -> int | None:
    """Makes the reader's row if it is new (from the log's beginning), then claims it; None while it is claimed or backing off."""
    beginning = func.coalesce(
        select(readers.c.position).where(readers.c.name == RETENTION).scalar_subquery(), literal(0, BigInteger)
    )
    await conn.execute(insert(readers).values(name=name, position=beginning, moved_at=now).on_conflict_do_nothing())
    claimed = await conn.execute(
        update(readers)
        .where(
            readers.c.name == name,
            or_(readers.c.lease_until.is_(None), readers.c.lease_until <= now),
            or_(readers.c.next_attempt_at.is_(None), readers.c.next_attempt_at <= now),
        )
        .values(lease_until=now + duration)
        .returning(readers.c.position)
    )
    row = claimed.first()
    return row.position if row else None


async def pass_over(conn: AsyncConnection, name: str, to: int) -> None:
    """What a sink did not ship in time is going; it reads on after it."""
    await conn.execute(update(readers).where(readers.c.name == name, readers.c.position < to).values(position=to))


async def ran(conn: AsyncConnection, name: str, now: datetime) -> None:
    await conn.execute(update(readers).where(readers.c.name == name).values(moved_at=now, last_ok_at=now))


async def refused(
    conn: AsyncConnection, name: str, now: datetime, next_attempt_at: datetime, code: str, error: str
) -> None:
    await conn.execute(
        update(readers)
        .where(readers.c.name == name)
        .values(
            lease_until=None,
            next_attempt_at=next_attempt_at,
            failures_in_a_row=readers.c.failures_in_a_row + 1,
            last_code=code,
            last_error=error[:500],
        )
    )


async def failures(conn: AsyncConnection, name: str) -> int:
    return (
        await conn.execute(select(readers.c.failures_in_a_row).where(readers.c.name == name))
    ).scalar_one_or_none() or 0


async def all_readers(conn: AsyncConnection) -> list[Row[Any]]:
    return list(await conn.execute(select(readers).order_by(readers.c.name)))


async def poison_counts(conn: AsyncConnection) -> dict[str, int]:
    return {
        row[0]: row[1] for row in await conn.execute(select(poison.c.reader, func.count()).group_by(poison.c.reader))
    }


async def beat(conn: AsyncConnection, part: str, now: datetime, details: dict[str, Any] | None = None) -> None:
    statement = insert(heartbeats).values(part=part, at=now, details=details)
    await conn.execute(statement.on_conflict_do_update(index_elements=("part",), set_={"at": now, "details": details}))


async def beat_details(conn: AsyncConnection, part: str) -> dict[str, Any] | None:
    """What the part said with its last beat; None when it never said anything."""
    found: dict[str, Any] | None = (
        await conn.execute(select(heartbeats.c.details).where(heartbeats.c.part == part))
    ).scalar_one_or_none()
    return found


async def beats(conn: AsyncConnection) -> dict[str, datetime]:
    return {row.part: row.at for row in await conn.execute(select(heartbeats.c.part, heartbeats.c.at))}
