"""The evaluating story: read on from the position, judge the accounts concerned, and commit alerts, holds, actions and
the new position as one. A crash at any point leaves all of it or none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
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
from service.store import accounts, deadlines, log, pages, readers, shards
from service.store import groups as group_store
from service.store.session import begin
from service.store.shards import Held

BATCH_EVENTS_MIN, BATCH_EVENTS_MAX = 50, 2000
MANY_EVENTS = 20  # of a page: that much at once is no trickle
BATCH_SECONDS = 1.0  # a batch holds its accounts' locks; what takes longer is halved, what fails too
ACCOUNTS_DUE_MAX = 200
GROUPS_DUE_MAX = 200
LANES, SHARDS_AT_ONCE = 3, 2  # of a process that is behind; of a lane
PUBLISH_SECONDS = 0.5
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
    behind: bool = False  # the last batch was full: there may be more


async def evaluate(runtime: Runtime) -> Evaluated:
    """Everything that waits: new events first, and a deadline only once nothing is left to read."""
    done = Evaluated()
    for _ in range(ROUNDS_MAX):
        done.unread = done.behind = False
        with runtime.pace.kept(BATCH_SECONDS, BATCH_EVENTS_MIN, BATCH_EVENTS_MAX):
            await one_transaction(runtime, read_on, done)
        if done.behind:
            await catch_up(runtime, done)
            done.is_due = True  # what it was before is no longer known
            continue
        # A batch that was not full was all there is: what comes now is better judged together, a breath later.
        if done.is_due:
            async with begin(runtime.engine) as conn:
                done.next_due_at, done.is_due = await deadlines.next_due(conn)
        if not done.is_due:
            break
        if not await one_transaction(runtime, judge_due, done) and not done.unread:
            break
    return done


async def catch_up(runtime: Runtime, done: Evaluated) -> None:
    """Shards side by side, and the groups beside them: while the database writes what one of them judged, another judges.
    Each takes what lags most and nobody holds, so that other workers have theirs."""
    ends = await asyncio.gather(
        *(lane(runtime, done, shards.OF_ACCOUNTS, SHARDS_AT_ONCE) for _ in range(LANES)),
        lane(runtime, done, (shards.GROUPS,), 1),
        return_exceptions=True,  # none is left running when another fails
    )
    for end in ends:
        if end is not None:
            raise end


async def lane(runtime: Runtime, done: Evaluated, names: Sequence[str], most: int) -> None:
    mine = Evaluated()
    published_at = time.monotonic()
    for _ in range(ROUNDS_MAX):
        mine.behind = False
        with runtime.pace.kept(BATCH_SECONDS, BATCH_EVENTS_MIN, BATCH_EVENTS_MAX):
            await one_transaction(runtime, read_on, mine, names, most)
        if time.monotonic() - published_at > PUBLISH_SECONDS:
            published_at = time.monotonic()
            async with begin(runtime.engine) as conn:
                await shards.publish(conn)
        if not mine.behind:
            break
    done.read += mine.read
    done.acted, done.decided = done.acted or mine.acted, done.decided or mine.decided


Step = Callable[[Runtime, AsyncConnection, Held, Evaluated, Ruleset], Awaitable[Consequences | None]]


async def one_transaction(
    runtime: Runtime, step: Step, done: Evaluated, names: Sequence[str] = shards.ALL, most: int = len(shards.ALL)
) -> bool:
    async with begin(runtime.engine) as conn:
        held = await shards.take(conn, names, most)
        if held is None:
            runtime.pace.many = False
            return False  # other workers are at it
        ruleset = await rule_sets.in_force(conn, runtime)
        out = await step(runtime, conn, held, done, ruleset)
        if out is None:
            return False
        # The log's lock is the last one taken.
        await log.append(conn, out.decisions)
    if not held.whole and step is read_on and not done.behind:
        async with begin(runtime.engine) as conn:
            await shards.publish(conn)
    done.acted = done.acted or out.acted
    done.decided = done.decided or bool(out.decisions)
    if out.too_late:
        logger.warning("evaluate.too_late", events=out.too_late)
    return True


async def read_on(
    runtime: Runtime, conn: AsyncConnection, held: Held, done: Evaluated, ruleset: Ruleset
) -> Consequences | None:
    page = await pages.read_page(conn, held, ruleset.grouped_kinds, min(runtime.pace.events, BATCH_EVENTS_MAX))
    runtime.pace.many = page is not None and len(page.of_accounts) >= MANY_EVENTS
    if page is None:
        if not held.whole or held.published >= held.start:
            return None
        await shards.move(conn, held, held.start)  # each of them had come so far, and nobody had said so of all
        return Consequences()
    new: dict[AccountKey, list[Event]] = {}
    for event in page.of_accounts:
        if event.origin in JUDGED_ORIGINS and event.account is not None:
            new.setdefault(event.account, []).append(event)
    of_groups = [event for event in page.of_groups if event.origin in JUDGED_ORIGINS]
    out = Consequences()
    if new or of_groups:
        known = await accounts.load(conn, list(new))
        connections = {event.connection_id for events in (*new.values(), of_groups) for event in events}
        # The connection an account is known by counts too: an event need not name it.
        connections |= {account.connection_id for account in known.values()}
        now = await accounts.lock(conn, {key.account_id for key in new}, connections, beside=True)
        # What is still unread may be just what a deadline waits for, or a break: until then it is the time of that.
        as_of = min(now, page.as_of) if page.full else now
        work = Work(new=new, of_groups=of_groups, upto=page.upto, now=now, as_of=as_of, rows=known)
        out = await judge(conn, ruleset, work, notifiers=list(runtime.notifiers))
    await shards.move(conn, held, page.upto)
    if held.whole:
        done.next_due_at, done.is_due = await deadlines.next_due(conn)
    done.read += len(page.of_accounts)
    done.behind = page.full
    return out


async def judge_due(
    runtime: Runtime, conn: AsyncConnection, held: Held, done: Evaluated, ruleset: Ruleset
) -> Consequences | None:
    clock = await readers.clock(conn)
    done.unread = bool(await log.read_after(conn, held.start, 1))
    if done.unread:
        return None  # what a deadline waits for may be in it
    due = await deadlines.due(conn, clock, ACCOUNTS_DUE_MAX, shards=held.numbers)
    others = held.groups is not None
    groups = await group_store.due(conn, clock, GROUPS_DUE_MAX, shards=held.numbers, others=others)
    if not due and not groups:
        return None
    rows = await accounts.load(conn, due)
    of_groups = await accounts.load(conn, {group.account for group in groups if group.account is not None})
    now = await accounts.lock(
        conn,
        {key.account_id for key in due} | {group.account.account_id for group in groups if group.account is not None},
        {row.connection_id for row in (*rows.values(), *of_groups.values())}
        | {group.connection.account_id for group in groups if group.connection is not None},
        beside=True,
    )
    # A deadline is only ever replaced by its own verdict; accounts that are gone lose theirs.
    await deadlines.put(conn, {key: None for key in due if key not in rows})
    work = Work(new={key: [] for key in rows}, due=due, groups=groups, upto=held.start, now=now, as_of=now, rows=rows)
    return await judge(conn, ruleset, work, notifiers=list(runtime.notifiers))
