"""News of alerts, and who was told of them: notifications, their alerts and their messages, as rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    DateTime,
    Row,
    Text,
    Uuid,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.routing.grouping import Members, Notification
from service.store.actions import NOTIFY, Action, to_action
from service.store.keys import any_id
from service.store.routing_tables import alert_news, notification_alerts, notification_posts, notifications, silences
from service.store.tables import actions, alerts, messages

LOCK = 7_305_201_016  # of who decides what is told: one at a time
OPEN_GROUPS_MAX = 10_000
POSTS_MAX = 50  # of one notification that are edited
COLUMNS = tuple(column.name for column in notifications.columns if column.name != "due_at")


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


async def try_lock(conn: AsyncConnection) -> bool:
    return bool((await conn.execute(select(func.pg_try_advisory_xact_lock(LOCK)))).scalar_one())


async def take_news(conn: AsyncConnection, limit: int) -> list[str]:
    """The oldest news, gone with this transaction's commit; each alert once."""
    taken = (
        select(alert_news.c.id)
        .order_by(alert_news.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    rows = await conn.execute(delete(alert_news).where(alert_news.c.id.in_(taken)).returning(alert_news.c.alert_id))
    return list(dict.fromkeys(row.alert_id for row in rows))


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
    return [to_telling(row) for row in rows]


async def tellings_of(conn: AsyncConnection, alert_ids: Collection[str]) -> dict[str, dict[str, Telling]]:
    """By alert, by destination."""
    found: dict[str, dict[str, Telling]] = {alert_id: {} for alert_id in alert_ids}
    if alert_ids:
        for row in await conn.execute(
            select(notification_alerts).where(notification_alerts.c.alert_id == any_id(alert_ids))
        ):
            found[row.alert_id][row.destination] = to_telling(row)
    return found


async def save_tellings(conn: AsyncConnection, tellings: Sequence[Telling]) -> None:
    if not tellings:
        return
    rows = [
        {
            "alert_id": one.alert_id,
            "destination": one.destination,
            "route": one.route,
            "receiver": one.receiver,
            "notification_id": one.notification_id,
            "muted": {name: list(ids) for name, ids in one.muted.items()} if one.muted else None,
            "at": one.at,
            "look_at": one.look_at,
        }
        for one in tellings
    ]
    statement = upsert(notification_alerts)
    await conn.execute(
        statement.on_conflict_do_update(
            index_elements=("alert_id", "destination"),
            set_={
                name: statement.excluded[name]
                for name in ("route", "receiver", "notification_id", "muted", "at", "look_at")
            },
        ),
        rows,
    )


async def open_groups(
    conn: AsyncConnection, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], list[Notification]]:
    """The open notifications of each (destination, group key), oldest first."""
    found: dict[tuple[str, str], list[Notification]] = {key: [] for key in keys}
    if keys:
        rows = await conn.execute(
            select(notifications)
            .where(
                tuple_(notifications.c.destination, notifications.c.group_key).in_(list(keys)),
                notifications.c.closed_at.is_(None),
            )
            .order_by(notifications.c.opened_at.desc(), notifications.c.id.desc())
            .limit(OPEN_GROUPS_MAX)
        )
        for one in reversed([to_notification(row) for row in rows]):
            found[one.destination, one.group_key].append(one)
    return found


async def due(conn: AsyncConnection, now: datetime, limit: int) -> list[Notification]:
    rows = await conn.execute(
        select(notifications)
        .where(notifications.c.due_at <= now)
        .order_by(notifications.c.due_at, notifications.c.id)
        .limit(limit)
    )
    return [to_notification(row) for row in rows]


async def load_many(conn: AsyncConnection, ids: Collection[str]) -> dict[str, Notification]:
    if not ids:
        return {}
    rows = await conn.execute(select(notifications).where(notifications.c.id == any_id(ids)))
    return {row.id: to_notification(row) for row in rows}


async def save_new(conn: AsyncConnection, new: Sequence[Notification]) -> None:
    if new:
        await conn.execute(insert(notifications), [values_of(one) for one in new])


async def save_changed(conn: AsyncConnection, changed: Sequence[Notification]) -> None:
    """Those columns that a decision may change, in one round trip however many they are."""
    if changed:
        rows = [{f"{CHANGED}{name}": value for name, value in values_of(one).items()} for one in changed]
        await conn.execute(SAVE_CHANGED, rows)


CHANGED = "new_"
SAVE_CHANGED = (
    update(notifications)
    .where(notifications.c.id == bindparam(f"{CHANGED}id"))
    .values({name: bindparam(f"{CHANGED}{name}") for name in (*COLUMNS, "due_at") if name != "id"})
)


async def members(conn: AsyncConnection, ids: Collection[str], now: datetime) -> dict[str, Members]:
    """How the alerts of each stand."""
    if not ids:
        return {}
    is_firing = alerts.c.state == "firing"
    snoozed = alerts.c.snoozed_until > now
    rows = await conn.execute(
        select(
            notification_alerts.c.notification_id,
            func.count(),
            func.count().filter(alerts.c.state != "resolved"),
            func.count().filter(is_firing, or_(alerts.c.snoozed_until.is_(None), ~snoozed)),
            func.min(alerts.c.snoozed_until).filter(is_firing, snoozed),
        )
        .join(alerts, alerts.c.id == notification_alerts.c.alert_id)
        .where(notification_alerts.c.notification_id == any_id(ids))
        .group_by(notification_alerts.c.notification_id)
    )
    return {row[0]: Members(total=row[1], unresolved=row[2], loud=row[3], quiet_until=row[4]) for row in rows}


async def alert_ids(conn: AsyncConnection, ids: Collection[str], limit: int) -> dict[str, list[str]]:
    """The alerts of each notification in the order in which they joined; bounded over all of them."""
    found: dict[str, list[str]] = {one: [] for one in ids}
    if ids:
        rows = await conn.execute(
            select(notification_alerts.c.notification_id, notification_alerts.c.alert_id)
            .where(notification_alerts.c.notification_id == any_id(ids))
            .order_by(notification_alerts.c.notification_id, notification_alerts.c.at, notification_alerts.c.alert_id)
            .limit(limit)
        )
        for row in rows:
            found[row.notification_id].append(row.alert_id)
    return found


async def add_posts(conn: AsyncConnection, posts: Sequence[Post]) -> None:
    if posts:
        rows = [
            {
                "id": post.id,
                "destination": post.destination,
                "notification_id": post.notification_id,
                "alert_id": post.alert_id,
                "kind": post.kind,
                "at": post.at,
            }
            for post in posts
        ]
        await conn.execute(upsert(notification_posts).on_conflict_do_nothing(), rows)


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
                of_one.append(to_post(row))
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


async def posts_by_id(conn: AsyncConnection, ids: Collection[str]) -> dict[tuple[str, str], Post]:
    """By (id, destination)."""
    if not ids:
        return {}
    rows = await conn.execute(select(notification_posts).where(notification_posts.c.id == any_id(ids)))
    return {(row.id, row.destination): to_post(row) for row in rows}


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


def to_telling(row: Row[Any]) -> Telling:
    return Telling(**row._mapping)


def to_post(row: Row[Any]) -> Post:
    return Post(**row._mapping)
