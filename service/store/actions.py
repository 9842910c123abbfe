"""Actions: what is to leave the house, as rows; claimed with a lease, tried with no transaction open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import ARRAY, Boolean, DateTime, Integer, Interval, Row, Text, bindparam, column, func, select, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import new_id
from service.store.messages import Message, as_json
from service.store.tables import actions, attempts

NOTIFY = "notify"
THREAD = "thread"  # a reply to a message that NOTIFY posted
PEOPLE = (NOTIFY, THREAD)  # kinds that tell people
PAUSE = "orchestrator.pause"
RESUME = "orchestrator.resume"
OPEN = ("pending", "running")
DETAIL_CHARS_MAX = 500
NOTHING: Mapping[tuple[str, str], int] = {}
# What changes within it about one message is one edit of it: Slack takes some 50 a minute, of all messages together.
EDIT_EVERY = timedelta(seconds=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAction:
    """`lane`: actions of one lane run one after another. At most one pending NOTIFY stands in a lane: it tells the
    state of its own moment, so a second would say the same."""

    kind: str
    destination: str
    lane: str
    alert_id: str | None = None
    workflow_id: str | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    id: str
    kind: str
    destination: str
    lane: str
    alert_id: str | None
    workflow_id: str | None
    payload: Mapping[str, Any]
    state: str
    created_at: datetime
    attempts: int
    last_code: str | None
    last_error: str | None
    result: Mapping[str, Any] | None
    finished_at: datetime | None


# What is pending in these lanes is locked until our commit: claimed before it, it would tell the state from before what we
# are about to say; claimed already, it no longer counts as pending and a new one is added. In one order, so that no two
# ever wait for each other. What was written a moment ago is edited EDIT_EVERY after that. Others write beside it in the same
# statement (service/store/decisions.py).
ADD_IN_ORDER = """
    told AS MATERIALIZED (
        SELECT lane FROM actions WHERE lane = ANY(:lanes) AND state = 'pending' AND kind = 'notify'
        ORDER BY lane, id FOR UPDATE
    )
    INSERT INTO actions (id, kind, destination, lane, alert_id, workflow_id, payload, state, created_at, next_attempt_at)
    SELECT id, kind, destination, lane, alert_id, workflow_id, payload, 'pending', :now, greatest(:now, CASE kind
        WHEN 'notify' THEN (SELECT m.edited_at + :edit_every FROM messages m WHERE m.destination = n.destination
            AND m.alert_id = coalesce(CAST(n.payload ->> 'post' AS uuid), n.alert_id)) END)
    FROM jsonb_populate_recordset(NULL::actions, CAST(:actions AS jsonb)) AS n
    WHERE kind <> 'notify' OR lane NOT IN (SELECT lane FROM told)
"""
ADD = text(f"WITH {ADD_IN_ORDER}").bindparams(
    bindparam("lanes", type_=ARRAY(Text())),
    bindparam("now", type_=DateTime(timezone=True)),
    bindparam("edit_every", type_=Interval()),
)


async def add(conn: AsyncConnection, new: Sequence[NewAction], now: datetime) -> None:
    """In one statement, however many they are. A NOTIFY whose lane has a pending one is left out."""
    if new:
        await conn.execute(ADD, add_values(new, now))


def add_values(new: Sequence[NewAction], now: datetime) -> dict[str, Any]:
    """The parameters of ADD_IN_ORDER."""
    told: set[str] = set()
    rows = []
    for action in new:
        if action.kind == NOTIFY:
            if action.lane in told:
                continue
            told.add(action.lane)
        rows.append(
            {
                "id": new_id(),
                "kind": action.kind,
                "destination": action.destination,
                "lane": action.lane,
                "alert_id": action.alert_id,
                "workflow_id": action.workflow_id,
                "payload": dict(action.payload),
            }
        )
    return {"lanes": sorted(told), "actions": orjson.dumps(rows).decode(), "now": now, "edit_every": EDIT_EVERY}


# At each destination, of each kind, those that have been due longest, each the first open one of its lane: never more
# than there is room for, so that a pile at one destination is stepped over and not read. The destinations are those that open actions
# name, configured or not, each found by one look into the index. That an action is its lane's first is said by a subquery
# and not by NOT EXISTS: as a join it is planned while the table is empty and then takes the square of what waits.
CLAIM = text(
    f"""
    WITH RECURSIVE moment AS MATERIALIZED (SELECT coalesce(:now, clock_timestamp()) AS now), places AS (
        (SELECT destination, kind FROM actions WHERE state IN ('pending', 'running') ORDER BY destination, kind LIMIT 1)
        UNION ALL
        SELECT next.destination, next.kind FROM places CROSS JOIN LATERAL (
            SELECT a.destination, a.kind FROM actions a
            WHERE a.state IN ('pending', 'running') AND (a.destination, a.kind) > (places.destination, places.kind)
            ORDER BY a.destination, a.kind LIMIT 1) AS next
    ), known AS (
        SELECT * FROM unnest(:destinations, :kinds, :rooms) AS known (destination, kind, room)
    ), due AS MATERIALIZED (
        SELECT first.* FROM places LEFT JOIN known USING (destination, kind) CROSS JOIN LATERAL (
            SELECT * FROM actions a
            WHERE a.destination = places.destination AND a.kind = places.kind
                AND a.state IN ('pending', 'running') AND a.next_attempt_at <= (SELECT now FROM moment)
                AND (a.state = 'pending' OR a.lease_until <= (SELECT now FROM moment))
                AND a.id = (
                    SELECT id FROM actions earliest WHERE earliest.lane = a.lane
                        AND earliest.state IN ('pending', 'running') ORDER BY created_at, id LIMIT 1)
            ORDER BY a.next_attempt_at, a.id
            LIMIT coalesce(known.room, :limit)
            FOR UPDATE OF a SKIP LOCKED) AS first
    ), died AS (
        UPDATE attempts t SET outcome = 'ambiguous', finished_at = (SELECT now FROM moment), code = 'process_died'
        FROM due WHERE t.action_id = due.id AND t.outcome IS NULL
    ), begun AS (
        INSERT INTO attempts (action_id, number, started_at) SELECT id, attempts + 1, (SELECT now FROM moment) FROM due
    ), claimed AS (
        UPDATE actions a SET state = 'running', lease_until = moment.now + :lease, next_attempt_at = moment.now + :lease,
            attempts = a.attempts + 1
        FROM due, moment WHERE a.id = due.id
    )
    SELECT moment.now AS at, EXISTS (SELECT 1 FROM alert_news)
            OR EXISTS (SELECT 1 FROM notifications WHERE due_at <= (SELECT now FROM moment))
            OR EXISTS (SELECT 1 FROM notification_alerts WHERE look_at <= (SELECT now FROM moment)) AS undecided,
        (SELECT array_agg(id::text) FROM silences WHERE declared AND end_at > (SELECT now FROM moment)) AS declared,
        {", ".join(f"due.{one.name}" for one in actions.columns)}
    FROM moment LEFT JOIN due ON true ORDER BY due.next_attempt_at, due.id
    """
).bindparams(
    bindparam("destinations", type_=ARRAY(Text())),
    bindparam("kinds", type_=ARRAY(Text())),
    bindparam("rooms", type_=ARRAY(Integer())),
    bindparam("limit", type_=Integer()),
    bindparam("now", type_=DateTime(timezone=True)),
    bindparam("lease", type_=Interval()),
)
CLAIMED = CLAIM.columns(
    column("at", DateTime(timezone=True)),
    column("undecided", Boolean()),
    column("declared", ARRAY(Text())),
    *actions.columns,
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """Each action with whether its last attempt was never concluded, `at` the database's time. `undecided`: whom to tell is to be decided of
    something; `declared`: ids of the config file's silences that have rows."""

    actions: Sequence[tuple[Action, bool]]
    at: datetime
    undecided: bool
    declared: frozenset[str]


async def claim(
    conn: AsyncConnection,
    now: datetime | None,
    *,
    lease: timedelta,
    limit: int,
    rooms: Mapping[tuple[str, str], int] = NOTHING,
) -> list[tuple[Action, bool]]:
    """As `claim_and_look`, without the look."""
    return list((await claim_and_look(conn, now, lease=lease, limit=limit, rooms=rooms)).actions)


async def claim_and_look(
    conn: AsyncConnection,
    now: datetime | None,
    *,
    lease: timedelta,
    limit: int,
    rooms: Mapping[tuple[str, str], int] = NOTHING,
) -> Claimed:
    """Due actions, each the first open one of its lane, now ours until the lease ends; longest due first.

    At most `limit` of one kind at one destination, or as many as `rooms` says of its (destination, kind).
    `now`: else the database's clock. Each comes with whether its last attempt was never concluded: its process died, so its effect is unknown (and that
    attempt counts as `ambiguous` from now on). The attempt is recorded before it is made, in this very transaction.
    """
    values = {
        "destinations": [destination for destination, _ in rooms],
        "kinds": [kind for _, kind in rooms],
        "rooms": list(rooms.values()),
        "limit": limit,
        "now": now,
        "lease": lease,
    }
    rows = (await conn.execute(CLAIMED, values)).all()
    claimed = [
        (to_action(row), row.state == "running" or row.last_code == "ambiguous") for row in rows if row.id is not None
    ]
    return Claimed(claimed, rows[0].at, rows[0].undecided, frozenset(rows[0].declared or ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one attempt: `done`, `failed`, or `retry`/`ambiguous` with the time of the next."""

    action: Action
    outcome: str
    code: str | None = None
    detail: str | None = None
    retry_at: datetime | None = None
    result: Mapping[str, Any] | None = None


# Locked in the order that `add` locks in: it may be waiting for what it read as pending and we have claimed since. What is
# pending in the lane of a message that was written now waits for EDIT_EVERY; of that, what somebody holds is left alone, so
# that no outcome waits for the next action's.
CONCLUDE = text(
    """
    WITH moment AS MATERIALIZED (SELECT coalesce(:now, clock_timestamp()) AS now), told AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS told (
            id uuid, number int, outcome text, code text, detail text, retry_at timestamptz, result jsonb)
    ), mine AS MATERIALIZED (
        SELECT a.id, a.lane, told.outcome FROM actions a JOIN told ON a.id = told.id
        WHERE a.state = 'running' AND a.attempts = told.number ORDER BY a.lane, a.id FOR UPDATE OF a
    ), later AS MATERIALIZED (
        SELECT id FROM actions
        WHERE lane = ANY(ARRAY(SELECT lane FROM mine WHERE outcome = 'done')) AND state = 'pending' AND kind = 'notify'
        FOR UPDATE SKIP LOCKED
    ), put_off AS (
        UPDATE actions a SET next_attempt_at = greatest(a.next_attempt_at, (SELECT now FROM moment) + :edit_every)
        FROM later WHERE a.id = later.id
    ), sent AS (
        INSERT INTO messages (alert_id, destination, channel, ts, posted_at, said, edited_at, told)
        SELECT alert_id, destination, channel, ts, moment.now, said, moment.now, told
        FROM jsonb_populate_recordset(NULL::messages, CAST(:messages AS jsonb)), moment
        ORDER BY alert_id, destination
        ON CONFLICT (alert_id, destination) DO UPDATE SET channel = excluded.channel, ts = excluded.ts,
            said = excluded.said, edited_at = excluded.edited_at, told = coalesce(excluded.told, messages.told)
    ), tried AS (
        UPDATE attempts t SET finished_at = (SELECT now FROM moment), outcome = told.outcome, code = told.code, detail = told.detail
        FROM told WHERE t.action_id = told.id AND t.number = told.number
    )
    UPDATE actions a SET
        state = CASE WHEN told.outcome IN ('done', 'failed') THEN told.outcome ELSE 'pending' END,
        lease_until = NULL,
        last_code = CASE told.outcome WHEN 'ambiguous' THEN 'ambiguous' ELSE told.code END,
        last_error = told.detail,
        finished_at = CASE WHEN told.outcome IN ('done', 'failed') THEN (SELECT now FROM moment) END,
        result = coalesce(told.result, a.result),
        next_attempt_at = coalesce(told.retry_at, a.next_attempt_at)
    FROM told JOIN mine ON mine.id = told.id WHERE a.id = told.id
    RETURNING a.id::text
    """
).bindparams(
    bindparam("now", type_=DateTime(timezone=True)),
    bindparam("edit_every", type_=Interval()),
)


async def conclude_many(
    conn: AsyncConnection, outcomes: Sequence[Outcome], now: datetime | None = None, sent: Sequence[Message] = ()
) -> set[str]:
    """Records what became of these attempts, of each action one, and where the messages are that they posted: of two for one
    alert and destination the later counts. `now`: else the database's clock. Answers the ids whose lease was still ours: of the
    others, which had passed to another process meanwhile, nothing is changed but the attempt."""
    rows = [
        {
            "id": one.action.id,
            "number": one.action.attempts + 1,
            "outcome": one.outcome,
            "code": one.code,
            "detail": one.detail[:DETAIL_CHARS_MAX] if one.detail else None,
            "retry_at": one.retry_at,
            "result": dict(one.result) if one.result is not None else None,
        }
        for one in outcomes
    ]
    if not rows:
        return set()
    values = {
        "rows": orjson.dumps(rows).decode(),
        "messages": as_json(sent),
        "edit_every": EDIT_EVERY,
        "now": now,
    }
    return {row[0] for row in await conn.execute(CONCLUDE, values)}


async def conclude(
    conn: AsyncConnection, action: Action, *, now: datetime, outcome: str, code: str | None = None
) -> bool:
    """The same of one; False when its lease had passed to another process."""
    return bool(await conclude_many(conn, [Outcome(action=action, outcome=outcome, code=code)], now))


async def of_alert(conn: AsyncConnection, alert_id: str, limit: int = 100) -> list[Action]:
    rows = await conn.execute(
        select(actions).where(actions.c.alert_id == alert_id).order_by(actions.c.created_at, actions.c.id).limit(limit)
    )
    return [to_action(row) for row in rows]


async def newest_for_workflows(conn: AsyncConnection, workflow_ids: Sequence[str]) -> dict[str, Action]:
    """The last thing each workflow's orchestrator was asked; what was taken back before it was sent is none."""
    if not workflow_ids:
        return {}
    rows = await conn.execute(
        select(actions)
        .where(
            actions.c.workflow_id.in_(list(workflow_ids)),
            actions.c.kind.in_((PAUSE, RESUME)),
            actions.c.state != "superseded",
        )
        .ext(distinct_on(actions.c.workflow_id))
        .order_by(actions.c.workflow_id, actions.c.created_at.desc(), actions.c.id.desc())
    )
    return {row.workflow_id: to_action(row) for row in rows}


async def attempts_of(conn: AsyncConnection, action_ids: Sequence[str]) -> dict[str, list[Row[Any]]]:
    found: dict[str, list[Row[Any]]] = {action_id: [] for action_id in action_ids}
    if action_ids:
        for row in await conn.execute(
            select(attempts)
            .where(attempts.c.action_id.in_(list(action_ids)))
            .order_by(attempts.c.action_id, attempts.c.number)
        ):
            found[row.action_id].append(row)
    return found


async def outcome_counts(conn: AsyncConnection) -> list[tuple[str, str, int]]:
    """(kind, outcome, how many attempts), for metrics."""
    rows = await conn.execute(
        select(actions.c.kind, attempts.c.outcome, func.count())
        .join(actions, actions.c.id == attempts.c.action_id)
        .where(attempts.c.outcome.is_not(None))
        .group_by(actions.c.kind, attempts.c.outcome)
    )
    return [(row[0], row[1], row[2]) for row in rows]


def to_action(row: Row[Any]) -> Action:
    return Action(
        id=row.id,
        kind=row.kind,
        destination=row.destination,
        lane=row.lane,
        alert_id=row.alert_id,
        workflow_id=row.workflow_id,
        payload=row.payload,
        state=row.state,
        created_at=row.created_at,
        attempts=row.attempts,
        last_code=row.last_code,
        last_error=row.last_error,
        result=row.result,
        finished_at=row.finished_at,
    )
