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
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service import silencing
from service.desk import Desk
from service.event import new_id
from service.routing import elsewhere, grouping
from service.routing.grouping import Members, Notification
from service.routing.tree import Node, Routing
from service.store import alerts as alert_store
from service.store import decisions, log, owned, readers
from service.store import notifications as store
from service.store import silences as silence_store
from service.store.alerts import Alert
from service.store.decisions import Posted
from service.store.log import Decision
from service.store.notifications import Telling, announce

__all__ = ["announce", "catch_up", "tell"]

NEWS_MAX = 500
DUE_MAX = 1_000
LOOK_MAX = 500
LOOK_AGAIN = timedelta(seconds=5)  # at what is muted: whether it still is
HEARD_MAX = 200  # alerts of one notification that are asked at once whether they are muted
MEMBERS_MAX = 20_000  # alerts of one notification whose first message is due; of several, about as many in one decision
NOBODY = Members(total=0, unresolved=0, loud=0)
Key = tuple[str, str]  # destination, group key
Subject = tuple[str, str]  # rule, group: what alert after alert is about


@dataclass(slots=True)
class Groups:
    """Notifications that may be joined. Of those in `over` all is over: what they told of, which never joins them again."""

    of_key: dict[Key, list[Notification]]
    over: dict[str, set[Subject]]


async def tell(conn: AsyncConnection, routing: Routing, now: datetime) -> bool:
    """Decides for all that is new or due, as far as one transaction should go; whether there was anything."""
    if not await store.any_work(conn, now, silencing.declared_ids(routing, now)):
        return False  # as nearly every time: one look
    return await decide(conn, routing)


async def catch_up(conn: AsyncConnection, routing: Routing) -> bool:
    """What stands is news where this config file names a notifier that was not decided about: a route that was changed
    while something fires tells whom it names now. Whether there was any."""
    known = await owned.load(conn, await store.standing_decided(conn))
    tellings = await store.tellings_of(conn, known)
    new = [
        alert_id
        for alert_id, (alert, owner) in known.items()
        if not elsewhere.destinations(routing, silencing.labels_with(alert, owner)).keys() <= tellings[alert_id].keys()
    ]
    if new:
        await announce(conn, new, await readers.clock(conn))
    return bool(new)


async def decide(conn: AsyncConnection, routing: Routing, incidents: frozenset[str] = frozenset()) -> bool:
    """The same where it is known that there is something; False where another worker is at it. `incidents`: the notifiers
    at which what is told of one group is one incident."""
    look = await decisions.look(conn)
    if not look.ours:
        return False
    now = look.now
    declared: list[Decision] = []
    if look.declared != silencing.declared_ids(routing, now):
        declared = await silencing.keep_declared(conn, routing, now)
    news = await owned.take_news(conn, NEWS_MAX)
    looked = await store.muted_due(conn, now, LOOK_MAX) if look.muted_due else []
    standing: dict[str, dict[str, str]] = {}
    if routing.inhibitors:
        # Drills keep nothing real quiet.
        standing = await silencing.labels_of(conn, [one for one in await alert_store.standing(conn) if not one.drill])
    # Read after the news: what was silenced before it broke is not told.
    silences = await silence_store.live(conn, now)
    desk = Desk(routing, now, silences, standing, refusing=look.refusing, incidents=incidents)
    desk.learn(news)
    alert_ids = list(dict.fromkeys((*news, *(one.alert_id for one in looked))))
    await desk.know(conn, alert_ids)
    tellings, out = await decisions.known(conn, alert_ids)
    # Only what is new about an alert changes its messages: that it is still muted for somebody is nothing new.
    touched = {one.notification_id for name in news for one in tellings[name].values() if one.notification_id}
    alerts = [desk.alerts[one] for one in alert_ids if one in desk.alerts]
    touched |= await assign(conn, desk, alerts, tellings, out)
    await settle(conn, desk, touched, any_due=look.due)
    await log.append(conn, declared)
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
        for destination in desk.routes[alert.id]:
            known = tellings[alert.id].get(destination)
            if known is not None and known.notification_id is not None:
                continue
            node = desk.node_for(alert.id, destination)
            was_out = (alert.id, destination) in before  # told by a version that knew no groups
            over = alert.state == "resolved"
            # Whoever never heard of it, as others did, is not told that it is over.
            if over and not was_out and (tellings[alert.id] or node.group_wait):
                desk.tellings += [replace(known, look_at=None)] if known is not None else []
                continue
            muted = None if was_out else desk.muted(alert.id, destination)
            if muted is not None:
                desk.keep_quiet(alert.id, destination, node, muted, None if over else now + LOOK_AGAIN)
                continue
            in_hand = desk.in_hand(alert)
            # Acknowledged within the second in which it broke, it is told as that; later it is not told first.
            if in_hand is not None and not was_out and (known is not None or alert.state == "firing"):
                until = alert.snoozed_until if alert.state == "firing" else None
                desk.keep_quiet(alert.id, destination, node, in_hand, until)
                continue
            group_key, labels = grouping.group_of(node, destination, desk.labels[alert.id], alert.id)
            if was_out:
                group_key = f"{group_key}:{alert.id}"  # it has a message of its own
            wanted.append((alert, destination, node, (destination, group_key), labels))
    groups = await open_groups(conn, desk, {key for _, _, _, key, _ in wanted})
    new, changed = desk.begun, desk.grown
    for alert, destination, node, key, labels in wanted:
        subject = (alert.rule_id, alert.group_key)
        there = [one for one in groups.of_key[key] if subject not in groups.over.get(one.id, ())]
        # What is out already is edited now; whatever the route waits for, it waits for no edit.
        placed = now if (alert.id, destination) in before else grouping.place(node, there, alert.severity, now)
        if isinstance(placed, Notification):
            anew = groups.over.pop(placed.id, None) is not None
            one = grouping.joined(placed, alert.severity, now, node, anew=anew)
            groups.of_key[key] = [one if other.id == one.id else other for other in groups.of_key[key]]
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
            groups.of_key[key].append(one)
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


async def open_groups(conn: AsyncConnection, desk: Desk, keys: Collection[Key]) -> Groups:
    """Those that may still be joined: what waits, what somebody still has to hear of, and a storm that has just healed.
    One of which all is over, muted or in somebody's hands says so, and what breaks after that is posted anew."""
    groups = await store.open_groups(conn, keys)
    out = {one.id: one for of_key in groups.values() for one in of_key if one.flush_at is None}
    stands = await store.members(conn, out, desk.now)
    loud = {name for name in out if stands.get(name, NOBODY).loud}
    if loud and (desk.silences or desk.routing.inhibitors):
        loud = {name for name, heard in (await heard_of(conn, desk, [out[name] for name in loud])).items() if heard}
    healed = {
        name
        for name, one in out.items()
        if not stands.get(name, NOBODY).unresolved and one.first_post_at and grouping.in_storm(one, desk.now)
    }
    told = await store.alert_ids(conn, healed, HEARD_MAX)
    await desk.know(conn, {alert_id for of_one in told.values() for alert_id in of_one})
    over = {
        name: {(desk.alerts[one].rule_id, desk.alerts[one].group_key) for one in of_one if one in desk.alerts}
        for name, of_one in told.items()
    }
    shut = out.keys() - loud - healed
    return Groups({key: [one for one in of_key if one.id not in shut] for key, of_key in groups.items()}, over)


async def heard_of(conn: AsyncConnection, desk: Desk, ones: Collection[Notification]) -> dict[str, list[str]]:
    """Of each notification, alerts that fire, that nobody has in hand and that nothing mutes: some, if there are any."""
    found: dict[str, list[str]] = {one.id: [] for one in ones}
    left = {one.id: one for one in ones}
    for skip in range(0, MEMBERS_MAX, HEARD_MAX):
        if not left:
            break
        loud = await store.alert_ids(conn, left, HEARD_MAX, of=store.LOUD, skip=skip, now=desk.now)
        await desk.know(conn, {alert_id for of_one in loud.values() for alert_id in of_one})
        for name, of_one in loud.items():
            found[name] = [alert_id for alert_id in of_one if desk.is_heard(alert_id, left[name].destination)]
            if found[name] or len(of_one) < HEARD_MAX:
                del left[name]
    return found


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
    stands = dict.fromkeys(old, NOBODY) | await store.members(conn, old, now)
    first = [name for name in old if name in due and old[name].flush_at is not None]
    begins = within([(name, stands[name].unresolved) for name in first], MEMBERS_MAX)
    alert_ids = await store.alert_ids(conn, begins, MEMBERS_MAX, of=store.UNRESOLVED)
    # All there is to know of one that has just begun; its alerts in the order in which they are read later.
    alert_ids |= {name: sorted(desk.joined_by[name]) for name in desk.begun}
    closing = {name for name in touched if name in old and not stands[name].unresolved}
    posted = await decisions.posts_of(conn, old, closing)
    # Of a notification that only changed, nothing but how many of it stand is asked, and who leads where it has outgrown
    # its message.
    asked = {one for name in due if name in alert_ids for one in alert_ids[name]}
    leads = {stands[name].lead for name in old if name in due or grouping.outgrown(old[name])}
    await desk.know(conn, asked | {lead for lead in leads if lead is not None})
    steps = [old[name] for name in old if name in due and old[name].flush_at is None and stands[name].loud]
    heard = await heard_of(conn, desk, steps)
    # At the earliest it is told of now: nothing can have changed about it since.
    begun = [flush(desk, one, alert_ids[name]) if name in due else one for name, one in desk.begun.items()]
    changed: list[Notification] = []
    for name, one in old.items():
        if one.flush_at is None:
            after = step(desk, one, stands[name], posted, heard.get(name, ()), edit=name in touched)
        elif name in begins:
            unread = max(0, stands[name].unresolved - len(alert_ids[name]))
            after = flush(desk, one, alert_ids[name], unread=unread)
        else:
            after = one  # its time has not come, or it comes in the next decision
        if after != before.get(name):
            changed.append(after)
    await decisions.save(
        conn,
        new=begun,
        changed=changed,
        tellings=desk.tellings,
        posts=desk.posts,
        told=desk.told(),
        now=now,
    )


def within(sizes: Sequence[tuple[str, int]], most: int) -> set[str]:
    """The first of these that are no more than `most` together, and one in any case."""
    found: set[str] = set()
    for name, size in sizes:
        most -= size
        if found and most < 0:
            break
        found.add(name)
    return found


def step(
    desk: Desk, one: Notification, standing: Members, posted: Posted, heard: Sequence[str], *, edit: bool
) -> Notification:
    """One notification that is out, from what it was to what it is after this look at it. `heard`: some of its alerts that
    fire and may be told now, where one of its deadlines has come."""
    now, posts = desk.now, posted.of.get(one.id, ())
    node = desk.node_of(one, standing.lead)
    over = standing.unresolved == 0
    newest = {post.destination: post for post in reversed(posts)}
    # An incident that is over stays so: what fires after it is another.
    ended = {(post.id, post.destination) for post in posts if post.destination in desk.incidents} & posted.over
    there = {name: post for name, post in newest.items() if (post.id, post.destination) not in ended}
    if edit:
        for post in posts if over else there.values():
            # What never arrived is not told only that it is over.
            if not (over and (post.id, post.destination) in posted.refused):
                desk.edits[post.id, post.destination] = post
    if over:
        until = one.joined_at + grouping.STORM_GAP
        if one.closed_at is None and one.first_post_at is not None and now < until:
            return replace(one, repeat_at=until, escalate_at=None)  # what breaks next may be of the same storm
        return replace(one, closed_at=one.closed_at or now)
    if one.closed_at is not None:
        one = replace(one, closed_at=None)  # nothing closes but by being resolved; a row that says otherwise is mended
    if standing.lead is None:
        return one
    if edit and grouping.outgrown(one):
        one = desk.send(
            one, "growth", desk.joined_by.get(one.id, [standing.lead])[-1], node, there=there.get(one.destination)
        )
    after, escalate = grouping.escalation(one, node, standing, now)
    if escalate is not None and not heard:
        after = replace(one, escalate_at=now + LOOK_AGAIN)  # muted for now: the step is taken once it no longer is
    elif escalate is not None:
        for destination in desk.routing.notifiers_of(escalate.to):
            desk.send(after, "escalation", heard[0], node, destination, there.get(destination))
        for post in newest.values():
            desk.edits[post.id, post.destination] = post  # its thread says so
    one = after
    mine = newest.get(one.destination)
    out = mine is not None and (mine.id, mine.destination) in posted.out
    refused = [post for post in newest.values() if (post.id, post.destination) in posted.refused]
    one, again = grouping.repeat_is_due(one, node, standing, now, out=out, heard=bool(heard), refused=bool(refused))
    if not again:
        return one
    if not refused:
        return desk.send(one, "repeat", heard[0], node, there=there.get(one.destination))
    for post in refused:
        desk.edits[post.id, post.destination] = post
    return grouping.said_again(one, node, now, own=mine in refused)


def flush(desk: Desk, one: Notification, alert_ids: Sequence[str], unread: int = 0) -> Notification:
    """Its first message: about what is neither over nor muted by now. At once, it was just asked. `unread`: how many more of
    it stand that were too many to be asked; they are told with the others."""
    now, told = desk.now, list[str]()
    waited = one.flush_at is not None and one.flush_at > one.opened_at
    for alert_id in alert_ids:
        alert = desk.alerts.get(alert_id)
        if alert is None or (waited and alert.state == "resolved"):
            continue
        routed = waited and one.destination in desk.routes.get(alert_id, {})
        muted = desk.muted(alert_id, one.destination) if routed else None
        in_hand = desk.in_hand(alert) if routed else None
        if muted is None and in_hand is None:
            told.append(alert_id)
            continue
        look_at = now + LOOK_AGAIN if muted else alert.snoozed_until if alert.state == "firing" else None
        node = desk.node_for(alert_id, one.destination)
        desk.keep_quiet(alert_id, one.destination, node, muted or in_hand or {}, look_at)
    if not told:
        # Those were taken out of it: the next look asks the others.
        return one if unread else replace(one, flush_at=None, closed_at=now)
    one = replace(one, members=len(told) + unread)
    after = desk.send(one, "first", told[0], desk.node_of(one, told[0]))
    over = all(desk.alerts[alert_id].state == "resolved" for alert_id in told)
    return replace(after, closed_at=now) if over else after
