"""Agents' reports: kept once by id, a whole batch in one statement, under a lock that makes their order that of commits.

Whoever counts them (service/store/rollups.py) reads on from a position, as readers of the log do, and misses nothing
that was committed late. The lock comes before any row and before the log's lock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import ARRAY, Row, Text, bindparam, func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey, judge_clock
from service.report import (
    OUTWEIGHED_BY,
    OUTWEIGHED_WITHIN,
    OUTWEIGHING,
    SOURCE,
    TokenRefresh,
    ToolCall,
    in_calendar,
)
from service.store.columns import literal
from service.store.keys import any_of
from service.store.report_tables import malformed_calls
from service.store.tables import accounts

REPORTS_LOCK = 7_305_201_014
FAILED_WITHIN = timedelta(hours=1)
CLOCK_SLACK = timedelta(hours=1)
MALFORMED_KEPT = timedelta(days=30)
PRUNED_MAX = 10_000
# The clock is read after the lock was granted, so that it does not go back from one batch to the next.
LOCK = select(func.pg_advisory_xact_lock(REPORTS_LOCK), func.clock_timestamp())

CALL_COLUMNS = {
    "id": "text",
    "occurred_at": "timestamptz",
    "account_id": "text",
    "connection_id": "text",
    "workflow_id": "text",
    "tool": "text",
    "provider": "text",
    "operation": "text",
    "outcome": "text",
    "http_status": "int",
    "error_class": "text",
    "error": "text",
    "retries": "int",
    "latency_ms": "float8",
    "verification": "text",
    "idempotency_key": "text",
}
REFRESH_COLUMNS = {
    "id": "text",
    "occurred_at": "timestamptz",
    "account_id": "text",
    "provider": "text",
    "outcome": "text",
    "duration_ms": "float8",
    "http_status": "int",
    "error": "text",
    "outweighed": "boolean",
}


def keep(table: str, columns: Mapping[str, str]) -> Any:
    """Answers the ids that were known already. An id is looked for in the day before as well: each day has its own
    unique index. What the clock cannot be believed of happened when it was received (contract.md, "Time")."""
    rest = [name for name in columns if name not in ("id", "occurred_at")]
    return text(
        f"""
        WITH fresh AS (
            SELECT *, occurred_at > CAST(:now AS timestamptz) + interval '5 minutes'
                OR occurred_at NOT BETWEEN '2000-01-01Z' AND '2199-12-31 23:59:59.999999Z' AS clock_suspect
            FROM unnest({", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in columns.items())})
                AS n ({", ".join(columns)})
        ), added AS (
            INSERT INTO {table} (day, id, received_at, occurred_at, clock_suspect, {", ".join(rest)})
            SELECT :today, id, :now, CASE WHEN clock_suspect THEN :now ELSE occurred_at END, clock_suspect,
                {", ".join(rest)}
            FROM fresh n
            WHERE NOT EXISTS (SELECT FROM {table} before WHERE before.id = n.id AND before.day = :yesterday)
            ON CONFLICT DO NOTHING
            RETURNING id
        )
        SELECT id FROM fresh WHERE id NOT IN (SELECT id FROM added)
        """
    )


KEEP_CALLS = keep("tool_calls", CALL_COLUMNS)
KEEP_REFRESHES = keep("token_refreshes", REFRESH_COLUMNS)


async def lock(conn: AsyncConnection) -> datetime:
    """The first thing a batch does; answers the database's clock."""
    now: datetime = (await conn.execute(LOCK)).one()[1]
    return now


async def add_calls(
    conn: AsyncConnection, now: datetime, calls: Sequence[ToolCall], errors: Sequence[str | None]
) -> set[str]:
    """Ids differ; `errors` are the texts to keep. The ids that had been reported before, of which nothing is kept."""
    columns: dict[str, list[Any]] = {name: [getattr(call, name) for call in calls] for name in CALL_COLUMNS}
    columns["occurred_at"] = [in_calendar(call.occurred_at) for call in calls]
    columns["error"] = list(errors)
    columns["retries"] = [value or 0 for value in columns["retries"]]
    columns["verification"] = [value or "none" for value in columns["verification"]]
    return await add(conn, KEEP_CALLS, now, columns)


async def add_refreshes(
    conn: AsyncConnection,
    now: datetime,
    refreshes: Sequence[TokenRefresh],
    errors: Sequence[str | None],
    outweighed: Collection[str],
) -> set[str]:
    """`outweighed` by id: the provider itself told of that time."""
    columns: dict[str, list[Any]] = {
        name: [getattr(refresh, name) for refresh in refreshes] for name in REFRESH_COLUMNS if name != "outweighed"
    }
    columns["occurred_at"] = [in_calendar(refresh.occurred_at) for refresh in refreshes]
    columns["error"] = list(errors)
    columns["outweighed"] = [refresh.id in outweighed for refresh in refreshes]
    return await add(conn, KEEP_REFRESHES, now, columns)


async def add(conn: AsyncConnection, statement: Any, now: datetime, columns: Mapping[str, list[Any]]) -> set[str]:
    today = now.astimezone(UTC).date()
    days = {"today": today, "yesterday": today - timedelta(days=1), "now": now}
    rows = await conn.execute(statement, {name: literal(values) for name, values in columns.items()} | days)
    return set(rows.scalars())


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Which account a report means. One that nobody else tells of, or that several could be, is the reports' own."""

    key: AccountKey
    connection_id: str | None = None
    provider: str | None = None
    last_refresh_outcome: str | None = None


async def bind(conn: AsyncConnection, written: Collection[str]) -> dict[str, Bound]:
    """By what is written: a short id, or `source:environment_id:account_id`."""
    if not written:
        return {}
    full = {name: AccountKey(*name.split(":", 2)) for name in written if name.count(":") >= 2}
    names = {*written, *(key.account_id for key in full.values())}
    rows: dict[str, list[Row[Any]]] = {}
    for row in await conn.execute(select(accounts).where(accounts.c.account_id == any_of(names))):
        rows.setdefault(row.account_id, []).append(row)
    found = {}
    for name in written:
        candidates = [row for row in rows.get(name, ()) if row.source != SOURCE] or rows.get(name, [])
        if not candidates and name in full:
            candidates = [row for row in rows.get(full[name].account_id, ()) if key_of(row) == full[name]]
        found[name] = to_bound(candidates[0]) if len(candidates) == 1 else Bound(key=AccountKey(SOURCE, "", name))
    return found


def key_of(row: Row[Any]) -> AccountKey:
    return AccountKey(row.source, row.environment_id, row.account_id)


def to_bound(row: Row[Any]) -> Bound:
    return Bound(
        key=key_of(row),
        connection_id=row.connection_id,
        provider=row.provider,
        last_refresh_outcome=row.last_refresh_outcome,
    )


OUTWEIGHED = text(
    f"""
    SELECT n.id FROM unnest(CAST(:ids AS text[]), CAST(:sources AS text[]), CAST(:environment_ids AS text[]),
        CAST(:account_ids AS text[]), CAST(:ats AS timestamptz[])) AS n (id, source, environment_id, account_id, at)
    WHERE EXISTS (
        SELECT FROM events e
        WHERE e.account_id = n.account_id AND e.source = n.source AND coalesce(e.environment_id, '') = n.environment_id
            AND e.occurred_at BETWEEN n.at - CAST(:within AS interval) AND n.at + CAST(:within AS interval)
            AND e.origin IN {OUTWEIGHING} AND e.kind IN {OUTWEIGHED_BY}
            AND e.received_at >= :since)
    """
).bindparams(bindparam("within", value=OUTWEIGHED_WITHIN))


async def outweighed(
    conn: AsyncConnection, refreshes: Sequence[TokenRefresh], bound: Mapping[str, Bound], now: datetime
) -> set[str]:
    """The ids of those about whose account the provider itself spoke within a minute, before or after."""
    return await told_of(
        conn,
        [
            # The time is as it is stored.
            (refresh.id, bound[refresh.account_id].key, judge_clock(refresh.occurred_at, now)[0] or now)
            for refresh in refreshes
        ],
    )


async def told_of(conn: AsyncConnection, refreshes: Sequence[tuple[str, AccountKey, datetime]]) -> set[str]:
    """The same by (id, account, when it happened)."""
    if not refreshes:
        return set()
    rows = await conn.execute(
        OUTWEIGHED,
        {
            "ids": literal([name for name, _, _ in refreshes]),
            "sources": literal([key.source for _, key, _ in refreshes]),
            "environment_ids": literal([key.environment_id for _, key, _ in refreshes]),
            "account_ids": literal([key.account_id for _, key, _ in refreshes]),
            "ats": literal([at for _, _, at in refreshes]),
            # Nothing happens long after it was received, so that older days need not be opened.
            "since": min(at for _, _, at in refreshes) - OUTWEIGHED_WITHIN - CLOCK_SLACK,
        },
    )
    return set(rows.scalars())


FAILED_LATELY = text(
    """
    SELECT DISTINCT e.source, coalesce(e.environment_id, '') AS environment_id, e.account_id FROM events e
    WHERE e.account_id = ANY (:account_ids) AND e.received_at > :since AND e.kind = 'token.refresh_failed'
    """
).bindparams(bindparam("account_ids", type_=ARRAY(Text())))


async def failed_lately(conn: AsyncConnection, keys: Collection[AccountKey], now: datetime) -> set[AccountKey]:
    """Accounts whose refresh failed by the log of the last hour, which the evaluator may not have read yet."""
    if not keys:
        return set()
    rows = await conn.execute(
        FAILED_LATELY, {"account_ids": sorted({key.account_id for key in keys}), "since": now - FAILED_WITHIN}
    )
    return {AccountKey(*row) for row in rows}


ADD_MALFORMED = text(
    """
    INSERT INTO malformed_calls SELECT * FROM jsonb_populate_recordset(NULL::malformed_calls, CAST(:rows AS jsonb))
    ON CONFLICT DO NOTHING
    """
)


async def add_malformed(conn: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        await conn.execute(ADD_MALFORMED, {"rows": orjson.dumps(rows).decode()})


async def list_malformed(
    conn: AsyncConnection,
    *,
    account_id: str | None,
    tool: str | None,
    since: datetime | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[Row[Any]]:
    """Newest first."""
    asked = select(malformed_calls)
    if account_id is not None:
        asked = asked.where(malformed_calls.c.account_id == account_id)
    if tool is not None:
        asked = asked.where(malformed_calls.c.tool == tool)
    if since is not None:
        asked = asked.where(malformed_calls.c.received_at >= since)
    if before is not None:
        asked = asked.where(tuple_(malformed_calls.c.received_at, malformed_calls.c.id) < before)
    rows = await conn.execute(
        asked.order_by(malformed_calls.c.received_at.desc(), malformed_calls.c.id.desc()).limit(limit)
    )
    return list(rows)


PRUNE_MALFORMED = text(
    f"""
    DELETE FROM malformed_calls WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM malformed_calls WHERE received_at < :before ORDER BY received_at LIMIT {PRUNED_MAX}))
    """
)


async def prune_malformed(conn: AsyncConnection, now: datetime) -> None:
    await conn.execute(PRUNE_MALFORMED, {"before": now - MALFORMED_KEPT})
