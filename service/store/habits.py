"""The sources' habits, and what the log holds that is not yet in them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from sqlalchemy import bindparam, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.habits import LATE_SECONDS, PROVIDER_RETRIES, Down, Habit, Heard
from service.store.recovery_tables import habits, intake

READER = "habits"
ROWS_MAX = 20_000  # of the log, in one step

# Only webhooks are signs of life: a probe is ours, a recovery is what we fetched. What happened while we were down came
# late through us and not through its source: it was still being tried when we went down, or we were down when it
# happened. What cannot be read does not say that its source speaks.
HEARD = text(
    """
    WITH fresh AS (
        SELECT e.source, e.received_at, e.kind,
            CASE WHEN NOT e.clock_suspect
                AND NOT coalesce(e.received_at >= i.down_from AND e.occurred_at < i.up_since
                    AND e.occurred_at >= i.down_from - CAST(:retries AS interval), false)
                AND NOT coalesce(e.received_at >= i.gap_from AND e.occurred_at < i.gap_until
                    AND e.occurred_at >= i.gap_from - CAST(:retries AS interval), false)
                THEN e.lag_seconds END AS late_by,
            extract(epoch FROM e.received_at - lag(e.received_at) OVER (PARTITION BY e.source ORDER BY e.position))
                AS gap
        FROM events e LEFT JOIN intake i ON i.source = e.source
        WHERE e.position > :after AND e.position <= :upto AND e.origin = 'webhook' AND e.kind <> 'quarantine'
    ), judged AS (
        SELECT *, late_by > :late AS late, kind IN ('account.disconnected', 'account.deleted',
            'account.reauth_required', 'token.refresh_failed') AS break FROM fresh
    )
    SELECT source, (received_at AT TIME ZONE 'UTC')::date AS day, count(*) AS events, min(received_at) AS first_at,
        max(received_at) AS last_at, coalesce(max(gap), 0)::float AS gap,
        max(received_at) FILTER (WHERE late AND NOT break) AS late_at,
        max(late_by) FILTER (WHERE late AND NOT break) AS late_seconds,
        max(received_at) FILTER (WHERE late AND break) AS late_break_at,
        max(late_by) FILTER (WHERE late AND break) AS late_break_seconds
    FROM judged GROUP BY 1, 2 ORDER BY 2
    """
).bindparams(bindparam("late", value=LATE_SECONDS), bindparam("retries", value=PROVIDER_RETRIES))


async def heard(conn: AsyncConnection, after: int, upto: int) -> list[Heard]:
    """In order of days; each row is one source's one day."""
    rows = await conn.execute(HEARD, {"after": after, "upto": upto})
    return [
        Heard(
            source=row.source,
            events=row.events,
            first_at=row.first_at,
            last_at=row.last_at,
            gaps={row.day: row.gap} if row.gap else {},
            late_at=row.late_at,
            late_seconds=row.late_seconds,
            late_break_at=row.late_break_at,
            late_break_seconds=row.late_break_seconds,
        )
        for row in rows
    ]


async def load(conn: AsyncConnection) -> dict[str, Habit]:
    found = {}
    for row in await conn.execute(select(habits)):
        values: dict[str, Any] = dict(row._mapping)
        gaps = {date.fromisoformat(day): float(gap) for day, gap in values.pop("gaps").items()}
        found[row.source] = Habit(**values, gaps=gaps)
    return found


async def save(conn: AsyncConnection, changed: Sequence[Habit]) -> None:
    for habit in changed:
        values = {name: getattr(habit, name) for name in habit.__slots__}
        values["gaps"] = {day.isoformat(): gap for day, gap in habit.gaps.items()}
        await conn.execute(
            insert(habits).values(**values).on_conflict_do_update(index_elements=("source",), set_=values)
        )


async def downs(conn: AsyncConnection) -> dict[str, Down]:
    """Our own last outage, by source."""
    rows = await conn.execute(select(intake).where(intake.c.up_since.is_not(None)))
    return {row.source: Down(row.down_from, row.up_since) for row in rows}
