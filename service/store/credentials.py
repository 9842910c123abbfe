"""Orchestrators that no longer take our credentials, read off what waits there to be asked again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ARRAY, DateTime, Integer, Text, bindparam, column, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.asks import KINDS, OF_CREDENTIALS


@dataclass(frozen=True, slots=True)
class Refusing:
    """`waiting`: pauses and resumes that wait there for a mend. `said`: what it answered the last of them, and the mend."""

    destination: str
    waiting: int
    said: str


REFUSING = (
    text(
        """
    SELECT destination, count(*) AS waiting, (array_agg(last_error ORDER BY created_at DESC, id DESC))[1] AS said
    FROM actions
    WHERE state IN ('pending', 'running') AND destination = ANY(:names) AND kind = ANY(:kinds) AND last_code = ANY(:codes)
    GROUP BY destination ORDER BY destination
    """
    )
    .bindparams(
        bindparam("names", type_=ARRAY(Text())),
        bindparam("kinds", list(KINDS), type_=ARRAY(Text())),
        bindparam("codes", list(OF_CREDENTIALS), type_=ARRAY(Text())),
    )
    .columns(column("destination", Text()), column("waiting", Integer()), column("said", Text()))
)


WAITING = text(
    "SELECT count(*) FROM actions WHERE state IN ('pending', 'running') AND kind = ANY(:kinds) AND last_code = ANY(:codes)"
).bindparams(
    bindparam("kinds", list(KINDS), type_=ARRAY(Text())),
    bindparam("codes", list(OF_CREDENTIALS), type_=ARRAY(Text())),
)


async def waiting(conn: AsyncConnection) -> int:
    """Pauses and resumes that wait for a mend, wherever."""
    return int((await conn.execute(WAITING)).scalar_one())


REFUSED_MAX = 200  # orchestrators; each is, or was, a section of the config file
WAITING_BY_DESTINATION = text(
    f"""
    SELECT destination, count(*) FROM actions
    WHERE state IN ('pending', 'running') AND kind = ANY(:kinds) AND last_code = ANY(:codes)
    GROUP BY destination ORDER BY destination LIMIT {REFUSED_MAX}
    """
).bindparams(
    bindparam("kinds", list(KINDS), type_=ARRAY(Text())),
    bindparam("codes", list(OF_CREDENTIALS), type_=ARRAY(Text())),
)


async def waiting_by_destination(conn: AsyncConnection) -> dict[str, int]:
    """The same of each orchestrator that does not take our credentials; one that is not here does, or was not asked."""
    rows = await conn.execute(WAITING_BY_DESTINATION)
    return {row[0]: row[1] for row in rows}


async def refusing(conn: AsyncConnection, names: Collection[str]) -> list[Refusing]:
    rows = await conn.execute(REFUSING, {"names": sorted(names)})
    return [Refusing(row.destination, row.waiting, row.said or "no reason given") for row in rows]


TRIED = (
    text(
        """
    SELECT action_id::text AS id, min(started_at) AS first, max(finished_at) FILTER (WHERE code = ANY(:codes)) AS refused
    FROM attempts WHERE action_id = ANY(CAST(:ids AS uuid[])) GROUP BY action_id
    """
    )
    .bindparams(bindparam("ids", type_=ARRAY(Text())), bindparam("codes", list(OF_CREDENTIALS), type_=ARRAY(Text())))
    .columns(column("id", Text()), column("first", DateTime(timezone=True)), column("refused", DateTime(timezone=True)))
)


async def tried(conn: AsyncConnection, action_ids: Collection[str]) -> dict[str, tuple[datetime, datetime]]:
    """Since when each is tried, and since when without a refusal for our credentials: one that waited in its lane, or for a
    mend, has had none of that time."""
    rows = await conn.execute(TRIED, {"ids": sorted(action_ids)})
    return {row.id: (row.first, max(row.first, row.refused or row.first)) for row in rows}
