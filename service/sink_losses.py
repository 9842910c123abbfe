"""What a sink will never be sent, because the log dropped it first: an alert for a person and an entry of the audit log.

Two ways lead here. A sink lags for longer than is waited for it (service/retain.py counts what goes). Or it was taken out of
the configuration, so that nobody waited, and is put back: by then nobody can count what it missed, but its positions say
how much it is at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from service import own_alerts
from service.event import rfc3339
from service.own_alerts import OwnAlert
from service.store import log, readers, shipping
from service.store.log import Decision

LOST_RULE = "sink-events-lost"
Said = tuple[list[OwnAlert], list[Decision]]


def loss(
    sink: str, *, stretch: str, summary: str, what_to_do: str, reason: str, details: dict[str, Any], now: datetime
) -> tuple[OwnAlert, Decision]:
    """`stretch` tells this loss from others of the sink, so that an older one nobody has resolved hides none."""
    alert = OwnAlert(
        rule_id=LOST_RULE, about=f"{sink}:{stretch}", severity="P1", summary=summary, what_to_do=what_to_do
    )
    entry = Decision(
        kind="audit",
        subject_id=f"sink:{sink}",
        occurred_at=now,
        details={
            "actor": "retention",
            "action": "sink.events_lost",
            "subject": sink,
            "reason": reason,
            **details,
        },
    )
    return alert, entry


async def left_behind(conn: AsyncConnection, sinks: Sequence[str], now: datetime) -> Said:
    """Of those sinks (names of the configuration) that stand before what the log still holds: what to say of each, which
    stands at the log's beginning from here on. The caller has `own_alerts.lock`, opens the alerts and appends the entries.
    """
    alerts: list[OwnAlert] = []
    entries: list[Decision] = []
    for behind in await shipping.skip_pruned(conn, sinks, now):
        sink, first, last = behind.sink, behind.position + 1, behind.floor
        alert, entry = loss(
            sink,
            stretch=f"{first}",
            summary=f"The sink {sink} was not in the configuration while the log dropped days that it had not taken; at most"
            f" {last - first + 1} events (positions {first} to {last}) are gone for it, the exact number is not known. It"
            f" last moved on at {rfc3339(behind.moved_at)}",
            what_to_do="What is still kept is shipped now. A sink that is to be away for longer than retention.events"
            " stays in the configuration: the log then waits for it, for retention.sink_backlog_max.",
            reason="it was not in the configuration when retention ran",
            details={
                "events_max": last - first + 1,
                "first_position": first,
                "last_position": last,
                "last_moved_at": rfc3339(behind.moved_at),
            },
            now=now,
        )
        alerts.append(alert)
        entries.append(entry)
    return alerts, entries


async def say_left_behind(conn: AsyncConnection, sink: str, notifiers: Sequence[str]) -> bool:
    """For whoever is about to read on for the sink, in a transaction that does nothing else once this is true."""
    if not await shipping.is_pruned(conn, sink):
        return False
    await own_alerts.lock(conn)
    now = await readers.clock(conn)
    alerts, entries = await left_behind(conn, [sink], now)
    opened = await own_alerts.open_own(conn, alerts, now=now, notifiers=notifiers)
    await log.append(conn, [*entries, *opened.decisions])
    return True
