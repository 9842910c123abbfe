"""Retention, run: what service/retention.py decides is written down, then done (service/store/retention.py).

Nothing of it is in a hurry. It is asked for once an hour; whatever it does not come to, or dies in, the next run finds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service import own_alerts
from service.event import rfc3339
from service.observe import log as logger
from service.own_alerts import OwnAlert
from service.retention import EVENTS, RECEIPTS, Plan, plan
from service.settings import RetentionSettings
from service.store import log, prune, readers, tables
from service.store import retention as store
from service.store.log import Decision
from service.store.session import begin

BATCHES_MAX = 100  # of each kind in one run; the rest waits for the next
REFUSED_RULE, LOST_RULE = "retention-refused", "sink-events-lost"


@dataclass(frozen=True, slots=True)
class Known:
    """What a run stands on."""

    plan: Plan
    now: datetime
    sinks: dict[str, int]
    floor: int


async def look(
    conn: AsyncConnection,
    keep: RetentionSettings,
    sinks: Sequence[str],
    *,
    now: datetime | None = None,
    confirmed: bool = False,
) -> Known:
    """`sinks` are the configured ones, by name. `now` is the database's clock unless given."""
    at = now or await readers.clock(conn)
    rows = {row.name: row for row in await conn.execute(select(tables.readers))}
    state = rows[readers.RETENTION]
    positions = {name: (rows[f"sink:{name}"].position if f"sink:{name}" in rows else state.position) for name in sinks}
    decided = plan(
        await store.days(conn),
        now=at,
        keep=keep,
        evaluator=rows[readers.EVALUATOR].position if readers.EVALUATOR in rows else 0,
        sinks=positions,
        last_run_at=state.moved_at,
        kept_from=await store.kept_from(conn),
        confirmed=confirmed,
    )
    return Known(decided, at, positions, state.position)


async def retain(
    engine: AsyncEngine,
    keep: RetentionSettings,
    sinks: Sequence[str],
    notifiers: Sequence[str],
    *,
    now: datetime | None = None,
    confirmed: bool = False,
) -> Plan | None:
    """One run; None when another one is at it. Raises `Unavailable` and the driver's errors: the next run goes on."""
    async with store.alone(engine) as alone:
        if alone is None:
            return None
        try:
            await store.finish_interrupted(alone)
        except DBAPIError as exc:  # who holds it holds up nothing but that one partition
            if not store.gave_up(exc):
                raise
            logger.warning("retention.finish_waits")
        known = await write_down(engine, keep, sinks, notifiers, now=now, confirmed=confirmed)
        # What was marked by a run that died goes as well, refused or not: it was decided then.
        gone = await remove(engine, alone, known.plan)
    if known.plan.refused is None:
        await cut(engine, known)
    for held in known.plan.held:
        logger.info("retention.held", partition=held.day.name, by=held.by)
    if gone:
        logger.info("retention.dropped", partitions=gone)
    return known.plan


async def write_down(
    engine: AsyncEngine,
    keep: RetentionSettings,
    sinks: Sequence[str],
    notifiers: Sequence[str],
    *,
    now: datetime | None,
    confirmed: bool,
) -> Known:
    """One transaction: what goes is marked, what a sink loses by it is said and recorded, its position passes over it."""
    async with begin(engine) as conn:
        await own_alerts.lock(conn)
        known = await look(conn, keep, sinks, now=now, confirmed=confirmed)
        decided, at = known.plan, known.now
        if decided.refused is not None:
            out = await own_alerts.open_own(conn, [refused_alert(decided)], now=at, notifiers=notifiers)
            await log.append(conn, out.decisions)
            return known
        alerts, decisions = await losses(conn, known)
        floor = known.floor
        for drop in decided.drops:
            if drop.day.parent == EVENTS:
                floor = max(floor, drop.day.last_position or 0)
            await store.mark(conn, drop.day)
        for name in {sink for drop in decided.drops for sink in drop.lost_by}:
            await readers.pass_over(
                conn,
                f"sink:{name}",
                max(drop.day.last_position or 0 for drop in decided.drops if name in drop.lost_by),
            )
        await readers.pass_over(conn, readers.RETENTION, floor)
        await readers.ran(conn, readers.RETENTION, at)
        closed = await own_alerts.close_own(conn, REFUSED_RULE, keep=(), now=at, notifiers=notifiers)
        opened = await own_alerts.open_own(conn, alerts, now=at, notifiers=notifiers)
        await log.append(conn, [*decisions, *closed.decisions, *opened.decisions])
        return Known(decided, at, known.sinks, floor)


async def losses(conn: AsyncConnection, known: Known) -> tuple[list[OwnAlert], list[Decision]]:
    alerts: list[OwnAlert] = []
    decisions: list[Decision] = []
    for sink in sorted({name for drop in known.plan.drops for name in drop.lost_by}):
        found = [
            await store.lost(conn, drop.day, known.sinks[sink]) for drop in known.plan.drops if sink in drop.lost_by
        ]
        count = sum(one[0] for one in found)
        if not count:
            continue
        first, last = min(one[1] for one in found if one[1]), max(one[2] for one in found if one[2])
        span = f"received from {rfc3339(first)} to {rfc3339(last)}"
        alerts.append(
            OwnAlert(
                rule_id=LOST_RULE,
                about=sink,
                severity="P1",
                summary=f"The sink {sink} did not take {count} events in time; they are gone for it, {span}",
                what_to_do="Mend the sink (GET /v1/health says what it answers). What is still kept is shipped after that; a larger retention.sink_backlog_max waits longer.",
            )
        )
        decisions.append(
            Decision(
                kind="audit",
                subject_id=f"sink:{sink}",
                occurred_at=known.now,
                details={
                    "actor": "retention",
                    "action": "sink.events_lost",
                    "subject": sink,
                    "reason": "sink_backlog_max is over",
                    "events": count,
                    "first_received_at": rfc3339(first),
                    "last_received_at": rfc3339(last),
                },
            )
        )
    return alerts, decisions


def refused_alert(decided: Plan) -> OwnAlert:
    return OwnAlert(
        rule_id=REFUSED_RULE,
        about="retention",
        severity="P2",
        summary=f"Retention drops nothing: {decided.refused}; {len(decided.drops)} partitions wait",
        what_to_do="Check the database's clock and the section retention of the configuration, look at `authwatch retention plan`, then run `authwatch retention run --confirm`.",
    )


async def remove(engine: AsyncEngine, alone: AsyncConnection, decided: Plan) -> list[str]:
    """Detaches what is to go and drops what is detached, of this run and of those before; the names that are gone."""
    if decided.refused is None:
        for drop in decided.drops:
            await store.detach(alone, drop.day.parent, drop.day.name)
    ours, kept_apart = await store.loose(alone)
    for name in ours:
        if name.startswith(RECEIPTS):
            await store.drop_receipts(alone, name)
    days = [name for name in ours if name.startswith(EVENTS)]
    if (days or kept_apart) and await store.detach_kept(alone):
        async with begin(engine) as conn:
            floor = await readers.position(conn, readers.RETENTION)
            await store.fold(
                conn, days, floor=floor, alerts_before=decided.alerts_before, audit_before=decided.audit_before
            )
    return ours


async def cut(engine: AsyncEngine, known: Known) -> None:
    """Everything that is deleted row by row, in small transactions."""
    decided = known.plan
    steps: tuple[Callable[[AsyncConnection], Awaitable[bool]], ...] = (
        partial(prune.alerts, before=decided.alerts_before),
        partial(prune.manual, before=decided.alerts_before),
        partial(prune.dedup, before=decided.dedup_before),
        partial(prune.conflicts, before=decided.receipts_before),
        partial(
            prune.kept,
            floor=known.floor,
            events=decided.events_before,
            alerts=decided.alerts_before,
            audit=decided.audit_before,
        ),
        partial(prune.small, floor=known.floor, before=decided.events_before),
    )
    for step in steps:
        for _ in range(BATCHES_MAX):
            async with begin(engine) as conn:
                more = await step(conn)
            if not more:
                break
