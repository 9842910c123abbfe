"""The one log: accept receipts into it, append decisions to it, read on from a position.

Appends are serialised by one transaction-scoped advisory lock, taken last in any transaction, so that `position` order
is commit order and a reader never misses what was committed late (design.md, rule 4).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import orjson
from sqlalchemy import BigInteger, Row, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey, Event, ProviderEvent, new_id
from service.store import audit_chain
from service.store.columns import literal
from service.store.tables import Instant, events, log_marks, receipts

LOG_LOCK = 7_305_201_002  # the same number as in accept_receipts
PARTITION_DAYS_AHEAD = 7
LAG_COUNTED_MAX = 100_000  # whoever is further behind is told apart by its seconds
WORKFLOW_KINDS = frozenset({"workflow.paused", "workflow.resumed"})
MARK_MARGIN = timedelta(hours=1)  # the small steps of a clock that is kept right; greater ones are noticed (read_after)
EVENT_COLUMNS = (  # in the order of Event's fields
    "id",
    "position",
    "source",
    "origin",
    "event_id",
    "type",
    "kind",
    "account_id",
    "connection_id",
    "provider",
    "identifier",
    "organization_id",
    "environment_id",
    "status",
    "old_status",
    "occurred_at",
    "received_at",
    "lag_seconds",
    "clock_suspect",
    "account_status",
    "attempted_at",
    "details",
)
SELECTED = tuple(events.c[name] for name in EVENT_COLUMNS)


@dataclass(slots=True, kw_only=True)  # not frozen, for the speed of building one
class Receipt:
    """One verified request, ready to be kept. `event.occurred_at` None means: use the database's `received_at`."""

    source: str
    origin: str
    event: ProviderEvent
    clock_suspect: bool
    headers: Mapping[str, str]
    body: bytes
    body_sha256: bytes
    secret_name: str | None
    attempted_at: datetime | None
    id: str = field(default_factory=new_id)


class Kept(NamedTuple):
    """What became of a receipt: its own id when accepted, else the id of the first; `same_body` tells them apart."""

    id: str
    accepted: bool
    same_body: bool


TEXTS = (
    "source",
    "origin",
    "event_id",
    "type",
    "kind",
    "account_id",
    "connection_id",
    "provider",
    "identifier",
    "organization_id",
    "environment_id",
    "status",
    "old_status",
    "account_status",
)
# Of receipt_row, in its order.
ARRAYS = {
    "id": "uuid",
    **dict.fromkeys(TEXTS, "text"),
    "occurred_at": "timestamptz",
    "attempted_at": "timestamptz",
    "clock_suspect": "boolean",
    "details": "jsonb",
    "headers": "jsonb",
    "body": "bytea",
    "body_sha256": "bytea",
    "secret_name": "text",
}
# Where the clock stands so far back that the day is carried over already, `events_kept` takes its rows.
TAKES_TODAY = text(
    """
    SELECT count(DISTINCT inhparent) = 2 FROM pg_inherits
    WHERE NOT inhdetachpending AND (
        (inhparent = 'events'::regclass AND inhrelid IN (to_regclass('events_' || to_char(now(), 'YYYYMMDD')),
            CASE WHEN to_regclass('events_' || to_char(now(), 'YYYYMMDD')) IS NULL
            THEN to_regclass('events_kept') END))
        OR (inhparent = 'receipts'::regclass AND inhrelid = to_regclass('receipts_' || to_char(now(), 'YYYYMMDD'))))
    """
)
# The front door sends the same rows in binary (service/store/pipeline.py); here whole columns as text will do.
ACCEPT = text(
    f"SELECT number, event_row_id, same_body FROM accept_rows(ARRAY(SELECT ROW({', '.join(f'n.{name}' for name in ARRAYS)})"
    f"::receipt_row FROM unnest({', '.join(f'CAST(:{name} AS {kind}[])' for name, kind in ARRAYS.items())})"
    f" WITH ORDINALITY AS n ({', '.join(ARRAYS)}, ordinality) ORDER BY n.ordinality))"
)


async def accept(conn: AsyncConnection, batch: Sequence[Receipt]) -> list[Kept]:
    """Keeps a batch, in order, in one statement; the caller's commit makes it durable. Answers row by row."""
    columns: dict[str, list[Any]] = {name: [] for name in ARRAYS}
    for receipt in batch:
        event = receipt.event
        values = (
            receipt.id,
            receipt.source,
            receipt.origin,
            event.event_id,
            event.type,
            event.kind,
            event.account_id,
            event.connection_id,
            event.provider,
            event.identifier,
            event.organization_id,
            event.environment_id,
            event.status,
            event.old_status,
            event.account_status,
            event.occurred_at,
            receipt.attempted_at,
            receipt.clock_suspect,
            json.dumps(dict(event.details)) if event.details else None,
            json.dumps(dict(receipt.headers)),
            "\\x" + receipt.body.hex(),
            "\\x" + receipt.body_sha256.hex(),
            receipt.secret_name,
        )
        for name, value in zip(ARRAYS, values, strict=True):
            columns[name].append(value)
    values_of = {name: literal(values) for name, values in columns.items()}
    others = {row.number - 1: row for row in await conn.execute(ACCEPT, values_of)}
    kept: list[Kept] = []
    for number, receipt in enumerate(batch):
        other = others.get(number)
        first = str(other.event_row_id) if other else receipt.id
        kept.append(Kept(id=first, accepted=first == receipt.id, same_body=other.same_body if other else True))
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What Authwatch itself decided, on its way into the log. `subject_id` becomes `event_id`: the alert or workflow."""

    kind: str
    subject_id: str | None
    occurred_at: datetime
    account: AccountKey | None = None
    connection_id: str | None = None
    provider: str | None = None
    identifier: str | None = None
    status: str | None = None
    old_status: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


# The clock is read after the lock was granted: now() is the transaction's start, before earlier positions.
LOCK = select(func.pg_advisory_xact_lock(LOG_LOCK), func.clock_timestamp())
DECIDED = (
    "id, source, origin, event_id, type, kind, account_id, environment_id, connection_id, provider, identifier, status,"
    " old_status, occurred_at, received_at, details"
)
# One statement: receivers wait for the log's lock. Positions are given in the order of the rows.
APPEND = text(
    f"""
    INSERT INTO events ({DECIDED})
    SELECT {DECIDED} FROM jsonb_populate_recordset(NULL::events, CAST(:rows AS jsonb))
    """
)
# With audit entries among them: their positions are hashed, and so given out before.
APPEND_PLACED = text(
    f"""
    INSERT INTO events (position, {DECIDED})
    SELECT position, {DECIDED} FROM jsonb_populate_recordset(NULL::events, CAST(:rows AS jsonb))
    """
)


async def append(conn: AsyncConnection, decisions: Sequence[Decision]) -> None:
    """The last thing a transaction does: row locks come before the log's lock, never after. Audit entries among them are
    sealed (service/audit.py)."""
    if not decisions:
        return
    chained = any(audit_chain.is_chained(decision.kind) for decision in decisions)
    if chained:
        decisions = await name_rules(conn, decisions)
    at = (await conn.execute(LOCK)).one()[1]
    rows = [
        {
            "id": new_id(),
            "source": decision.account.source if decision.account else "authwatch",
            "origin": "authwatch",
            "event_id": decision.subject_id,
            "type": decision.kind,
            "kind": decision.kind,
            "account_id": decision.account.account_id if decision.account else None,
            "environment_id": (decision.account.environment_id or None) if decision.account else None,
            "connection_id": decision.connection_id,
            "provider": decision.provider,
            "identifier": decision.identifier,
            "status": decision.status,
            "old_status": decision.old_status,
            "occurred_at": decision.occurred_at,
            "received_at": at,
            "details": dict(decision.details) or None,
        }
        for decision in decisions
    ]
    if chained:
        rows = await audit_chain.place(conn, rows, at)
    await conn.execute(APPEND_PLACED if chained else APPEND, {"rows": orjson.dumps(rows).decode()})


async def name_rules(conn: AsyncConnection, decisions: Sequence[Decision]) -> list[Decision]:
    """Who reads the log later no longer has the alerts: what happened to a workflow says by which rules."""
    held = [one for one in decisions if one.kind in WORKFLOW_KINDS and one.details.get("alert_ids")]
    rules = await audit_chain.rules_of(conn, [alert_id for one in held for alert_id in one.details["alert_ids"]])
    if not rules:
        return list(decisions)
    return [
        replace(
            one,
            details={
                **one.details,
                "rule_ids": sorted({rules[id_] for id_ in one.details["alert_ids"] if id_ in rules}),
            },
        )
        if one.kind in WORKFLOW_KINDS and one.details.get("alert_ids")
        else one
        for one in decisions
    ]


# Built once: the evaluator asks them many times a second.
AFTER = (
    select(*SELECTED)
    .where(events.c.position > bindparam("after"))
    .order_by(events.c.position)
    .limit(bindparam("rows", type_=BigInteger()))
)
AFTER_FLOOR = AFTER.where(events.c.received_at >= bindparam("floor"))
GIVEN = text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM log_position")
NEWEST_MARK = (
    select(log_marks.c.received_at)
    .where(log_marks.c.position <= bindparam("upto"))
    .order_by(log_marks.c.position.desc())
    .limit(1)
)


async def read_after(conn: AsyncConnection, position: int, limit: int) -> list[Event]:
    """The next rows in commit order.

    Marks say before which time there is nothing after this position, so that only the days since are opened. A clock
    that was put back makes a mark wrong: then a position is missing in what the days since hold, or they hold nothing
    although positions were given out, and all days are read. Gaps of aborted transactions cost such a reading, once.
    """
    floor = await received_since(conn, position)
    if floor is not None:
        rows = (await conn.execute(AFTER_FLOOR, {"after": position, "rows": limit, "floor": floor})).all()
        if (rows and rows[-1].position == position + len(rows)) or (not rows and not await moved_on(conn, position)):
            return [to_event(row) for row in rows]
    return [to_event(row) for row in await conn.execute(AFTER, {"after": position, "rows": limit})]


async def received_since(conn: AsyncConnection, position: int) -> datetime | None:
    """Unless a clock was put back, every row after `position` was received at this time or later; None: not known."""
    at: datetime | None = (await conn.execute(NEWEST_MARK, {"upto": position})).scalar_one_or_none()
    return None if at is None else at - MARK_MARGIN


async def moved_on(conn: AsyncConnection, position: int) -> bool:
    """Whether a later position was ever given out, committed or not."""
    given: int = (await conn.execute(text("SELECT last_value FROM log_position"))).scalar_one()
    return given > position


async def was_given(conn: AsyncConnection, position: int) -> bool:
    """Whether the log ever came this far; 0 is before its first row."""
    given: int = (await conn.execute(GIVEN)).scalar_one()
    return position <= given


AT = select(events.c.received_at).where(events.c.position == bindparam("position"))
IS_AT = AT.where(events.c.received_at == bindparam("at", type_=Instant))


async def received_at(conn: AsyncConnection, position: int) -> datetime | None:
    """When the row at this position was received; None where the log holds none there."""
    at: datetime | None = (await conn.execute(AT, {"position": position})).scalars().first()
    return at


async def holds(conn: AsyncConnection, position: int, at: datetime) -> bool:
    """Whether the row at this position is the one that was received then: a look-up of one primary key. After a restore
    from a backup the position may be another row's, never with the same microsecond."""
    return (await conn.execute(IS_AT, {"position": position, "at": at})).first() is not None


async def mark(conn: AsyncConnection) -> None:
    """Notes where the log stands now; a database that is still empty has nothing to note."""
    position, at = await head(conn)
    if at is not None:
        await conn.execute(
            upsert(log_marks)
            .values(position=position, received_at=at)
            .on_conflict_do_nothing(index_elements=("position",))
        )


async def head(conn: AsyncConnection) -> tuple[int, datetime | None]:
    """Position and `received_at` of the newest row; (0, None) on an empty log."""
    row = (
        await conn.execute(select(events.c.position, events.c.received_at).order_by(events.c.position.desc()).limit(1))
    ).first()
    return (row.position, row.received_at) if row else (0, None)


async def oldest_after(conn: AsyncConnection, position: int) -> datetime | None:
    """`received_at` of the first row after position; None when there is none."""
    first = (
        select(events.c.position, events.c.received_at)
        .where(events.c.position > position)
        .order_by(events.c.position)
        .limit(1)
    )
    floor = await received_since(conn, position)
    if floor is not None:
        row = (await conn.execute(first.where(events.c.received_at >= floor))).first()
        if (row is not None and row.position == position + 1) or (row is None and not await moved_on(conn, position)):
            return row.received_at if row else None
    row = (await conn.execute(first)).first()
    return row.received_at if row else None


async def lag_after(conn: AsyncConnection, position: int) -> tuple[int, datetime | None]:
    """`(how many rows wait after position, counted up to LAG_COUNTED_MAX; received_at of the oldest of them)`."""
    oldest = await oldest_after(conn, position)
    if oldest is None:
        return 0, None
    waiting = (
        select(events.c.position)
        .where(events.c.position > position, events.c.received_at >= oldest - MARK_MARGIN)
        .limit(LAG_COUNTED_MAX)
    )
    return (await conn.execute(select(func.count()).select_from(waiting.subquery()))).scalar_one(), oldest


async def receipt_of(conn: AsyncConnection, event_row_id: str) -> Row[Any] | None:
    return (await conn.execute(select(receipts).where(receipts.c.event_row_id == event_row_id))).first()


async def ensure_partitions(conn: AsyncConnection, *, days_ahead: int = PARTITION_DAYS_AHEAD) -> int:
    """Makes yesterday's to `days_ahead` days' partitions where missing; how many were made."""
    made = await conn.execute(
        text("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 1, :days)"), {"days": days_ahead + 2}
    )
    return int(made.scalar_one())


async def takes_today(conn: AsyncConnection) -> bool:
    """Whether a row received now has a partition to go to, of the log and of the receipts."""
    return bool((await conn.execute(TAKES_TODAY)).scalar_one())


def partition_is_missing(exc: DBAPIError) -> bool:
    """Postgres says 23514 (check_violation) when no partition takes the row; its text is the only other mark."""
    return getattr(exc.orig, "sqlstate", None) == "23514" and "no partition of relation" in str(exc.orig)


def to_event(row: Row[Any]) -> Event:
    """Of `EVENT_COLUMNS` in their order, whatever follows them."""
    return Event(*row[: len(EVENT_COLUMNS)])
