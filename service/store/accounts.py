"""Accounts: their locks, their rows, and the slices of their history that the evaluator judges."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import ARRAY, DateTime, Row, Text, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import Conflict
from service.event import AccountKey, Event
from service.heard import Heard
from service.report import SOURCE as REPORTED
from service.store.columns import literal
from service.store.keys import KEYS_IN_TEXT, any_of, key_values, same_account
from service.store.log import EVENT_COLUMNS, to_event
from service.store.tables import accounts

# First halves of two-part advisory keys; the second is a stripe of the account's or connection's short id.
LOCK_CLASS, CONNECTION_LOCK_CLASS = 730_520, 730_523
STRIPES = 4096
CONNECTION_STRIPES = 256  # evaluators hold them together, and each lock that is held takes room in the server's memory
EVENTS_PER_ACCOUNT_MAX = 5_000
PRIOR_EVENTS_MAX = 20
CANDIDATES_MAX = 20
BEGINNING = datetime(1999, 1, 1, tzinfo=UTC)  # before every `occurred_at` that can be stored
# `occurred_at` may run ahead of `received_at` by 5 minutes of clock, and receiver and database clocks may differ.
CLOCK_SLACK = timedelta(hours=1)


@dataclass(slots=True, kw_only=True)  # not frozen, for the speed of building one
class Account:
    """One connected account of one user, as its events left it."""

    key: AccountKey
    connection_id: str | None = None
    provider: str | None = None
    identifier: str | None = None
    organization_id: str | None = None
    status: str | None = None
    status_since: datetime | None = None
    not_well: Mapping[str, datetime] = field(default_factory=dict)
    last_status_at: datetime | None = None
    last_event_at: datetime | None = None
    last_refresh_at: datetime | None = None
    last_refresh_outcome: str | None = None
    failures_in_a_row: int = 0
    token_expires_at: str | None = None
    heard: Heard | None = None
    first_seen_at: datetime


# One row at a time, in order. The clock is read when all are held. A stripe's low bits are the shard of its accounts
# (service/store/shards.py), so that workers that evaluate beside each other never wait for each other's accounts.
LOCK = text(
    f"""
    SELECT count(CASE WHEN shared THEN pg_advisory_xact_lock_shared(class, stripe)
        ELSE pg_advisory_xact_lock(class, stripe) END), clock_timestamp()
    FROM (
        SELECT class, (hashtextextended(name, 0) & last)::int AS stripe, bool_and(shared) AS shared
        FROM (
            SELECT {LOCK_CLASS} AS class, {STRIPES - 1} AS last, name, false AS shared
            FROM unnest(CAST(:accounts AS text[])) AS a (name)
            UNION ALL
            SELECT {CONNECTION_LOCK_CLASS}, {CONNECTION_STRIPES - 1}, name, :beside
            FROM unnest(CAST(:connections AS text[])) AS c (name)
        ) AS named
        GROUP BY 1, 2 ORDER BY 1, 2
    ) AS stripes
    """
)


async def lock(
    conn: AsyncConnection, accounts: Iterable[str], connections: Iterable[str | None] = (), *, beside: bool = False
) -> datetime:
    """The locks that evaluator, PUT and every other change around an account take first, in sorted order.

    Ids are short account and connection ids: a PUT may name an account that has not been seen yet. `beside`: others who
    say so too may hold the same connections meanwhile; evaluators do, whose accounts are never the same. Answers the
    database's clock once they are held.
    """
    held = {
        "accounts": literal(list(set(accounts))),
        "connections": literal([name for name in set(connections) if name]),
        "beside": beside,
    }
    now: datetime = (await conn.execute(LOCK, held)).one()[1]
    return now


# Built once: a statement built anew costs about as much as sending it.
LOAD = select(accounts).where(same_account(accounts))
WATCHED = text(
    f"""
    SELECT k.source, k.environment_id, k.account_id, d.due_at
    FROM {KEYS_IN_TEXT} AS k (source, environment_id, account_id)
    LEFT JOIN deadlines d
        ON d.account_id = k.account_id AND d.source = k.source AND d.environment_id = k.environment_id
    WHERE d.due_at IS NOT NULL OR EXISTS (
            SELECT FROM alerts a
            WHERE a.account_id = k.account_id AND a.source = k.source AND a.environment_id = k.environment_id
                AND (a.condition_ended_at IS NULL OR a.condition_ended_at >= :since))
        OR EXISTS (
            SELECT FROM holds h
            WHERE h.account_id = k.account_id AND h.source = k.source AND h.environment_id = k.environment_id
                AND h.released_at IS NULL)
    """
).bindparams(bindparam("since", type_=DateTime(timezone=True)))


async def watched(
    conn: AsyncConnection, keys: Collection[AccountKey], since: datetime
) -> dict[AccountKey, datetime | None]:
    """Those with an episode that is open or ended at or after `since`, with an open hold, or with a deadline: which."""
    rows = await conn.execute(WATCHED, {**key_values(keys), "since": since})
    return {AccountKey(row[0], row[1], row[2]): row[3] for row in rows}


async def load(conn: AsyncConnection, keys: Collection[AccountKey]) -> dict[AccountKey, Account]:
    if not keys:
        return {}
    rows = await conn.execute(LOAD, key_values(keys))
    return {account.key: account for account in map(to_account, rows)}


async def namesakes(conn: AsyncConnection, account_id: str) -> list[Account]:
    """Every account of that short id, whatever its source and environment. One that only reports told of before the
    provider did is no other account."""
    rows = await conn.execute(
        select(accounts)
        .where(accounts.c.account_id == account_id)
        .order_by(accounts.c.source, accounts.c.environment_id)
        .limit(CANDIDATES_MAX)
    )
    found = [to_account(row) for row in rows]
    return [account for account in found if account.key.source != REPORTED] or found


async def shared_ids(conn: AsyncConnection, account_ids: Collection[str]) -> set[str]:
    """Which of these short ids more than one account has."""
    if not account_ids:
        return set()
    rows = await conn.execute(
        select(accounts.c.account_id)
        .where(accounts.c.account_id == any_of(account_ids), accounts.c.source != REPORTED)
        .group_by(accounts.c.account_id)
        .having(func.count() > 1)
    )
    return {row.account_id for row in rows}


async def find(conn: AsyncConnection, written: str) -> Account | None:
    """By short id or by `source:environment_id:account_id`; Conflict with the candidates when a short id is ambiguous."""
    found = await namesakes(conn, written)
    if not found and written.count(":") >= 2:
        key = parse_key(written)
        return (await load(conn, [key])).get(key)
    if len(found) > 1:
        raise AmbiguousAccount(written, [str(account.key) for account in found])
    return found[0] if found else None


def parse_key(written: str) -> AccountKey:
    source, environment_id, account_id = written.split(":", 2)
    return AccountKey(source, environment_id, account_id)


class AmbiguousAccount(Conflict):
    """A short account id that several environments or sources share."""

    code = "ambiguous_account_id"

    def __init__(self, written: str, candidates: list[str]) -> None:
        super().__init__(f"{written} names several accounts; write one of the candidates in full")
        self.extra = {"candidates": candidates}


COLUMNS = tuple(column.name for column in accounts.columns)
KEPT = ("source", "environment_id", "account_id", "first_seen_at")
# One statement and one parameter for a batch: a statement for each row would be most of the evaluator's time.
SAVE = text(
    f"""
    INSERT INTO accounts ({", ".join(COLUMNS)})
    SELECT {", ".join(COLUMNS)} FROM jsonb_populate_recordset(NULL::accounts, CAST(:rows AS jsonb))
    ON CONFLICT (source, environment_id, account_id)
    DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name not in KEPT)}
    """
)


async def save(conn: AsyncConnection, changed: Sequence[Account]) -> None:
    if not changed:
        return
    rows = [
        {
            "source": account.key.source,
            "environment_id": account.key.environment_id,
            "account_id": account.key.account_id,
            "connection_id": account.connection_id,
            "provider": account.provider,
            "identifier": account.identifier,
            "organization_id": account.organization_id,
            "status": account.status,
            "status_since": account.status_since,
            "not_well": dict(account.not_well),
            "last_status_at": account.last_status_at,
            "last_event_at": account.last_event_at,
            "last_refresh_at": account.last_refresh_at,
            "last_refresh_outcome": account.last_refresh_outcome,
            "failures_in_a_row": account.failures_in_a_row,
            "token_expires_at": account.token_expires_at,
            "heard_hour": heard.hour if (heard := account.heard) is not None else None,
            "heard_in_hour": heard.in_hour if heard is not None else 0,
            "heard_before": heard.before if heard is not None else 0,
            "first_seen_at": account.first_seen_at,
        }
        for account in changed
    ]
    await conn.execute(SAVE, {"rows": orjson.dumps(rows).decode()})


LAST_WELL = text(
    """
    SELECT a.source, a.environment_id, a.account_id, e.occurred_at
    FROM unnest(:sources, :environment_ids, :account_ids, :befores) AS a (source, environment_id, account_id, before)
    CROSS JOIN LATERAL (
        SELECT occurred_at FROM events
        WHERE account_id = a.account_id AND source = a.source AND coalesce(environment_id, '') = a.environment_id
            AND occurred_at < a.before AND account_status = 'ACTIVE' AND origin <> 'probe' AND position <= :upto
        ORDER BY occurred_at DESC LIMIT 1
    ) AS e
    """
).bindparams(
    bindparam("sources", type_=ARRAY(Text())),
    bindparam("environment_ids", type_=ARRAY(Text())),
    bindparam("account_ids", type_=ARRAY(Text())),
    bindparam("befores", type_=ARRAY(DateTime(timezone=True))),
)

HISTORY = text(
    f"""
    SELECT {", ".join("e." + name for name in EVENT_COLUMNS)}
    FROM unnest(:sources, :environment_ids, :account_ids, :sinces) AS a (source, environment_id, account_id, since)
    CROSS JOIN LATERAL (
        SELECT * FROM events
        WHERE account_id = a.account_id AND source = a.source AND coalesce(environment_id, '') = a.environment_id
            AND occurred_at >= a.since AND received_at >= :floor AND position <= :upto
            AND origin NOT IN ('probe', 'authwatch')
        ORDER BY occurred_at DESC LIMIT {EVENTS_PER_ACCOUNT_MAX}
    ) AS e
    """
).bindparams(
    bindparam("sources", type_=ARRAY(Text())),
    bindparam("environment_ids", type_=ARRAY(Text())),
    bindparam("account_ids", type_=ARRAY(Text())),
    bindparam("sinces", type_=ARRAY(DateTime(timezone=True))),
)


def _keys(instants: Mapping[AccountKey, datetime]) -> dict[str, Any]:
    keys = list(instants)
    return {
        "sources": [key.source for key in keys],
        "environment_ids": [key.environment_id for key in keys],
        "account_ids": [key.account_id for key in keys],
    }


async def last_well(
    conn: AsyncConnection, befores: Mapping[AccountKey, datetime], upto: int
) -> dict[AccountKey, datetime]:
    """For each account the last time before the given one at which an event said ACTIVE."""
    if not befores:
        return {}
    rows = await conn.execute(LAST_WELL, _keys(befores) | {"befores": list(befores.values()), "upto": upto})
    return {AccountKey(row.source, row.environment_id, row.account_id): row.occurred_at for row in rows}


LAST_OF_KINDS = text(
    f"""
    SELECT {", ".join("e." + name for name in EVENT_COLUMNS)}
    FROM unnest(:sources, :environment_ids, :account_ids, :sinces) AS a (source, environment_id, account_id, since)
    CROSS JOIN LATERAL (
        SELECT * FROM events
        WHERE account_id = a.account_id AND source = a.source AND coalesce(environment_id, '') = a.environment_id
            AND occurred_at < a.since AND kind = ANY(CAST(:kinds AS text[])) AND position <= :upto
            AND origin NOT IN ('probe', 'authwatch')
        ORDER BY occurred_at DESC LIMIT {PRIOR_EVENTS_MAX}
    ) AS e
    """
).bindparams(
    bindparam("sources", type_=ARRAY(Text())),
    bindparam("environment_ids", type_=ARRAY(Text())),
    bindparam("account_ids", type_=ARRAY(Text())),
    bindparam("sinces", type_=ARRAY(DateTime(timezone=True))),
)


async def last_of_kinds(
    conn: AsyncConnection, sinces: Mapping[AccountKey, datetime], kinds: Sequence[str], upto: int
) -> dict[AccountKey, list[Event]]:
    """Each account's last few events of these kinds before the given time."""
    found: dict[AccountKey, list[Event]] = {}
    rows = await conn.execute(
        LAST_OF_KINDS, _keys(sinces) | {"sinces": list(sinces.values()), "kinds": list(kinds), "upto": upto}
    )
    for row in rows:
        event = to_event(row)
        if event.account is not None:
            found.setdefault(event.account, []).append(event)
    return found


async def history(
    conn: AsyncConnection, sinces: Mapping[AccountKey, datetime], upto: int
) -> dict[AccountKey, list[Event]]:
    """Each account's events since the given time, as the log had them up to a position; the newest when there are too many."""
    if not sinces:
        return {}
    floor = max(min(sinces.values()), BEGINNING) - CLOCK_SLACK
    rows = await conn.execute(HISTORY, _keys(sinces) | {"sinces": list(sinces.values()), "floor": floor, "upto": upto})
    found: dict[AccountKey, list[Event]] = {key: [] for key in sinces}
    for row in rows:
        event = to_event(row)
        if event.account is not None:
            found[event.account].append(event)
    return found


def to_account(row: Row[Any]) -> Account:
    not_well = row.not_well
    if not_well and isinstance(not_well, str):
        not_well = orjson.loads(not_well)
    return Account(
        key=AccountKey(row.source, row.environment_id, row.account_id),
        connection_id=row.connection_id,
        provider=row.provider,
        identifier=row.identifier,
        organization_id=row.organization_id,
        status=row.status,
        status_since=row.status_since,
        not_well={status: datetime.fromisoformat(at) for status, at in not_well.items()} if not_well else {},
        last_status_at=row.last_status_at,
        last_event_at=row.last_event_at,
        last_refresh_at=row.last_refresh_at,
        last_refresh_outcome=row.last_refresh_outcome,
        failures_in_a_row=row.failures_in_a_row,
        token_expires_at=row.token_expires_at,
        heard=None if row.heard_hour is None else Heard(row.heard_hour, row.heard_in_hour, row.heard_before),
        first_seen_at=row.first_seen_at,
    )
