"""The worker: the stories, each woken by an arq job when Redis is there and by the clock when it is not.

They run in three processes (workers/processes.py), of which the first one judges, hears Redis, and is the one to signal.

arq (maintenance mode upstream) only ever says "now": its worker ends when Redis goes and is then started again with
backoff, while the stories run on once a second. `service/queue.py` is the only other file that knows it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import uvloop
from arq.worker import Worker, func
from redis.exceptions import RedisError

from service import queue
from service.errors import AuthwatchError, ConfigError, Unavailable
from service.observe import configure_logging, log
from service.otlp import OtlpSettings, otlp_settings
from service.reload import kept_current
from service.runtime import WORKER_CONNECTIONS_MAX, Pace, Runtime, open_runtime
from service.settings import Settings, load_settings
from service.store import readers
from service.store.session import begin
from workers import processes
from workers.act import Acting
from workers.evaluate import evaluate
from workers.expired import Asking, ask_expired
from workers.imports import Importing
from workers.otlp import Pushing
from workers.processes import JUDGE, PROCESS_OF
from workers.recover import Recovering, recover
from workers.retain import Retaining
from workers.rollups import RollingUp
from workers.ship import Shipping
from workers.sweep import Sweep, sweep

TICK_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 5.0
POLL_SECONDS = 0.02  # arq looks for wake-ups this often; its default of 0.5 s would be most of our second
JOB_SECONDS_MAX = 10
BEAT_SECONDS = 0.8
BREATH = timedelta(milliseconds=8)  # between two looks at a log that is being written


class Story:
    """One story in a loop of its own: at `want()`, at the instant it asked for, and once a second in any case."""

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[datetime | None]],
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self._step = step
        self._close = close
        self._wanted = asyncio.Event()

    def want(self) -> None:
        self._wanted.set()

    async def run(self) -> None:
        try:
            await self._go_on()
        finally:
            if self._close is not None:
                await self._close()

    async def _go_on(self) -> None:
        failures = 0
        while True:
            wait = TICK_SECONDS
            began = time.monotonic()
            self._wanted.clear()  # before the step: what is wanted during it is looked at again after it
            try:
                due_at = await self._step()
                failures = 0
                if due_at is not None:
                    wait = min(TICK_SECONDS, max(0.01, (due_at - datetime.now(UTC)).total_seconds()))
            except Unavailable as exc:
                failures += 1
                log.warning("story.unavailable", story=self.name, code=exc.code)
            except Exception as exc:  # noqa: BLE001 - the loop's edge: whatever it is, it is logged whole and tried again
                failures += 1
                log.error("story.crashed", story=self.name, error=type(exc).__name__, exc_info=exc)
            if failures:
                await asyncio.sleep(min(0.2 * 2 ** min(failures, 10), BACKOFF_SECONDS_MAX))
                continue
            log.debug("story.done", story=self.name, seconds=round(time.monotonic() - began, 3))
            try:
                async with asyncio.timeout(wait):
                    await self._wanted.wait()
            except TimeoutError:
                pass


def stories_of(
    runtime: Runtime, otlp: OtlpSettings | None = None, want: Callable[[str], None] | None = None
) -> dict[str, Story]:
    """By name. `want(name)` is called when there is something for a story to do, in whichever process it runs; None: in this
    one, all of them."""

    def wake(name: str) -> None:
        if want is not None:
            want(name)
        else:
            stories[name].want()

    async def evaluating() -> datetime | None:
        done = await evaluate(runtime)
        await beat(runtime, "evaluator")
        if done.acted:
            wake(queue.ACT)
        if done.read or done.decided:
            wake(queue.SHIP)
        if not done.read:
            return done.next_due_at
        # While events come, the story looks again by itself; wake-ups through Redis are for when it has gone to sleep.
        soon = datetime.now(UTC) + BREATH
        return soon if done.next_due_at is None else min(soon, done.next_due_at)

    async def acting() -> None:
        await attempts.step()
        await beat(runtime, "actions")

    async def shipping() -> None:
        await sending.step()
        await beat(runtime, "sinks")

    async def sweeping() -> None:
        await sweep(runtime, last)

    async def keeping() -> None:
        await retaining.step(runtime)

    async def recovering() -> None:
        await recover(runtime, memory)

    async def asking() -> None:
        await ask_expired(runtime, asked)

    async def importing() -> None:
        await imports.step(runtime)

    async def counting() -> datetime | None:
        return datetime.now(UTC) if await rolling.step(runtime) else None

    last, retaining, memory, rolling, asked = Sweep(), Retaining(), Recovering(), RollingUp(), Asking()
    imports = Importing()
    sending = Shipping(runtime)
    attempts = Acting(runtime, partial(wake, queue.ACT))
    stories = {
        queue.EVALUATE: Story("evaluate", evaluating),
        queue.ACT: Story("act", acting, attempts.close),
        queue.SHIP: Story("ship", shipping, sending.close),
        "sweep": Story("sweep", sweeping),
        "retain": Story("retain", keeping),
        "recover": Story("recover", recovering),
        "expired": Story("expired", asking),
        "rollup": Story("rollup", counting),
        "import": Story("import", importing),
    }
    if otlp is not None:
        pushes = Pushing(runtime, otlp)

        async def pushing() -> None:
            await pushes.step()

        stories["otlp"] = Story("otlp", pushing)
    return stories


async def beat(runtime: Runtime, part: str, said: dict[str, float] = {}) -> None:  # noqa: B006 - the memory of this process
    """Says that a story came to its end, at most once in BEAT_SECONDS."""
    if time.monotonic() - said.get(part, -BEAT_SECONDS) < BEAT_SECONDS:
        return
    said[part] = time.monotonic()
    async with begin(runtime.engine) as conn:
        await readers.beat(conn, part, await readers.clock(conn))


async def listen(redis_url: str, want: Callable[[str], None]) -> None:
    """The arq worker, for ever: each job wakes the story of its name and is done."""

    def job(name: str) -> Any:
        async def wake(_context: dict[str, Any]) -> None:
            want(name)

        # keep_result=0, or a job's id would be refused for an hour after it.
        return func(wake, name=name, keep_result=0, timeout=JOB_SECONDS_MAX, max_tries=1)  # type: ignore[arg-type]

    backoff = 0.2
    while True:
        began = time.monotonic()
        worker: Worker | None = None
        try:
            worker = Worker(
                functions=[job(name) for name in queue.JOBS],
                redis_settings=queue.redis_settings(redis_url),
                queue_name=queue.QUEUE_NAME,
                handle_signals=False,
                poll_delay=POLL_SECONDS,
                keep_result=0,
                max_jobs=20,
                health_check_interval=60,
            )
            await worker.async_run()
        except (RedisError, OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
            log.warning("redis.away", error=type(exc).__name__)
        finally:
            if worker is not None:
                try:
                    await worker.close()
                except (RedisError, OSError, AttributeError) as exc:
                    log.debug("redis.close_failed", error=type(exc).__name__)
        backoff = 0.2 if time.monotonic() - began > 10 else min(backoff * 2, BACKOFF_SECONDS_MAX)
        await asyncio.sleep(backoff)


async def work(mine: str, settings: Settings, line_to: Mapping[str, socket.socket], pace: Pace) -> str | None:
    """One process of the worker, until it is told to stop; the name of another one that ended before that."""
    news, stopping, lost = asyncio.Event(), asyncio.Event(), list[str]()
    opening = set(line_to)
    stories: dict[str, Story] = {}

    def stop() -> None:
        stopping.set()
        news.set()

    def heard(sender: str, what: str) -> None:
        if what == processes.OPEN:
            opening.discard(sender)
            news.set()
        elif what == processes.HANGUP:
            signal.raise_signal(signal.SIGHUP)  # "look at the files now": service/reload.py
        else:
            want(what)

    def want(story: str) -> None:
        if story in stories:
            stories[story].want()
        elif mine == JUDGE:
            processes.say(line_to[PROCESS_OF[story]], story)

    def hangup() -> None:
        for line in line_to.values():
            processes.say(line, processes.HANGUP)

    def ended(sender: str) -> None:
        if not stopping.is_set():
            lost.append(sender)
        stop()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    if mine == JUDGE:
        loop.add_signal_handler(signal.SIGINT, stop)
        loop.add_signal_handler(signal.SIGHUP, hangup)
    for name, line in line_to.items():
        processes.listen(line, partial(heard, name), partial(ended, name))
    if mine != JUDGE:  # a mistake in the configuration is found once, by the process that everybody waits for
        await news.wait()
    if stopping.is_set():
        return None
    async with AsyncExitStack() as stack:
        opened = open_runtime(settings, connections_max=WORKER_CONNECTIONS_MAX, pace=pace, receives=False)
        runtime = await stack.enter_async_context(opened)
        if mine != JUDGE:  # whoever judges needs no source
            await stack.enter_async_context(kept_current(runtime, os.environ))
        all_of_them = stories_of(runtime, otlp_settings(os.environ), want)
        stories.update({name: story for name, story in all_of_them.items() if PROCESS_OF[name] == mine})
        tasks = [asyncio.create_task(story.run(), name=story.name) for story in stories.values()]
        if mine == JUDGE and settings.redis_url is not None:
            tasks.append(asyncio.create_task(listen(settings.redis_url.get_secret_value(), want), name="redis"))
        for line in line_to.values():
            processes.say(line, processes.OPEN)
        while mine == JUDGE and opening and not stopping.is_set():
            news.clear()
            await news.wait()
        if mine == JUDGE and not opening:
            log.info(
                "worker.started",
                rules=len(runtime.rules.rules),
                sinks=list(runtime.sinks),
                notifiers=list(runtime.notifiers),
            )
        await stopping.wait()
        if mine == JUDGE:  # whatever takes us long to close, the others close theirs meanwhile
            for line in line_to.values():
                processes.end(line)
        for task in tasks:
            task.cancel()
        # A story in the middle of its transaction rolls back: its work is found again at the next start.
        await asyncio.gather(*tasks, return_exceptions=True)
    return lost[0] if lost else None


def main() -> None:
    configure_logging()
    try:
        settings = load_settings(os.environ)
        otlp_settings(os.environ)  # a mistake there is told before anything starts

        def run(mine: str, line_to: Mapping[str, socket.socket]) -> str | None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(work(mine, settings, line_to, pace))

        pace = Pace()
        # Before anything else is there to end by it, and until the last of us is gone.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        others = processes.fork(run)
        lost = None
        try:
            lost = run(JUDGE, {other.name: other.line for other in others})
        except AuthwatchError:
            raise  # for a person to read, whole as it is
        except Exception as exc:  # noqa: BLE001 - the process's edge, as that of the others
            log.error("worker.process_crashed", process=JUDGE, error=type(exc).__name__, exc_info=exc)
            sys.exit(1)
        finally:
            # It is ending already: being asked again must not cut short how the others end.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            ends = processes.stop(others)
    except ConfigError as exc:
        print(f"authwatch: {exc}", file=sys.stderr)
        sys.exit(2)
    for name, status in ends.items():
        if name != lost and status not in (0, -signal.SIGTERM):  # which may come before it has anything open
            log.warning("worker.process_ended_late", process=name, status=status)
    if lost is not None:
        log.error("worker.process_ended", process=lost, status=ends[lost])
        sys.exit(1)
    log.info("worker.stopped")
