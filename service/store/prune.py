"""What is not a day's partition is deleted row by row once it is old: in batches, each a transaction of the caller's."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

BATCH_ALERTS_MAX = 500
BATCH_ROWS_MAX = 10_000

# Where we have a workflow paused, what was asked there says how a person had it before: the resume needs it, and without it
# would start what they had stopped. Another alert, or a person, may hold it for longer than whoever paused it first; and the
# resume itself may wait for days for an orchestrator that is down, also of a workflow that was deleted here meanwhile.
NEEDED = """
    SELECT 1 FROM workflows w WHERE w.workflow_id = c.workflow_id AND w.orchestrator_held
    UNION ALL
    SELECT 1 FROM actions waiting WHERE waiting.workflow_id = c.workflow_id AND waiting.state IN ('pending', 'running')
        AND waiting.kind IN ('orchestrator.pause', 'orchestrator.resume')
"""
# An alert is over when its state and its condition are, none of its holds is open and none of its actions waits.
OLD_ALERTS = text(
    f"""
    SELECT id FROM alerts a
    WHERE state = 'resolved' AND fired_at < :before AND resolved_at < :before AND condition_ended_at < :before
        AND NOT EXISTS (SELECT FROM holds h WHERE h.alert_id = a.id AND h.released_at IS NULL)
        AND NOT EXISTS (
            SELECT FROM actions c WHERE c.alert_id = a.id AND (c.state IN ('pending', 'running') OR EXISTS ({NEEDED})))
    ORDER BY fired_at LIMIT {BATCH_ALERTS_MAX} FOR UPDATE SKIP LOCKED
    """
)
OF_ALERTS = (
    "DELETE FROM attempts t USING actions c WHERE c.id = t.action_id AND c.alert_id = ANY (CAST(:ids AS uuid[]))",
    "DELETE FROM actions WHERE alert_id = ANY (CAST(:ids AS uuid[]))",
    "DELETE FROM messages WHERE alert_id = ANY (CAST(:ids AS uuid[]))",
    # Of the messages after the first, each of an id of its own.
    "DELETE FROM messages m USING notification_posts p"
    " WHERE p.alert_id = ANY (CAST(:ids AS uuid[])) AND m.alert_id = p.id AND m.destination = p.destination",
    "DELETE FROM notification_posts WHERE alert_id = ANY (CAST(:ids AS uuid[]))",
    "WITH gone AS ("
    " DELETE FROM notification_alerts WHERE alert_id = ANY (CAST(:ids AS uuid[])) RETURNING notification_id)"
    " DELETE FROM notifications n USING gone WHERE n.id = gone.notification_id AND NOT EXISTS ("
    " SELECT FROM notification_alerts a WHERE a.notification_id = n.id AND a.alert_id <> ALL (CAST(:ids AS uuid[])))",
    "DELETE FROM holds WHERE alert_id = ANY (CAST(:ids AS uuid[]))",
    "DELETE FROM past_holds WHERE alert_id = ANY (CAST(:ids AS uuid[]))",
    "DELETE FROM alerts WHERE id = ANY (CAST(:ids AS uuid[]))",
)
# What a person's own pause left behind: no alert leads to it.
OLD_MANUAL = text(
    f"""
    WITH old AS (
        DELETE FROM actions WHERE id IN (
            SELECT id FROM actions c WHERE alert_id IS NULL AND finished_at < :before
                AND state NOT IN ('pending', 'running') AND NOT EXISTS ({NEEDED}) LIMIT {BATCH_ALERTS_MAX})
        RETURNING id
    ), tried AS (
        DELETE FROM attempts USING old WHERE action_id = old.id
    ), let_go AS (
        DELETE FROM holds WHERE id IN (
            SELECT id FROM holds WHERE alert_id IS NULL AND released_at < :before LIMIT {BATCH_ALERTS_MAX})
        RETURNING id
    )
    SELECT (SELECT count(*) FROM old) + (SELECT count(*) FROM let_go)
    """
)
OLD_DEDUP = text(
    f"""
    DELETE FROM dedup WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM dedup WHERE received_at < :before LIMIT {BATCH_ROWS_MAX}))
    """
)
# Raw bytes, as receipts are; few, since each is a bug or a forgery.
OLD_CONFLICTS = text(
    f"""
    DELETE FROM conflicts WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM conflicts WHERE received_at < :before LIMIT {BATCH_ROWS_MAX}))
    """
)
# Every event of a day that stays was received later than dedup is cut before: what was replayed of an older one is gone.
OLD_REPLAYS = text(
    f"""
    DELETE FROM replays WHERE event_row_id = ANY (ARRAY(
        SELECT event_row_id FROM replays WHERE at < :before LIMIT {BATCH_ROWS_MAX}))
    """
)
# A listing's row stays: it says that this environment was listed, once and for ever.
OLD_RECOVERIES = text("DELETE FROM recoveries WHERE reason = 'outage' AND state <> 'waiting' AND finished_at < :before")
OLD_POISON = text("DELETE FROM poison WHERE position <= :floor AND at < :before")
# A provider's event is in there only if the clock stood far back when it came; it then has the position of now.
OLD_KEPT = text(
    f"""
    DELETE FROM events_kept WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM events_kept
        WHERE position <= :floor AND received_at < CASE
            WHEN origin <> 'authwatch' THEN CAST(:events AS timestamptz) WHEN kind LIKE 'alert.%' THEN :alerts
            ELSE :audit END
        LIMIT {BATCH_ROWS_MAX}))
    """
)
OLD_MARKS = text(
    "DELETE FROM log_marks WHERE position < (SELECT max(position) FROM log_marks WHERE position <= :floor)"
)


async def alerts(conn: AsyncConnection, before: datetime) -> bool:
    """Whether there may be more."""
    ids = [str(row.id) for row in await conn.execute(OLD_ALERTS, {"before": before})]
    if ids:
        for statement in OF_ALERTS:
            await conn.execute(text(statement), {"ids": ids})
    return len(ids) == BATCH_ALERTS_MAX


async def manual(conn: AsyncConnection, before: datetime) -> bool:
    return bool((await conn.execute(OLD_MANUAL, {"before": before})).scalar_one() >= BATCH_ALERTS_MAX)


async def dedup(conn: AsyncConnection, before: datetime) -> bool:
    return (await conn.execute(OLD_DEDUP, {"before": before})).rowcount == BATCH_ROWS_MAX


async def conflicts(conn: AsyncConnection, before: datetime) -> bool:
    return (await conn.execute(OLD_CONFLICTS, {"before": before})).rowcount == BATCH_ROWS_MAX


async def kept(conn: AsyncConnection, *, floor: int, events: datetime, alerts: datetime, audit: datetime) -> bool:
    if (await conn.execute(text("SELECT to_regclass('events_kept')"))).scalar_one() is None:
        return False
    done = await conn.execute(OLD_KEPT, {"floor": floor, "events": events, "alerts": alerts, "audit": audit})
    return done.rowcount == BATCH_ROWS_MAX


async def replays(conn: AsyncConnection, before: datetime) -> bool:
    return (await conn.execute(OLD_REPLAYS, {"before": before})).rowcount == BATCH_ROWS_MAX


async def recoveries(conn: AsyncConnection, before: datetime) -> bool:
    """An outage is a row: some a day at most."""
    await conn.execute(OLD_RECOVERIES, {"before": before})
    return False


async def small(conn: AsyncConnection, *, floor: int, before: datetime) -> bool:
    """Marks and poison of what is gone: thousands of rows at most."""
    await conn.execute(OLD_POISON, {"floor": floor, "before": before})
    await conn.execute(OLD_MARKS, {"floor": floor})
    return False
