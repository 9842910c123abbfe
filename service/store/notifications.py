"""News of alerts, and who was told of them: notifications, their alerts and their messages, as rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BindParameter,
    DateTime,
    Integer,
    Row,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    cast,
    column,
    exists,
    func,
    literal,
    or_,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from service.routing.grouping import Members, Notification
from service.store.actions import NOTIFY, Action, to_action
from service.store.alerts import EPISODES_READ_MAX
from service.store.keys import any_id
from service.store.routing_tables import (
    alert_news,
    messages,
    notification_alerts,
    notification_posts,
    notifications,
    silences,
)
from service.store.tables import actions, alerts

LOCK = 7_305_201_016  # of who decides what is told: one at a time
OPEN_GROUPS_MAX = 10_000
POSTS_MAX = 50  # of one notification that are shown
COLUMNS = tuple(str(column.name) for column in notifications.columns if column.name != "due_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """By which route a notifier hears of an alert; without a notification it does not, because of `muted`."""

    alert_id: str
    destination: str
    route: str
    receiver: str
    at: datetime
    notification_id: str | None = None
    muted: Mapping[str, Sequence[str]] | None = None
    look_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """One message. `alert_id`: the alert that it was first about."""

    id: str
    destination: str
    notification_id: str
    alert_id: str
    kind: str
    at: datetime


ANNOUNCE = text("INSERT INTO alert_news (alert_id, at) SELECT unnest(:alert_ids), :now").bindparams(
    bindparam("alert_ids", type_=ARRAY(Uuid(as_uuid=False))), bindparam("now", type_=DateTime(timezone=True))
)


async def announce(conn: AsyncConnection, alert_ids: Collection[str], now: datetime) -> None:
    """Something about these alerts changed in this transaction."""
    if alert_ids:
        await conn.execute(ANNOUNCE, {"alert_ids": sorted(alert_ids), "now": now})


async def is_news(conn: AsyncConnection, alert_id: str) -> bool:
    """Whether nobody has decided yet what is told of its last change."""
    found = await conn.execute(select(exists(select(literal(1)).where(alert_news.c.alert_id == alert_id))))
    return bool(found.scalar_one())


ANY_WORK = select(
    or_(
        exists(select(literal(1)).select_from(alert_news)),
        exists(select(literal(1)).where(notifications.c.due_at <= bindparam("now", type_=DateTime(timezone=True)))),
        exists(select(literal(1)).where(notification_alerts.c.look_at <= bindparam("now"))),
    ),
    select(func.array_agg(silences.c.id))
    .where(silences.c.declared, silences.c.end_at > bindparam("now"))
    .scalar_subquery(),
)


async def any_work(conn: AsyncConnection, now: datetime, declared: Collection[str]) -> bool:
    """One cheap look each second: is there anything to decide, or other silences in the config file than in the rows?"""
    row = (await conn.execute(ANY_WORK, {"now": now})).one()
    return bool(row[0]) or {str(one) for one in row[1] or ()} != set(declared)


async def muted_due(conn: AsyncConnection, now: datetime, limit: int) -> list[Telling]:
    rows = await conn.execute(
        select(notification_alerts)
        .where(notification_alerts.c.look_at <= now)
        .order_by(notification_alerts.c.look_at, notification_alerts.c.alert_id)
        .limit(limit)
    )
    return [to_telling(dict(row._mapping)) for row in rows]


async def tellings_of(conn: AsyncConnection, alert_ids: Collection[str]) -> dict[str, dict[str, Telling]]:
    """By alert, by destination."""
    found: dict[str, dict[str, Telling]] = {alert_id: {} for alert_id in alert_ids}
    if alert_ids:
        for row in await conn.execute(
            select(notification_alerts).where(notification_alerts.c.alert_id == any_id(alert_ids))
        ):
            found[row.alert_id][row.destination] = to_telling(dict(row._mapping))
    return found


def telling_values(one: Telling) -> dict[str, Any]:
    return {
        "alert_id": one.alert_id,
        "destination": one.destination,
        "route": one.route,
        "receiver": one.receiver,
        "notification_id": one.notification_id,
        "muted": {name: list(ids) for name, ids in one.muted.items()} if one.muted else None,
        "at": one.at,
        "look_at": one.look_at,
    }


OPEN_GROUPS = (
    text(
        f"""
    SELECT {", ".join(f"n.{name}" for name in COLUMNS)}
    FROM unnest(:destinations, :group_keys) AS k (destination, group_key)
    JOIN notifications n ON n.destination = k.destination AND n.group_key = k.group_key AND n.closed_at IS NULL
    ORDER BY n.opened_at DESC, n.id DESC LIMIT {OPEN_GROUPS_MAX}
    """
    )
    .bindparams(bindparam("destinations", type_=ARRAY(Text())), bindparam("group_keys", type_=ARRAY(Text())))
    .columns(*(notifications.c[name] for name in COLUMNS))
)


async def open_groups(
    conn: AsyncConnection, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], list[Notification]]:
    """The open notifications of each (destination, group key), oldest first."""
    found: dict[tuple[str, str], list[Notification]] = {key: [] for key in keys}
    if keys:
        wanted = {"destinations": [key[0] for key in found], "group_keys": [key[1] for key in found]}
        rows = await conn.execute(OPEN_GROUPS, wanted)
        for one in reversed([to_notification(row) for row in rows]):
            found[one.destination, one.group_key].append(one)
    return found


A_MOMENT: BindParameter[datetime] = bindparam("now", type_=DateTime(timezone=True))
IDS = any_(bindparam("ids", type_=ARRAY(Uuid(as_uuid=False))))
LIMIT: BindParameter[int] = bindparam("most", type_=Integer())
DUE = (
    select(notifications)
    .where(notifications.c.due_at <= A_MOMENT)
    .order_by(notifications.c.due_at, notifications.c.id)
    .limit(LIMIT)
)
LOAD = select(notifications).where(notifications.c.id == IDS)


async def due(conn: AsyncConnection, now: datetime, limit: int) -> list[Notification]:
    return [to_notification(row) for row in await conn.execute(DUE, {"now": now, "most": limit})]


async def load_many(conn: AsyncConnection, ids: Collection[str]) -> dict[str, Notification]:
    if not ids:
        return {}
    return {row.id: to_notification(row) for row in await conn.execute(LOAD, {"ids": list(ids)})}


IS_FIRING = alerts.c.state == "firing"
SNOOZED = alerts.c.snoozed_until > A_MOMENT
MEMBERS = (
    select(
        notification_alerts.c.notification_id,
        func.count(),
        func.count().filter(alerts.c.state != "resolved"),
        func.count().filter(IS_FIRING, or_(alerts.c.snoozed_until.is_(None), ~SNOOZED)),
        func.min(alerts.c.snoozed_until).filter(IS_FIRING, SNOOZED),
        func.min(cast(alerts.c.id, Text)).filter(alerts.c.state != "resolved"),
    )
    .join(alerts, alerts.c.id == notification_alerts.c.alert_id)
    .where(notification_alerts.c.notification_id == IDS)
    .group_by(notification_alerts.c.notification_id)
)
ALL = ""
UNRESOLVED = "JOIN alerts a ON a.id = na.alert_id AND a.state <> 'resolved'"
LOUD = "JOIN alerts a ON a.id = na.alert_id AND a.state = 'firing' AND (a.snoozed_until IS NULL OR a.snoozed_until <= :now)"
# Each notification's by one look into the index: a large group takes no room from the others.
ALERT_IDS = {
    which: text(
        f"""
    SELECT n.id AS notification_id, of_one.alert_id FROM unnest(:ids) AS n (id) CROSS JOIN LATERAL (
        SELECT na.alert_id FROM notification_alerts na {which} WHERE na.notification_id = n.id
        ORDER BY na.at, na.alert_id LIMIT :most OFFSET :skip) AS of_one
    """
    )
    .bindparams(
        bindparam("ids", type_=ARRAY(Uuid(as_uuid=False))),
        *((bindparam("now", type_=DateTime(timezone=True)),) if ":now" in which else ()),
    )
    .columns(column("notification_id", Uuid(as_uuid=False)), column("alert_id", Uuid(as_uuid=False)))
    for which in (ALL, UNRESOLVED, LOUD)
}


async def members(conn: AsyncConnection, ids: Collection[str], now: datetime) -> dict[str, Members]:
    """How the alerts of each stand."""
    if not ids:
        return {}
    rows = await conn.execute(MEMBERS, {"ids": list(ids), "now": now})
    return {
        row[0]: Members(total=row[1], unresolved=row[2], loud=row[3], quiet_until=row[4], lead=row[5]) for row in rows
    }


async def alert_ids(
    conn: AsyncConnection,
    ids: Collection[str],
    limit: int,
    *,
    of: str = ALL,
    skip: int = 0,
    now: datetime | None = None,
) -> dict[str, list[str]]:
    """The alerts of each notification in the order in which they joined, at most `limit` of each: all, those that are
    UNRESOLVED, or those that are LOUD by `now`: firing, acknowledged by nobody and not snoozed."""
    found: dict[str, list[str]] = {one: [] for one in ids}
    if ids:
        values = {"ids": list(found), "most": limit, "skip": skip} | ({"now": now} if of == LOUD else {})
        for row in await conn.execute(ALERT_IDS[of], values):
            found[row.notification_id].append(row.alert_id)
    return found


async def standing_decided(conn: AsyncConnection) -> list[str]:
    """What stands, people may hear of, and is no news: whoever decided about it may have known other routes; bounded."""
    undecided = select(alert_news.c.alert_id)
    rows = await conn.execute(
        select(alerts.c.id)
        .where(alerts.c.state != "resolved", ~alerts.c.shadow, ~alerts.c.discovered_late, alerts.c.id.not_in(undecided))
        .order_by(alerts.c.fired_at, alerts.c.id)
        .limit(EPISODES_READ_MAX)
    )
    return [row.id for row in rows]


def post_values(post: Post) -> dict[str, Any]:
    return {
        "id": post.id,
        "destination": post.destination,
        "notification_id": post.notification_id,
        "alert_id": post.alert_id,
        "kind": post.kind,
        "at": post.at,
    }


async def posts_of(conn: AsyncConnection, ids: Collection[str]) -> dict[str, list[Post]]:
    """The messages of each notification, newest first, at most POSTS_MAX each."""
    found: dict[str, list[Post]] = {one: [] for one in ids}
    if ids:
        rows = await conn.execute(
            select(notification_posts)
            .where(notification_posts.c.notification_id == any_id(ids))
            .order_by(notification_posts.c.at.desc(), notification_posts.c.id.desc())
        )
        for row in rows:
            of_one = found[row.notification_id]
            if len(of_one) < POSTS_MAX:
                of_one.append(to_post(dict(row._mapping)))
    return found


async def actions_about(conn: AsyncConnection, alert_id: str, limit: int = 200) -> list[Action]:
    """What was done to tell of this alert by a message that began with another of its group; oldest first."""
    rows = await conn.execute(
        select(actions)
        .join(
            notification_posts,
            and_(
                notification_posts.c.alert_id == actions.c.alert_id,
                notification_posts.c.alert_id != alert_id,
                actions.c.lane
                == func.concat(NOTIFY, ":", notification_posts.c.destination, ":", cast(notification_posts.c.id, Text)),
            ),
        )
        .join(
            notification_alerts,
            and_(
                notification_alerts.c.notification_id == notification_posts.c.notification_id,
                notification_alerts.c.alert_id == alert_id,
            ),
        )
        # What came before it joined told others.
        .where(actions.c.kind == NOTIFY, actions.c.created_at >= notification_alerts.c.at)
        .order_by(actions.c.created_at, actions.c.id)
        .limit(limit)
    )
    return [to_action(row) for row in rows]


async def first_message_at(conn: AsyncConnection, alert_id: str) -> datetime | None:
    """When the first message that told of this alert was out, its own or its group's."""
    mine = select(messages.c.posted_at).where(messages.c.alert_id == alert_id)
    of_group = (
        select(func.greatest(messages.c.posted_at, notification_alerts.c.at))
        .join(notification_posts, messages_of_post)
        .join(notification_alerts, notification_alerts.c.notification_id == notification_posts.c.notification_id)
        .where(notification_alerts.c.alert_id == alert_id)
    )
    both = mine.union_all(of_group).subquery()
    at: datetime | None = (await conn.execute(select(func.min(both.c[0])))).scalar_one()
    return at


messages_of_post = and_(
    messages.c.alert_id == notification_posts.c.id, messages.c.destination == notification_posts.c.destination
)


async def messages_out(conn: AsyncConnection, ids: Collection[str]) -> set[tuple[str, str]]:
    """Which of these messages, by (id, destination), have arrived."""
    if not ids:
        return set()
    rows = await conn.execute(
        select(messages.c.alert_id, messages.c.destination).where(messages.c.alert_id == any_id(ids))
    )
    return {(row.alert_id, row.destination) for row in rows}


def values_of(one: Notification) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(one, name) for name in COLUMNS}
    return values | {"group_labels": dict(one.group_labels), "due_at": one.due_at}


def to_notification(row: Row[Any]) -> Notification:
    return Notification(**{name: getattr(row, name) for name in COLUMNS})


def to_telling(values: Mapping[str, Any]) -> Telling:
    return Telling(**values)


def to_post(values: Mapping[str, Any]) -> Post:
    return Post(**values)
