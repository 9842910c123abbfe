"""What /metrics and OTLP tell of the rollups: providers, the accounts that fare worst, and whose turn it is to push."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey
from service.families import ACCOUNTS_NAMED_MAX, Counted
from service.store.keys import KEYS_IN_TEXT, key_values
from service.store.report_tables import COUNTS, RETRIES, SKETCHES

# Of each metric, by the hours' rollups, which are few; the minutes then say who of these is the worst just now.
CANDIDATES_MAX = 100
LATEST_MAX = 2 * ACCOUNTS_NAMED_MAX
SUMS = ", ".join([*(f"sum(m.{name}) AS {name}" for name in COUNTS), "max(m.lag_seconds_max) AS lag_seconds_max"])
SKETCHED = f"{', '.join(f'm.{name}' for name in SKETCHES)}"
ANY_SKETCH = " OR ".join(f"m.{name} IS NOT NULL" for name in SKETCHES)
HOW_BAD = {
    "failed": "sum(calls - calls_succeeded)",
    "refused": "sum(refreshes - refreshes_succeeded)",
    "partial": "sum(partials)",
    "retried": f"sum({' + '.join(f'coalesce({name}, 0)' for name in RETRIES)})",
    "late": "max(lag_seconds_max)",
}
CANDIDATES = text(
    f"""
    WITH hours AS MATERIALIZED (
        SELECT h.*, s.source, s.environment_id, s.account_id
        FROM (SELECT series_id, {", ".join(f"{what} AS {name}" for name, what in HOW_BAD.items())}
            FROM rollup_hours WHERE at >= :since_hour GROUP BY 1) AS h
        JOIN metric_series s ON s.id = h.series_id AND s.written <> ''
    )
    {
        " UNION ".join(
            f"(SELECT source, environment_id, account_id FROM hours WHERE {name} > 0"
            f" ORDER BY {name} DESC, series_id LIMIT {CANDIDATES_MAX})"
            for name in HOW_BAD
        )
    }
    """
)
OF_ACCOUNTS = f"""FROM {KEYS_IN_TEXT} AS k (source, environment_id, account_id)
    JOIN metric_series s ON s.account_id = k.account_id AND s.source = k.source
        AND s.environment_id = k.environment_id AND s.written <> ''
    JOIN rollup_minutes m ON m.series_id = s.id AND m.at >= :since"""


def of_providers(table: str) -> str:
    return f"FROM metric_series s JOIN {table} m ON m.series_id = s.id AND m.at >= :since WHERE s.written = ''"


async def worst_accounts(conn: AsyncConnection, since: datetime) -> dict[AccountKey, Counted]:
    """What was counted since then of those that may be the worst by any of the five metrics: 500 at most."""
    rows = await conn.execute(CANDIDATES, {"since_hour": since.replace(minute=0, second=0, microsecond=0)})
    keys = [AccountKey(*row) for row in rows]
    if not keys:
        return {}
    named = "s.source, s.environment_id, s.account_id"
    within = {**key_values(keys), "since": since}
    found: dict[AccountKey, Counted] = {}
    for row in await conn.execute(text(f"SELECT {named}, {SUMS} {OF_ACCOUNTS} GROUP BY 1, 2, 3"), within):
        found[AccountKey(*row[:3])] = Counted(to_counts(row._mapping))
    # A rate needs no sketch, and reading them costs more than all the rest: those of who can be named for its lag.
    latest = sorted(found, key=lambda key: (-found[key]["lag_seconds_max"], str(key)))[:LATEST_MAX]
    rows = await conn.execute(
        text(f"SELECT {named}, m.lag_sizes {OF_ACCOUNTS} WHERE m.lag_sizes IS NOT NULL"),
        {**key_values(latest), "since": since},
    )
    for row in rows:
        add_sketches(found[AccountKey(*row[:3])], ["lag_sizes"], row[3:])
    return found


async def providers(conn: AsyncConnection, since: datetime) -> dict[str, Counted]:
    """What was counted since then, minute by minute, by provider; "" where nobody said it."""
    of = of_providers("rollup_minutes")
    found: dict[str, Counted] = {}
    for row in await conn.execute(text(f"SELECT s.provider, {SUMS} {of} GROUP BY 1"), {"since": since}):
        found[row.provider] = Counted(to_counts(row._mapping))
    for row in await conn.execute(text(f"SELECT s.provider, {SKETCHED} {of} AND ({ANY_SKETCH})"), {"since": since}):
        add_sketches(found[row[0]], SKETCHES, row[1:])
    return found


async def providers_in_all(conn: AsyncConnection, since_hour: datetime) -> dict[str, Counted]:
    """The counts alone, from the begin of an hour on. They only grow."""
    rows = await conn.execute(
        text(f"SELECT s.provider, {SUMS} {of_providers('rollup_hours')} GROUP BY 1"), {"since": since_hour}
    )
    return {row.provider: Counted(to_counts(row._mapping)) for row in rows}


async def provider_names(conn: AsyncConnection, limit: int) -> list[str]:
    """Those that were told of first: which these are does not change while they are kept."""
    rows = await conn.execute(
        text("SELECT provider FROM metric_series WHERE written = '' AND provider <> '' ORDER BY id LIMIT :rows"),
        {"rows": limit},
    )
    return list(rows.scalars())


def to_counts(row: Mapping[Any, Any]) -> dict[str, float]:
    """Null is unknown, and stays away."""
    return {name: float(row[name]) for name in (*COUNTS, "lag_seconds_max") if row[name] is not None}


def add_sketches(to: Counted, names: Sequence[str], sketches: Sequence[Any]) -> None:
    for name, sketch in zip(names, sketches, strict=True):
        if sketch:
            half = len(sketch) // 2
            to.add_sizes(name, dict(zip(sketch[:half], sketch[half:], strict=True)))


async def take_turn(conn: AsyncConnection, part: str, now: datetime, every: timedelta) -> bool:
    """Whether nobody had the turn for so long; it is then ours. A turn that lies more than `every` ahead was taken by a
    clock that has been put right since. A little ahead is who read the clock just after us, and was quicker.
    """
    due = (
        "h.at <= CAST(:now AS timestamptz) - CAST(:every AS interval)"
        " OR h.at > CAST(:now AS timestamptz) + CAST(:every AS interval)"
    )
    of = {"part": part, "now": now, "every": every}
    waits = await conn.execute(text(f"SELECT 1 FROM heartbeats h WHERE part = :part AND NOT ({due})"), of)
    if waits.first() is not None:
        return False
    taken = await conn.execute(
        text(
            f"""INSERT INTO heartbeats AS h (part, at) VALUES (:part, :now)
            ON CONFLICT (part) DO UPDATE SET at = excluded.at WHERE {due} RETURNING 1"""
        ),
        of,
    )
    return taken.first() is not None
