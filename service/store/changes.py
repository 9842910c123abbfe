"""What was done about alerts, and by whom, for the threads of their messages: answers of orchestrators, escalations, and
people's acts from the log."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ARRAY, DateTime, Integer, Text, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.actions import PAUSE, RESUME

CHANGES_MAX = 2_000  # of all that are read at once, the newest
IDS = ARRAY(Uuid(as_uuid=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What an orchestrator was asked for at `asked_at`, and its final answer: `state` is `done` or `failed`."""

    id: str
    kind: str
    orchestrator: str
    workflow_id: str
    alert_id: str | None
    state: str
    asked_at: datetime
    at: datetime
    error: str | None
    status: str | None = None  # of the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalated:
    id: str
    notification_id: str
    destination: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """A person's act, as the audit has it: `action` such as `alert.snooze`, `subject` an alert or a workflow."""

    id: str
    subject: str
    action: str
    actor: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    answered: tuple[Answered, ...] = ()
    escalated: tuple[Escalated, ...] = ()
    acted: tuple[Acted, ...] = ()


NOTHING = Changes()

ANSWERED = text(
    """
    SELECT id::text, kind, destination, workflow_id, alert_id::text, state, created_at, finished_at,
        coalesce(last_error, last_code) AS error, result ->> 'status' AS status
    FROM actions
    WHERE workflow_id = ANY(:workflow_ids) AND kind = ANY(:kinds) AND state IN ('done', 'failed') AND created_at >= :since
    ORDER BY created_at DESC, id DESC LIMIT :most
    """
).bindparams(
    bindparam("workflow_ids", type_=ARRAY(Text())),
    bindparam("kinds", [PAUSE, RESUME], type_=ARRAY(Text())),
    bindparam("since", type_=DateTime(timezone=True)),
    bindparam("most", CHANGES_MAX, type_=Integer()),
)
ESCALATED = text(
    """
    SELECT id::text, notification_id::text, destination, at FROM notification_posts
    WHERE notification_id = ANY(:notification_ids) AND kind = 'escalation' ORDER BY at DESC, id DESC LIMIT :most
    """
).bindparams(bindparam("notification_ids", type_=IDS), bindparam("most", CHANGES_MAX, type_=Integer()))
# `origin` is there for the days that were made before the index on what an audit entry is about.
ACTED = text(
    """
    SELECT id::text, event_id AS subject, details ->> 'action' AS action, details ->> 'actor' AS actor, occurred_at
    FROM events
    WHERE kind = 'audit' AND origin = 'authwatch' AND event_id = ANY(:subjects) AND received_at >= :since
    ORDER BY position DESC LIMIT :most
    """
).bindparams(
    bindparam("subjects", type_=ARRAY(Text())),
    bindparam("since", type_=DateTime(timezone=True)),
    bindparam("most", CHANGES_MAX, type_=Integer()),
)


async def changes(
    conn: AsyncConnection,
    *,
    alert_ids: Collection[str],
    workflow_ids: Collection[str],
    notification_ids: Collection[str],
    since: datetime,
) -> Changes:
    """Of these alerts, workflows and notifications together; `since` is before any of it."""
    answered: tuple[Answered, ...] = ()
    escalated: tuple[Escalated, ...] = ()
    acted: tuple[Acted, ...] = ()
    if workflow_ids:
        rows = await conn.execute(ANSWERED, {"workflow_ids": sorted(workflow_ids), "since": since})
        answered = tuple(
            Answered(
                id=row.id,
                kind=row.kind,
                orchestrator=row.destination,
                workflow_id=row.workflow_id,
                alert_id=row.alert_id,
                state=row.state,
                asked_at=row.created_at,
                at=row.finished_at or row.created_at,
                error=row.error,
                status=row.status,
            )
            for row in rows
        )
    if notification_ids:
        rows = await conn.execute(ESCALATED, {"notification_ids": sorted(notification_ids)})
        escalated = tuple(
            Escalated(id=row.id, notification_id=row.notification_id, destination=row.destination, at=row.at)
            for row in rows
        )
    if alert_ids or workflow_ids:
        rows = await conn.execute(ACTED, {"subjects": sorted({*alert_ids, *workflow_ids}), "since": since})
        acted = tuple(
            Acted(
                id=row.id,
                subject=row.subject,
                action=row.action or "",
                actor=row.actor or "somebody",
                at=row.occurred_at,
            )
            for row in rows
        )
    return Changes(answered=answered, escalated=escalated, acted=acted)
