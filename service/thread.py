"""What happened to the alerts of a message since it was posted, as the lines of its thread. Pure.

Every line has a key made of the row that it tells of, and `messages.told` holds the keys that were told. So a line is told
once whatever is repeated, a row that was committed late is told late and never skipped, and nothing depends on clocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from service.notify.plain import DETAIL_CHARS_MAX, NAME_CHARS_MAX, clean, listed, utc
from service.notify.wording import why_resolved
from service.report import is_well
from service.store.actions import PAUSE
from service.store.changes import Acted, Answered, Changes
from service.store.workflows import Hold
from service.views import NOTHING_CHANGED, AlertParts, masked

TOLD_MAX = 200  # keys of one message; what is beyond is told by the message alone
LINES_MAX = 20  # of one reply
NAMES_MAX = 8  # of one line
WAITS = "Well again, and paused until somebody resumes it"
FULL = "More happened than this thread takes. The message above says how it stands."
RELEASED: Mapping[str | None, str] = {
    "account_well": "it has been well for long enough",
    "connection_well": "the connection has worked for long enough",
    "dependency_dropped": "it no longer depends on the account",
    "workflow_inactive": "it was declared inactive",
    "workflow_deleted": "it was deleted",
}


@dataclass(frozen=True, slots=True)
class Line:
    """`said` of `whose`: lines that say the same of several are told as one."""

    at: datetime
    key: str
    said: str
    whose: str = ""


def lines(
    of_message: Sequence[AlertParts], changes: Changes, *, message_id: str, notification_id: str | None, several: bool
) -> list[Line]:
    """Oldest first. `several`: the message tells of several alerts, so that each line says whose it is of; that single ones
    of them are over is told by the message's own count."""
    found: dict[str, Line] = {}
    for parts in of_message:
        for line in (
            *of_alert(parts, changes, several),
            *of_holds(parts, changes, several),
            *of_orchestrators(parts, changes),
        ):
            found.setdefault(line.key, line)
    if several and all(parts.alert.state == "resolved" for parts in of_message):
        at = max((parts.alert.resolved_at or parts.alert.fired_at for parts in of_message), default=None)
        if at is not None:
            line = Line(at, key("over", message_id, at), "All of them are over")
            found.setdefault(line.key, line)
    for one in changes.escalated:
        if one.notification_id == notification_id and one.id != message_id:
            said = f"Escalated to {clean(one.destination, NAME_CHARS_MAX)}, nobody had acknowledged it"
            found.setdefault(key("escalated", one.id), Line(one.at, key("escalated", one.id), said))
    return sorted(found.values(), key=lambda line: (line.at, line.key))


def of_alert(parts: AlertParts, changes: Changes, several: bool) -> Iterator[Line]:
    alert = parts.alert
    whose = whose_of(parts) if several else ""
    acted = [one for one in changes.acted if one.subject == alert.id]
    if alert.acknowledged_at is not None:
        person = clean(alert.acknowledged_by or "somebody", NAME_CHARS_MAX)
        yield Line(
            alert.acknowledged_at,
            key("acknowledged", alert.id, alert.acknowledged_at),
            f"Acknowledged by {person}",
            whose,
        )
    for one in acted:
        who = clean(one.actor, NAME_CHARS_MAX)
        if one.action == "alert.snooze":
            until = f" until {utc(alert.snoozed_until)}" if alert.snoozed_until and is_last(one, acted) else ""
            yield Line(one.at, key("snoozed", one.id), f"Snoozed{until} by {who}", whose)
        elif one.action.endswith("reauthorize"):
            yield Line(one.at, key("reauthorize", one.id), f"{who} asked for a link to authorize it again", whose)
    if alert.state == "resolved" and alert.resolved_at is not None and not several:
        why = why_resolved(alert.resolved_reason, resolved_by(parts, changes))
        yield Line(
            alert.resolved_at, key("resolved", alert.id, alert.resolved_at), f"Resolved: {why}" if why else "Resolved"
        )


def of_holds(parts: AlertParts, changes: Changes, several: bool) -> Iterator[Line]:
    for hold in parts.held:
        paused, let, what = "Paused", let_go(parts, hold, changes), workflow_name(parts, hold.workflow_id)
        if hold.scope == "account" and several:
            paused, let, what = (
                f"Paused {what} for one account each",
                f"{let} ({what}, for one account each)",
                whose_of(parts),
            )
        elif hold.scope == "account":
            paused = "Paused for this account only"
        yield Line(hold.placed_at, key("paused", hold.id, hold.placed_at), paused, what)
        if (well_at := waits_since(parts, hold)) is not None:
            yield Line(well_at, key("waits", hold.id, hold.placed_at), WAITS, what)
        if hold.released_at is not None:
            yield Line(hold.released_at, key("let go", hold.id, hold.released_at), let, what)


def waits_since(parts: AlertParts, hold: Hold) -> datetime | None:
    """Since when nothing but a person's word is missing for this hold to go; None where it goes by itself, or its trouble lasts."""
    alert, shown = parts.alert, parts.workflows.get(hold.workflow_id)
    owner = parts.account
    well = alert.account is None or (
        owner is not None and is_well(owner.key.source, owner.status, owner.last_refresh_outcome)
    )
    if hold.released_at is not None or not well or shown is None or shown.resume != "manual":
        return None
    return alert.condition_ended_at


def let_go(parts: AlertParts, hold: Hold, changes: Changes) -> str:
    """A workflow that something else holds too is let go by this alert, and not resumed."""
    shown = parts.workflows.get(hold.workflow_id)
    said = "No longer held by this alert, and still paused by something else" if shown and shown.held else "Resumed"
    if hold.release_reason != "person":
        why = RELEASED.get(hold.release_reason, clean(hold.release_reason or "", DETAIL_CHARS_MAX))
        return f"{said}, {why}" if why else said
    subjects = (hold.workflow_id, parts.alert.id)
    who = next(
        (one.actor for one in changes.acted if one.at == hold.released_at and one.subject in subjects), "somebody"
    )
    return f"{said} by {clean(who, NAME_CHARS_MAX)}"


def of_orchestrators(parts: AlertParts, changes: Changes) -> Iterator[Line]:
    """Answers to what was asked because of these holds: asked for this alert, or at the moment a hold came or went."""
    moments = {(hold.workflow_id, at) for hold in parts.held for at in (hold.placed_at, hold.released_at) if at}
    for one in changes.answered:
        if one.alert_id == parts.alert.id or (one.workflow_id, one.asked_at) in moments:
            yield Line(one.at, key("answered", one.id, one.state), answer(one), workflow_name(parts, one.workflow_id))


def answer(one: Answered) -> str:
    orchestrator, verb = clean(one.orchestrator, NAME_CHARS_MAX), "pause" if one.kind == PAUSE else "resume"
    if one.status in NOTHING_CHANGED:
        return f"{orchestrator}: {NOTHING_CHANGED[one.status]}"
    if one.state == "done":
        return f"{orchestrator} {verb}d"
    return f"{orchestrator} did not {verb} ({clean(one.error or 'no reason', DETAIL_CHARS_MAX)})"


def untold(known: Sequence[Line], told: Collection[str] | None, posted_at: datetime | None) -> list[Line]:
    """What neither the message nor its thread has told. Of a message from before anybody counted (`told` None): what came
    after it was posted."""
    if told is None:
        return [line for line in known if posted_at is not None and line.at > posted_at]
    return [line for line in known if line.key not in told]


def tell(new: Sequence[Line], told_count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the lines of one reply, the keys that it tells); both empty where there is nothing to tell, or no room."""
    room = TOLD_MAX - told_count
    if not new or room <= 0:
        return (), ()
    shown, full = new[:room], len(new) >= room
    groups: dict[str, list[Line]] = {}
    for line in shown:
        groups.setdefault(line.said, []).append(line)
    said = [worded(of_one) for of_one in groups.values()]
    more = len(said) - LINES_MAX
    if more > 0:
        said = [*said[:LINES_MAX], f"… and {more} more of the same moment."]
    return (*said, *([FULL] if full else [])), tuple(line.key for line in shown)


def worded(of_one: Sequence[Line]) -> str:
    names = tuple(dict.fromkeys(line.whose for line in of_one if line.whose))
    at = of_one[0].at.astimezone(UTC).strftime("%H:%M:%S UTC")
    return f"{at} · {of_one[0].said}" + (f": {listed(names, NAMES_MAX)}." if names else ".")


def resolved_by(parts: AlertParts, changes: Changes) -> str | None:
    """The person who resolved it; None where it ended by itself, or where the log has it no more."""
    alert = parts.alert
    if alert.resolved_reason != "manual":
        return None
    acts = (one for one in changes.acted if one.subject == alert.id and one.action == "alert.resolved")
    return next((one.actor for one in acts), None)


def is_last(one: Acted, acted: Sequence[Acted]) -> bool:
    return all(other.at <= one.at for other in acted if other.action == one.action)


def workflow_name(parts: AlertParts, workflow_id: str) -> str:
    shown = parts.workflows.get(workflow_id)
    return clean(masked(shown.name if shown else None) or workflow_id, NAME_CHARS_MAX)


def whose_of(parts: AlertParts) -> str:
    known = parts.account
    name = (
        (masked(known.identifier) or known.key.account_id)
        if known
        else parts.alert.account and parts.alert.account.account_id
    )
    return clean(name or masked(parts.alert.summary) or "", NAME_CHARS_MAX)


def key(*parts: object) -> str:
    written = "\x1f".join(
        part.astimezone(UTC).isoformat() if isinstance(part, datetime) else str(part) for part in parts
    )
    return hashlib.blake2s(written.encode("utf-8", "replace"), digest_size=8).hexdigest()
