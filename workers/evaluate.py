"""The evaluating story: read on from the position, judge the accounts concerned, and commit alerts, holds, actions and
the new position as one. A crash at any point leaves all of it or none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from service import rule_sets
from service.consequences import Consequences
from service.event import AccountKey, Event
from service.judge import Work, judge
from service.observe import log as logger
from service.rules import Ruleset
from service.runtime import Runtime
from service.store import accounts, log, readers
from service.store import groups as group_store
from service.store.session import begin

BATCH_EVENTS_MIN, BATCH_EVENTS_MAX = 50, 2000
BATCH_SECONDS = 1.0  # a batch holds its accounts' locks; what takes longer is halved, what fails too
ACCOUNTS_DUE_MAX = 200
GROUPS_DUE_MAX = 200
ROUNDS_MAX = 200  # then the other stories get their turn; the rest is found at the next look
JUDGED_ORIGINS = ("webhook", "recovery", "report")


@dataclass(slots=True)
class Evaluated:
    """`read`: rows of the log gone through. `next_due_at`: when a verdict may change with no event."""

    read: int = 0
    acted: bool = False
    decided: bool = False
    next_due_at: datetime | None = None
    is_due: bool = True  # until the deadlines have been looked at
    unread: bool = False  # events came while the deadlines were judged


async def evaluate(runtime: Runtime) -> Evaluated:
    """Everything that waits: new events first, and a deadline only once nothing is left to read."""
    done = Evaluated()
    for _ in range(ROUNDS_MAX):
        before, done.unread = done.read, False
        batch = min(runtime.pace.events, BATCH_EVENTS_MAX)
        with runtime.pace.kept(BATCH_SECONDS, BATCH_EVENTS_MIN, BATCH_EVENTS_MAX):
            went_on = await one_transaction(runtime, read_on, done)
        # A batch that was not full was all there is: what comes now is better judged together, a breath later.
        if went_on and done.read - before >= batch:
            continue
        if done.is_due:
            async with begin(runtime.engine) as conn:
                done.next_due_at, done.is_due = await accounts.next_due(conn)
        if not done.is_due:
            break
        if not await one_transaction(runtime, judge_due, done) and not done.unread:
            break
    return done


Step = Callable[[Runtime, AsyncConnection, int, Evaluated, Ruleset], Awaitable[Consequences | None]]


async def one_transaction(runtime: Runtime, step: Step, done: Evaluated) -> bool:
    async with begin(runtime.engine) as conn:
        position = await readers.take(conn, readers.EVALUATOR)
        if position is None:
            return False  # another worker is at it
        ruleset = await rule_sets.in_force(conn, runtime)
        out = await step(runtime, conn, position, done, ruleset)
        if out is None:
            return False
        # The log's lock is the last one taken.
        await log.append(conn, out.decisions)
    done.acted = done.acted or out.acted
    done.decided = done.decided or bool(out.decisions)
    if out.too_late:
        logger.warning("evaluate.too_late", events=out.too_late)
    return True


async def read_on(
    runtime: Runtime, conn: AsyncConnection, position: int, done: Evaluated, ruleset: Ruleset
) -> Consequences | None:
    batch = min(runtime.pace.events, BATCH_EVENTS_MAX)
    events = await log.read_after(conn, position, batch)
    if not events:
        return None
    judged = [event for event in events if event.origin in JUDGED_ORIGINS]
    new: dict[AccountKey, list[Event]] = {}
    for event in judged:
        if event.account is not None:
            new.setdefault(event.account, []).append(event)
    out = Consequences()
    if judged:
        known = await accounts.load(conn, list(new))
        connections = {event.connection_id for event in judged}
        # The connection an account is known by counts too: an event need not name it.
        connections |= {account.connection_id for account in known.values()}
        now = await accounts.lock(conn, {key.account_id for key in new} | {name for name in connections if name})
        # What is still unread may be just what a deadline waits for, or a break: until then it is the time of that.
        as_of = min(now, events[-1].received_at) if len(events) == batch else now
        work = Work(new=new, events=judged, upto=events[-1].position, now=now, as_of=as_of, rows=known)
        out = await judge(conn, ruleset, work, notifiers=list(runtime.notifiers))
    await readers.move(conn, readers.EVALUATOR, events[-1].position)
    done.next_due_at, done.is_due = await accounts.next_due(conn)
    done.read += len(events)
    return out


async def judge_due(
    runtime: Runtime, conn: AsyncConnection, position: int, done: Evaluated, ruleset: Ruleset
) -> Consequences | None:
    clock = await readers.clock(conn)
    done.unread = bool(await log.read_after(conn, position, 1))
    if done.unread:
        return None  # what a deadline waits for may be in it
    due = await accounts.due(conn, clock, ACCOUNTS_DUE_MAX)
    groups = await group_store.due(conn, clock, GROUPS_DUE_MAX)
    if not due and not groups:
        return None
    rows = await accounts.load(conn, due)
    of_groups = await accounts.load(conn, {group.account for group in groups if group.account is not None})
    now = await accounts.lock(
        conn,
        {key.account_id for key in due}
        | {row.connection_id for row in (*rows.values(), *of_groups.values()) if row.connection_id}
        | {group.account.account_id for group in groups if group.account is not None}
        | {group.connection.account_id for group in groups if group.connection is not None},
    )
    # A deadline is only ever replaced by its own verdict; accounts that are gone lose theirs.
    await accounts.set_deadlines(conn, {key: None for key in due if key not in rows})
    work = Work(new={key: [] for key in rows}, due=due, groups=groups, upto=position, now=now, as_of=now, rows=rows)
    return await judge(conn, ruleset, work, notifiers=list(runtime.notifiers))
