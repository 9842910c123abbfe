"""Quarantined events that wait for a replay, counted by source: few columns, bounded, by the index of their kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

COUNTED_MAX = 10_000  # of the newest, over all sources

WAITING = text(
    """
    SELECT source, count(*) AS requests, min(received_at) AS first_at,
        (array_agg(reason ORDER BY received_at DESC))[1] AS reason
    FROM (
        SELECT id, source, received_at, details ->> 'reason' AS reason FROM events
        WHERE kind = 'quarantine' AND origin <> 'probe' AND received_at >= :since AND received_at < :until
        ORDER BY received_at DESC LIMIT :counted
    ) AS newest
    WHERE NOT EXISTS (SELECT FROM replays r WHERE r.event_row_id = newest.id) GROUP BY source ORDER BY source
    """
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """`reason`: of the newest, why it could not be read."""

    source: str
    requests: int
    first_at: datetime
    reason: str | None


async def waiting(conn: AsyncConnection, since: datetime, until: datetime) -> Sequence[Waiting]:
    """Received in [since, until) and not replayed."""
    rows = await conn.execute(WAITING, {"since": since, "until": until, "counted": COUNTED_MAX})
    return [Waiting(*row) for row in rows]
