"""The other part of the watching: what waits for a person's mend, and what of our own does not come to its end."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service.own_alerts import OwnAlert
from service.settings import RetentionSettings
from service.store import quarantine, retention_state

QUARANTINED, EXPIRING, STALLED = "quarantined", "quarantine-expiring", "retention-stalled"
QUARANTINE_LOOK = timedelta(hours=1)
EXPIRING_WARNING = timedelta(days=3)
DAY = timedelta(days=1)
STALLED_AFTER = timedelta(hours=3)  # it runs once an hour


async def quarantined_wanted(
    conn: AsyncConnection, sources: Collection[str], keep: RetentionSettings, now: datetime
) -> list[OwnAlert]:
    """From the first request that cannot be read on: what is in it nobody is told of, and nobody else would say so."""
    wanted = [
        OwnAlert(
            rule_id=QUARANTINED,
            about=each.source,
            severity="P2",
            summary=f"{each.source} sends what cannot be read ({each.reason or 'unknown'}): signed, kept aside, and judged"
            f" by no rule; {each.requests} in the last hour",
            what_to_do="GET /v1/quarantine lists them, with the receipt of each. After a mend `authwatch replay` takes them"
            " in; until then look at the provider for what happened to its accounts.",
        )
        # Up to tomorrow: a clock that was put back makes nothing of the last hour look like the future.
        for each in await quarantine.waiting(conn, now - QUARANTINE_LOOK, now + DAY)
        if each.source in sources
    ]
    if keep.receipts >= keep.events:
        return wanted
    going = now - keep.receipts
    for each in await quarantine.waiting(conn, going - DAY, going + min(EXPIRING_WARNING, keep.receipts / 2)):
        wanted.append(
            OwnAlert(
                rule_id=EXPIRING,
                about=each.source,
                severity="P2",
                summary=f"{each.requests} requests of {each.source} that could not be read wait for a replay, and their"
                f" receipts go from {each.first_at + keep.receipts + DAY:%Y-%m-%d} on",
                what_to_do="Run `authwatch replay`; what it cannot read by then is lost. A larger retention.receipts keeps"
                " them longer.",
            )
        )
    return wanted


async def retention_wanted(conn: AsyncConnection, now: datetime) -> list[OwnAlert]:
    state = await retention_state.read(conn)
    if now - state.completed_at <= STALLED_AFTER:
        return []
    return [
        OwnAlert(
            rule_id=STALLED,
            about="retention",
            severity="P2",
            summary=f"Retention has not come to its end since {state.completed_at:%Y-%m-%d %H:%M} UTC"
            + (f": {state.unfinished}" if state.unfinished else ": its runs fail"),
            what_to_do="The database grows meanwhile, and nothing is lost. `authwatch retention plan` says what waits; the"
            " worker's log says what it ran into (story retain); a query that runs for hours may hold a day.",
        )
    ]
