"""Silences as rows: made, ended, listed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.routing.intervals import Clock, TimeInterval
from service.routing.matchers import read_matchers
from service.routing.mute import Silence
from service.store.routing_tables import silences

SILENCES_MAX = 1_000  # that are not over
EXPIRED_KEPT = timedelta(days=30)
LIST_MAX = 1_000


LIVE = (
    select(silences)
    .where(silences.c.end_at > bindparam("now"))
    .order_by(silences.c.created_at, silences.c.id)
    .limit(2 * SILENCES_MAX)
)


async def live(conn: AsyncConnection, now: datetime) -> list[Silence]:
    """Those that are not over, pending ones too; oldest first."""
    return [to_silence(row) for row in await conn.execute(LIVE, {"now": now})]


async def live_on_pauses(conn: AsyncConnection, now: datetime) -> list[Silence]:
    """Those of them that keep pauses from being placed."""
    rows = await conn.execute(
        select(silences).where(silences.c.end_at > now, silences.c.mutes_pauses).limit(2 * SILENCES_MAX)
    )
    return [to_silence(row) for row in rows]


async def listed(conn: AsyncConnection, limit: int = LIST_MAX) -> list[Silence]:
    """Newest first, expired ones included."""
    rows = await conn.execute(
        select(silences).order_by(silences.c.created_at.desc(), silences.c.id.desc()).limit(limit)
    )
    return [to_silence(row) for row in rows]


async def load(conn: AsyncConnection, silence_id: str, *, locked: bool = False) -> Silence | None:
    query = select(silences).where(silences.c.id == silence_id)
    row = (await conn.execute(query.with_for_update() if locked else query)).first()
    return to_silence(row) if row else None


async def load_many(conn: AsyncConnection, ids: Sequence[str]) -> dict[str, Silence]:
    if not ids:
        return {}
    rows = await conn.execute(select(silences).where(silences.c.id.in_(list(ids))))
    return {row.id: to_silence(row) for row in rows}


async def count_live(conn: AsyncConnection, now: datetime) -> int:
    return int((await conn.execute(select(func.count()).where(silences.c.end_at > now))).scalar_one())


async def declared_live(conn: AsyncConnection, now: datetime) -> set[str]:
    rows = await conn.execute(select(silences.c.id).where(silences.c.declared, silences.c.end_at > now))
    return {row.id for row in rows}


async def save(conn: AsyncConnection, silence: Silence, intervals: Sequence[TimeInterval]) -> None:
    """Made, or in force again. Those that have been over for long go."""
    values: dict[str, Any] = {
        "matchers": [str(matcher) for matcher in silence.matchers],
        "start_at": silence.start,
        "end_at": silence.end,
        "author": silence.author,
        "comment": silence.comment,
        "time_intervals": [interval.model_dump(mode="json") for interval in intervals] or None,
        "mutes_pauses": silence.mutes_pauses,
        "declared": silence.declared,
    }
    statement = insert(silences).values(id=silence.id, created_at=silence.created_at, **values)
    await conn.execute(statement.on_conflict_do_update(index_elements=("id",), set_=values))
    await conn.execute(delete(silences).where(silences.c.end_at < silence.created_at - EXPIRED_KEPT))


async def end(conn: AsyncConnection, ids: Sequence[str], now: datetime) -> None:
    """Over from now on; one that had not begun never begins."""
    await conn.execute(
        update(silences)
        .where(silences.c.id.in_(list(ids)), silences.c.end_at > now)
        .values(end_at=now, start_at=func.least(silences.c.start_at, now))
    )


def to_silence(row: Row[Any]) -> Silence:
    intervals = [TimeInterval.model_validate(value) for value in row.time_intervals or ()]
    clock = Clock(tuple(part for interval in intervals for part in interval.time_intervals)) if intervals else None
    return Silence(
        id=row.id,
        matchers=read_matchers(row.matchers),
        start=row.start_at,
        end=row.end_at,
        author=row.author,
        comment=row.comment,
        created_at=row.created_at,
        clock=clock,
        time_intervals=tuple(interval.name for interval in intervals),
        mutes_pauses=row.mutes_pauses,
        declared=row.declared,
    )
