"""What is one message, and when it is due: grouping, the first message, repeats, growth and escalation. Pure; takes `now`.

The trade-off of telling several alerts by one message: an edit counts them and wakes nobody, so what an edit may take in is
bounded. A message takes in what joins its group within STORM_GAP of the one before, for at most STORM_MAX, and nothing
more severe than itself, and only while one of its alerts is heard: where all are muted or in somebody's hands, an edit
is read by nobody. One whose alerts have all just healed takes in what breaks next, as it may be of the same storm, and
what still fires REJOIN_WAIT later is said by a message of its own. Growing over a step of GROWTH_STEPS is told by a
message of its own all the same. Whatever joins later has a message of its own: at once, or where the route says so `group_interval` after the one before.
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
REFUSED_RETRY = timedelta(
    minutes=10
)  # of a message that its notifier refused for good, while what it says still stands
REJOIN_WAIT = timedelta(seconds=25)  # contract.md: heard within 30 s, whatever healed just before
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
    lead: str | None = None  # the first that is not resolved


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


def destinations(routing: Routing, labels: Mapping[str, str]) -> dict[str, tuple[Node, ...]]:
    """Which notifiers hear of it, each with the routes that lead there, in order. Nobody hears the same twice, so all of
    them are told by one message: `combined`."""
    found: dict[str, list[Node]] = {}
    for node in routing.root.match(labels):
        for notifier in routing.notifiers_of(node.receiver):
            found.setdefault(notifier, []).append(node)
    return {notifier: tuple(nodes) for notifier, nodes in found.items()}


def combined(nodes: Sequence[Node], speaking: Sequence[Node]) -> Node:
    """Several routes to one notifier as one: the first of those that are not muted now (`speaking`), as soon and as often
    as any of them would tell, and escalated as all of them say."""
    first = speaking[0]
    if len(nodes) == 1:
        return first
    steps: list[Escalate] = []
    for node in nodes:
        steps += [step for step in node.escalate if step not in steps]
    repeats = [node.repeat_interval for node in nodes if node.repeat_interval is not None]
    return replace(
        first,
        group_wait=min(node.group_wait for node in speaking),
        group_interval=min(node.group_interval for node in speaking),
        repeat_interval=min(repeats, default=None),
        escalate=tuple(sorted(steps, key=lambda step: step.after)),
    )


def place(node: Node, known: Sequence[Notification], severity: str, now: datetime) -> Notification | datetime:
    """Into which of the group's open notifications an alert goes, or when the first message of a new one is due."""
    waiting = next((one for one in known if one.flush_at is not None), None)
    newest: Notification | None = None
    for one in known:
        if one.flush_at is None and (newest is None or newest.opened_at <= one.opened_at):
            newest = one
    if newest is None:
        return waiting or now + node.group_wait
    if rank(newest.severity) > rank(severity):
        # Worse than anything they were told of: it waits with nothing that is held back, unless that is as bad.
        return waiting if waiting is not None and rank(waiting.severity) <= rank(severity) else now
    if waiting is not None:
        return waiting
    if in_storm(newest, now):
        return newest
    return max(now, (newest.last_post_at or newest.opened_at) + node.group_interval)


def in_storm(one: Notification, now: datetime) -> bool:
    """Whether its message still takes in what breaks."""
    return now - one.joined_at <= STORM_GAP and now - (one.first_post_at or one.opened_at) <= STORM_MAX


def joined(
    one: Notification, severity: str, now: datetime, node: Node | None = None, *, anew: bool = False
) -> Notification:
    """`anew`: all that it told of was over. What ended by then (escalation of what was acknowledged, say) begins again."""
    worst = min(one.severity, severity, key=rank)
    one = replace(one, members=one.members + 1, joined_at=now, severity=worst)
    if node is None or one.flush_at is not None:
        return one
    if anew:
        one = replace(one, told=0, repeat_at=now + REJOIN_WAIT, escalated=0, escalate_at=None)
    if one.escalate_at is None and one.escalated < len(node.escalate):
        one = replace(one, escalate_at=now + node.escalate[one.escalated].after)
    return one


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
    one: Notification,
    node: Node | None,
    members: Members,
    now: datetime,
    *,
    out: bool,
    heard: bool,
    refused: bool = False,
) -> tuple[Notification, bool]:
    """`out`: its last message has arrived, so that another would say something; `refused`: it, or who was escalated to,
    was refused one for good, and that is what is said again; `heard`: not all of it is muted."""
    if one.repeat_at is None or one.repeat_at > now:
        return one, False
    interval = node.repeat_interval if node is not None else None
    if node is None or (interval is None and not refused and one.told):
        return replace(one, repeat_at=None), False
    if not out and not refused:
        return replace(one, repeat_at=now + REPEAT_RETRY), False
    if not members.loud:
        later = [at for at in (members.quiet_until, now + interval if interval else None) if at is not None]
        return replace(one, repeat_at=min(later, default=None)), False
    if not heard:
        return replace(one, repeat_at=now + (interval or REFUSED_RETRY)), False
    return one, True


def said_again(one: Notification, node: Node | None, now: datetime, *, own: bool) -> Notification:
    """After the same message was tried once more; `own`: to its own notifier. When it is refused again, that is sooner."""
    repeats = node.repeat_interval if node is not None else None
    since = now if own or one.last_post_at is None else one.last_post_at
    at = max(since + repeats, now + REPEAT_RETRY) if repeats is not None else None
    return replace(one, last_post_at=since, repeat_at=at)


def rank(severity: str) -> int:
    return MOST_SEVERE_FIRST.index(severity) if severity in MOST_SEVERE_FIRST else len(MOST_SEVERE_FIRST)
