"""Two bodies under one identity, both signed: an alert of our own, from the sweep.

The front door answered the second as a duplicate and kept it; what was first stays what happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

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
    """Up to where this process has looked; None: from the beginning."""

    since: datetime | None = None


async def tell_conflicts(runtime: Runtime, looked: Looked) -> None:
    """Opens an alert for each new conflict, up to OPEN_OF_SOURCE_MAX unresolved ones of a source at a time."""
    async with begin(runtime.engine) as conn:
        now = await readers.clock(conn)
        if looked.since is not None:  # a clock that was put back: what came since is looked at from where it stands now
            looked.since = min(looked.since, now - COMMITTED_LATE)
        found = await conflicts.untold(conn, RULE_ID, looked.since)
    if found:
        async with begin(runtime.engine) as conn:
            await own_alerts.lock(conn)
            now, notifiers = await readers.clock(conn), list(runtime.notifiers)
            found = await conflicts.untold(conn, RULE_ID, looked.since)
            # What a person resolved is over: the next one is a new episode.
            unresolved = {
                alert.group_key for alert in await alerts.open_of_rule(conn, RULE_ID) if alert.state != "resolved"
            }
            ended = await own_alerts.close_own(conn, RULE_ID, keep=unresolved, now=now, notifiers=notifiers)
            wanted = choose(found, unresolved)
            out = await own_alerts.open_own(conn, [alert_of(each) for each in wanted], now=now, notifiers=notifiers)
            await log.append(conn, [*ended.decisions, *out.decisions])
        if len(wanted) < len({each.about for each in found}):
            logger.error("conflicts.not_all_told", sources=sorted({each.source for each in found}))
        elif len(found) == UNTOLD_MAX:
            return  # there may be more of the same time
    looked.since = now - COMMITTED_LATE


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
