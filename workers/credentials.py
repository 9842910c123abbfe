"""Orchestrators that no longer take our credentials: an alert of our own about each, from the sweep.

What was to be paused or resumed there waits and is tried again by itself (workers/outcomes.py). The alert is over once
nothing waits for a mend there and the orchestrator's harmless call goes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field

from service import own_alerts, queue, rule_sets
from service.errors import DeliveryFailed
from service.observe import log as logger
from service.own_alerts import OwnAlert
from service.runtime import Runtime
from service.store import alerts, credentials, log, readers
from service.store.credentials import Refusing
from service.store.session import begin
from workers.every import Every
from workers.outcomes import CREDENTIALS_GIVE_UP_AFTER

RULE_ID = "orchestrator-refused"
LOOK_EVERY_SECONDS = 5.0
CHECK_EVERY_SECONDS = 60.0
CHECK_SECONDS_MAX = 5.0  # the sweep waits for it


@dataclass(slots=True)
class Looked:
    look: Every = field(default_factory=lambda: Every(LOOK_EVERY_SECONDS))
    check: Every = field(default_factory=lambda: Every(CHECK_EVERY_SECONDS))


async def keep_credentials(runtime: Runtime, looked: Looked) -> None:
    """A look at what is open at a few destinations; more only where something is to be said."""
    if not looked.look.due:
        return
    looked.look.done()
    async with begin(runtime.engine) as conn:
        rows = await credentials.refusing(conn, runtime.orchestrators)
        told = {alert.group_key for alert in await alerts.open_of_rule(conn, RULE_ID)}
    refusing = {row.destination for row in rows}
    over = told - runtime.orchestrators.keys()
    if (waiting := told - refusing - over) and looked.check.due:
        looked.check.done()
        over |= {name for name in waiting if await takes_us(runtime, name)}
    if refusing - told or over:
        await speak(runtime, over)


async def takes_us(runtime: Runtime, name: str) -> bool:
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            await runtime.orchestrators[name].check()
    except (DeliveryFailed, TimeoutError):
        return False
    return True


async def speak(runtime: Runtime, over: Collection[str]) -> None:
    notifiers = list(runtime.notifiers)
    async with begin(runtime.engine) as conn:
        if RULE_ID in (await rule_sets.in_force(conn, runtime)).known_ids:
            return  # a rule file says it, or says that it is not to be said
        await own_alerts.lock(conn)
        rows, now = await credentials.refusing(conn, runtime.orchestrators), await readers.clock(conn)
        told = {alert.group_key for alert in await alerts.open_of_rule(conn, RULE_ID)}
        keep = (told - set(over)) | {row.destination for row in rows}
        opened = await own_alerts.open_own(conn, [alert_of(row) for row in rows], now=now, notifiers=notifiers)
        closed = await own_alerts.close_own(conn, RULE_ID, keep=keep, now=now, notifiers=notifiers)
        await log.append(conn, [*closed.decisions, *opened.decisions])
    for row in rows:
        if row.destination not in told:
            logger.error("orchestrator.refuses", orchestrator=row.destination, waiting=row.waiting, said=row.said)
    for name in told - keep:
        logger.info("orchestrator.takes_again", orchestrator=name)
    runtime.nudger.nudge(queue.ACT)


def alert_of(row: Refusing) -> OwnAlert:
    days = CREDENTIALS_GIVE_UP_AFTER.days
    return OwnAlert(
        rule_id=RULE_ID,
        about=row.destination,
        severity="P2",
        summary=f'The orchestrator "{row.destination}" does not take our credentials: {row.said}',
        what_to_do=f"Put a valid key or token into its section of `orchestrators`, and restart; `authwatch doctor` says"
        f" whether it is taken. What was to be paused there still runs, what was to be resumed stays paused, and the gate"
        f" denies what is paused here. Each is tried again about once a minute, for {days} days.",
    )
