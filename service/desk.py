"""What one decision about who is told stands on, and what it came to: rows that are written at its end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from service import silencing
from service.event import new_id, rfc3339
from service.routing import elsewhere, grouping
from service.routing.grouping import Notification, PostKind
from service.routing.inhibit import inhibited_by
from service.routing.mute import Silence, out_of_hours, silenced_by
from service.routing.tree import Node, Routing
from service.store import owned
from service.store.actions import NOTIFY, NewAction
from service.store.alerts import Alert
from service.store.notifications import Post, Telling
from service.store.owned import Owned

Muted = Mapping[str, tuple[str, ...]]  # what keeps it quiet, by its kind


@dataclass(slots=True)
class Desk:
    """What one decision stands on, and what it came to."""

    routing: Routing
    now: datetime
    silences: Sequence[Silence]
    standing: Mapping[str, Mapping[str, str]]  # labels of what is not resolved, where anything inhibits
    refusing: frozenset[str] = frozenset()  # notifiers that take nothing now
    incidents: frozenset[str] = frozenset()  # notifiers at which what is told of one group is one incident
    alerts: dict[str, Alert] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    routes: dict[str, dict[str, tuple[Node, ...]]] = field(default_factory=dict)
    tellings: list[Telling] = field(default_factory=list)
    begun: dict[str, Notification] = field(default_factory=dict)  # in this decision, not yet rows
    grown: dict[str, Notification] = field(default_factory=dict)  # joined by others in it
    joined_by: dict[str, list[str]] = field(default_factory=dict)  # alerts, by notification, in this decision
    posts: list[Post] = field(default_factory=list)
    edits: dict[tuple[str, str], Post] = field(default_factory=dict)

    async def know(self, conn: AsyncConnection, alert_ids: Collection[str]) -> None:
        self.learn(await owned.load(conn, [alert_id for alert_id in alert_ids if alert_id not in self.alerts]))

    def learn(self, found: Mapping[str, Owned]) -> None:
        for alert_id, (alert, owner) in found.items():
            self.alerts[alert_id] = alert
            self.labels[alert_id] = silencing.labels_with(alert, owner)
            self.routes[alert_id] = elsewhere.destinations(self.routing, self.labels[alert_id], self.refusing)

    def muted(self, alert_id: str, destination: str) -> Muted | None:
        """What keeps a message about it to this notifier from being sent now: of several routes that lead there each must
        be quiet."""
        labels, nodes = self.labels[alert_id], self.routes[alert_id].get(destination, ())
        quiet = [out_of_hours(node, self.routing.clocks, self.now) for node in nodes]
        found = {
            "silences": silenced_by(self.silences, labels, self.now),
            "inhibited_by": inhibited_by(self.routing.inhibitors, alert_id, labels, self.standing),
            "time_intervals": tuple(dict.fromkeys(name for names in quiet for name in names)) if all(quiet) else (),
        }
        return {name: ids for name, ids in found.items() if ids} or None

    def in_hand(self, alert: Alert) -> Muted | None:
        """Why people do not want to hear of it now, though nothing mutes it."""
        if alert.state == "acknowledged":
            return {"acknowledgement": (alert.acknowledged_by or "somebody",)}
        if alert.state == "firing" and alert.snoozed_until is not None and alert.snoozed_until > self.now:
            return {"snooze": (rfc3339(alert.snoozed_until) or "",)}
        return None

    def node_for(self, alert_id: str, destination: str) -> Node:
        """The route by which a notifier that has not heard of it yet would hear of it now."""
        nodes = self.routes[alert_id][destination]
        speaking = [node for node in nodes if not out_of_hours(node, self.routing.clocks, self.now)]
        return grouping.combined(nodes, speaking or nodes)

    def node_of(self, one: Notification, lead: str | None) -> Node | None:
        """The route by which this notifier hears of it, as the config file has it now."""
        nodes = self.routes.get(lead or "", {}).get(one.destination, ())
        if not nodes:
            return None
        return grouping.combined(nodes, [node for node in nodes if node.path == one.route] or nodes)

    def is_heard(self, alert_id: str, destination: str) -> bool:
        """Whether one that fires, and that nobody has in hand, may be told there now."""
        return bool(self.routes.get(alert_id, {}).get(destination)) and self.muted(alert_id, destination) is None

    def keep_quiet(self, alert_id: str, destination: str, node: Node, muted: Muted, look_at: datetime | None) -> None:
        self.tellings.append(
            Telling(
                alert_id=alert_id,
                destination=destination,
                route=node.path,
                receiver=node.receiver,
                at=self.now,
                muted=muted,
                look_at=look_at,
            )
        )

    def send(
        self,
        one: Notification,
        kind: PostKind,
        alert_id: str,
        node: Node | None,
        destination: str | None = None,
        there: Post | None = None,
    ) -> Notification:
        """A message of its own; the first one has its alert's id, as when there were no groups. `there`: the message of
        this group that stands at that notifier, which where it is an incident is the only one."""
        where = destination or one.destination
        if there is not None and where in self.incidents:
            self.edits[there.id, there.destination] = there
        else:
            post = Post(
                id=alert_id if kind == "first" else new_id(),
                destination=where,
                notification_id=one.id,
                alert_id=alert_id,
                kind=kind,
                at=self.now,
            )
            self.posts.append(post)
        return grouping.posted(one, node, kind, self.now) if kind != "escalation" else one

    def told(self) -> list[NewAction]:
        """Each message that is posted or edited, once."""
        new = {(post.id, post.destination) for post in self.posts}
        return [action_of(post) for post in (*self.posts, *(p for key, p in self.edits.items() if key not in new))]


def action_of(post: Post) -> NewAction:
    return NewAction(
        kind=NOTIFY,
        destination=post.destination,
        lane=f"{NOTIFY}:{post.destination}:{post.id}",
        alert_id=post.alert_id,
        payload={"post": post.id},
    )
