"""Who hears of an alert and why not somebody else: its labels, the routes that take it, what mutes it, each message. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from service import silencing
from service.event import rfc3339
from service.routing.grouping import Notification, destinations
from service.routing.inhibit import inhibited_by
from service.routing.mute import Silence
from service.routing.tree import Node, Routing
from service.store import alerts as alert_store
from service.store import notifications as store
from service.store import readers
from service.store import silences as silence_store
from service.store.alerts import Alert
from service.store.notifications import Post, Telling


async def explain_routing(conn: AsyncConnection, alert: Alert, routing: Routing) -> dict[str, Any]:
    """As routed by the config file in force now, and as it was told."""
    now = await readers.clock(conn)
    labels = (await silencing.labels_of(conn, [alert]))[alert.id]
    tellings = (await store.tellings_of(conn, [alert.id]))[alert.id]
    ids = {one.notification_id for one in tellings.values() if one.notification_id is not None}
    known = await store.load_many(conn, ids)
    posts = await store.posts_of(conn, ids)
    out = await store.messages_out(conn, {post.id for of_one in posts.values() for post in of_one})
    matching = [one for one in await silence_store.live(conn, now) if one.concerns(labels)]
    standing: Mapping[str, Mapping[str, str]] = {}
    if routing.inhibitors:
        # Drills keep nothing real quiet (service/tell.py).
        standing = await silencing.labels_of(conn, [one for one in await alert_store.standing(conn) if not one.drill])
    here = destinations(routing, labels)
    return {
        "labels": labels,
        "routes": [route_json(node, routing) for node in routing.root.match(labels)],
        "silences": [silence_json(one, now) for one in matching],
        "inhibited_by": list(inhibited_by(routing.inhibitors, alert.id, labels, standing)),
        "told": [
            told_json(name, tellings.get(name), known, posts, out, heard=alert_is_told(alert))
            for name in sorted({*here, *tellings})
        ],
    }


def alert_is_told(alert: Alert) -> str:
    """Why nobody has decided about it."""
    if alert.shadow:
        return "nobody is told: its rule is in shadow"
    if alert.discovered_late:
        return "nobody is told: it was over when we learned of it"
    return "not decided yet: a worker decides within a second, if one is running"


def route_json(node: Node, routing: Routing) -> dict[str, Any]:
    return {
        "route": node.path,
        "matchers": [str(matcher) for matcher in node.matchers],
        "receiver": node.receiver,
        "notifiers": list(routing.notifiers_of(node.receiver)),
        "group_by": list(node.group_by) if node.group_by is not None else None,
        "group_wait_seconds": node.group_wait.total_seconds(),
        "group_interval_seconds": node.group_interval.total_seconds(),
        "repeat_interval_seconds": node.repeat_interval.total_seconds() if node.repeat_interval else None,
        "escalate": [{"after_seconds": step.after.total_seconds(), "to": step.to} for step in node.escalate],
    }


def silence_json(silence: Silence, now: datetime) -> dict[str, Any]:
    return {
        "id": silence.id,
        "state": silence.state(now),
        "mutes_now": silence.mutes_at(now),
        "author": silence.author,
        "comment": silence.comment,
        "end": rfc3339(silence.end),
        "mutes_pauses": silence.mutes_pauses,
    }


def told_json(
    notifier: str,
    telling: Telling | None,
    known: Mapping[str, Notification],
    posts: Mapping[str, Sequence[Post]],
    out: set[tuple[str, str]],
    *,
    heard: str,
) -> dict[str, Any]:
    one = known.get(telling.notification_id or "") if telling is not None else None
    return {
        "notifier": notifier,
        "route": telling.route if telling else None,
        "receiver": telling.receiver if telling else None,
        "state": why(telling, one, heard),
        "muted_by": {name: list(ids) for name, ids in telling.muted.items()} if telling and telling.muted else None,
        "group": dict(one.group_labels) if one else None,
        "alerts_in_message": one.members if one else None,
        "due_at": rfc3339(one.flush_at) if one else None,
        "repeat_at": rfc3339(one.repeat_at) if one else None,
        "escalate_at": rfc3339(one.escalate_at) if one else None,
        "messages": [
            {
                "kind": post.kind,
                "notifier": post.destination,
                "at": rfc3339(post.at),
                "arrived": (post.id, post.destination) in out,
            }
            for post in reversed(posts.get(one.id, ()) if one else ())
        ],
    }


def why(telling: Telling | None, one: Notification | None, heard: str) -> str:
    if telling is None:
        return heard
    if one is None:
        named = " and ".join((telling.muted or {}).keys()).replace("_", " ")
        asked = telling.look_at or "acknowledgement" in (telling.muted or {})
        return f"muted by {named}" if asked else f"was muted by {named} until it was over: nobody was told"
    if one.flush_at is not None:
        return "waits for its group (group_wait or group_interval)"
    return "told" if one.first_post_at is not None else "was over or muted before its message was due: nobody was told"
