"""Rollups read back: which series a question is about, and what was counted of them by the step."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import ARRAY, Integer, Row, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey
from service.metrics import Metric, Sums
from service.report import SOURCE
from service.store.keys import KEYS_IN_TEXT, key_values

SERIES_OF_ACCOUNT_MAX = 100
WORST_MAX = 1_000
MINUTES, HOURS = "rollup_minutes", "rollup_hours"
STEP_OF = {MINUTES: timedelta(minutes=1), HOURS: timedelta(hours=1)}
IDS = bindparam("ids", type_=ARRAY(Integer()))


async def of_account(conn: AsyncConnection, key: AccountKey, provider: str | None) -> list[int]:
    """Its series, however it was written in reports, and what was reported before it was known."""
    rows = await conn.execute(
        text(
            f"""
            SELECT id FROM metric_series
            WHERE account_id = :account_id AND (source, environment_id) IN ((:source, :environment_id), (:ours, ''))
                AND (CAST(:provider AS text) IS NULL OR provider = :provider)
            ORDER BY id LIMIT {SERIES_OF_ACCOUNT_MAX}
            """
        ),
        {**key._asdict(), "ours": SOURCE, "provider": provider},
    )
    return list(rows.scalars())


async def of_providers(conn: AsyncConnection, provider: str | None) -> list[int]:
    """The sum of a provider, or those of all."""
    rows = await conn.execute(
        text(
            "SELECT id FROM metric_series WHERE written = ''"
            " AND (CAST(:provider AS text) IS NULL OR said_provider = :provider)"
        ),
        {"provider": provider},
    )
    return list(rows.scalars())


async def points(
    conn: AsyncConnection,
    metric: Metric,
    ids: Collection[int],
    *,
    table: str,
    since: datetime,
    until: datetime,
    step: timedelta,
) -> dict[datetime, Sums]:
    """By the begin of each step that anything was counted in; `since` is such a begin."""
    if not ids:
        return {}
    within: dict[str, Any] = {"ids": list(ids), "since": since, "until": until, "step": step}
    where = "WHERE series_id = ANY (:ids) AND at >= :since AND at < :until"
    if metric.sizes and len(ids) == 1 and step == STEP_OF[table]:  # each row is a step of its own: one look tells all
        names = (*metric.columns, *([metric.largest] if metric.largest else []))
        rows = await conn.execute(
            text(f"SELECT at, {', '.join(names)}, {metric.sizes}::text FROM {table} {where}").bindparams(IDS), within
        )
        return {
            row[0]: Sums(dict(zip(names, row[1:-1], strict=True)), [read(row[-1])] if row[-1] else [])
            for row in rows.all()
        }
    rows = await conn.execute(
        text(f"SELECT date_bin(:step, at, :since), {added_up(metric)} FROM {table} {where} GROUP BY 1").bindparams(IDS),
        within,
    )
    found = to_sums(rows.all(), metric)
    if metric.sizes:
        sketches = await conn.execute(
            text(
                f"SELECT date_bin(:step, at, :since), {metric.sizes}::text FROM {table} {where} AND {metric.sizes} IS NOT NULL"
            ).bindparams(IDS),
            within,
        )
        for at, sketch in sketches.all():
            found[at].sketches.append(read(sketch))
    return found


def read(sketch: str) -> list[int]:
    """`{1,2}`. As JSON it is read in a tenth of the time that the driver takes for an array."""
    numbers: list[int] = orjson.loads(f"[{sketch[1:-1]}]")
    return numbers


def added_up(metric: Metric) -> str:
    columns = [f"sum({name})" for name in metric.columns]
    return ", ".join([*columns, *([f"max({metric.largest})"] if metric.largest else [])])


def to_sums(rows: Iterable[Row[Any]], metric: Metric) -> dict[Any, Sums]:
    names = (*metric.columns, *([metric.largest] if metric.largest else []))
    return {row[0]: Sums(dict(zip(names, row[1:], strict=True))) for row in rows}


@dataclass(frozen=True, slots=True)
class Failing:
    """An account with failed calls, and its calls of that time."""

    key: AccountKey
    calls: int
    succeeded: int
    failed: int


# Who has a failed call at all is found by an index that holds nobody else; only of them the minutes are added up.
WORST = text(
    """
    SELECT s.source, s.environment_id, s.account_id, sum(m.calls) AS calls, sum(m.calls_succeeded) AS succeeded
    FROM (SELECT DISTINCT series_id FROM rollup_minutes
        WHERE at >= :since AND at < :until AND calls_succeeded < calls) AS failing
    JOIN metric_series s ON s.id = failing.series_id AND s.written <> ''
    CROSS JOIN LATERAL (SELECT sum(calls) AS calls, sum(calls_succeeded) AS calls_succeeded FROM rollup_minutes
        WHERE series_id = s.id AND at >= :since AND at < :until) AS m
    GROUP BY 1, 2, 3 ORDER BY sum(m.calls) - sum(m.calls_succeeded) DESC, 1, 2, 3 LIMIT :rows
    """
)
AHEAD_MAX = timedelta(days=1)  # no minute lies so far ahead: the days that were made in advance are left out


async def worst(conn: AsyncConnection, since: datetime, *, limit: int = WORST_MAX) -> list[Failing]:
    """Accounts with failed calls since then, most failures first."""
    rows = await conn.execute(WORST, {"since": since, "until": since + AHEAD_MAX, "rows": limit})
    return [
        Failing(
            AccountKey(row.source, row.environment_id, row.account_id),
            int(row.calls),
            int(row.succeeded),
            int(row.calls - row.succeeded),
        )
        for row in rows
    ]


# Of whoever has a failed call, the last minutes with calls, as many as hold the last calls that are asked for.
SELDOM = text(
    """
    WITH failing AS (
        SELECT DISTINCT s.source, s.environment_id, s.account_id
        FROM (SELECT DISTINCT series_id FROM rollup_minutes
            WHERE at >= :since AND at < :until AND calls_succeeded < calls) AS f
        JOIN metric_series s ON s.id = f.series_id AND s.written <> ''
    ), by_minute AS (
        SELECT source, environment_id, account_id, m.at, sum(m.calls) AS calls, sum(m.calls_succeeded) AS succeeded
        FROM failing JOIN metric_series s USING (source, environment_id, account_id)
        CROSS JOIN LATERAL (SELECT at, calls, calls_succeeded FROM rollup_minutes
            WHERE series_id = s.id AND at >= :since AND at < :until AND calls > 0 ORDER BY at DESC LIMIT :least) AS m
        GROUP BY 1, 2, 3, 4
    ), walked AS (
        SELECT *, sum(calls) OVER (PARTITION BY source, environment_id, account_id ORDER BY at DESC) - calls AS later
        FROM by_minute
    )
    SELECT source, environment_id, account_id FROM walked WHERE later < :least GROUP BY 1, 2, 3
    HAVING sum(calls) >= :least AND sum(succeeded) = 0 AND max(at) - min(at) >= CAST(:spread AS interval)
    ORDER BY sum(calls) DESC, 1, 2, 3 LIMIT :rows
    """
)


async def failing_seldom(
    conn: AsyncConnection, since: datetime, *, least: int, spread: timedelta, limit: int = WORST_MAX
) -> list[AccountKey]:
    """Accounts whose last `least` calls since then all failed, and did not all come within `spread`."""
    within = {"since": since, "until": since + AHEAD_MAX, "least": least, "spread": spread, "rows": limit}
    return [AccountKey(*row) for row in await conn.execute(SELDOM, within)]


CALLS_OF = text(
    f"""
    SELECT s.source, s.environment_id, s.account_id, sum(m.calls) FILTER (WHERE m.at >= :since) AS calls,
        sum(m.calls_succeeded) FILTER (WHERE m.at >= :since) AS succeeded
    FROM {KEYS_IN_TEXT} AS k (source, environment_id, account_id)
    JOIN metric_series s ON s.account_id = k.account_id AND s.source = k.source AND s.environment_id = k.environment_id
    JOIN rollup_minutes m ON m.series_id = s.id AND m.at >= :known_since AND m.calls IS NOT NULL
    GROUP BY 1, 2, 3
    """
)


async def calls_of(
    conn: AsyncConnection, keys: Collection[AccountKey], since: datetime, known_since: datetime
) -> dict[AccountKey, tuple[int, int]]:
    """(calls, of them succeeded) since a time, of those of these accounts that called since `known_since`."""
    if not keys:
        return {}
    rows = await conn.execute(CALLS_OF, {**key_values(keys), "since": since, "known_since": known_since})
    return {AccountKey(row[0], row[1], row[2]): (int(row.calls or 0), int(row.succeeded or 0)) for row in rows}


async def by_provider(
    conn: AsyncConnection, metric: Metric, *, since: datetime, table: str = MINUTES
) -> dict[str, Sums]:
    """What was counted since then, by provider."""
    of = f"FROM metric_series s JOIN {table} m ON m.series_id = s.id WHERE s.written = '' AND m.at >= :since"
    rows = await conn.execute(text(f"SELECT s.provider, {added_up(metric)} {of} GROUP BY 1"), {"since": since})
    found = to_sums(rows.all(), metric)
    if metric.sizes:
        sketches = await conn.execute(
            text(f"SELECT s.provider, {metric.sizes}::text {of} AND {metric.sizes} IS NOT NULL"), {"since": since}
        )
        for provider, sketch in sketches.all():
            found[provider].sketches.append(read(sketch))
    return found
