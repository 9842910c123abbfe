"""Is anything behind, stalled or stranded? One reading of the database, for /v1/health, /metrics and the heartbeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import rfc3339
from service.store import credentials, deadlines, expired, log, readers, refusals, retention, shipping

STALE_AFTER = timedelta(seconds=15)  # a story that said nothing for so long is stalled
BEHIND_AFTER_SECONDS = 10.0  # contract.md, the gate: `evaluation_behind`
STRANDED_AFTER = timedelta(minutes=5)
BREAKER_OPEN = "probing"  # the state of a sink that is tried with a few items only
DEADLINE_SLACK = timedelta(seconds=10)


async def evaluation_lag_seconds(conn: AsyncConnection) -> float:
    """Age of the oldest row of the log that is not yet evaluated."""
    oldest = await log.oldest_after(conn, await readers.position(conn, readers.EVALUATOR))
    return max(0.0, (await readers.clock(conn) - oldest).total_seconds()) if oldest else 0.0


async def report(conn: AsyncConnection, sinks: Sequence[str], notifiers: Sequence[str] = ()) -> dict[str, Any]:
    """Each part with its lag in items and seconds; `current` is what the outside heartbeat depends on. `notifiers` that all
    refuse leave nobody to be told but whoever waits for that heartbeat."""
    now = await readers.clock(conn)
    beats = await readers.beats(conn)
    rows = {row.name: row for row in await readers.all_readers(conn)}

    evaluator_items, oldest_event = await log.lag_after(conn, await readers.position(conn, readers.EVALUATOR))
    evaluator_seconds = (now - oldest_event).total_seconds() if oldest_event else 0.0
    open_actions, oldest_action, failed_actions = await refusals.waiting(conn)
    next_due, _ = await deadlines.next_due(conn)
    deadline_late = bool(next_due and now - next_due > DEADLINE_SLACK)
    parts: dict[str, Any] = {
        "evaluator": part(now, beats.get("evaluator"), evaluator_items, evaluator_seconds)
        | {
            "lag_items_capped": capped(evaluator_items),
            "overdue_deadlines": deadline_late,
            "position": rows[readers.EVALUATOR].position if readers.EVALUATOR in rows else 0,
        },
        "actions": part(
            now, beats.get("actions"), open_actions, (now - oldest_action).total_seconds() if oldest_action else 0.0
        )
        | {"failed": failed_actions},
        "sweep": part(now, beats.get("sweep"), 0, 0.0)
        | {"partitions_ahead_days": await retention.days_ahead(conn, now)},
    }
    behind = [
        name
        for name, value in parts.items()
        if not value["alive"]
        or value.get("overdue_deadlines")
        or (name == "evaluator" and evaluator_seconds > BEHIND_AFTER_SECONDS)
    ]
    refusing = await notifiers_that_refuse(conn)
    if notifiers and all(name in refusing for name in notifiers):
        behind.append("notifiers")
    refused = await credentials.waiting(conn)
    stranded = refused + sum(each["waiting"] for each in refusing.values())
    stranded += failed_actions + (1 if oldest_action and now - oldest_action > STRANDED_AFTER else 0)
    if oldest_action and now - oldest_action > STRANDED_AFTER:
        behind.append("actions")
    return {
        "status": "ok" if not behind and not refusing and not refused else "degraded",
        "current": not behind,
        "behind": sorted(set(behind)),
        **parts,
        "sinks": await of_sinks(conn, sinks),
        "expired": await asking(conn, rows.get(expired.READER)),
        "notifiers": refusing,
        "stranded": stranded,
        "at": rfc3339(now),
    }


async def of_sinks(conn: AsyncConnection, sinks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The lag counts what is left of the log, also where a sink wants little of it: what it does not want it passes over.

    `lag_items_capped`: there may be more, it is counted no further. `sent_again`: items that were sent once more because
    they may have arrived, at each such try, or were replayed.
    """
    now, beats = await readers.clock(conn), await readers.beats(conn)
    rows, bad = await shipping.states(conn, sinks), await readers.poison_counts(conn)
    found: dict[str, dict[str, Any]] = {}
    for name in sinks:
        row = rows.get(name)
        items, oldest = await log.lag_after(conn, row.position if row else 0)
        found[name] = part(now, beats.get("sinks"), items, (now - oldest).total_seconds() if oldest else 0.0) | {
            "lag_items_capped": capped(items),
            "position": row.position if row else 0,
            "state": "new" if row is None else state_of(row.failures_in_a_row),
            "last_ok_at": rfc3339(row.last_ok_at) if row else None,
            "last_error": row.last_error if row else None,
            "last_code": row.last_code if row else None,
            "poison": bad.get(shipping.reader_name(name), 0),
            "sent_again": row.sent_again if row else 0,
        }
    return found


def capped(lag_items: int) -> bool:
    return lag_items >= log.LAG_COUNTED_MAX


def lag_words(part: Mapping[str, Any]) -> str:
    """`100000+` where there may be more."""
    return f"{part['lag_items']}+" if part.get("lag_items_capped") else str(part["lag_items"])


def state_of(failures_in_a_row: int) -> str:
    if failures_in_a_row == 0:
        return "shipping"
    return "retrying" if failures_in_a_row < shipping.BREAKER_FAILURES else BREAKER_OPEN


async def asking(conn: AsyncConnection, row: Row[Any] | None) -> dict[str, Any]:
    """EXPIRED accounts, and how the provider answers who asks for them; it keeps nothing of ours from being current."""
    return {
        "accounts": await expired.count(conn),
        "last_ok_at": rfc3339(row.last_ok_at) if row else None,
        "last_error": row.last_error if row else None,
        "last_code": row.last_code if row else None,
        "paused_until": rfc3339(row.next_attempt_at) if row else None,
    }


async def notifiers_that_refuse(conn: AsyncConnection) -> dict[str, dict[str, Any]]:
    """Those alone: a notifier that is not here takes what it is told, or has not been told anything yet."""
    return {
        row.destination: {
            "state": "refusing",
            "since": rfc3339(row.refused_at),
            "code": row.code,
            "error": row.detail,
            "waiting": row.waiting,
        }
        for row in await refusals.standing(conn)
    }


def part(now: datetime, beat: datetime | None, items: int, seconds: float) -> dict[str, Any]:
    return {
        "alive": beat is not None and now - beat <= STALE_AFTER,
        "last_seen_at": rfc3339(beat),
        "lag_items": items,
        "lag_seconds": round(max(0.0, seconds), 3),
    }
