"""Two bodies under one identity, both signed: an alert of our own, from the sweep.

The front door answered the second as a duplicate and kept it; what was first stays what happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service import own_alerts
from service.observe import log as logger
from service.own_alerts import OwnAlert
from service.runtime import Runtime
from service.store import alerts, conflicts, log, readers
from service.store.conflicts import UNTOLD_MAX, Conflict
from service.store.session import begin

RULE_ID = "body-conflict"
OPEN_OF_SOURCE_MAX = 5  # who holds the secret can make as many as they like; the on-call needs to hear of a few
COMMITTED_LATE = timedelta(seconds=60)  # longer than any statement may run


@dataclass(slots=True)
class Looked:
    """Up to where this process has looked, for each source: what is before it is told. None: from the beginning."""

    since: dict[str, datetime | None] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()  # sources with more than they may have told at a time


async def tell_conflicts(runtime: Runtime, looked: Looked) -> None:
    """Opens an alert for each new conflict, up to OPEN_OF_SOURCE_MAX unresolved ones of a source at a time; the next one
    is told when one of them is resolved."""
    looked.since |= {source: None for source in runtime.sources if source not in looked.since}
    async with begin(runtime.engine) as conn:
        now = await readers.clock(conn)
        # A clock that was put back: what came since is looked at from where it stands now.
        looked.since = {
            source: None if since is None else min(since, now - COMMITTED_LATE)
            for source, since in looked.since.items()
        }
        found = await untold(conn, looked)
        # Those that wait for a place cost no lock while there is none.
        pending = bool(choose(found, await unresolved(conn))) if found else False
    told: set[str] = set()
    if pending:
        async with begin(runtime.engine) as conn:
            await own_alerts.lock(conn)
            now, notifiers = await readers.clock(conn), list(runtime.notifiers)
            found, still_open = await untold(conn, looked), await unresolved(conn)
            # What a person resolved is over: the next one is a new episode.
            ended = await own_alerts.close_own(conn, RULE_ID, keep=still_open, now=now, notifiers=notifiers)
            wanted = choose(found, still_open)
            out = await own_alerts.open_own(conn, [alert_of(each) for each in wanted], now=now, notifiers=notifiers)
            await log.append(conn, [*ended.decisions, *out.decisions])
        told = {each.about for each in wanted}
    left: dict[str, datetime] = {}
    for each in found:
        if each.about not in told:
            left.setdefault(each.source, each.received_at)
    # As many as are read at a time may hide others behind them, of whatever time.
    more = {source for source, count in Counter(each.source for each in found).items() if count >= UNTOLD_MAX}
    looked.since = {
        source: left.get(source, since if source in more else now - COMMITTED_LATE)
        for source, since in looked.since.items()
    }
    if left.keys() != looked.waiting:
        looked.waiting = frozenset(left)
        if left:
            logger.error("conflicts.not_all_told", sources=sorted(left))


async def untold(conn: AsyncConnection, looked: Looked) -> list[Conflict]:
    return [
        each
        for source, since in sorted(looked.since.items())
        for each in await conflicts.untold(conn, RULE_ID, source, since)
    ]


async def unresolved(conn: AsyncConnection) -> set[str]:
    return {alert.group_key for alert in await alerts.open_of_rule(conn, RULE_ID) if alert.state != "resolved"}


def choose(found: Sequence[Conflict], unresolved: Collection[str]) -> list[Conflict]:
    """The first of each event, while its source has not too many open."""
    counts = Counter(about.partition(":")[0] for about in unresolved)
    chosen: dict[str, Conflict] = {}
    for each in found:
        if each.about not in chosen and counts[each.source] < OPEN_OF_SOURCE_MAX:
            counts[each.source] += 1
            chosen[each.about] = each
    return list(chosen.values())


def alert_of(conflict: Conflict) -> OwnAlert:
    return OwnAlert(
        rule_id=RULE_ID,
        about=conflict.about,
        severity="P2",
        summary=(
            f"{conflict.source}: other content came, signed, under the identity of event {conflict.event_row_id};"
            " the first is what counts"
        ),
        what_to_do=(
            f"Compare both at /v1/events/{conflict.event_row_id}/receipt. Unless the provider says that it rewrites"
            f" events, someone else holds the secret {conflict.secret_name}: make a new one at the provider, put it in"
            " its place, and do not keep the old one beside it."
        ),
    )
