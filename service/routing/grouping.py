"""What is one message, and when it is due: grouping, the first message, repeats, growth and escalation. Pure; takes `now`.

The trade-off of telling several alerts by one message: an edit counts them and wakes nobody, so what an edit may take in is
bounded. A message takes in what joins its group within STORM_GAP of the one before, for at most STORM_MAX, and nothing
more severe than itself; growing over a step of GROWTH_STEPS is told by a message of its own all the same. Whatever joins
later has a message of its own: at once, or where the route says so `group_interval` after the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from service.routing.model import EVERY_LABEL, Escalate
from service.routing.tree import GROUP_BY, Node, Routing

STORM_GAP = timedelta(seconds=60)
STORM_MAX = timedelta(minutes=10)
GROWTH_STEPS = (25, 100, 500, 2_500, 10_000, 50_000)
REPEAT_RETRY = timedelta(seconds=30)  # while the message before it is not out yet
MOST_SEVERE_FIRST = ("P1", "P2", "P3", "P4")

PostKind = Literal["first", "repeat", "growth", "escalation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One group of alerts at one notifier, as far as it is being told. Instants that are None are not awaited."""

    id: str
    route: str
    receiver: str
    destination: str
    group_key: str
    group_labels: Mapping[str, str]
    severity: str
    members: int
    opened_at: datetime
    joined_at: datetime
    told: int = 0
    flush_at: datetime | None = None
    first_post_at: datetime | None = None
    last_post_at: datetime | None = None
    repeat_at: datetime | None = None
    escalate_at: datetime | None = None
    escalated: int = 0
    closed_at: datetime | None = None

    @property
    def due_at(self) -> datetime | None:
        if self.closed_at is not None:
            return None
        return min((at for at in (self.flush_at, self.repeat_at, self.escalate_at) if at is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """How its alerts stand. `loud`: firing, acknowledged by nobody and not snoozed; `quiet_until`: when the first snooze of
    those that are firing ends."""

    total: int
    unresolved: int
    loud: int
    quiet_until: datetime | None = None


def group_of(node: Node, destination: str, labels: Mapping[str, str], alert_id: str) -> tuple[str, dict[str, str]]:
    """(key, labels) of the group: what differs in none of these is told together. A drill is never told with the real."""
    named: dict[str, str]
    if node.group_by is None:
        named = {name: labels.get(name, "") for name in GROUP_BY}
        if not named["connection_id"]:
            named["alert_id"] = alert_id
    elif EVERY_LABEL in node.group_by:
        named = dict(labels)
    else:
        named = {name: labels.get(name, "") for name in node.group_by}
    if labels.get("drill"):
        named["drill"] = labels["drill"]
    said = json.dumps([node.path, node.receiver, destination, sorted(named.items())], ensure_ascii=False)
    return hashlib.sha256(said.encode()).hexdigest(), named


def destinations(routing: Routing, labels: Mapping[str, str]) -> dict[str, Node]:
    """Which notifiers hear of it, each by the first route that leads there: nobody hears the same twice."""
    found: dict[str, Node] = {}
    for node in routing.root.match(labels):
        for notifier in routing.notifiers_of(node.receiver):
            found.setdefault(notifier, node)
    return found


def place(node: Node, known: Sequence[Notification], severity: str, now: datetime) -> Notification | datetime:
    """Into which of the group's open notifications an alert goes, or when the first message of a new one is due."""
    newest: Notification | None = None
    for one in known:
        if one.flush_at is not None:
            return one
        if newest is None or newest.opened_at <= one.opened_at:
            newest = one
    if newest is None:
        return now + node.group_wait
    posted = newest.last_post_at or newest.opened_at
    started = newest.first_post_at or newest.opened_at
    in_storm = now - newest.joined_at <= STORM_GAP and now - started <= STORM_MAX
    if in_storm and rank(newest.severity) <= rank(severity):
        return newest
    if rank(newest.severity) > rank(severity):
        return now  # worse than anything they were told of
    return max(now, posted + node.group_interval)


def joined(one: Notification, severity: str, now: datetime) -> Notification:
    worst = min(one.severity, severity, key=rank)
    return replace(one, members=one.members + 1, joined_at=now, severity=worst)


def outgrown(one: Notification) -> bool:
    """Whether so many have joined since the last message that an edit must not be all that says so."""
    return one.told > 0 and any(one.told < step <= one.members for step in GROWTH_STEPS)


def posted(one: Notification, node: Node | None, kind: PostKind, now: datetime) -> Notification:
    """After a message: when the next one is due."""
    one = replace(one, last_post_at=now, told=one.members)
    if kind == "first":
        one = replace(one, flush_at=None, first_post_at=now)
    if kind == "first" and node is not None and node.escalate:
        one = replace(one, escalate_at=now + node.escalate[0].after)
    repeats = node.repeat_interval if node is not None else None
    return replace(one, repeat_at=now + repeats if repeats is not None else None)


def escalation(
    one: Notification, node: Node | None, members: Members, now: datetime
) -> tuple[Notification, Escalate | None]:
    """The step that is due, if any, and the notification as it is after looking. Acknowledged by then, it is over."""
    if one.escalate_at is None or one.escalate_at > now:
        return one, None
    if node is None or one.escalated >= len(node.escalate):
        return replace(one, escalate_at=None), None
    if not members.loud:
        # Snoozed: when that ends, it is asked again. Acknowledged or resolved: no more.
        return replace(one, escalate_at=members.quiet_until), None
    step, taken = node.escalate[one.escalated], one.escalated + 1
    following = node.escalate[taken] if taken < len(node.escalate) else None
    since = one.first_post_at or now
    at = max(since + following.after, now + timedelta(seconds=1)) if following is not None else None
    return replace(one, escalated=taken, escalate_at=at), step


def repeat_is_due(
    one: Notification, node: Node | None, members: Members, now: datetime, *, out: bool, heard: bool
) -> tuple[Notification, bool]:
    """`out`: its last message has arrived, so that another would say something; `heard`: not all of it is muted."""
    if one.repeat_at is None or one.repeat_at > now:
        return one, False
    if node is None or node.repeat_interval is None:
        return replace(one, repeat_at=None), False
    if not out:
        return replace(one, repeat_at=now + REPEAT_RETRY), False
    if not members.loud:
        later = now + node.repeat_interval
        return replace(one, repeat_at=min(later, members.quiet_until) if members.quiet_until else later), False
    if not heard:
        return replace(one, repeat_at=now + node.repeat_interval), False
    return one, True


def rank(severity: str) -> int:
    return MOST_SEVERE_FIRST.index(severity) if severity in MOST_SEVERE_FIRST else len(MOST_SEVERE_FIRST)
