"""The stored log from end to end, for who judges it anew: read only, one snapshot, a page of rows in memory at a time.

psycopg itself, because a server-side cursor of plain tuples costs a fraction of what typed rows do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, LiteralString

import orjson
import psycopg
from psycopg.types.json import set_json_loads

from service.event import AccountKey, Event
from service.store.session import CONNECT_TIMEOUT_SECONDS

PAGE_ROWS = 5_000
STATEMENT_SECONDS_MAX = 1_800  # the first page waits for a sort, where Postgres prefers one to the index
IDLE_SECONDS_MAX = 120  # between two pages: as long as one takes to be judged
JUDGED_ORIGINS = ("webhook", "recovery", "report")
COLUMNS: LiteralString = (
    "id::text, source, origin, event_id, type, kind, account_id, connection_id, provider, identifier, organization_id,"
    " environment_id, status, old_status, account_status, occurred_at, received_at, lag_seconds"
)
BY_ACCOUNT: LiteralString = (
    "account_id IS NOT NULL AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s) OR account_status IS NOT NULL)"
)
BY_TIME: LiteralString = (
    "occurred_at >= %(since)s AND received_at >= %(since)s - interval '1 hour'"
    " AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s))"
)


@contextmanager
def snapshot(database_url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """One transaction that sees the log as it is now and can change nothing. Raises psycopg.Error."""
    with psycopg.connect(
        database_url,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        application_name="authwatch-backtest",
        options=f"-c timezone=UTC -c statement_timeout={STATEMENT_SECONDS_MAX * 1000}"
        f" -c idle_in_transaction_session_timeout={IDLE_SECONDS_MAX * 1000}",
    ) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.read_only = True
        set_json_loads(orjson.loads, conn)
        yield conn


def clock(conn: psycopg.Connection[tuple[Any, ...]]) -> datetime:
    at: datetime = conn.execute("SELECT clock_timestamp()").fetchall()[0][0]
    return at


def account_events(
    conn: psycopg.Connection[tuple[Any, ...]], *, kinds: Sequence[str] | None, details: bool
) -> tuple[int, Iterator[Event]]:
    """(about how many, those of these kinds or that say a status, account by account, each in order of time)."""
    return read(conn, BY_ACCOUNT, "account_id, occurred_at", details, {"kinds": listed(kinds)})


def events_in_time(
    conn: psycopg.Connection[tuple[Any, ...]], *, kinds: Sequence[str] | None, since: datetime, details: bool
) -> tuple[int, Iterator[Event]]:
    """(about how many, those of these kinds since then in order of time)."""
    return read(conn, BY_TIME, "occurred_at", details, {"kinds": listed(kinds), "since": since})


def listed(kinds: Sequence[str] | None) -> list[str] | None:
    return None if kinds is None else list(kinds)


def read(
    conn: psycopg.Connection[tuple[Any, ...]],
    where: LiteralString,
    order: LiteralString,
    details: bool,
    values: dict[str, Any],
) -> tuple[int, Iterator[Event]]:
    shown: LiteralString = "details" if details else "NULL::jsonb"
    query: LiteralString = (
        f"SELECT {COLUMNS}, {shown} FROM events WHERE origin = ANY (%(origins)s) AND {where} ORDER BY {order}"
    )
    values = {**values, "origins": list(JUDGED_ORIGINS)}
    plan = conn.execute(f"EXPLAIN (FORMAT JSON) {query}", values).fetchall()[0][0]
    return int(plan[0]["Plan"]["Plan Rows"]), rows(conn, query, values)


def rows(conn: psycopg.Connection[tuple[Any, ...]], query: LiteralString, values: dict[str, Any]) -> Iterator[Event]:
    with conn.cursor(name="backlog") as cursor:
        cursor.itersize = PAGE_ROWS
        cursor.execute(query, values)
        for row in cursor:
            yield Event(
                id=row[0],
                position=0,
                source=row[1],
                origin=row[2],
                event_id=row[3],
                type=row[4],
                kind=row[5],
                account_id=row[6],
                connection_id=row[7],
                provider=row[8],
                identifier=row[9],
                organization_id=row[10],
                environment_id=row[11],
                status=row[12],
                old_status=row[13],
                account_status=row[14],
                occurred_at=row[15],
                received_at=row[16],
                lag_seconds=row[17],
                clock_suspect=False,
                details=row[18],
            )


class Dependents:
    """Which active workflows depend on an account, read once: by the account itself or by its connection."""

    def __init__(self, conn: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._by: dict[tuple[str, str], list[tuple[str | None, str | None, str]]] = {}
        for kind, target, source, environment, workflow in conn.execute(
            "SELECT d.kind, d.target_id, d.source, d.environment_id, d.workflow_id FROM dependencies d"
            " JOIN workflows w USING (workflow_id) WHERE w.active"
        ):
            self._by.setdefault((kind, target), []).append((source, environment, workflow))

    def of(self, key: AccountKey, connection_id: str | None) -> set[str]:
        own = self._named("account", key.source, key.environment_id, key.account_id)
        if connection_id is None:
            return own
        return own | self.of_connection(key.source, key.environment_id, connection_id)

    def of_connection(self, source: str, environment_id: str, connection_id: str) -> set[str]:
        """The workflows that serve users through it."""
        return self._named("connection", source, environment_id, connection_id)

    def _named(self, kind: str, source: str, environment_id: str, target: str) -> set[str]:
        return {
            workflow
            for in_source, environment, workflow in self._by.get((kind, target), ())
            if in_source in (None, source) and environment in (None, environment_id)
        }
