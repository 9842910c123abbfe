"""A message about several alerts as one view: how many, whose, since when, and how they stand now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from service import views
from service.notify.base import AlertView, MessageRef, Together, WorkflowLine
from service.notify.base import PostKind as Kind
from service.store import notifications as store
from service.store import showing
from service.store.actions import Action
from service.views import AlertParts

NAMES_MAX = 10
MEMBERS_SHOWN_MAX = 50  # whose workflows are shown
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


@dataclass(frozen=True, slots=True)
class ToTell:
    """What one NOTIFY action is to tell; None, where its alert is gone. `ref`: the message that is out already. `unsure`
    attempts of its lane, the first of them at `since`, may have left one that we do not know of."""

    parts: MessageParts | None
    ref: MessageRef | None
    unsure: int
    since: datetime | None


async def to_tell(conn: AsyncConnection, claimed: Sequence[Action]) -> dict[str, ToTell]:
    """By action id, in the same few statements however many they are."""
    wanted = [showing.Wanted(a.id, message_id(a), a.destination, a.lane, a.alert_id) for a in claimed]
    rows = await showing.messages(conn, wanted)
    several = {row.notification_id for row in rows.values() if row.total is not None and row.total > 1}
    shown = await store.alert_ids(conn, several, MEMBERS_SHOWN_MAX)
    leads = {action.alert_id for action in claimed if action.alert_id}
    parts = await views.alert_parts(conn, leads | {one for of_one in shown.values() for one in of_one})
    found: dict[str, ToTell] = {}
    for action in claimed:
        row, lead, said = rows[action.id], parts.get(action.alert_id or ""), None
        if lead is not None and row.total is None:
            said = MessageParts(lead)
        elif lead is not None:
            others = [parts[one] for one in shown.get(row.notification_id, ()) if one in parts]
            said = MessageParts(leading(lead, others), others, together_of(row, others))
        ref = MessageRef(row.channel, row.ts, row.said) if row.ts is not None else None
        found[action.id] = ToTell(said, ref, row.times or 0, row.since)
    return found


def leading(lead: AlertParts, others: Sequence[AlertParts]) -> AlertParts:
    """One that still stands speaks for all."""
    if lead.alert.state != "resolved":
        return lead
    return next((one for one in others if one.alert.state != "resolved"), lead)


def together_of(row: Row[Any], others: Sequence[AlertParts]) -> Together:
    return Together(
        kind=KINDS.get(row.kind, "first"),
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
