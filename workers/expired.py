"""The asking story: while an account is EXPIRED, the provider is asked once a minute whether it is well again, so that no
recovery is waited for longer than it takes, whatever became of the webhook.

One worker at a time, under a lease. A well account becomes an event of our own making exactly as gap recovery makes it
(service/recover.py), and the evaluator resolves and resumes by it as by any other. Any other answer changes nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from service.errors import DeliveryFailed
from service.event import WELL
from service.observe import log as logger
from service.provider_apis import open_api
from service.provider_apis.base import ProviderApi
from service.recover import Scope, environment_of, keep_states, scope_of, state_event
from service.runtime import Runtime
from service.store import expired, readers, recoveries
from service.store.expired import Due
from service.store.session import begin
from workers.every import Every
from workers.reach import RECOVER, Reach

PART = "expired"  # the part that beats
ROUND_EVERY_SECONDS = 5.0
FIRST_PER_ROUND, LONGEST_PER_ROUND = 40, 10  # at most 10 calls a second, whatever is broken
IN_FLIGHT_MAX = 4
ROUND_SECONDS_MAX = 30.0  # no call is begun after it; one takes up to 40 s, its token included
LEASE = timedelta(seconds=90)
FIRST_ASK_AFTER = timedelta(seconds=30)  # whoever broke a moment ago is hardly well again
# Scalekit documents no rate limit; a minute is what an on-call notices, an hour what a forgotten account is worth that holds no workflow.
INTERVAL, INTERVAL_LONG, INTERVAL_MAX = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
LONG_AFTER, VERY_LONG_AFTER = timedelta(days=1), timedelta(days=30)
SPREAD = 0.1  # of an interval, either way, so that what broke together is not asked for together for ever
PAUSE_MIN, PAUSE_MAX = timedelta(seconds=10), timedelta(minutes=10)
RETRY_AFTER_MAX = timedelta(hours=1)
ENVIRONMENT_LOOK_SECONDS = 60.0
FORGET_EVERY_SECONDS = 600.0


@dataclass(slots=True)
class Asking:
    """What this process remembers; nothing here is truth but the API's token."""

    api: ProviderApi | None = None
    every: Every = field(default_factory=lambda: Every(ROUND_EVERY_SECONDS))
    environments: dict[str, str] = field(default_factory=dict)  # by source, of the credentials
    environment_look: Every = field(default_factory=lambda: Every(ENVIRONMENT_LOOK_SECONDS))
    forget: Every = field(default_factory=lambda: Every(FORGET_EVERY_SECONDS))


@dataclass(slots=True)
class Round:
    """What came of one. `trouble`: why the provider is not asked on; `until`, by time.monotonic(): no call begins later."""

    asked: int = 0
    recovered: int = 0
    failed: int = 0
    trouble: DeliveryFailed | None = None
    until: float = field(default_factory=lambda: time.monotonic() + ROUND_SECONDS_MAX)


async def ask_expired(runtime: Runtime, memory: Asking) -> Round | None:
    """One round, if one is due and nobody else is at it."""
    if runtime.settings.provider_api is None or not memory.every.due:
        return None
    memory.every.done()
    memory.api = memory.api or open_api(runtime.settings, runtime.http)
    assert memory.api is not None
    async with begin(runtime.engine) as conn:
        said = await readers.beat_details(conn, RECOVER)
        served = sorted(Reach.read(said).served & set(runtime.sources)) if said is not None else []
        if not served or not await expired.count(conn, served):
            return None
        now = await readers.clock(conn)
        if await readers.lease(conn, expired.READER, now, LEASE) is None:
            return None
        failures = await readers.failures(conn, expired.READER)
    done = Round()
    for source in served:
        scope = scope_of(runtime.engine, runtime.nudger, runtime.sources[source], memory.api)
        await ask_source(scope, memory, done, probe=failures > 0)
        if done.trouble is not None:
            break
    await close(runtime, memory, done, failures)
    return done


async def ask_source(scope: Scope, memory: Asking, done: Round, *, probe: bool) -> None:
    """`probe`: the provider refused last time, so one account shows whether it answers again."""
    try:
        environment_id = await environment(scope, memory)
    except DeliveryFailed as exc:
        done.trouble = exc
        return
    if environment_id is None:
        return
    async with begin(scope.engine) as conn:
        now = await readers.clock(conn)
        due = await expired.due(
            conn,
            scope.source,
            environment_id,
            now,
            first=1 if probe else FIRST_PER_ROUND,
            longest=0 if probe else LONGEST_PER_ROUND,
            ripe_after=FIRST_ASK_AFTER,
            interval_max=INTERVAL_MAX * (1 + SPREAD),
        )
    asked: dict[str, Due] = {}
    try:
        await ask_all(scope, environment_id, due, asked, done)
    finally:
        async with begin(scope.engine) as conn:
            now = await readers.clock(conn)
            again = {id_: now + wait_of(one, now, random.random()) for id_, one in asked.items()}
            await expired.asked(conn, scope.source, environment_id, now, again)


async def environment(scope: Scope, memory: Asking) -> str | None:
    """Of the credentials, as the provider names it or as the only one we know. Raises DeliveryFailed."""
    if scope.source not in memory.environments and memory.environment_look.due:
        memory.environment_look.done()
        found = await environment_of(scope)
        if found is not None:
            memory.environments[scope.source] = found.id
    return memory.environments.get(scope.source)


async def ask_all(scope: Scope, environment_id: str, due: list[Due], asked: dict[str, Due], done: Round) -> None:
    """A few at a time, until all are asked, the time is up, or the provider does not play along."""
    waiting = iter(due)
    tasks = [asyncio.create_task(ask_on(scope, environment_id, waiting, asked, done)) for _ in range(IN_FLIGHT_MAX)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def ask_on(scope: Scope, environment_id: str, waiting: Iterator[Due], asked: dict[str, Due], done: Round) -> None:
    for one in waiting:
        if done.trouble is not None or time.monotonic() > done.until:
            return
        try:
            recovered = await ask(scope, environment_id, one.account_id)
        except DeliveryFailed as exc:
            if is_general(exc):
                # Asked for later all the same: one that the provider chokes on must not be the one that shows how it is.
                asked[one.account_id] = one
                done.trouble = exc
                return
            done.failed += 1
            logger.info("expired.not_answered", source=scope.source, account_id=one.account_id, code=exc.code)
        else:
            done.recovered += recovered  # after the wait: others count meanwhile
        done.asked += 1
        asked[one.account_id] = one


def is_general(exc: DeliveryFailed) -> bool:
    """Whether the next account would fare no better: the provider is away, asks for patience, or refuses us."""
    return not exc.permanent or exc.status in (401, 403) or exc.code in ("credentials_refused", "environment_foreign")


async def ask(scope: Scope, environment_id: str, account_id: str) -> int:
    """1 when it is well again and an event says so, else 0. Raises DeliveryFailed, after one try."""
    async with begin(scope.engine) as conn:
        asked_at = await readers.clock(conn)
        ours = (await recoveries.ours(conn, scope.source, environment_id, [account_id])).get(account_id)
    remote = await scope.api.account(account_id, tries_max=1)
    if remote is None or remote.status != WELL:
        return 0
    event = state_event(account_id, environment_id, ours, remote, asked_at)
    if event is None:
        return 0
    return await keep_states(scope, environment_id, [(event, remote.body)], asked_at)


def wait_of(one: Due, now: datetime, chance: float) -> timedelta:
    """Until the account is asked for again; `chance` from 0 to 1. While a workflow waits for it, it is never forgotten."""
    age = now - one.expired_since if one.expired_since is not None else VERY_LONG_AFTER
    interval = INTERVAL if one.held or age < LONG_AFTER else INTERVAL_LONG if age < VERY_LONG_AFTER else INTERVAL_MAX
    return interval * (1 + SPREAD * (2 * chance - 1))


def pause_of(failures: int, retry_after_seconds: float | None) -> timedelta:
    """After so many rounds in a row that the provider refused, before the next one."""
    pause: timedelta = min(PAUSE_MIN * 2 ** min(failures, 10), PAUSE_MAX)
    if retry_after_seconds is None:
        return pause
    return max(pause, min(timedelta(seconds=retry_after_seconds), RETRY_AFTER_MAX))


async def close(runtime: Runtime, memory: Asking, done: Round, failures: int) -> None:
    async with begin(runtime.engine) as conn:
        now = await readers.clock(conn)
        if done.trouble is not None:
            pause = pause_of(failures, done.trouble.retry_after_seconds)
            await readers.refused(conn, expired.READER, now, now + pause, done.trouble.code, str(done.trouble))
            logger.warning(
                "expired.paused", code=done.trouble.code, seconds=pause.total_seconds(), error=str(done.trouble)
            )
        else:
            await expired.answered(conn, now)
        await readers.beat(conn, PART, now, {"asked": done.asked, "recovered": done.recovered, "failed": done.failed})
        if memory.forget.due:
            memory.forget.done()
            await expired.forget(conn)
    if done.recovered:
        logger.info("expired.recovered", accounts=done.recovered, asked=done.asked)
