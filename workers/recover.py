"""The recovering story: after an outage the span is fetched from the provider's API, and with the first credentials every
account is listed. One at a time across workers, in a loop of its own, so that nothing else waits for it.

What is to be done and how far it went are rows: a crash goes on where it was, and repeats at most a slice, which finds
duplicates.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from service.errors import DeliveryFailed, Unavailable
from service.habits import PROVIDER_RETRIES
from service.observe import log as logger
from service.provider_apis import open_api, sources_of
from service.provider_apis.base import ProviderApi
from service.recover import (
    Scope,
    Tally,
    environment_of,
    reconcile_all,
    recover_events,
    scope_of,
)
from service.runtime import Runtime, stop
from service.settings import RetentionSettings
from service.store import readers, recoveries, retention_state
from service.store.recoveries import Recovery
from service.store.session import begin
from workers.every import Every
from workers.reach import RECOVER, Reach

LEASE = timedelta(seconds=90)  # held longer while we live: after a kill -9 it goes on that much later
HOLD_SECONDS = 20.0
AGAIN_MIN, AGAIN_MAX = timedelta(seconds=15), timedelta(minutes=10)
LISTING_LOOK_EVERY_SECONDS = 600.0
LOOKS_IN_VAIN_MAX = 3
SAY_EVERY_SECONDS = 60.0


@dataclass(slots=True)
class Recovering:
    """What this process remembers; nothing here is truth but the API's token."""

    api: ProviderApi | None = None
    listing_look: Every = field(default_factory=lambda: Every(LISTING_LOOK_EVERY_SECONDS))
    listing_wanted: set[str] = field(default_factory=set)
    environment_id: str | None = None
    environment_look: Every = field(default_factory=lambda: Every(LISTING_LOOK_EVERY_SECONDS))
    in_vain: dict[str, tuple[int, str]] = field(
        default_factory=dict
    )  # by source: looks in a row, and what the last met
    said: Reach | None = None
    say: Every = field(default_factory=lambda: Every(SAY_EVERY_SECONDS))

    def looked(self, source: str, why: str | None) -> None:
        """For the environment, once more; `why` it was in vain."""
        if why is None:
            self.in_vain.pop(source, None)
        else:
            self.in_vain[source] = (self.in_vain.get(source, (0, ""))[0] + 1, why[:500])


class Lost(Exception):
    """Another worker has taken this recovery over."""


async def recover(runtime: Runtime, memory: Recovering) -> None:
    """One recovery, if one is due."""
    if memory.api is None:
        memory.api = open_api(runtime.settings, runtime.http)
        if memory.api is None:
            return
    known = [name for name in sources_of(runtime.settings, memory.api.provider) if name in runtime.sources]
    sources = known if len(known) <= 1 else await of_our_environment(runtime, memory, memory.api, known)
    await want_listings(runtime, memory, memory.api, sources)
    await say_reach(runtime, memory, known, sources)
    async with begin(runtime.engine) as conn:
        now = await readers.clock(conn)
        recovery = await recoveries.claim(conn, sources, now, LEASE)
    if recovery is None:
        return
    scope = scope_of(runtime.engine, runtime.nudger, runtime.sources[recovery.source], memory.api)
    logger.info("recover.started", reason=recovery.reason, source=recovery.source, since=recovery.since.isoformat())
    holding = asyncio.create_task(hold(runtime, recovery), name="recovery-lease")
    try:
        total = await run(scope, recovery, runtime.settings.retention)
    except Lost:
        logger.info("recover.taken_over", source=recovery.source)
    except DeliveryFailed as exc:
        await put_off(runtime, recovery, exc)
    except Unavailable:
        raise  # the database is away: the lease ends by itself
    else:
        logger.info(
            "recover.done",
            reason=recovery.reason,
            source=recovery.source,
            events=total.found,
            added=total.added,
            accounts=total.accounts,
            changed=total.changed,
        )
    finally:
        await stop(holding)


async def hold(runtime: Runtime, recovery: Recovery) -> None:
    """A slow provider may take longer for a step than the lease lasts. Who lost it hears so at the next progress."""
    while True:
        await asyncio.sleep(HOLD_SECONDS)
        try:
            async with begin(runtime.engine) as conn:
                await recoveries.hold(conn, recovery, await readers.clock(conn) + LEASE)
        except Unavailable:
            continue


async def of_our_environment(runtime: Runtime, memory: Recovering, api: ProviderApi, sources: list[str]) -> list[str]:
    """Of several sources of one provider those with accounts in the credentials' environment: the events of production
    must not come in through the door of development."""
    if memory.environment_id is None and memory.environment_look.due:
        memory.environment_look.done()
        why = "it names no environment, so that which source it is for cannot be told"
        try:
            memory.environment_id = await api.environment_id()
        except DeliveryFailed as exc:
            logger.warning("recover.environment_unknown", code=exc.code, error=str(exc))
            why = str(exc)
        for source in sources:
            memory.looked(source, None if memory.environment_id is not None else why)
    async with begin(runtime.engine) as conn:
        return [one for one in sources if memory.environment_id in await recoveries.environments(conn, one)]


async def say_reach(runtime: Runtime, memory: Recovering, known: list[str], served: list[str]) -> None:
    decided = len(known) <= 1 or memory.environment_id is not None
    reach = Reach(
        served=frozenset(served),
        undecided=frozenset() if decided else frozenset(known),
        stuck={name: why for name, (looks, why) in memory.in_vain.items() if looks >= LOOKS_IN_VAIN_MAX},
    )
    if reach == memory.said and not memory.say.due:
        return
    async with begin(runtime.engine) as conn:
        await readers.beat(conn, RECOVER, await readers.clock(conn), reach.write())
    memory.said = reach
    memory.say.done()


async def want_listings(runtime: Runtime, memory: Recovering, api: ProviderApi, sources: list[str]) -> None:
    """Once for each source and environment, ever: without it an account that broke before we came would be unknown until
    its next event. Asked again from time to time until the environment is known, which its first event tells."""
    waiting = [source for source in sources if source not in memory.listing_wanted]
    if not waiting or not memory.listing_look.due:
        return
    memory.listing_look.done()
    async with begin(runtime.engine) as conn:
        now = await readers.clock(conn)
    for source in waiting:
        try:
            scope = scope_of(runtime.engine, runtime.nudger, runtime.sources[source], api)
            environment = await environment_of(scope)
        except DeliveryFailed as exc:
            logger.warning("recover.environment_unknown", source=source, code=exc.code, error=str(exc))
            memory.looked(source, str(exc))
            continue
        memory.looked(source, None)
        if environment is None:
            logger.info("recover.environment_unknown", source=source, code="no_event_yet")
            continue
        async with begin(runtime.engine) as conn:
            # Of several sources of one provider, the credentials are of that whose accounts are in their environment.
            if len(sources) == 1 or environment.id in await recoveries.environments(conn, source):
                await recoveries.want(conn, source, "listing", now, now, now, environment.id)
                memory.listing_wanted.add(source)


async def run(scope: Scope, recovery: Recovery, keep: RetentionSettings) -> Tally:
    """Raises DeliveryFailed when the provider does not play along, Lost when the lease is another's."""
    done_until, page_token = recovery.done_until, recovery.page_token

    async def progress(upto: datetime | None, token: str | None, step: Tally) -> None:
        nonlocal done_until
        advanced = token is not None or (upto is not None and (done_until is None or upto > done_until))
        done_until = upto or done_until
        async with begin(scope.engine) as conn:
            now = await readers.clock(conn)
            held = await recoveries.went_on(
                conn,
                recovery,
                now + LEASE,
                done_until=done_until,
                page_token=token if recovery.reason == "listing" else None,
                found=step.found + step.accounts,
                added=step.added + step.changed,
                advanced=advanced and recovery.reason == ("outage" if upto else "listing"),
            )
        if not held:
            raise Lost
        logger.info(
            "recover.progress",
            source=recovery.source,
            upto=done_until.isoformat() if done_until else None,
            events=step.found,
            added=step.added,
            accounts=step.accounts,
            changed=step.changed,
        )

    total, environment = Tally(), await environment_of(scope)
    if recovery.reason == "listing":
        assert recovery.environment_id is not None
        if environment is not None and environment.id != recovery.environment_id:
            raise DeliveryFailed(
                f"the credentials are for the environment {environment.id} now, and no longer for"
                f" {recovery.environment_id}, whose accounts were being listed",
                code="environment_foreign",
                permanent=True,
            )
        total = await reconcile_all(scope, recovery.environment_id, page_token, progress, missing_too=False)
    else:
        async with begin(scope.engine) as conn:
            now = await readers.clock(conn)
            floor = await retention_state.recover_floor(conn, now, keep)
        # What happened before we went down was still being tried when we did. An outage that ends later than now was
        # noted by a clock that ran ahead.
        since = max(recovery.done_until or recovery.since - PROVIDER_RETRIES, floor)
        total = await recover_events(scope, since, min(recovery.until, now), progress)
        environment = environment or await environment_of(scope)
        if environment is not None:
            total = total.plus(
                await reconcile_all(scope, environment.id, None, progress, missing_too=environment.named)
            )
    async with begin(scope.engine) as conn:
        if not await recoveries.finished(conn, recovery, await readers.clock(conn)):
            raise Lost
    return total


async def put_off(runtime: Runtime, recovery: Recovery, exc: DeliveryFailed) -> None:
    """Tried again for ever, less and less often: `workers/watch.py` says so when it does not end."""
    logger.warning("recover.failed", source=recovery.source, code=exc.code, error=str(exc), attempts=recovery.attempts)
    async with begin(runtime.engine) as conn:
        now = await readers.clock(conn)
        wait = min(AGAIN_MIN * 2 ** min(recovery.attempts - 1, 10), AGAIN_MAX)
        if exc.retry_after_seconds is not None:
            wait = min(max(wait, timedelta(seconds=exc.retry_after_seconds)), recoveries.PUT_OFF_MAX)
        if exc.status == 400 and recovery.page_token is not None:
            await recoveries.start_over(conn, recovery)
        await recoveries.failed(conn, recovery, now + wait, exc.code, str(exc))
