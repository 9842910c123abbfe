"""A message about one alert or several as one view: how many, whose, since when, how they stand now, and what happened
since it was posted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from service import thread, views
from service.notify.base import AlertView, MessageRef, Seen, Together, WorkflowLine
from service.notify.base import PostKind as Kind
from service.playbook.alerts import CALL, told
from service.playbook.words import ERROR_CLASSES, RESPONSES
from service.store import accounts as account_store
from service.store import changes as change_store
from service.store import notifications as store
from service.store import showing
from service.store.accounts import Account
from service.store.actions import NOTIFY, Action
from service.store.alerts import Alert
from service.store.changes import NOTHING, Changes
from service.store.showing import Heard
from service.thread import Line
from service.views import AlertParts

NAMES_MAX = 10
MEMBERS_SHOWN_MAX = 50  # whose workflows are shown
KINDS: Mapping[str, Kind] = {"first": "first", "repeat": "repeat", "growth": "growth", "escalation": "escalation"}
DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class MessageParts:
    """`lead`: the alert whose words the message has; `others`: more of the same group. `heard`, `account` (its last
    refresh) and `resolved_by` are the lead's, where the message is of it alone."""

    lead: AlertParts
    others: Sequence[AlertParts] = ()
    together: Together | None = None
    heard: Sequence[Heard] = ()
    account: Account | None = None
    resolved_by: str | None = None


def message_id(action: Action) -> str:
    """Of the message that a NOTIFY action posts or edits, or a THREAD action replies to: the alert's own id, where it is
    the first about it."""
    return str(action.payload.get("post") or action.alert_id or "")


@dataclass(frozen=True, slots=True)
class ToTell:
    """What one action is to tell; None, where its alert is gone. `ref`: the message that is out already. `unsure`
    attempts of its lane, the first of them at `since`, may have left one that we do not know of. `lines`: all that its
    thread may tell, of which `told` are told; None: nobody has counted."""

    parts: MessageParts | None
    ref: MessageRef | None
    unsure: int
    since: datetime | None
    lines: Sequence[Line] = ()
    told: frozenset[str] | None = None
    posted_at: datetime | None = None

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(line.key for line in self.lines)


async def to_tell(
    conn: AsyncConnection, claimed: Sequence[Action], threaded: Collection[str] = ()
) -> dict[str, ToTell]:
    """By action id, in the same few statements however many they are. `threaded`: destinations that keep threads."""
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
        keys = frozenset(row.told) if row.told is not None else None
        found[action.id] = ToTell(said, ref, row.times or 0, row.since, told=keys, posted_at=row.posted_at)
    edits = [a for a in claimed if a.kind == NOTIFY and a.destination in threaded and rows[a.id].newest is not False]
    changes = await changes_of(conn, [found[a.id] for a in edits], [rows[a.id].notification_id for a in edits])
    await learn(conn, found, changes)
    for action in edits:
        one = found[action.id]
        found[action.id] = replace(one, lines=lines_of(one, action, rows[action.id], changes))
    return found


async def changes_of(
    conn: AsyncConnection, edited: Sequence[ToTell], notification_ids: Sequence[str | None]
) -> Changes:
    """What rows of others say of what happened, for messages that are out; a first message tells how it stands by itself."""
    known = [(one.parts, name) for one, name in zip(edited, notification_ids, strict=True) if one.ref and one.parts]
    every = [one for of_one, _ in known for one in (of_one.lead, *of_one.others)]
    if not every:
        return NOTHING
    return await change_store.changes(
        conn,
        alert_ids={one.alert.id for one in every},
        workflow_ids={hold.workflow_id for one in every for hold in one.held},
        notification_ids={name for _, name in known if name is not None},
        since=min(at for one in every for at in (one.alert.fired_at, *(hold.placed_at for hold in one.held))),
    )


async def learn(conn: AsyncConnection, found: dict[str, ToTell], changes: Changes) -> None:
    """The evidence of messages about one alert, and how the account's token refreshes go, where it is about them; of those
    about several, whether it is calls that broke."""
    known = {name: one.parts for name, one in found.items() if one.parts is not None}
    heard = await showing.evidence(conn, {one.lead.alert.id: one.lead.alert.evidence for one in known.values()})
    for name, one in known.items():
        if one.together is not None and of_calls(one.lead.alert, heard[one.lead.alert.id]):
            found[name] = replace(found[name], parts=replace(one, together=replace(one.together, of_calls=True)))
    single = {name: one for name, one in known.items() if is_single(one)}
    keys = {one.lead.alert.account for one in single.values() if refreshes(heard[one.lead.alert.id])}
    accounts = await account_store.load(conn, [one for one in keys if one is not None]) if keys else {}
    for name, one in single.items():
        alert = one.lead.alert
        account = accounts.get(alert.account) if alert.account is not None else None
        by = thread.resolved_by(one.lead, changes)
        said = replace(one, heard=heard[alert.id], account=account, resolved_by=by)
        found[name] = replace(found[name], parts=said)


def of_calls(alert: Alert, heard: Sequence[Heard]) -> bool:
    """Of what a gauge measured there is no evidence, and of an account it measures how its calls go."""
    return any(one.kind == CALL for one in heard) or (not alert.evidence and alert.value is not None)


def is_single(parts: MessageParts) -> bool:
    return parts.together is None or parts.together.total <= 1


def refreshes(heard: Sequence[Heard]) -> bool:
    return any(one.kind.startswith("token.refresh_") for one in heard)


def lines_of(one: ToTell, action: Action, row: Row[Any], changes: Changes) -> list[Line]:
    if one.parts is None:
        return []
    several = not is_single(one.parts)
    of_message = (one.parts.others or (one.parts.lead,)) if several else (one.parts.lead,)
    return thread.lines(
        of_message, changes, message_id=message_id(action), notification_id=row.notification_id, several=several
    )


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
        known, identifier = account.key.account_id, views.masked(account.identifier)
        return f"{identifier} ({known})" if identifier and identifier != known else known
    if one.alert.account is not None:
        return one.alert.account.account_id
    return (
        ", ".join(str(value) for _, value in sorted(one.alert.group.items()) if value)
        or views.masked(one.alert.summary)
        or ""
    )


def view_of(
    parts: MessageParts,
    *,
    public_url: str,
    reauthorizable: Collection[str] = (),
) -> AlertView:
    """`reauthorizable`: sources of whose accounts a link to authorize them again can be made."""
    alert, owner, together = parts.lead.alert, parts.lead.account, parts.together
    view = replace(
        one_view(parts.lead, public_url),
        together=together,
        seen=seen_of(parts.heard),
        last_refresh_at=parts.account.last_refresh_at if parts.account else None,
        last_refresh_outcome=parts.account.last_refresh_outcome if parts.account else None,
        provider_action=provider_action(parts.heard),
        reauthorizable=owner is not None and owner.key.source in reauthorizable and owner.status != DELETED,
        snoozed_until=alert.snoozed_until,
        resolved_by=parts.resolved_by,
    )
    if together is None or together.total <= 1:
        return view
    lines: dict[str, WorkflowLine] = {}
    for one in (parts.lead, *parts.others):
        for line in one_view(one, "").workflows:
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
        reauthorizable=False,
        snoozed_until=None,
        workflows=tuple(lines.values()),
    )


def one_view(parts: AlertParts, public_url: str) -> AlertView:
    """With what each workflow waits for."""
    view = views.view_of(parts, public_url=public_url)
    said: list[WorkflowLine] = []
    for line, hold in zip(view.workflows, parts.held, strict=True):
        shown = parts.workflows.get(line.workflow_id)
        paused = line.state == "paused"
        said.append(
            replace(
                line,
                waits=thread.waits_since(parts, hold) is not None,
                held_elsewhere=not paused and line.scope == "workflow" and shown is not None and shown.held,
            )
        )
    return replace(view, workflows=tuple(said))


def seen_of(heard: Sequence[Heard]) -> tuple[Seen, ...]:
    of_kind: dict[str, list[datetime]] = {}
    for one in heard:
        of_kind.setdefault(one.kind, []).append(one.occurred_at)
    return tuple(Seen(kind=kind, count=len(at), first_at=min(at), last_at=max(at)) for kind, at in of_kind.items())


def provider_action(heard: Sequence[Heard]) -> str | None:
    """What the playbook answers to the last reason among the evidence; None where the provider, or the agent, gave none."""
    for one in reversed(heard):
        if not one.details:
            continue
        answer = told(one.kind, one.details, one.provider)
        if answer is not None and answer.code is not None:
            return answer.action
        reported = one.details.get("error_class")
        if one.kind == CALL and reported in ERROR_CLASSES and reported != "other":
            return RESPONSES[reported]
    return None
