"""Retention, run: what service/retention.py decides is written down, then done (service/store/retention.py).

Nothing of it is in a hurry. It is asked for once an hour; whatever it does not come to, or dies in, the next run finds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service import own_alerts, sink_losses
from service.errors import Unavailable
from service.event import rfc3339
from service.observe import log as logger
from service.own_alerts import OwnAlert
from service.retention import EVENTS, RECEIPTS, Plan, plan
from service.settings import RetentionSettings
from service.sink_losses import LOST_RULE
from service.store import alerts as alert_store
from service.store import audit_chain, audit_entries, log, prune, readers, retention_state, tables
from service.store import retention as store
from service.store.log import Decision
from service.store.session import begin

NAMED_MAX = 100  # partitions in one audit entry
BATCHES_MAX = 100  # of each kind in one run; the rest waits for the next
REFUSED_RULE = "retention-refused"


# How far the database's clock, which reads that, moved beside the time that passed; None: nothing to compare with.
Jumped = Callable[[datetime], timedelta | None]


def unmoved(_now: datetime) -> None:
    return None


def configured(keep: RetentionSettings, sinks: Sequence[str]) -> dict[str, Any]:
    """What decides what goes, as the worker writes it down and the command compares it."""
    seconds = {name: each.total_seconds() for name, each in keep}
    return {"retention": seconds, "sinks": sorted(sinks)}


@dataclass(slots=True)
class Done:
    """`unfinished`: what this run did not come to, in words; it is worth coming back for soon."""

    plan: Plan
    gone: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)


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
    jumped: Jumped = unmoved,
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
        jumped=jumped(at),
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
    jumped: Jumped = unmoved,
    confirmed: bool = False,
) -> Done | None:
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
        known = await write_down(engine, keep, sinks, notifiers, now=now, jumped=jumped, confirmed=confirmed)
        done = Done(known.plan)
        # What was marked by a run that died goes as well, refused or not: it was decided then.
        await remove(engine, alone, done)
    if known.plan.refused is None:
        done.unfinished += await cut(engine, known)
    async with begin(engine) as conn:
        if done.unfinished:
            await retention_state.unfinished(conn, "; ".join(done.unfinished))
        else:
            await retention_state.completed(conn, await readers.clock(conn))
    for held in known.plan.held:
        logger.info("retention.held", partition=held.day.name, by=held.by)
    if done.gone:
        logger.info("retention.dropped", partitions=done.gone)
    if done.unfinished:
        logger.warning("retention.unfinished", what=done.unfinished)
    return done


async def write_down(
    engine: AsyncEngine,
    keep: RetentionSettings,
    sinks: Sequence[str],
    notifiers: Sequence[str],
    *,
    now: datetime | None,
    jumped: Jumped,
    confirmed: bool,
) -> Known:
    """One transaction: what goes is marked, what a sink loses by it is said and recorded, its position passes over it."""
    async with begin(engine) as conn:
        await own_alerts.lock(conn)
        # First: what it then still loses begins where the log begins.
        left, entries = await sink_losses.left_behind(conn, sinks, now or await readers.clock(conn))
        known = await look(conn, keep, sinks, now=now, jumped=jumped, confirmed=confirmed)
        decided, at = known.plan, known.now
        if decided.refused is not None:
            out = await own_alerts.open_own(conn, [*left, refused_alert(decided)], now=at, notifiers=notifiers)
            await log.append(conn, [*entries, *out.decisions])
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
        await retention_state.dedup_cut(conn, decided.dedup_before)
        closed = await own_alerts.close_own(conn, REFUSED_RULE, keep=(), now=at, notifiers=notifiers)
        # A loss does not end by itself: a person who has seen it resolves its alert.
        lost = await alert_store.open_of_rule(conn, LOST_RULE)
        unseen = {alert.group_key for alert in lost if alert.state != "resolved"}
        seen = await own_alerts.close_own(conn, LOST_RULE, keep=unseen, now=at, notifiers=notifiers)
        opened = await own_alerts.open_own(conn, [*left, *alerts], now=at, notifiers=notifiers)
        ran = [run_entry(decided, at, confirmed)] if decided.drops else []
        await log.append(conn, [*ran, *entries, *decisions, *closed.decisions, *seen.decisions, *opened.decisions])
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
        counted = f"at least {count}" if any(one[0] == store.LOST_COUNTED_MAX for one in found) else f"{count}"
        span = f"received from {rfc3339(first)} to {rfc3339(last)}"
        alert, entry = sink_losses.loss(
            sink,
            stretch=f"{first:%Y-%m-%d}",
            summary=f"The sink {sink} did not take {counted} events in time; they are gone for it, {span}",
            what_to_do="Mend the sink (GET /v1/health says what it answers). What is still kept is shipped after that; a larger retention.sink_backlog_max waits longer.",
            reason="sink_backlog_max is over",
            details={
                "events": count,
                "first_received_at": rfc3339(first),
                "last_received_at": rfc3339(last),
            },
            now=known.now,
        )
        alerts.append(alert)
        decisions.append(entry)
    return alerts, decisions


def run_entry(decided: Plan, now: datetime, confirmed: bool) -> Decision:
    """What this run is about to take away, on the audit log. `confirmed`: a person said that it shall."""
    names = sorted(drop.day.name for drop in decided.drops)
    return Decision(
        kind="audit",
        subject_id="retention",
        occurred_at=now,
        details={
            "actor": "cli" if confirmed else "retention",
            "action": "retention.run",
            "subject": "retention",
            "reason": f"{len(names)} partitions are over",
            "partitions": names[:NAMED_MAX],
            "confirmed": confirmed,
        },
    )


def refused_alert(decided: Plan) -> OwnAlert:
    return OwnAlert(
        rule_id=REFUSED_RULE,
        about="retention",
        severity="P2",
        summary=f"Retention drops nothing: {decided.refused}; {len(decided.drops)} partitions wait",
        what_to_do="Check the database's clock and the section retention of the configuration, look at `authwatch retention plan`, then run `authwatch retention run --confirm`.",
    )


async def remove(engine: AsyncEngine, alone: AsyncConnection, done: Done) -> None:
    """Detaches what is to go and drops what is detached, of this run and of those before."""
    decided = done.plan
    if decided.refused is None:
        for drop in decided.drops:
            if not await store.detach(alone, drop.day.parent, drop.day.name):
                done.unfinished.append(f"{drop.day.name} cannot be detached while somebody reads it")
    ours, kept_apart = await store.loose(alone)
    for name in ours:
        if name.startswith(RECEIPTS):
            try:
                await store.drop_receipts(alone, name)
            except DBAPIError as exc:
                if not store.gave_up(exc):
                    raise
                done.unfinished.append(f"{name} cannot be dropped while somebody reads it")
            else:
                done.gone.append(name)
    days = [name for name in ours if name.startswith(EVENTS)]
    if not days and not kept_apart:
        return
    if not await store.detach_kept(alone):
        done.unfinished.append(f"{store.KEPT} cannot be detached while somebody reads it")
        return
    async with begin(engine) as conn:
        floor = await readers.position(conn, readers.RETENTION)
    for name in days:
        try:
            async with begin(engine, seconds_max=store.FOLD_SECONDS_MAX) as conn:
                gone = await audit_chain.going(conn, name, floor=floor, before=decided.audit_before)
                await store.fold(
                    conn, name, floor=floor, alerts_before=decided.alerts_before, audit_before=decided.audit_before
                )
                await audit_entries.cut(conn, gone, decided.audit_before, await readers.clock(conn))
        except Unavailable as exc:  # what was carried over before must not stay out of sight for it
            logger.warning("retention.fold_failed", partition=name, error=type(exc.__cause__).__name__)
            done.unfinished.append(f"{name} cannot be carried over")
            break
        done.gone.append(name)
    async with begin(engine, seconds_max=store.FOLD_SECONDS_MAX) as conn:
        await store.attach_kept(conn)


async def cut(engine: AsyncEngine, known: Known) -> list[str]:
    """Everything that is deleted row by row, in small transactions; the names of what there is more of."""
    decided = known.plan
    kept = partial(
        cut_kept,
        floor=known.floor,
        events=decided.events_before,
        alerts=decided.alerts_before,
        audit=decided.audit_before,
    )
    steps: dict[str, Callable[[AsyncConnection], Awaitable[bool]]] = {
        "alerts": partial(prune.alerts, before=decided.alerts_before),
        "manual pauses": partial(prune.manual, before=decided.alerts_before),
        "dedup": partial(prune.dedup, before=decided.dedup_before),
        "conflicts": partial(prune.conflicts, before=decided.receipts_before),
        store.KEPT: kept,
        "replays": partial(prune.replays, before=decided.dedup_before),
        "recoveries": partial(prune.recoveries, before=decided.dedup_before),
        "marks": partial(prune.small, floor=known.floor, before=decided.events_before),
    }
    left = []
    for name, step in steps.items():
        for _ in range(BATCHES_MAX):
            async with begin(engine) as conn:
                more = await step(conn)
            if not more:
                break
        else:
            left.append(f"more of {name} than one run cuts")
    return left


async def cut_kept(conn: AsyncConnection, *, floor: int, events: datetime, alerts: datetime, audit: datetime) -> bool:
    """Whether there may be more. The audit chain says in the same transaction where it begins now."""
    gone = await audit_chain.going(conn, store.KEPT, floor=floor, before=audit)
    more = await prune.kept(conn, floor=floor, events=events, alerts=alerts, audit=audit)
    await audit_entries.cut(conn, gone, audit, await readers.clock(conn))
    return more
