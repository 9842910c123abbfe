"""Actions: what is to leave the house, as rows; claimed with a lease, tried with no transaction open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import ARRAY, DateTime, Row, Text, and_, any_, bindparam, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import new_id
from service.store.tables import actions, attempts, messages

NOTIFY = "notify"
PAUSE = "orchestrator.pause"
RESUME = "orchestrator.resume"
OPEN = ("pending", "running")
DETAIL_CHARS_MAX = 500


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


PENDING_LANES = (
    select(actions.c.lane)
    .where(
        actions.c.lane == any_(bindparam("lanes", type_=ARRAY(Text()))),
        actions.c.state == "pending",
        actions.c.kind == NOTIFY,
    )
    .order_by(actions.c.lane, actions.c.id)  # in one order, so that no two ever wait for each other
    .with_for_update()
)
ADD = text(
    """
    INSERT INTO actions (id, kind, destination, lane, alert_id, workflow_id, payload, state, created_at, next_attempt_at)
    SELECT id, kind, destination, lane, alert_id, workflow_id, payload, 'pending', :now, :now
    FROM jsonb_populate_recordset(NULL::actions, CAST(:rows AS jsonb))
    """
).bindparams(bindparam("now", type_=DateTime(timezone=True)))


async def add(conn: AsyncConnection, new: Sequence[NewAction], now: datetime) -> None:
    """In two statements, however many they are. A NOTIFY whose lane has a pending one is left out."""
    lanes = {action.lane for action in new if action.kind == NOTIFY}
    told: set[str] = set()
    if lanes:
        # Locked until our commit: claimed before it, it would tell the state from before what we are about to say;
        # claimed already, it no longer counts as pending and a new one is added.
        told = {row.lane for row in await conn.execute(PENDING_LANES, {"lanes": sorted(lanes)})}
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
    if rows:
        await conn.execute(ADD, {"rows": orjson.dumps(rows).decode(), "now": now})


async def claim(
    conn: AsyncConnection, now: datetime, *, lease: timedelta, limit: int, skip: Sequence[str] = ()
) -> list[tuple[Action, bool]]:
    """Due actions, each the first open one of its lane, now ours until the lease ends.

    Each comes with whether its last attempt was never concluded: its process died, so its effect is unknown (and that
    attempt counts as `ambiguous` from now on). The attempt is recorded before it is made, in this very transaction.
    """
    earlier = actions.alias("earlier")
    first_of_lane = ~exists().where(
        earlier.c.lane == actions.c.lane,
        earlier.c.state.in_(OPEN),
        or_(
            earlier.c.created_at < actions.c.created_at,
            and_(earlier.c.created_at == actions.c.created_at, earlier.c.id < actions.c.id),
        ),
    )
    query = (
        select(actions)
        .where(
            or_(
                and_(actions.c.state == "pending", actions.c.next_attempt_at <= now),
                and_(actions.c.state == "running", actions.c.lease_until <= now),
            ),
            actions.c.destination.not_in(list(skip)),
            first_of_lane,
        )
        .order_by(actions.c.next_attempt_at, actions.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=actions)
    )
    claimed: list[tuple[Action, bool]] = []
    for row in (await conn.execute(query)).all():
        number = row.attempts + 1
        await conn.execute(
            update(actions)
            .where(actions.c.id == row.id)
            .values(state="running", lease_until=now + lease, attempts=number, next_attempt_at=now + lease)
        )
        await conn.execute(
            update(attempts)
            .where(attempts.c.action_id == row.id, attempts.c.outcome.is_(None))
            .values(outcome="ambiguous", finished_at=now, code="process_died")
        )
        await conn.execute(insert(attempts).values(action_id=row.id, number=number, started_at=now))
        ambiguous = row.state == "running" or row.last_code == "ambiguous"
        claimed.append((to_action(row), ambiguous))
    return claimed


async def conclude(
    conn: AsyncConnection,
    action: Action,
    *,
    now: datetime,
    outcome: str,
    code: str | None = None,
    detail: str | None = None,
    retry_at: datetime | None = None,
    result: Mapping[str, Any] | None = None,
) -> bool:
    """Records the attempt's outcome: `done`, `failed`, or `retry`/`ambiguous` with the time of the next.

    False when the lease had passed to another process meanwhile: then nothing is changed but the attempt.
    """
    number = action.attempts + 1
    await conn.execute(
        update(attempts)
        .where(attempts.c.action_id == action.id, attempts.c.number == number)
        .values(finished_at=now, outcome=outcome, code=code, detail=detail[:DETAIL_CHARS_MAX] if detail else None)
    )
    final = outcome in ("done", "failed")
    values: dict[str, Any] = {
        "state": outcome if final else "pending",
        "lease_until": None,
        "last_code": "ambiguous" if outcome == "ambiguous" else code,
        "last_error": detail[:DETAIL_CHARS_MAX] if detail else None,
        "finished_at": now if final else None,
    }
    if result is not None:
        values["result"] = dict(result)
    if retry_at is not None:
        values["next_attempt_at"] = retry_at
    changed = await conn.execute(
        update(actions)
        .where(actions.c.id == action.id, actions.c.state == "running", actions.c.attempts == number)
        .values(**values)
    )
    return changed.rowcount == 1


async def of_alert(conn: AsyncConnection, alert_id: str, limit: int = 100) -> list[Action]:
    rows = await conn.execute(
        select(actions).where(actions.c.alert_id == alert_id).order_by(actions.c.created_at, actions.c.id).limit(limit)
    )
    return [to_action(row) for row in rows]


async def newest_for_workflows(conn: AsyncConnection, workflow_ids: Sequence[str]) -> dict[str, Action]:
    """The last thing each workflow's orchestrator was asked."""
    if not workflow_ids:
        return {}
    rows = await conn.execute(
        select(actions)
        .where(actions.c.workflow_id.in_(list(workflow_ids)), actions.c.kind.in_((PAUSE, RESUME)))
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


async def unsure(conn: AsyncConnection, lane: str) -> tuple[int, datetime | None]:
    """How many attempts of this lane ended without our knowing whether they did anything, and when the first began."""
    row = (
        await conn.execute(
            select(func.count(), func.min(attempts.c.started_at))
            .join(actions, actions.c.id == attempts.c.action_id)
            .where(actions.c.lane == lane, attempts.c.outcome == "ambiguous")
        )
    ).one()
    return row[0], row[1]


async def message(conn: AsyncConnection, alert_id: str, destination: str) -> Row[Any] | None:
    return (
        await conn.execute(
            select(messages).where(messages.c.alert_id == alert_id, messages.c.destination == destination)
        )
    ).first()


async def first_message_at(conn: AsyncConnection, alert_id: str) -> datetime | None:
    """When the first message about this alert was out."""
    at: datetime | None = (
        await conn.execute(select(func.min(messages.c.posted_at)).where(messages.c.alert_id == alert_id))
    ).scalar_one()
    return at


async def save_message(
    conn: AsyncConnection, alert_id: str, destination: str, channel: str, ts: str, now: datetime
) -> None:
    statement = insert(messages).values(
        alert_id=alert_id, destination=destination, channel=channel, ts=ts, posted_at=now
    )
    await conn.execute(
        statement.on_conflict_do_update(index_elements=("alert_id", "destination"), set_={"channel": channel, "ts": ts})
    )


async def outcome_counts(conn: AsyncConnection) -> list[tuple[str, str, int]]:
    """(kind, outcome, how many attempts), for metrics."""
    rows = await conn.execute(
        select(actions.c.kind, attempts.c.outcome, func.count())
        .join(actions, actions.c.id == attempts.c.action_id)
        .where(attempts.c.outcome.is_not(None))
        .group_by(actions.c.kind, attempts.c.outcome)
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def waiting(conn: AsyncConnection) -> tuple[int, datetime | None, int]:
    """(open actions, creation time of the oldest that is due, failed for good)."""
    row = (
        await conn.execute(
            select(
                func.count().filter(actions.c.state.in_(OPEN)),
                func.min(actions.c.created_at).filter(actions.c.state.in_(OPEN)),
                func.count().filter(actions.c.state == "failed"),
            )
        )
    ).one()
    return row[0], row[1], row[2]


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
