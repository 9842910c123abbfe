"""Deciding what is told, as few statements: one look, what is known of these alerts, and all that it came to at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ARRAY, BigInteger, Boolean, DateTime, Text, Uuid, bindparam, column, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.routing.grouping import Notification
from service.store import actions as action_store
from service.store.actions import NewAction
from service.store.notifications import (
    COLUMNS,
    LOCK,
    POSTS_MAX,
    Post,
    Telling,
    post_values,
    telling_values,
    to_post,
    to_telling,
    values_of,
)
from service.store.routing_tables import notification_alerts, notification_posts

IDS = ARRAY(Uuid(as_uuid=False))


@dataclass(frozen=True, slots=True)
class Look:
    """`ours`: nobody else decides until this transaction ends. What else there is to read is said by one look, as nearly
    always it is nothing; `declared`: ids of the config file's silences that have rows."""

    ours: bool
    now: datetime
    due: bool
    muted_due: bool
    declared: frozenset[str]


LOOK = text(
    """
    WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now)
    SELECT pg_try_advisory_xact_lock(:lock) AS ours, now,
        EXISTS (SELECT 1 FROM notifications WHERE due_at <= (SELECT now FROM moment)) AS due,
        EXISTS (SELECT 1 FROM notification_alerts WHERE look_at <= (SELECT now FROM moment)) AS muted_due,
        (SELECT array_agg(id::text) FROM silences WHERE declared AND end_at > (SELECT now FROM moment)) AS declared
    FROM moment
    """
).bindparams(bindparam("lock", LOCK, type_=BigInteger()))


async def look(conn: AsyncConnection) -> Look:
    """It may have looked a moment before the lock was free: what is decided stands on what is read after it."""
    row = (await conn.execute(LOOK)).one()
    return Look(row.ours, row.now, row.due, row.muted_due, frozenset(row.declared or ()))


KNOWN = (
    text(
        f"""
    SELECT false AS is_out, {", ".join(one.name for one in notification_alerts.columns)}
    FROM notification_alerts WHERE alert_id = ANY(:ids)
    UNION ALL
    SELECT true, alert_id, destination, '', '', NULL, NULL, posted_at, NULL FROM messages WHERE alert_id = ANY(:ids)
    """
    )
    .bindparams(bindparam("ids", type_=IDS))
    .columns(column("is_out", Boolean()), *notification_alerts.columns)
)


async def known(
    conn: AsyncConnection, alert_ids: Collection[str]
) -> tuple[dict[str, dict[str, Telling]], set[tuple[str, str]]]:
    """(who hears of each alert, by destination; which messages of their own, by (alert id, destination), have arrived)."""
    tellings: dict[str, dict[str, Telling]] = {alert_id: {} for alert_id in alert_ids}
    out: set[tuple[str, str]] = set()
    if alert_ids:
        for row in await conn.execute(KNOWN, {"ids": list(alert_ids)}):
            values = dict(row._mapping)
            if values.pop("is_out"):
                out.add((row.alert_id, row.destination))
            else:
                tellings[row.alert_id][row.destination] = to_telling(values)
    return tellings, out


POSTS = (
    text(
        f"""
    SELECT m.alert_id IS NOT NULL AS is_out, {", ".join(f"p.{one.name}" for one in notification_posts.columns)}
    FROM notification_posts p LEFT JOIN messages m ON m.alert_id = p.id AND m.destination = p.destination
    WHERE p.notification_id = ANY(:ids) ORDER BY p.at DESC, p.id DESC
    """
    )
    .bindparams(bindparam("ids", type_=IDS))
    .columns(column("is_out", Boolean()), *notification_posts.columns)
)


async def posts_of(conn: AsyncConnection, ids: Collection[str]) -> tuple[dict[str, list[Post]], set[tuple[str, str]]]:
    """(the messages of each notification, newest first, at most POSTS_MAX each; which of them have arrived)."""
    found: dict[str, list[Post]] = {one: [] for one in ids}
    out: set[tuple[str, str]] = set()
    for row in (await conn.execute(POSTS, {"ids": list(ids)})) if ids else ():
        values = dict(row._mapping)
        if values.pop("is_out"):
            out.add((row.id, row.destination))
        if len(of_one := found[row.notification_id]) < POSTS_MAX:
            of_one.append(to_post(values))
    return found, out


ALL = (*COLUMNS, "due_at")
HEARD = tuple(one.name for one in notification_alerts.columns)
POSTED = ", ".join(one.name for one in notification_posts.columns)
HEARD_KEY = ("alert_id", "destination")
# Who hears of what, as it may be needed before the rest is decided.
HEAR = f"""
    INSERT INTO notification_alerts ({", ".join(HEARD)})
    SELECT {", ".join(HEARD)} FROM jsonb_populate_recordset(NULL::notification_alerts, CAST(:tellings AS jsonb))
    ON CONFLICT ({", ".join(HEARD_KEY)}) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in HEARD if name not in HEARD_KEY)}
"""
SAVE_TELLINGS = text(HEAR)
SAVE = text(
    f"""
    WITH begun AS (
        INSERT INTO notifications ({", ".join(ALL)})
        SELECT {", ".join(ALL)} FROM jsonb_populate_recordset(NULL::notifications, CAST(:new AS jsonb))
    ), changed AS (
        UPDATE notifications n SET {", ".join(f"{name} = r.{name}" for name in ALL if name != "id")}
        FROM jsonb_populate_recordset(NULL::notifications, CAST(:changed AS jsonb)) AS r WHERE n.id = r.id
    ), heard AS ({HEAR}), posted AS (
        INSERT INTO notification_posts ({POSTED})
        SELECT {POSTED} FROM jsonb_populate_recordset(NULL::notification_posts, CAST(:posts AS jsonb))
        ON CONFLICT DO NOTHING
    ), {action_store.ADD_IN_ORDER}
    """
).bindparams(bindparam("lanes", type_=ARRAY(Text())), bindparam("now", type_=DateTime(timezone=True)))


async def save_tellings(conn: AsyncConnection, tellings: Sequence[Telling]) -> None:
    if tellings:
        await conn.execute(SAVE_TELLINGS, {"tellings": heard(tellings)})


async def save(
    conn: AsyncConnection,
    *,
    new: Sequence[Notification],
    changed: Sequence[Notification],
    tellings: Sequence[Telling],
    posts: Sequence[Post],
    told: Sequence[NewAction],
    now: datetime,
) -> None:
    """All of one decision as one statement, however much it is; `told` as `actions.add` does."""
    if not (new or changed or tellings or posts or told):
        return
    values = {
        "new": written([values_of(one) for one in new]),
        "changed": written([values_of(one) for one in changed]),
        "tellings": heard(tellings),
        "posts": written([post_values(one) for one in posts]),
    }
    await conn.execute(SAVE, values | action_store.add_values(told, now))


def heard(tellings: Sequence[Telling]) -> str:
    """Of two about one alert and notifier the later counts."""
    return written([telling_values(one) for one in {(one.alert_id, one.destination): one for one in tellings}.values()])


def written(rows: Sequence[dict[str, Any]]) -> str:
    return orjson.dumps(rows, option=orjson.OPT_NON_STR_KEYS).decode()  # names of labels may be a subclass of str
