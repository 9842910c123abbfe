"""A message about several alerts as one view: how many, whose, since when, and how they stand now."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service import views
from service.notify.base import AlertView, Together, WorkflowLine
from service.notify.base import PostKind as Kind
from service.store import notifications as store
from service.store.actions import Action
from service.store.keys import any_id
from service.store.notifications import Post
from service.store.routing_tables import notification_alerts, notifications
from service.store.tables import alerts
from service.views import AlertParts

NAMES_MAX = 10
MEMBERS_SHOWN_MAX = 50  # whose workflows are shown
MEMBERS_READ_MAX = 5_000  # over all messages that are sent at once
KINDS: Mapping[str, Kind] = {"first": "first", "repeat": "repeat", "growth": "growth", "escalation": "escalation"}


@dataclass(frozen=True, slots=True)
class MessageParts:
    """`lead`: the alert whose words the message has; `others`: more of the same group."""

    lead: AlertParts
    others: Sequence[AlertParts] = ()
    together: Together | None = None


def message_id(action: Action) -> str:
    """Of the message that a NOTIFY action posts or edits: the alert's own id, where it is the first about it."""
    return str(action.payload.get("post") or action.alert_id or "")


async def message_parts(conn: AsyncConnection, claimed: Sequence[Action]) -> dict[str, MessageParts]:
    """By action id, in the same few statements however many they are; what is about an alert that is gone is not in it."""
    posts = await store.posts_by_id(conn, {message_id(action) for action in claimed})
    of_action = {action.id: posts.get((message_id(action), action.destination)) for action in claimed}
    ids = {post.notification_id for post in of_action.values() if post is not None}
    counted = await counts(conn, ids)
    several = {name for name, row in counted.items() if row.total > 1}
    members = await store.alert_ids(conn, several, MEMBERS_READ_MAX)
    shown = {name: of_one[:MEMBERS_SHOWN_MAX] for name, of_one in members.items()}
    wanted = {action.alert_id for action in claimed if action.alert_id}
    parts = await views.alert_parts(conn, wanted | {one for of_one in shown.values() for one in of_one})
    found: dict[str, MessageParts] = {}
    for action in claimed:
        post, lead = of_action[action.id], parts.get(action.alert_id or "")
        if lead is None:
            continue
        row = counted.get(post.notification_id) if post is not None else None
        if post is None or row is None:
            found[action.id] = MessageParts(lead)
            continue
        others = [parts[one] for one in shown.get(post.notification_id, ()) if one in parts]
        found[action.id] = MessageParts(leading(lead, others), others, together_of(post, row, others))
    return found


def leading(lead: AlertParts, others: Sequence[AlertParts]) -> AlertParts:
    """One that still stands speaks for all."""
    if lead.alert.state != "resolved":
        return lead
    return next((one for one in others if one.alert.state != "resolved"), lead)


def together_of(post: Post, row: Row[Any], others: Sequence[AlertParts]) -> Together:
    return Together(
        kind=KINDS.get(post.kind, "first"),
        since=row.first_post_at,
        total=row.total,
        firing=row.firing,
        acknowledged=row.acknowledged,
        resolved=row.resolved,
        first_at=row.first_at,
        last_at=row.last_at,
        names=tuple(name_of(one) for one in others[:NAMES_MAX]),
        all_accounts=row.accounts == row.total,
    )


def name_of(one: AlertParts) -> str:
    account = one.account
    if account is not None:
        known = account.key.account_id
        return f"{account.identifier} ({known})" if account.identifier and account.identifier != known else known
    if one.alert.account is not None:
        return one.alert.account.account_id
    return ", ".join(str(value) for _, value in sorted(one.alert.group.items()) if value) or one.alert.summary


def view_of(parts: MessageParts, *, public_url: str) -> AlertView:
    view = replace(views.view_of(parts.lead, public_url=public_url), together=parts.together)
    together = parts.together
    if together is None or together.total <= 1:
        return view
    lines: dict[str, WorkflowLine] = {}
    for one in (parts.lead, *parts.others):
        for line in views.view_of(one, public_url="").workflows:
            known = lines.get(line.workflow_id)
            if known is None or (known.state != "paused" and line.state == "paused"):
                lines[line.workflow_id] = line
    return replace(
        view,
        state="firing" if together.firing else "acknowledged" if together.acknowledged else "resolved",
        account_id=None,
        identifier=None,
        account_status=None,
        late_seconds=None,
        workflows=tuple(lines.values()),
    )


async def counts(conn: AsyncConnection, ids: Collection[str]) -> dict[str, Row[Any]]:
    """How the alerts of each notification stand, and when they began."""
    if not ids:
        return {}
    states = {
        state: func.count().filter(alerts.c.state == state).label(state)
        for state in ("firing", "acknowledged", "resolved")
    }
    first: Any = func.min(alerts.c.opened_at)
    last: Any = func.max(alerts.c.opened_at)
    rows = await conn.execute(
        select(
            notification_alerts.c.notification_id,
            notifications.c.first_post_at,
            func.count().label("total"),
            func.count(alerts.c.account_id).label("accounts"),
            *states.values(),
            first.label("first_at"),
            last.label("last_at"),
        )
        .join(alerts, alerts.c.id == notification_alerts.c.alert_id)
        .join(notifications, notifications.c.id == notification_alerts.c.notification_id)
        .where(notification_alerts.c.notification_id == any_id(ids))
        .group_by(notification_alerts.c.notification_id, notifications.c.first_post_at)
    )
    return {row.notification_id: row for row in rows}
