"""Who is told what, and when: from the news of alerts to messages as rows, by the route tree, silences and inhibition.

Whoever changes an alert calls `announce` in its own transaction. A worker then decides in one of its own (`tell`): which
notifiers hear of it, which group it joins, whether something keeps it quiet, which deadline has come. One decides at a
time, so that what breaks together is told together. What it decides is rows: NOTIFY actions, each of which tells the
state of the moment at which it is done, so that none is ever told what was true before.

A silence keeps the first message, repeats and escalations from being sent. What was told once is edited whatever is silent:
a resolve goes to whoever got the firing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service import silencing
from service.event import new_id
from service.routing import grouping
from service.routing.grouping import Members, Notification, PostKind
from service.routing.inhibit import inhibited_by
from service.routing.mute import Silence, out_of_hours, silenced_by
from service.routing.tree import Node, Routing
from service.store import alerts as alert_store
from service.store import decisions, owned
from service.store import notifications as store
from service.store import silences as silence_store
from service.store.actions import NOTIFY, NewAction
from service.store.alerts import Alert
from service.store.notifications import Post, Telling, announce
from service.store.owned import Owned

__all__ = ["announce", "tell"]

NEWS_MAX = 500
DUE_MAX = 1_000
LOOK_MAX = 500
LOOK_AGAIN = timedelta(seconds=5)  # at what is muted: whether it still is
HEARD_MAX = 200  # alerts of one notification that are asked whether they are all muted
MEMBERS_MAX = 20_000  # read at once, over all notifications that are due
Key = tuple[str, str]  # destination, group key


@dataclass(slots=True)
class Desk:
    """What one decision stands on, and what it came to."""

    routing: Routing
    now: datetime
    silences: Sequence[Silence]
    standing: Mapping[str, Mapping[str, str]]  # labels of what is not resolved, where anything inhibits
    alerts: dict[str, Alert] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    routes: dict[str, dict[str, Node]] = field(default_factory=dict)
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
            self.routes[alert_id] = grouping.destinations(self.routing, self.labels[alert_id])

    def muted(self, alert_id: str, node: Node) -> dict[str, tuple[str, ...]] | None:
        """What keeps a message about it by this route from being sent now."""
        labels = self.labels[alert_id]
        found = {
            "silences": silenced_by(self.silences, labels, self.now),
            "inhibited_by": inhibited_by(self.routing.inhibitors, alert_id, labels, self.standing),
            "time_intervals": out_of_hours(node, self.routing.clocks, self.now),
        }
        return {name: ids for name, ids in found.items() if ids} or None

    def node_of(self, one: Notification, lead: str | None) -> Node | None:
        """The route by which this notifier hears of it, as the config file has it now."""
        return self.routes.get(lead or "", {}).get(one.destination)


async def tell(conn: AsyncConnection, routing: Routing, now: datetime) -> bool:
    """Decides for all that is new or due, as far as one transaction should go; whether there was anything."""
    if not await store.any_work(conn, now, silencing.declared_ids(routing, now)):
        return False  # as nearly every time: one look
    return await decide(conn, routing)


async def decide(conn: AsyncConnection, routing: Routing) -> bool:
    """The same where it is known that there is something; False where another worker is at it."""
    look = await decisions.look(conn)
    if not look.ours:
        return False
    now = look.now
    if look.declared != silencing.declared_ids(routing, now):
        await silencing.keep_declared(conn, routing, now)
    news = await owned.take_news(conn, NEWS_MAX)
    looked = await store.muted_due(conn, now, LOOK_MAX) if look.muted_due else []
    standing: dict[str, dict[str, str]] = {}
    if routing.inhibitors:
        # Drills keep nothing real quiet.
        standing = await silencing.labels_of(conn, [one for one in await alert_store.standing(conn) if not one.drill])
    # Read after the news: what was silenced before it broke is not told.
    desk = Desk(routing, now, await silence_store.live(conn, now), standing)
    desk.learn(news)
    alert_ids = list(dict.fromkeys((*news, *(one.alert_id for one in looked))))
    await desk.know(conn, alert_ids)
    tellings, out = await decisions.known(conn, alert_ids)
    touched = {one.notification_id for known in tellings.values() for one in known.values() if one.notification_id}
    alerts = [desk.alerts[one] for one in alert_ids if one in desk.alerts]
    touched |= await assign(conn, desk, alerts, tellings, out)
    await settle(conn, desk, touched, any_due=look.due)
    return True


async def assign(
    conn: AsyncConnection,
    desk: Desk,
    alerts: Sequence[Alert],
    tellings: Mapping[str, Mapping[str, Telling]],
    out: Collection[tuple[str, str]],
) -> set[str]:
    """Each alert into a notification of each notifier that is to hear of it; the ids of those that grew. `out`: the
    messages of their own, by (alert id, destination), that have arrived."""
    now = desk.now
    before = {(alert_id, destination) for alert_id, destination in out if not tellings[alert_id]}
    wanted: list[tuple[Alert, str, Node, Key, dict[str, str]]] = []
    for alert in sorted(alerts, key=lambda alert: (alert.fired_at, alert.id)):
        for destination, node in desk.routes[alert.id].items():
            known = tellings[alert.id].get(destination)
            if known is not None and known.notification_id is not None:
                continue
            was_out = (alert.id, destination) in before  # told by a version that knew no groups
            over = alert.state == "resolved"
            if over and not was_out and (known is not None or node.group_wait):
                desk.tellings += [replace(known, look_at=None)] if known is not None else []
                continue
            muted = None if was_out else desk.muted(alert.id, node)
            if muted is not None:
                desk.tellings.append(
                    Telling(
                        alert_id=alert.id,
                        destination=destination,
                        route=node.path,
                        receiver=node.receiver,
                        at=now,
                        muted=muted,
                        look_at=None if over else now + LOOK_AGAIN,
                    )
                )
                continue
            group_key, labels = grouping.group_of(node, destination, desk.labels[alert.id], alert.id)
            if was_out:
                group_key = f"{group_key}:{alert.id}"  # it has a message of its own
            wanted.append((alert, destination, node, (destination, group_key), labels))
    groups = await open_groups(conn, {key for _, _, _, key, _ in wanted}, now)
    new, changed = desk.begun, desk.grown
    for alert, destination, node, key, labels in wanted:
        # What is out already is edited now; whatever the route waits for, it waits for no edit.
        placed = now if (alert.id, destination) in before else grouping.place(node, groups[key], alert.severity, now)
        if isinstance(placed, Notification):
            one = grouping.joined(placed, alert.severity, now)
            groups[key] = [one if other.id == one.id else other for other in groups[key]]
            (new if one.id in new else changed)[one.id] = one
        else:
            one = Notification(
                id=new_id(),
                route=node.path,
                receiver=node.receiver,
                destination=destination,
                group_key=key[1],
                group_labels=labels,
                severity=alert.severity,
                members=1,
                opened_at=now,
                joined_at=now,
                flush_at=placed,
            )
            groups[key].append(one)
            new[one.id] = one
        desk.joined_by.setdefault(one.id, []).append(alert.id)
        desk.tellings.append(
            Telling(
                alert_id=alert.id,
                destination=destination,
                route=node.path,
                receiver=node.receiver,
                at=now,
                notification_id=one.id,
            )
        )
    return set(changed)


async def open_groups(conn: AsyncConnection, keys: Collection[Key], now: datetime) -> dict[Key, list[Notification]]:
    """Those that may still be joined: one of which all is over by now says so, and what begins anew is posted anew."""
    groups = await store.open_groups(conn, keys)
    out = [one.id for of_key in groups.values() for one in of_key if one.flush_at is None]
    stands = await store.members(conn, out, now)
    over = {name for name in out if name not in stands or not stands[name].unresolved}
    return {key: [one for one in of_key if one.id not in over] for key, of_key in groups.items()}


async def settle(conn: AsyncConnection, desk: Desk, touched: set[str], *, any_due: bool) -> None:
    """First messages, repeats and escalations whose time has come; edits of what is out and changed."""
    now = desk.now
    old = {one.id: one for one in await store.due(conn, now, DUE_MAX)} if any_due else {}
    old |= await store.load_many(conn, touched - set(old) - set(desk.grown))
    before = dict(old)
    old |= desk.grown
    every = old | desk.begun
    # Whatever was closed: what is not over by now is mended, and its deadlines have come then.
    due = {name for name, one in every.items() if (at := replace(one, closed_at=None).due_at) is not None and at <= now}
    if old:
        await decisions.save_tellings(conn, desk.tellings)  # its members are counted with those that have just joined
        desk.tellings.clear()
    stands = await store.members(conn, old, now)
    alert_ids = await store.alert_ids(conn, old, MEMBERS_MAX)
    # All there is to know of one that has just begun; its alerts in the order in which they are read later.
    alert_ids |= {name: sorted(desk.joined_by[name]) for name in desk.begun}
    posts, out = await decisions.posts_of(conn, old)
    # Of a notification that only changed, nothing but how many of it stand is asked, and who leads where it has outgrown
    # its message.
    asked = {one for name in due for one in alert_ids[name][: MEMBERS_MAX if every[name].flush_at else HEARD_MAX]}
    await desk.know(
        conn, asked | {of_one[0] for name in old if (of_one := alert_ids[name]) and grouping.outgrown(old[name])}
    )
    begun: list[Notification] = []
    changed: list[Notification] = []
    for name, one in desk.begun.items():
        # At the earliest it is told of now: nothing can have changed about it since.
        begun.append(flush(desk, one, alert_ids[name]) if name in due else one)
    for name, one in old.items():
        standing = stands.get(name, Members(total=0, unresolved=0, loud=0))
        after = step(desk, one, standing, alert_ids[name], posts.get(name, ()), out, edit=name in touched)
        if after != before.get(name):
            changed.append(after)
    told = [
        *desk.posts,
        *(post for key, post in desk.edits.items() if key not in {(p.id, p.destination) for p in desk.posts}),
    ]
    await decisions.save(
        conn,
        new=begun,
        changed=changed,
        tellings=desk.tellings,
        posts=desk.posts,
        told=[action_of(post) for post in told],
        now=now,
    )


def step(
    desk: Desk,
    one: Notification,
    standing: Members,
    alert_ids: Sequence[str],
    posts: Sequence[Post],
    out: Collection[tuple[str, str]],
    *,
    edit: bool,
) -> Notification:
    """One notification, from what it was to what it is after this look at it."""
    now = desk.now
    if one.flush_at is not None:
        return flush(desk, one, alert_ids) if one.flush_at <= now else one
    lead = alert_ids[0] if alert_ids else None
    node = desk.node_of(one, lead)
    over = standing.unresolved == 0
    if edit:
        newest: dict[str, Post] = {}
        for post in posts:
            newest.setdefault(post.destination, post)
        for post in posts if over else newest.values():
            desk.edits[post.id, post.destination] = post
    if over:
        return replace(one, closed_at=one.closed_at or now)
    if one.closed_at is not None:
        one = replace(one, closed_at=None)  # nothing closes but by being resolved; a row that says otherwise is mended
    if lead is None:
        return one
    if edit and grouping.outgrown(one):
        one = send(desk, one, "growth", alert_ids[-1], node)
    heard = [alert_id for alert_id in alert_ids[:HEARD_MAX] if is_heard(desk, alert_id, node)]
    after, escalate = grouping.escalation(one, node, standing, now)
    if escalate is not None and not heard:
        after = replace(one, escalate_at=now + LOOK_AGAIN)  # muted for now: the step is taken once it no longer is
    elif escalate is not None:
        for destination in desk.routing.notifiers_of(escalate.to):
            send(desk, after, "escalation", heard[0], node, destination)
    one = after
    newest_out = bool(posts) and (posts[0].id, posts[0].destination) in out
    one, repeat = grouping.repeat_is_due(one, node, standing, now, out=newest_out, heard=bool(heard))
    return send(desk, one, "repeat", heard[0], node) if repeat else one


def flush(desk: Desk, one: Notification, alert_ids: Sequence[str]) -> Notification:
    """Its first message: about what is neither over nor muted by now. At once, it was just asked."""
    now, told = desk.now, list[str]()
    waited = one.flush_at is not None and one.flush_at > one.opened_at
    for alert_id in alert_ids:
        alert, node = desk.alerts.get(alert_id), desk.routes.get(alert_id, {}).get(one.destination)
        if alert is None or (waited and alert.state == "resolved"):
            continue
        muted = desk.muted(alert_id, node) if waited and node is not None else None
        if muted is None:
            told.append(alert_id)
            continue
        desk.tellings.append(
            Telling(
                alert_id=alert_id,
                destination=one.destination,
                route=one.route,
                receiver=one.receiver,
                at=now,
                muted=muted,
                look_at=now + LOOK_AGAIN,
            )
        )
    if not told:
        return replace(one, flush_at=None, closed_at=now)
    one = replace(one, members=len(told))
    after = send(desk, one, "first", told[0], desk.node_of(one, told[0]))
    over = all(desk.alerts[alert_id].state == "resolved" for alert_id in told)
    return replace(after, closed_at=now) if over else after


def is_heard(desk: Desk, alert_id: str, node: Node | None) -> bool:
    alert = desk.alerts.get(alert_id)
    if alert is None or alert.state != "firing" or (alert.snoozed_until is not None and alert.snoozed_until > desk.now):
        return False
    return node is not None and desk.muted(alert_id, node) is None


def send(
    desk: Desk, one: Notification, kind: PostKind, alert_id: str, node: Node | None, destination: str | None = None
) -> Notification:
    """A message of its own; the first one has its alert's id, as when there were no groups."""
    post = Post(
        id=alert_id if kind == "first" else new_id(),
        destination=destination or one.destination,
        notification_id=one.id,
        alert_id=alert_id,
        kind=kind,
        at=desk.now,
    )
    desk.posts.append(post)
    return grouping.posted(one, node, kind, desk.now) if kind != "escalation" else one


def action_of(post: Post) -> NewAction:
    return NewAction(
        kind=NOTIFY,
        destination=post.destination,
        lane=f"{NOTIFY}:{post.destination}:{post.id}",
        alert_id=post.alert_id,
        payload={"post": post.id},
    )
