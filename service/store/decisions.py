"""Deciding what is told, as few statements: one look, what is known of these alerts, and all that it came to at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import ARRAY, BigInteger, Boolean, DateTime, Interval, Text, Uuid, bindparam, column, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.routing.grouping import Notification
from service.store import actions as action_store
from service.store.actions import NewAction
from service.store.notifications import (
    COLUMNS,
    LOCK,
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
POSTS_MAX = 200  # of one notification that are edited when it is over, beside the newest at each destination


@dataclass(frozen=True, slots=True)
class Look:
    """`ours`: nobody else decides until this transaction ends. What else there is to read is said by one look, as nearly
    always it is nothing; `declared`: ids of the config file's silences that have rows; `refusing`: notifiers that
    take nothing now."""

    ours: bool
    now: datetime
    due: bool
    muted_due: bool
    declared: frozenset[str]
    refusing: frozenset[str]


LOOK = text(
    """
    WITH moment AS MATERIALIZED (SELECT clock_timestamp() AS now)
    SELECT pg_try_advisory_xact_lock(:lock) AS ours, now,
        EXISTS (SELECT 1 FROM notifications WHERE due_at <= (SELECT now FROM moment)) AS due,
        EXISTS (SELECT 1 FROM notification_alerts WHERE look_at <= (SELECT now FROM moment)) AS muted_due,
        (SELECT array_agg(id::text) FROM silences WHERE declared AND end_at > (SELECT now FROM moment)) AS declared,
        (SELECT array_agg(destination) FROM notifier_refusals WHERE taken_at IS NULL) AS refusing
    FROM moment
    """
).bindparams(bindparam("lock", LOCK, type_=BigInteger()))


async def look(conn: AsyncConnection) -> Look:
    """It may have looked a moment before the lock was free: what is decided stands on what is read after it."""
    row = (await conn.execute(LOOK)).one()
    declared, refusing = frozenset(row.declared or ()), frozenset(row.refusing or ())
    return Look(row.ours, row.now, row.due, row.muted_due, declared, refusing)


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


@dataclass(frozen=True, slots=True)
class Posted:
    """Messages, newest first, by notification; which of them, by (id, destination), have arrived, which never will, as
    their last attempt was refused for good, and which have told that all is over."""

    of: dict[str, list[Post]] = field(default_factory=dict)
    out: set[tuple[str, str]] = field(default_factory=set)
    refused: set[tuple[str, str]] = field(default_factory=set)
    over: set[tuple[str, str]] = field(default_factory=set)


# Without a message and with nothing open that would post it, it was refused.
IS_OPEN = """EXISTS (SELECT 1 FROM actions a WHERE a.lane = 'notify:' || p.destination || ':' || p.id::text
        AND a.state IN ('pending', 'running'))"""
POSTS = (
    text(
        f"""
    SELECT m.alert_id IS NOT NULL AS is_out, m.alert_id IS NULL AND NOT {IS_OPEN} AS is_refused,
        coalesce(m.said = 'resolved', false) AS is_over,
        {", ".join(f"p.{one.name}" for one in notification_posts.columns)}
    FROM (
        SELECT *, row_number() OVER (PARTITION BY notification_id ORDER BY at DESC, id DESC) AS nth,
            row_number() OVER (PARTITION BY notification_id, destination ORDER BY at DESC, id DESC) AS nth_there
        FROM notification_posts WHERE notification_id = ANY(:ids)
    ) AS p LEFT JOIN messages m ON m.alert_id = p.id AND m.destination = p.destination
    WHERE p.nth_there = 1 OR (p.nth <= :most AND p.notification_id = ANY(:closing))
    ORDER BY p.at DESC, p.id DESC
    """
    )
    .bindparams(bindparam("ids", type_=IDS), bindparam("closing", type_=IDS), bindparam("most", type_=BigInteger()))
    .columns(
        column("is_out", Boolean()),
        column("is_refused", Boolean()),
        column("is_over", Boolean()),
        *notification_posts.columns,
    )
)


async def posts_of(conn: AsyncConnection, ids: Collection[str], closing: Collection[str] = ()) -> Posted:
    """The newest message of each notification at each destination; of those that are `closing` all, up to POSTS_MAX."""
    found = Posted({one: [] for one in ids})
    values = {"ids": list(ids), "closing": list(closing), "most": POSTS_MAX}
    for row in (await conn.execute(POSTS, values)) if ids else ():
        said = dict(row._mapping)
        if said.pop("is_out"):
            found.out.add((row.id, row.destination))
        if said.pop("is_refused"):
            found.refused.add((row.id, row.destination))
        if said.pop("is_over"):
            found.over.add((row.id, row.destination))
        found.of[row.notification_id].append(to_post(said))
    return found


REFUSED = text(
    """
    UPDATE notifications n SET repeat_at = least(n.repeat_at, again.at), due_at = least(n.due_at, again.at)
    FROM (SELECT clock_timestamp() + :wait AS at) AS again
    WHERE n.closed_at IS NULL AND n.id = ANY(ARRAY(
        SELECT p.notification_id FROM unnest(:ids, :destinations) AS refused (id, destination)
        JOIN notification_posts p ON p.id = refused.id AND p.destination = refused.destination
        WHERE NOT EXISTS (SELECT 1 FROM messages m WHERE m.alert_id = p.id AND m.destination = p.destination)))
    """
).bindparams(
    bindparam("ids", type_=IDS),
    bindparam("destinations", type_=ARRAY(Text())),
    bindparam("wait", type_=Interval()),
)
ALONE = text("SELECT pg_advisory_xact_lock(:lock)").bindparams(bindparam("lock", LOCK, type_=BigInteger()))


async def alone(conn: AsyncConnection) -> None:
    """Nobody decides until this transaction ends: taken before actions are locked, as whoever decides does."""
    await conn.execute(ALONE)


async def say_again(conn: AsyncConnection, refused: Sequence[tuple[str, str]], wait: timedelta) -> None:
    """These messages, by (id, destination), were refused for good. Of those that never arrived it is decided after `wait`
    whether they are sent once more: what they say may still stand, and the destination be mended. Needs `alone`."""
    if refused:
        ids, destinations = [one[0] for one in refused], [one[1] for one in refused]
        await conn.execute(REFUSED, {"ids": ids, "destinations": destinations, "wait": wait})


NEVER_ARRIVED = text(
    f"""
    SELECT p.destination, min(p.at) AS at FROM (
        SELECT DISTINCT ON (o.notification_id, o.destination) o.* FROM notifications n
        JOIN notification_posts o ON o.notification_id = n.id WHERE n.closed_at IS NULL
        ORDER BY o.notification_id, o.destination, o.at DESC, o.id DESC) AS p
    WHERE NOT EXISTS (SELECT 1 FROM messages m WHERE m.alert_id = p.id AND m.destination = p.destination)
        AND NOT {IS_OPEN}
    GROUP BY p.destination
    """
).columns(column("destination", Text()), column("at", DateTime(timezone=True)))


async def never_arrived(conn: AsyncConnection) -> dict[str, datetime]:
    """Destinations that refused, for good, the last message about what still stands, each with when the oldest of these was
    decided."""
    return {row.destination: row.at for row in await conn.execute(NEVER_ARRIVED)}


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
).bindparams(
    bindparam("lanes", type_=ARRAY(Text())),
    bindparam("now", type_=DateTime(timezone=True)),
    bindparam("edit_every", type_=Interval()),
)


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
