"""What a message says, read for any number of them in the same few statements."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, DateTime, Row, Text, Uuid, bindparam, column, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.actions import PAUSE, RESUME
from service.store.routing_tables import messages as message_table
from service.store.tables import events

IDS = ARRAY(Uuid(as_uuid=False))
CLOCKS_APART = timedelta(hours=1)  # at most, of who made an id and of the database
# `unsure` is of the whole lane: what an earlier action of this alert may have posted is this one's to find. Each reply is its
# own action's.
MESSAGES = text(
    """
    WITH wanted AS (
        SELECT * FROM unnest(:action_ids, :message_ids, :destinations, :lanes) AS w (action_id, id, destination, lane)
    ), posts AS MATERIALIZED (
        SELECT id, destination, notification_id, kind, NOT EXISTS (
            SELECT 1 FROM notification_posts later WHERE later.notification_id = p.notification_id
                AND later.destination = p.destination AND (later.at, later.id) > (p.at, p.id)) AS newest
        FROM notification_posts p WHERE id = ANY(:message_ids)
    ), counted AS (
        SELECT na.notification_id, count(*) AS total, count(a.account_id) AS accounts,
            count(*) FILTER (WHERE a.state = 'firing') AS firing,
            count(*) FILTER (WHERE a.state = 'acknowledged') AS acknowledged,
            count(*) FILTER (WHERE a.state = 'resolved') AS resolved,
            min(a.opened_at) AS first_at, max(a.opened_at) AS last_at
        FROM notification_alerts na JOIN alerts a ON a.id = na.alert_id
        WHERE na.notification_id = ANY(ARRAY(SELECT notification_id FROM posts)) GROUP BY na.notification_id
    ), unsure AS (
        SELECT a.lane, count(*) AS times, min(t.started_at) AS since
        FROM actions a JOIN attempts t ON t.action_id = a.id
        WHERE a.alert_id = ANY(:alert_ids) AND a.lane = ANY(:lanes) AND t.outcome = 'ambiguous'
            AND (a.kind <> 'thread' OR a.id = ANY(:action_ids)) GROUP BY a.lane
    ), sent AS (SELECT * FROM messages WHERE alert_id = ANY(:message_ids)
    ), begun AS (
        SELECT id, first_post_at FROM notifications WHERE id = ANY(ARRAY(SELECT notification_id FROM posts))
    )
    SELECT w.action_id::text, sent.channel, sent.ts, sent.said, sent.told, sent.posted_at, unsure.times, unsure.since,
        posts.kind, posts.newest, counted.*, begun.first_post_at
    FROM wanted w
        LEFT JOIN posts ON posts.id = w.id AND posts.destination = w.destination
        LEFT JOIN begun ON begun.id = posts.notification_id
        LEFT JOIN counted ON counted.notification_id = begun.id
        LEFT JOIN sent ON sent.alert_id = w.id AND sent.destination = w.destination
        LEFT JOIN unsure ON unsure.lane = w.lane
    """
).bindparams(
    bindparam("action_ids", type_=IDS),
    bindparam("message_ids", type_=IDS),
    bindparam("alert_ids", type_=IDS),
    bindparam("destinations", type_=ARRAY(Text())),
    bindparam("lanes", type_=ARRAY(Text())),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One NOTIFY action and the message that it posts or edits."""

    action_id: str
    message_id: str
    destination: str
    lane: str
    alert_id: str | None


async def messages(conn: AsyncConnection, wanted: Sequence[Wanted]) -> dict[str, Row[Any]]:
    """By action id: where its message is (`channel`, `ts`, and what it `said`), what it has told (`told`, `posted_at`), whether
    it is its group's `newest` there, how many attempts of its lane are of unknown fate and since when
    (`times`, `since`), and how the alerts stand that it tells of (`kind`, `notification_id`, `total` and others)."""
    if not wanted:
        return {}
    values = {
        "action_ids": [one.action_id for one in wanted],
        "message_ids": [one.message_id for one in wanted],
        "alert_ids": [one.alert_id for one in wanted if one.alert_id],
        "destinations": [one.destination for one in wanted],
        "lanes": [one.lane for one in wanted],
    }
    return {row.action_id: row for row in await conn.execute(MESSAGES, values)}


@dataclass(frozen=True, slots=True)
class Shown:
    """A workflow and the last thing that its orchestrator was asked, as a message tells of them."""

    name: str | None
    orchestrator_name: str | None
    asked: str | None  # its kind
    state: str | None
    last_error: str | None
    last_code: str | None
    result: Mapping[str, Any] | None = None
    resume: str = "auto"
    held: bool = False  # the whole of it, by whatever


WORKFLOWS = text(
    """
    SELECT w.workflow_id, w.name, w.orchestrator_name, a.kind, a.state, a.last_error, a.last_code, a.result, w.resume, EXISTS (
        SELECT 1 FROM holds WHERE workflow_id = w.workflow_id AND released_at IS NULL AND scope = 'workflow')
    FROM workflows w LEFT JOIN (
        SELECT DISTINCT ON (workflow_id) workflow_id, kind, state, last_error, last_code, result
        FROM actions WHERE workflow_id = ANY(:ids) AND kind = ANY(:kinds) AND state <> 'superseded'
        ORDER BY workflow_id, created_at DESC, id DESC
    ) AS a ON a.workflow_id = w.workflow_id
    WHERE w.workflow_id = ANY(:ids)
    """
).bindparams(bindparam("ids", type_=ARRAY(Text())), bindparam("kinds", [PAUSE, RESUME], type_=ARRAY(Text())))


async def workflows(conn: AsyncConnection, workflow_ids: Collection[str]) -> dict[str, Shown]:
    if not workflow_ids:
        return {}
    rows = await conn.execute(WORKFLOWS, {"ids": sorted(workflow_ids)})
    return {row[0]: Shown(*row[1:]) for row in rows}


async def newest_channel(conn: AsyncConnection, destination: str) -> str | None:
    """Where the last message to this destination was posted."""
    newest = select(message_table.c.channel).where(message_table.c.destination == destination)
    found: str | None = (await conn.execute(newest.order_by(message_table.c.posted_at.desc()).limit(1))).scalar()
    return found


@dataclass(frozen=True, slots=True)
class Heard:
    """An event of an alert's evidence."""

    kind: str
    occurred_at: datetime
    provider: str | None
    details: Mapping[str, Any] | None


EVIDENCE = text(
    """
    SELECT id::text, kind, occurred_at, provider, details FROM events
    WHERE id = ANY(:ids) AND received_at >= :since ORDER BY occurred_at, position
    """
).bindparams(bindparam("ids", type_=IDS), bindparam("since", type_=DateTime(timezone=True)))
EVIDENCE_FOUND = EVIDENCE.columns(
    column("id"), *(events.c[name] for name in ("kind", "occurred_at", "provider", "details"))
)


async def evidence(conn: AsyncConnection, of_alerts: Mapping[str, Sequence[str]]) -> dict[str, list[Heard]]:
    """By alert id, those of its evidence that are still in the log, oldest first."""
    wanted = {one for ids in of_alerts.values() for one in ids if made_at(one) is not None}
    found: dict[str, Heard] = {}
    if wanted:
        since = min(at for at in map(made_at, wanted) if at is not None) - CLOCKS_APART
        rows = await conn.execute(EVIDENCE_FOUND, {"ids": sorted(wanted), "since": since})
        found = {row[0]: Heard(*row[1:]) for row in rows}
    return {
        alert_id: sorted((found[one] for one in set(ids) if one in found), key=lambda heard: heard.occurred_at)
        for alert_id, ids in of_alerts.items()
    }


def made_at(event_row_id: str) -> datetime | None:
    """When an id of ours was made: which days of the log need not be read. None of what is none of ours."""
    try:
        one = UUID(event_row_id)
    except ValueError:
        return None
    return datetime.fromtimestamp((one.int >> 80) / 1000, UTC) if one.version == 7 else None
