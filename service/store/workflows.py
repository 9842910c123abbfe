"""Workflows, what they depend on, and the holds on them."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ARRAY, Boolean, Row, Text, Uuid, bindparam, delete, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey, new_id
from service.store.hold_tables import past_holds
from service.store.keys import KEYS, any_id, any_of, key_values, same_account
from service.store.tables import dependencies, holds, workflows

LOCK_CLASS = 730_521
# A hold let go for these reasons comes back when its cause does; one that a person lifted never does.
REVIVABLE = ("dependency_dropped", "workflow_inactive", "workflow_deleted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    workflow_id: str
    name: str | None
    account_ids: tuple[str, ...]
    connection_ids: tuple[str, ...]
    active: bool
    pause: str
    resume: str
    orchestrator_name: str | None
    orchestrator_ref: str | None
    orchestrator_held: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """`source` None: a short id nobody has seen yet. `written` is the caller's own word for it."""

    kind: str
    written: str
    source: str | None
    environment_id: str | None
    target_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """`placed_by`: the person of a person's hold; of an alert's the alert says whose it is. `expires_at`: it goes by itself
    then. `released_by` and `release_note`: by whose word it went, and what they said to it."""

    id: str
    workflow_id: str
    alert_id: str | None
    scope: str
    account: AccountKey | None
    reason: str
    placed_at: datetime
    released_at: datetime | None
    release_reason: str | None
    connection: AccountKey | None = None  # source, environment and connection id; its account is None then
    placed_by: str | None = None
    expires_at: datetime | None = None
    released_by: str | None = None
    release_note: str | None = None


async def lock(conn: AsyncConnection, workflow_id: str) -> None:
    """Taken before the account locks by whoever changes one workflow."""
    await conn.execute(select(func.pg_advisory_xact_lock(LOCK_CLASS, zlib.crc32(workflow_id.encode()) % 65536)))


async def load(conn: AsyncConnection, workflow_id: str) -> Workflow | None:
    row = (await conn.execute(select(workflows).where(workflows.c.workflow_id == workflow_id))).first()
    return to_workflow(row) if row else None


async def load_many(conn: AsyncConnection, workflow_ids: Collection[str]) -> dict[str, Workflow]:
    if not workflow_ids:
        return {}
    rows = await conn.execute(select(workflows).where(workflows.c.workflow_id == any_of(workflow_ids)))
    return {row.workflow_id: to_workflow(row) for row in rows}


async def list_after(conn: AsyncConnection, after: str, limit: int) -> list[Workflow]:
    rows = await conn.execute(
        select(workflows).where(workflows.c.workflow_id > after).order_by(workflows.c.workflow_id).limit(limit)
    )
    return [to_workflow(row) for row in rows]


async def save(conn: AsyncConnection, workflow: Workflow, depends_on: Sequence[Dependency]) -> None:
    values = {
        "workflow_id": workflow.workflow_id,
        "name": workflow.name,
        "account_ids": list(workflow.account_ids),
        "connection_ids": list(workflow.connection_ids),
        "active": workflow.active,
        "pause": workflow.pause,
        "resume": workflow.resume,
        "orchestrator_name": workflow.orchestrator_name,
        "orchestrator_ref": workflow.orchestrator_ref,
        "orchestrator_held": workflow.orchestrator_held,
        "created_at": workflow.created_at,
        "updated_at": workflow.updated_at,
    }
    statement = insert(workflows).values(values)
    await conn.execute(
        statement.on_conflict_do_update(
            index_elements=("workflow_id",),
            set_={name: statement.excluded[name] for name in values if name not in ("workflow_id", "created_at")},
        )
    )
    await conn.execute(delete(dependencies).where(dependencies.c.workflow_id == workflow.workflow_id))
    if depends_on:
        rows = [
            {
                "workflow_id": workflow.workflow_id,
                "kind": dependency.kind,
                "written": dependency.written,
                "source": dependency.source,
                "environment_id": dependency.environment_id,
                "target_id": dependency.target_id,
            }
            for dependency in depends_on
        ]
        await conn.execute(insert(dependencies), rows)


async def remove(conn: AsyncConnection, workflow_id: str) -> None:
    await conn.execute(delete(dependencies).where(dependencies.c.workflow_id == workflow_id))
    await conn.execute(delete(workflows).where(workflows.c.workflow_id == workflow_id))


async def dependencies_of(conn: AsyncConnection, workflow_id: str) -> list[Dependency]:
    rows = await conn.execute(select(dependencies).where(dependencies.c.workflow_id == workflow_id))
    return [
        Dependency(
            kind=row.kind,
            written=row.written,
            source=row.source,
            environment_id=row.environment_id,
            target_id=row.target_id,
        )
        for row in rows
    ]


def names_of(dependencies: Sequence[Dependency]) -> tuple[set[str], set[str]]:
    """The short ids of accounts and of connections, as their locks are taken."""
    of_kind = {kind: {one.target_id for one in dependencies if one.kind == kind} for kind in ("account", "connection")}
    return of_kind["account"], of_kind["connection"]


# One statement, however many are new at once.
BIND = (
    update(dependencies)
    .where(
        dependencies.c.kind == "account",
        dependencies.c.source.is_(None),
        dependencies.c.target_id == KEYS.c.account_id,
    )
    .values(source=KEYS.c.source, environment_id=KEYS.c.environment_id)
)


async def bind(conn: AsyncConnection, keys: Sequence[AccountKey]) -> None:
    """Accounts seen for the first time take the short ids that were waiting for them; of namesakes the first does."""
    first: dict[str, AccountKey] = {}
    for key in keys:
        first.setdefault(key.account_id, key)
    if first:
        await conn.execute(BIND, key_values(first.values()))


async def open_holds(
    conn: AsyncConnection, *, workflow_ids: Collection[str] | None = None, alert_ids: Collection[str] | None = None
) -> list[Hold]:
    query = select(holds).where(holds.c.released_at.is_(None)).order_by(holds.c.placed_at, holds.c.id)
    if workflow_ids is not None:
        query = query.where(holds.c.workflow_id == any_of(workflow_ids))
    if alert_ids is not None:
        query = query.where(holds.c.alert_id == any_id(alert_ids))
    return [to_hold(row) for row in await conn.execute(query)]


ACCOUNT_HOLDS = select(holds).where(holds.c.released_at.is_(None), holds.c.alert_id.is_not(None), same_account(holds))


async def account_holds(conn: AsyncConnection, keys: Collection[AccountKey]) -> list[Hold]:
    """Alerts' open holds that stand because of these accounts."""
    if not keys:
        return []
    rows = await conn.execute(ACCOUNT_HOLDS, key_values(keys))
    return [to_hold(row) for row in rows]


async def connection_holds(conn: AsyncConnection, keys: Collection[AccountKey]) -> list[Hold]:
    """Alerts' open holds that stand because these connections fail."""
    rows = await conn.execute(
        select(holds).where(
            holds.c.released_at.is_(None),
            tuple_(holds.c.source, holds.c.environment_id, holds.c.connection_id).in_([tuple(key) for key in keys]),
        )
    )
    return [to_hold(row) for row in rows]


HOLDS_OF_ALERT_MAX = 200  # shown with it
HOLDS_OF_ALERTS = text(
    f"""
    SELECT {", ".join(column.name for column in holds.columns)} FROM (
        SELECT *, row_number() OVER (PARTITION BY alert_id ORDER BY placed_at, id) AS nth
        FROM holds WHERE alert_id = ANY(:alert_ids)
    ) AS of_alerts WHERE nth <= :most ORDER BY placed_at, id
    """
).bindparams(bindparam("alert_ids", type_=ARRAY(Uuid(as_uuid=False))), bindparam("most", HOLDS_OF_ALERT_MAX))
HOLDS_FOUND = HOLDS_OF_ALERTS.columns(*holds.columns)


async def holds_of_alerts(conn: AsyncConnection, alert_ids: Collection[str]) -> dict[str, list[Hold]]:
    """By alert id: open and released ones, oldest first."""
    found: dict[str, list[Hold]] = {}
    if alert_ids:
        for hold in map(to_hold, await conn.execute(HOLDS_FOUND, {"alert_ids": list(alert_ids)})):
            found.setdefault(hold.alert_id or "", []).append(hold)
    return found


async def holds_of_alert(conn: AsyncConnection, alert_id: str) -> list[Hold]:
    return (await holds_of_alerts(conn, [alert_id])).get(alert_id, [])


HOLD_COLUMNS = (
    "id, workflow_id, alert_id, scope, source, environment_id, account_id, connection_id, reason, placed_at, placed_by,"
    " expires_at"
)
PAST_COLUMNS = ", ".join(column.name for column in past_holds.columns)
# One statement and one parameter, however many break at once. One that comes back leaves its earlier time behind.
PLACE = text(
    f"""
    WITH wanted AS (
        SELECT {HOLD_COLUMNS} FROM jsonb_populate_recordset(NULL::holds, CAST(:rows AS jsonb))
    ), past AS (
        INSERT INTO past_holds ({PAST_COLUMNS})
        SELECT {", ".join(f"earlier.{column.name}" for column in past_holds.columns)}
        FROM wanted CROSS JOIN LATERAL (
            SELECT * FROM holds h WHERE h.workflow_id = wanted.workflow_id AND h.alert_id = wanted.alert_id
                AND h.released_at IS NOT NULL AND h.release_reason = ANY(:revivable) LIMIT 1) AS earlier
        ON CONFLICT DO NOTHING
    )
    INSERT INTO holds ({HOLD_COLUMNS}) SELECT {HOLD_COLUMNS} FROM wanted
    ON CONFLICT (workflow_id, alert_id) WHERE alert_id IS NOT NULL
    DO UPDATE SET released_at = NULL, release_reason = NULL, released_by = NULL, release_note = NULL,
        scope = excluded.scope, placed_at = excluded.placed_at
    WHERE holds.released_at IS NOT NULL AND holds.release_reason = ANY(:revivable)
    RETURNING workflow_id, alert_id::text
    """
).bindparams(bindparam("revivable", list(REVIVABLE), type_=ARRAY(Text())))
PLACE_A_PERSONS = text(
    f"""
    INSERT INTO holds ({HOLD_COLUMNS})
    SELECT {HOLD_COLUMNS} FROM jsonb_populate_recordset(NULL::holds, CAST(:rows AS jsonb))
    ON CONFLICT (workflow_id) WHERE alert_id IS NULL AND released_at IS NULL DO NOTHING
    RETURNING workflow_id, alert_id::text
    """
)


async def place_holds(conn: AsyncConnection, wanted: Sequence[Hold]) -> set[tuple[str, str | None]]:
    """Places what is not there; the same episode never holds a workflow twice, nor again after a person let it go.

    Answers (workflow id, alert id) of the holds that were really placed; the alert is None of a person's.
    """
    placed: set[tuple[str, str | None]] = set()
    # Each pair once: one statement may not meet its own row a second time.
    pairs = {(hold.workflow_id, hold.alert_id): hold for hold in reversed(wanted)}
    for statement, holds_of in (
        (PLACE, [hold for hold in pairs.values() if hold.alert_id is not None]),
        (PLACE_A_PERSONS, [hold for hold in pairs.values() if hold.alert_id is None]),
    ):
        if holds_of:
            rows = orjson.dumps([hold_row(hold) for hold in reversed(holds_of)]).decode()
            placed |= {(row[0], row[1]) for row in await conn.execute(statement, {"rows": rows})}
    return placed


def hold_row(hold: Hold) -> dict[str, Any]:
    where = hold.account or hold.connection
    return {
        "id": hold.id,
        "workflow_id": hold.workflow_id,
        "alert_id": hold.alert_id,
        "scope": hold.scope,
        "source": where.source if where else None,
        "environment_id": where.environment_id if where else None,
        "account_id": hold.account.account_id if hold.account else None,
        "connection_id": hold.connection.account_id if hold.connection else None,
        "reason": hold.reason,
        "placed_at": hold.placed_at,
        "placed_by": hold.placed_by,
        "expires_at": hold.expires_at,
    }


async def release_holds(
    conn: AsyncConnection,
    hold_ids: Collection[str],
    now: datetime,
    reason: str,
    *,
    by: str | None = None,
    note: str | None = None,
) -> None:
    """`by`: the person whose word let go of them, `note` what they said to it; None of what goes by itself."""
    if hold_ids:
        await conn.execute(
            update(holds)
            .where(holds.c.id == any_id(hold_ids), holds.c.released_at.is_(None))
            .values(released_at=now, release_reason=reason, released_by=by, release_note=note)
        )


async def rescope(conn: AsyncConnection, workflow_id: str, scope: str) -> None:
    """Open holds of accounts' alerts follow the workflow's own `pause`; a person's hold is always on the whole of it."""
    await conn.execute(
        update(holds)
        .where(holds.c.workflow_id == workflow_id, holds.c.account_id.is_not(None), holds.c.released_at.is_(None))
        .values(scope=scope)
    )


# The rows are locked in one order first, so that no two who change several ever wait for each other.
SET_ORCHESTRATOR_HELD = text(
    """
    WITH asked AS (SELECT * FROM unnest(:workflow_ids, :held) AS asked (workflow_id, held)), locked AS (
        SELECT workflow_id FROM workflows WHERE workflow_id = ANY(:workflow_ids) ORDER BY workflow_id FOR UPDATE)
    UPDATE workflows w SET orchestrator_held = asked.held
    FROM asked JOIN locked USING (workflow_id) WHERE w.workflow_id = asked.workflow_id
    """
).bindparams(bindparam("workflow_ids", type_=ARRAY(Text())), bindparam("held", type_=ARRAY(Boolean())))


async def set_orchestrator_held(conn: AsyncConnection, held: Mapping[str, bool]) -> None:
    """By workflow id, whether its orchestrator was asked to pause it."""
    if held:
        await conn.execute(SET_ORCHESTRATOR_HELD, {"workflow_ids": list(held), "held": list(held.values())})


def make_hold(
    workflow: Workflow,
    *,
    alert_id: str | None,
    account: AccountKey | None,
    scope: str,
    reason: str,
    now: datetime,
    connection: AccountKey | None = None,
    placed_by: str | None = None,
    expires_at: datetime | None = None,
) -> Hold:
    return Hold(
        id=new_id(),
        workflow_id=workflow.workflow_id,
        alert_id=alert_id,
        scope=scope,
        account=account,
        reason=reason,
        placed_at=now,
        released_at=None,
        release_reason=None,
        connection=connection,
        placed_by=placed_by,
        expires_at=expires_at,
    )


def to_workflow(row: Row[Any]) -> Workflow:
    return Workflow(
        workflow_id=row.workflow_id,
        name=row.name,
        account_ids=tuple(row.account_ids),
        connection_ids=tuple(row.connection_ids),
        active=row.active,
        pause=row.pause,
        resume=row.resume,
        orchestrator_name=row.orchestrator_name,
        orchestrator_ref=row.orchestrator_ref,
        orchestrator_held=row.orchestrator_held,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def to_hold(row: Row[Any]) -> Hold:
    return Hold(
        id=row.id,
        workflow_id=row.workflow_id,
        alert_id=row.alert_id,
        scope=row.scope,
        account=AccountKey(row.source, row.environment_id, row.account_id) if row.account_id else None,
        reason=row.reason,
        placed_at=row.placed_at,
        released_at=row.released_at,
        release_reason=row.release_reason,
        connection=AccountKey(row.source, row.environment_id, row.connection_id) if row.connection_id else None,
        placed_by=row.placed_by,
        expires_at=row.expires_at,
        released_by=row.released_by,
        release_note=row.release_note,
    )
