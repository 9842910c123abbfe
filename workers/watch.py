"""The watching part of the sweep: a source that went silent, events that come late, a gap that nobody can fill."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncConnection

from service import habits, own_alerts, rule_sets
from service.habits import PROVIDER_RETRIES, Habit
from service.own_alerts import OwnAlert
from service.runtime import Runtime
from service.store import alerts, log, readers, recoveries, retention_state
from service.store import habits as habit_store
from service.store.session import begin
from workers.every import Every
from workers.overdue import EXPIRING, QUARANTINED, STALLED, quarantined_wanted, retention_wanted
from workers.reach import RECOVER, Reach

WATCH_EVERY_SECONDS = 5.0
ROUNDS_MAX = 10  # of catching up with the log; the rest is found at the next look
FAILED_ATTEMPTS_MAX = 3
GRACE_SECONDS = 600.0  # after a start the first run of retention is given its time
SILENT, LATE, LOST, STUCK = "source-silent", "delivery-lag", "events-may-be-lost", "recovery-failing"
RULES = (SILENT, LATE, LOST, STUCK, QUARANTINED, EXPIRING, STALLED)


@dataclass(slots=True)
class Watch:
    every: Every = field(default_factory=lambda: Every(WATCH_EVERY_SECONDS))
    began_at: float = field(default_factory=time.monotonic)


async def watch(runtime: Runtime, last: Watch) -> None:
    if not last.every.due:
        return
    last.every.done()
    for _ in range(ROUNDS_MAX):
        if await learn(runtime):
            break
    else:
        return  # too far behind to say what is silent now
    await speak(runtime, last)


async def learn(runtime: Runtime) -> bool:
    """Reads on in the log; True when its end is reached, or another worker is at it."""
    async with begin(runtime.engine) as conn:
        position = await readers.take(conn, habit_store.READER)
        if position is None:
            return True
        known, now = await habit_store.load(conn), await readers.clock(conn)
        changed = {
            source: right for source, habit in known.items() if (right := habits.righted(habit, now)) is not habit
        }
        known |= changed
        head, _ = await log.head(conn)
        if head <= position:
            await habit_store.save(conn, list(changed.values()))
            return True
        upto = min(head, position + habit_store.ROWS_MAX)
        downs = await habit_store.downs(conn)
        for heard in await habit_store.heard(conn, position, upto):
            known[heard.source] = changed[heard.source] = habits.learn(
                known.get(heard.source), heard, downs.get(heard.source)
            )
        await habit_store.save(conn, list(changed.values()))
        await readers.move(conn, habit_store.READER, upto)
        return upto == head


async def speak(runtime: Runtime, last: Watch) -> None:
    notifiers = list(runtime.notifiers)
    async with begin(runtime.engine) as conn:
        known = (await rule_sets.in_force(conn, runtime)).known_ids
        await own_alerts.lock(conn)
        now = await readers.clock(conn)
        wanted = await sources_wanted(conn, runtime.sources, now) + await recoveries_wanted(conn, runtime, now)
        wanted += await quarantined_wanted(conn, runtime.sources, runtime.settings.retention, now)
        if time.monotonic() - last.began_at > GRACE_SECONDS:
            wanted += await retention_wanted(conn, now)
        # What a rule of the same id says, or was told not to say, is not said here as well.
        wanted = [own for own in wanted if own.rule_id not in known]
        out = await own_alerts.open_own(conn, wanted, now=now, notifiers=notifiers)
        decisions = out.decisions
        for rule_id in RULES:
            keep = {own.about for own in wanted if own.rule_id == rule_id}
            keep |= {alert.group_key for alert in await alerts.open_of_rule(conn, rule_id) if alert.rule_version}
            reason = "rule_changed" if rule_id in known else "recovered"
            closed = await own_alerts.close_own(conn, rule_id, keep=keep, reason=reason, now=now, notifiers=notifiers)
            decisions = [*decisions, *closed.decisions]
        await log.append(conn, decisions)


async def sources_wanted(conn: AsyncConnection, sources: Collection[str], now: datetime) -> list[OwnAlert]:
    """Only of sources that are switched on: one that was taken out is silent on purpose."""
    downs = await habit_store.downs(conn)
    wanted: list[OwnAlert] = []
    for source, habit in (await habit_store.load(conn)).items():
        if source in sources:
            if habits.silent_since(habit, downs.get(source), now) is not None:
                wanted.append(silent(habit))
            if habits.is_late(habit.late_at, now):
                wanted.append(late(source, "P3", source, "events", habit.late_seconds))
            if habits.is_late(habit.late_break_at, now):
                what = "disconnections and refresh failures"
                wanted.append(late(f"{source}:breaks", "P2", source, what, habit.late_break_seconds))
    return wanted


def silent(habit: Habit) -> OwnAlert:
    usual = habits.usual_gap(habit) or timedelta(0)
    return OwnAlert(
        rule_id=SILENT,
        about=habit.source,
        severity="P2",
        summary=f"{habit.source} has sent nothing since {habit.last_at:%Y-%m-%d %H:%M} UTC;"
        f" it is usually silent for no longer than {spoken(usual.total_seconds())}",
        what_to_do="Look in the provider's dashboard whether the webhook endpoint is still there, enabled and pointing"
        " here, and what its last deliveries were answered; `authwatch doctor` sends a probe through the front door.",
    )


def late(about: str, severity: Literal["P2", "P3"], source: str, what: str, seconds: float | None) -> OwnAlert:
    return OwnAlert(
        rule_id=LATE,
        about=about,
        severity=severity,
        summary=f"{source} delivers {what} late: {spoken(seconds or 0.0)} lay between event and arrival",
        what_to_do="See the provider's status page, and its delivery log for attempts that failed. Until this is over,"
        " agents may act on accounts that are broken already.",
    )


def spoken(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


async def recoveries_wanted(conn: AsyncConnection, runtime: Runtime, now: datetime) -> list[OwnAlert]:
    """What is still to be fetched, and cannot be."""
    reach = await reach_of(conn, runtime)
    floor = await retention_state.recover_floor(conn, now, runtime.settings.retention)
    await recoveries.leave(conn, PROVIDER_RETRIES, floor, now, but_of=reach.served | reach.undecided)
    wanted = [
        stuck(f"{source}:environment", source, why, "what an outage misses stays missing, and new accounts unknown")
        for source, why in reach.stuck.items()
        if source in runtime.sources
    ]
    for row in await recoveries.waiting(conn):
        if row.source not in runtime.sources:
            continue
        since, until = (f"{at:%Y-%m-%dT%H:%M:%SZ}" for at in (row.since, row.until))
        if row.source not in reach.served | reach.undecided:
            if row.reason == "outage":
                wanted.append(lost(row.source, since, until, credentials=runtime.settings.provider_api is not None))
        elif row.attempts >= FAILED_ATTEMPTS_MAX:
            missing = (
                f"events between {since} and {until} may be missing"
                if row.reason == "outage"
                else "accounts that broke before the installation are unknown"
            )
            about = f"{row.source}:{row.reason}:{since}"
            wanted.append(stuck(about, row.source, row.last_error or "it ends half way", missing))
    return wanted


async def reach_of(conn: AsyncConnection, runtime: Runtime) -> Reach:
    """As the recovering story last said it; before it said anything, all is undecided."""
    if runtime.settings.provider_api is None:
        return Reach()
    said = await readers.beat_details(conn, RECOVER)
    return Reach.read(said) if said is not None else Reach(undecided=frozenset(runtime.sources))


def lost(source: str, since: str, until: str, *, credentials: bool) -> OwnAlert:
    return OwnAlert(
        rule_id=LOST,
        about=f"{source}:{since}",
        severity="P2",
        summary=f"Events of {source} between {since} and {until} may be lost: nothing could be committed for longer than"
        " the provider tries again",
        what_to_do=(
            f"The API credentials here are not those of its environment: run `authwatch recover --since {since} --source"
            f" {source}` with its own SCALEKIT_ENV_URL, SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET."
            if credentials
            else "Set SCALEKIT_ENV_URL, SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET and run"
            f" `authwatch recover --since {since}`; with them set here, it happens by itself."
        ),
    )


def stuck(about: str, source: str, why: str, missing: str) -> OwnAlert:
    return OwnAlert(
        rule_id=STUCK,
        about=about,
        severity="P2",
        summary=f"Recovering {source} from the provider's API fails: {why}",
        what_to_do="It is tried again by itself; `authwatch doctor` checks the API credentials. Until it succeeds,"
        f" {missing}.",
    )
