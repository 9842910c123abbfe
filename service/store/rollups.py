"""Reports and the log's own events, counted by the minute and the hour: for each account, and for each provider.

One transaction counts what came after a position and moves it: each report is counted once, however often it was sent,
whenever it happened, and whoever dies in between. One worker counts at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey
from service.observe import log as logger
from service.report import ERROR_CLASSES, NOT_AS_WRITTEN, SOURCE
from service.rules.triggers.quantile import GAMMA, ZERO_SIZE
from service.store import log, outweighed, reports
from service.store.columns import literal
from service.store.outweighed import after
from service.store.report_tables import RETRIES

ROLLUP_LOCK = 7_305_201_015
ROWS_MAX = 20_000  # of one transaction
RAW_DAYS_KEPT = 1  # whole days before today: what was reported is kept 24 to 48 hours, and so are minutes
HOURS_KEPT = timedelta(days=90)
PRUNED_MAX = 20_000
SERIES_MAX = 100_000  # accounts beyond that are counted in their provider's sum alone
PROVIDERS_MAX = 500  # and providers beyond that as one that nobody named
DROP_WAIT_MS = 200
LOCK_NOT_AVAILABLE = "55P03"
CALLS, REFRESHES, LOG = "tool_calls", "token_refreshes", "log"
LOG_GAMMA = repr(math.log(GAMMA))  # Postgres divides by the very number that `size_of` does


@dataclass(frozen=True, slots=True)
class Kind:
    """What one reading counts. `rows`: SQL that gives written, said_provider, at, and what `counts` and `seconds` name.

    `counts`: column -> what one row adds, null for nothing. `seconds` goes into the sketch `sizes`, its maximum into
    `largest`.
    """

    rows: str
    counts: Mapping[str, str]
    sizes: str | None = None
    seconds: str = "NULL"
    largest: str | None = None


def retried(name: str) -> str:
    return f"CASE WHEN retries > 0 AND coalesce(error_class, 'other') = '{name}' THEN retries END"


OF_CALLS = Kind(
    rows=f"""SELECT account_id AS written, lower(coalesce(provider, '')) AS said_provider, occurred_at AS at, operation,
        outcome, error_class, retries, verification {after("tool_calls")} AND day >= :first_day""",
    counts={
        "calls": "1",
        "calls_succeeded": "CASE WHEN outcome = 'success' THEN 1 ELSE 0 END",
        "writes": "CASE WHEN operation = 'write' THEN 1 END",
        "partials": "CASE WHEN operation = 'write' THEN CASE WHEN error_class = 'partial_execution'"
        f" OR (outcome = 'success' AND verification IN {NOT_AS_WRITTEN}) THEN 1 ELSE 0 END END",
        **{column: retried(name) for column, name in zip(RETRIES, ERROR_CLASSES, strict=True)},
    },
)
# Of what the provider told itself, its own word counts, and the report adds how long it took.
OF_REFRESHES = Kind(
    rows=f"""SELECT account_id AS written, lower(coalesce(provider, '')) AS said_provider, occurred_at AS at, outcome,
        duration_ms, outweighed {after("token_refreshes")} AND day >= :first_day""",
    counts={
        "refreshes": "CASE WHEN NOT outweighed THEN 1 END",
        "refreshes_succeeded": "CASE WHEN NOT outweighed THEN CASE WHEN outcome = 'success' THEN 1 ELSE 0 END END",
    },
    sizes="refresh_sizes",
    seconds="duration_ms / 1000",
)
TOLD = f"""SELECT source || ':' || coalesce(environment_id, '') || ':' || account_id AS written,
    lower(coalesce(provider, '')) AS said_provider, %s AS at, kind, lag_seconds
    {after("events")} AND account_id IS NOT NULL AND received_at >= :floor"""
# By when it was received: what came late in this minute came late now.
OF_DELIVERIES = Kind(
    rows=TOLD % "received_at"
    + " AND origin = 'webhook' AND NOT clock_suspect AND lag_seconds IS NOT NULL AND kind <> 'quarantine'",
    counts={"deliveries": "1"},
    sizes="lag_sizes",
    seconds="greatest(lag_seconds, 0)",
    largest="lag_seconds_max",
)
OF_TOLD_REFRESHES = Kind(
    rows=TOLD % "occurred_at"
    + " AND origin IN ('webhook', 'recovery') AND kind IN ('token.refresh_succeeded', 'token.refresh_failed')",
    counts={
        "refreshes": "1",
        "refreshes_succeeded": "CASE WHEN kind = 'token.refresh_succeeded' THEN 1 ELSE 0 END",
    },
)

# Of what was counted already when the provider told of it itself.
OF_TAKEN_BACK = Kind(
    rows="""SELECT account_id AS written, lower(coalesce(provider, '')) AS said_provider, occurred_at AS at, outcome
        FROM token_refreshes WHERE position = ANY (CAST(:taken_back AS bigint[])) AND day >= :first_day""",
    counts={
        "refreshes": "-1",
        "refreshes_succeeded": "CASE WHEN outcome = 'success' THEN -1 ELSE 0 END",
    },
)
OF_LOG = (OF_DELIVERIES, OF_TOLD_REFRESHES)  # they write an account in its full form, whoever knows it


def count_up(kind: Kind) -> Any:
    """Counted by account, minute and bucket of the sketch first; what follows works on as many rows as that leaves."""
    names = list(kind.counts)
    sums = ", ".join(f"sum({name}) AS {name}" for name in names)
    first = ", ".join(f"sum({what})::int AS {name}" for name, what in kind.counts.items())
    columns = [*names, *([kind.sizes] if kind.sizes else []), *([kind.largest] if kind.largest else [])]
    size = (
        f"CASE WHEN {kind.seconds} <= 1e-9 THEN {ZERO_SIZE} ELSE ceil(ln(({kind.seconds})::float8) / {LOG_GAMMA})::int END"
        if kind.sizes
        else "NULL::int"
    )

    def fresh(unit: str) -> str:
        at = f"date_trunc('{unit}', at)"
        if not kind.sizes:
            return f"SELECT series_id, {at} AS at, {sums} FROM both_levels GROUP BY 1, 2"
        largest = f", max(largest) AS {kind.largest}" if kind.largest else ""
        return f"""SELECT series_id, at, {sums},
                array_agg(size ORDER BY size) FILTER (WHERE size IS NOT NULL)
                    || array_agg(n::int ORDER BY size) FILTER (WHERE size IS NOT NULL) AS {kind.sizes}{largest}
            FROM (SELECT series_id, {at} AS at, size, sum(n) AS n, max(largest) AS largest, {sums}
                FROM both_levels GROUP BY 1, 2, 3) AS sized GROUP BY 1, 2"""

    def kept(table: str) -> str:
        def merged(name: str) -> str:
            old, new = f"{table}.{name}", f"excluded.{name}"
            if name == kind.sizes:
                return f"add_sizes({old}, {new})"
            if name == kind.largest:
                return f"greatest({old}, {new})"
            return f"CASE WHEN {new} IS NULL THEN {old} ELSE coalesce({old}, 0) + {new} END"

        return f"ON CONFLICT (series_id, at) DO UPDATE SET {', '.join(f'{name} = {merged(name)}' for name in columns)}"

    into = f"(series_id, at, {', '.join(columns)})"
    return text(
        f"""
        WITH told AS ({kind.rows}), by_account AS MATERIALIZED (
            SELECT s.id AS series_id, coalesce(s.provider_series_id, p.id) AS provider_series_id,
                date_trunc('minute', t.at) AS at, {size} AS size, count(*)::int AS n, max({kind.seconds}) AS largest,
                {first}
            FROM told t
            LEFT JOIN metric_series s ON s.written = t.written AND s.said_provider = t.said_provider
            LEFT JOIN metric_series p ON s.id IS NULL AND p.written = '' AND p.said_provider = t.said_provider
            GROUP BY 1, 2, 3, 4
        ), both_levels AS MATERIALIZED (
            SELECT series_id, at, size, n, largest, {", ".join(names)} FROM by_account WHERE series_id IS NOT NULL
            UNION ALL
            SELECT provider_series_id, at, size, sum(n)::int, max(largest), {sums} FROM by_account
            WHERE provider_series_id IS NOT NULL GROUP BY 1, 2, 3
        ), minutes AS (
            INSERT INTO rollup_minutes {into} SELECT * FROM ({fresh("minute")}) AS fresh
            WHERE at >= CAST(:first_day AS date)::timestamp AT TIME ZONE 'UTC' {kept("rollup_minutes")}
        )
        INSERT INTO rollup_hours {into} {fresh("hour")} {kept("rollup_hours")}
        """
    )


COUNT_UP = {kind.rows: count_up(kind) for kind in (OF_CALLS, OF_REFRESHES, *OF_LOG, OF_TAKEN_BACK)}


async def alone(conn: AsyncConnection) -> bool:
    """Whether no other worker counts until our commit."""
    return bool((await conn.execute(text(f"SELECT pg_try_advisory_xact_lock({ROLLUP_LOCK})"))).scalar_one())


async def count_reports(conn: AsyncConnection, name: str, now: datetime) -> int:
    """Tool calls or refreshes, as many as one transaction takes; how many rows were read."""
    kind = OF_CALLS if name == CALLS else OF_REFRESHES
    first_day = day_kept(now)
    since = await position(conn, name)
    row = (
        await conn.execute(
            text(
                f"""SELECT count(*), max(position) FROM (SELECT position FROM {name}
                WHERE position > :after AND day >= :first_day ORDER BY position LIMIT {ROWS_MAX}) AS next"""
            ),
            {"after": since, "first_day": first_day},
        )
    ).one()
    if row[0]:
        within = {"after": since, "upto": row[1], "first_day": first_day}
        if name == REFRESHES:
            await outweighed.by_what_is_there(conn, within)
        await count(conn, [kind], within)
        await move(conn, name, row[1])
    return int(row[0])


async def count_log(conn: AsyncConnection, now: datetime) -> int:
    """How late webhooks came, and the refreshes that the provider itself told of; how many positions were passed."""
    since = await position(conn, LOG)
    head, _ = await log.head(conn)
    upto = min(head, since + ROWS_MAX)
    if upto <= since:
        return 0
    floor = await log.received_since(conn, since) or datetime(2000, 1, 1, tzinfo=UTC)
    within = {"after": since, "upto": upto, "first_day": day_kept(now), "floor": floor}
    await take_back(conn, within)
    await count(conn, OF_LOG, within)
    await move(conn, LOG, upto)
    return upto - since


async def take_back(conn: AsyncConnection, within: Mapping[str, Any]) -> None:
    """Reported refreshes of which the provider itself told after they were reported count no more."""
    positions = await outweighed.by_what_came_later(conn, within)
    counted_upto = await position(conn, REFRESHES)
    if taken_back := [at for at in positions if at <= counted_upto]:
        await count(conn, [OF_TAKEN_BACK], {"taken_back": literal(taken_back), "first_day": within["first_day"]})


async def count(conn: AsyncConnection, kinds: Sequence[Kind], within: Mapping[str, Any]) -> None:
    for kind in kinds:
        missing = await conn.execute(
            text(
                f"""SELECT DISTINCT t.written, t.said_provider FROM ({kind.rows}) AS t
                WHERE NOT EXISTS (SELECT FROM metric_series s
                    WHERE s.written = t.written AND s.said_provider = t.said_provider)"""
            ),
            within,
        )
        await add_series(conn, {(row.written, row.said_provider) for row in missing}, in_full=kind in OF_LOG)
        await conn.execute(COUNT_UP[kind.rows], within)


async def add_series(conn: AsyncConnection, missing: Collection[tuple[str, str]], *, in_full: bool) -> None:
    """`in_full`: what is written is the account's key, whether it has been judged yet or not."""
    if not missing:
        return
    bound = await reports.bind(conn, {written for written, _ in missing})
    provider_of = {(written, said): said or (bound[written].provider or "").lower()[:128] for written, said in missing}
    await add_providers(conn, {*provider_of.values(), ""})
    room = SERIES_MAX - (await conn.execute(text("SELECT count(*) FROM metric_series"))).scalar_one()
    if room < len(missing):
        logger.warning("rollups.too_many_series", series_max=SERIES_MAX)
    taken = sorted(missing)[: max(0, room)]
    keys = [AccountKey(*written.split(":", 2)) if in_full else bound[written].key for written, _ in taken]
    await conn.execute(
        text(
            """
            INSERT INTO metric_series (written, said_provider, provider, source, environment_id, account_id, bound,
                provider_series_id)
            SELECT n.*, coalesce(p.id, nobody.id) FROM unnest(CAST(:written AS text[]), CAST(:said AS text[]),
                CAST(:provider AS text[]), CAST(:source AS text[]), CAST(:environment_id AS text[]),
                CAST(:account_id AS text[]), CAST(:bound AS boolean[]))
                AS n (written, said_provider, provider, source, environment_id, account_id, bound)
            LEFT JOIN metric_series p ON p.written = '' AND p.said_provider = n.provider
            LEFT JOIN metric_series nobody ON nobody.written = '' AND nobody.said_provider = ''
            ON CONFLICT DO NOTHING
            """
        ),
        {
            "written": literal([written for written, _ in taken]),
            "said": literal([said for _, said in taken]),
            "provider": literal([provider_of[pair] for pair in taken]),
            "source": literal([key.source for key in keys]),
            "environment_id": literal([key.environment_id for key in keys]),
            "account_id": literal([key.account_id for key in keys]),
            "bound": literal([key.source != SOURCE for key in keys]),
        },
    )


async def add_providers(conn: AsyncConnection, names: Collection[str]) -> None:
    await conn.execute(
        text(
            f"""
            INSERT INTO metric_series (written, said_provider, provider)
            SELECT '', name, name FROM unnest(CAST(:names AS text[])) AS n (name)
            WHERE NOT EXISTS (SELECT FROM metric_series s WHERE s.written = '' AND s.said_provider = n.name)
                AND (n.name = '' OR (SELECT count(*) FROM metric_series WHERE written = '') < {PROVIDERS_MAX})
            ON CONFLICT DO NOTHING
            """
        ),
        {"names": literal(sorted(names))},
    )


async def bind_again(conn: AsyncConnection) -> int:
    """What was reported of an account before the provider told of it becomes that account's; how many series did."""
    rows = await conn.execute(
        text(
            """
            SELECT DISTINCT s.written FROM metric_series s JOIN accounts a
                ON a.account_id = ANY (ARRAY[s.written, regexp_replace(s.written, '^[^:]*:[^:]*:', '')])
            WHERE NOT s.bound AND s.written <> '' AND a.source <> :ours
                AND s.written IN (a.account_id, a.source || ':' || a.environment_id || ':' || a.account_id)
            LIMIT 1000
            """
        ),
        {"ours": SOURCE},
    )
    bound = await reports.bind(conn, set(rows.scalars()))
    known = {name: one.key for name, one in bound.items() if one.key.source != SOURCE}
    for name, key in known.items():
        await conn.execute(
            text(
                "UPDATE metric_series SET bound = true, source = :source, environment_id = :environment_id,"
                " account_id = :account_id WHERE written = :written"
            ),
            {**key._asdict(), "written": name},
        )
    return len(known)


async def position(conn: AsyncConnection, name: str) -> int:
    found = (await conn.execute(text("SELECT position FROM rollup_marks WHERE name = :name"), {"name": name})).scalar()
    return int(found or 0)


async def move(conn: AsyncConnection, name: str, to: int) -> None:
    await conn.execute(
        text(
            "INSERT INTO rollup_marks (name, position) VALUES (:name, :to)"
            " ON CONFLICT (name) DO UPDATE SET position = excluded.position"
        ),
        {"name": name, "to": to},
    )


def day_kept(now: datetime) -> Any:
    """The first day of which raw reports and minutes are kept."""
    return now.astimezone(UTC).date() - timedelta(days=RAW_DAYS_KEPT)


async def days_over(conn: AsyncConnection, now: datetime) -> list[str]:
    """The partitions of days that are over their time."""
    rows = await conn.execute(
        text(
            """
            SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            JOIN pg_class p ON p.oid = i.inhparent
            WHERE p.relname IN ('tool_calls', 'token_refreshes', 'rollup_minutes')
                AND p.relnamespace = current_schema()::regnamespace
                AND right(c.relname, 8) ~ '^[0-9]{8}$' AND right(c.relname, 8) < :first_day
            ORDER BY 1
            """
        ),
        {"first_day": f"{day_kept(now):%Y%m%d}"},
    )
    return list(rows.scalars())


async def drop_day(conn: AsyncConnection, name: str) -> bool:
    """Gives up soon where somebody reads it: the next look finds it again."""
    await conn.execute(text(f"SET LOCAL lock_timeout = {DROP_WAIT_MS}"))
    try:
        async with conn.begin_nested():
            await conn.execute(text(f'DROP TABLE "{name}"'))
    except DBAPIError as exc:
        if getattr(exc.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        return False
    return True


async def prune(conn: AsyncConnection, now: datetime) -> None:
    await conn.execute(
        text(
            f"""
            DELETE FROM rollup_hours WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM rollup_hours WHERE at < :before LIMIT {PRUNED_MAX}))
            """
        ),
        {"before": now - HOURS_KEPT},
    )
    await conn.execute(
        text(
            f"""
            DELETE FROM metric_series WHERE id IN (
                SELECT id FROM metric_series s WHERE written <> ''
                    AND NOT EXISTS (SELECT FROM rollup_hours h WHERE h.series_id = s.id) LIMIT {PRUNED_MAX})
            """
        )
    )
