"""Notifiers that refuse everything until somebody mends them: an alert of our own about each, told elsewhere, and one
message tried there now and then. When that is taken, the alert is over and all that waits is told as it stands by then.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from service import consequences, own_alerts, queue, rule_sets
from service.consequences import Consequences
from service.notify.refusals import GONE, PROBE_EVERY, PROBE_GONE_EVERY
from service.observe import log as logger
from service.own_alerts import OwnAlert
from service.routing.elsewhere import NOTIFIER_REFUSED
from service.runtime import Runtime
from service.store import alerts, log, readers, refusals
from service.store.refusals import Refusal
from service.store.session import begin


async def keep_refusals(runtime: Runtime) -> None:
    """Once a second, one look into a table of a few rows; more only where something is to be said."""
    async with begin(runtime.engine) as conn:
        rows = await refusals.look(conn, runtime.notifiers, NOTIFIER_REFUSED, again=PROBE_EVERY)
    learn(runtime, rows)
    if any(row.may_probe for row in rows):
        runtime.nudger.nudge(queue.ACT)
    if to_open(rows, runtime.notifiers) or to_close(rows, runtime.notifiers):
        await speak(runtime)


def learn(runtime: Runtime, rows: Sequence[Refusal]) -> None:
    """Of those that this config names: what waits for others is claimed, and fails by their name."""
    runtime.refusing.learn([row for row in rows if row.destination in runtime.notifiers])


def to_open(rows: Sequence[Refusal], notifiers: Collection[str]) -> list[Refusal]:
    """Those of which nobody was told: what a person closed by hand stays closed for as long as it refuses."""
    return [
        row for row in rows if row.taken_at is None and row.destination in notifiers and not (row.told or row.is_open)
    ]


def to_close(rows: Sequence[Refusal], notifiers: Collection[str]) -> list[Refusal]:
    """Those that take messages again, or that this config no longer names: those are forgotten as well."""
    return [row for row in rows if row.destination not in notifiers or (row.is_open and row.taken_at is not None)]


async def speak(runtime: Runtime) -> None:
    notifiers = list(runtime.notifiers)
    async with begin(runtime.engine) as conn:
        if NOTIFIER_REFUSED in (await rule_sets.in_force(conn, runtime)).known_ids:
            return  # a rule file says it, or says that it is not to be said
        await own_alerts.lock(conn)
        rows, now = await refusals.look(conn, (), NOTIFIER_REFUSED, again=PROBE_EVERY), await readers.clock(conn)
        new, over = to_open(rows, notifiers), to_close(rows, notifiers)
        opened = await own_alerts.open_own(conn, [alert_of(row) for row in new], now=now, notifiers=notifiers)
        keep = {row.destination for row in rows} - {row.destination for row in over}
        closed = await own_alerts.close_own(conn, NOTIFIER_REFUSED, keep=keep, now=now, notifiers=notifiers)
        await refusals.forget(conn, {row.destination for row in over} - set(notifiers))
        if over:
            await tell_who_hears_again(conn, notifiers)
        await log.append(conn, [*closed.decisions, *opened.decisions])
    for row in new:
        deaf = all(each in runtime.refusing.standing for each in notifiers)
        logger.error("notifier.refuses", notifier=row.destination, code=row.code, said=row.detail, nobody_else=deaf)
    for row in over:
        logger.info("notifier.takes_again", notifier=row.destination)
    runtime.nudger.nudge(queue.ACT)


async def tell_who_hears_again(conn: AsyncConnection, notifiers: Sequence[str]) -> None:
    """That others still refuse is news to who hears again."""
    standing = [alert.id for alert in await alerts.open_of_rule(conn, NOTIFIER_REFUSED) if alert.state != "resolved"]
    await consequences.notify(conn, Consequences(), standing, notifiers, await readers.clock(conn))


def alert_of(row: Refusal) -> OwnAlert:
    every = PROBE_GONE_EVERY if row.code == GONE else PROBE_EVERY
    often = f"{every.total_seconds() / 60:.0f} min"
    return OwnAlert(
        rule_id=NOTIFIER_REFUSED,
        about=row.destination,
        severity="P2",
        summary=f'The notifier "{row.destination}" takes no message: {row.detail}',
        what_to_do="Mend what it says, or name another destination in `notifiers` and restart; `authwatch doctor` tells"
        f" whether it is well. Messages to it wait, for a day at most: every {often}, and at each start, one is tried, and"
        " once it is taken the others follow, each as it stands by then.",
    )
