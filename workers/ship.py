"""The shipping story: each sink reads the log from its own position, a batch out, then the position moves.

At least once: a crash between sending and moving sends the batch again, the same items, and every item carries its event id.
A sink that is down waits by itself and holds up nobody: each has a task of its own, and alerts are another story.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import DeliveryFailed
from service.event import Event
from service.observe import log as logger
from service.runtime import Runtime, last_words
from service.sink_losses import say_left_behind
from service.sinks.base import REFUSED_IN_A_ROW_MAX, Poison, Sent, Sink, all_refused, may_have_arrived
from service.store import readers, shipping
from service.store.session import begin
from service.store.shipping import BREAKER_FAILURES, Bad, Claimed, reader_name
from workers.persist import persist

LEASE = timedelta(seconds=125)
SEND_SECONDS_MAX = 90  # with what recording it may take, as long as the lease
ROUNDS_MAX = 100
STEP_SECONDS = 1.0  # how long the story looks at its sinks before it says that it is alive
BACKOFF_SECONDS_MAX, RETRY_SECONDS_MIN = 30.0, 0.8
PERMANENT_BACKOFF_SECONDS = 60.0  # a refused token is mended by a person; the log waits for it
PROBE_ITEMS = 10  # for a sink that has failed so often that the breaker opened
CRASHED = "sink_crashed"
CRASHED_SHIFT = 3  # each crash in a row is tried again with an eighth of the items, down to the one it comes by


class Shipping:
    """A task for each sink that has something to send; the story goes on while one of them hangs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._tasks: dict[str, asyncio.Task[bool]] = {}

    async def step(self) -> None:
        """Raises what a sink's task raised, once; the others go on meanwhile. One that hangs is not waited for again."""
        begun: list[asyncio.Task[bool]] = []
        for name, sink in self._runtime.sinks.items():
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(ship_one(self._runtime, name, sink), name=f"ship {name}")
                begun.append(self._tasks[name])
        if begun:
            await asyncio.wait(begun, timeout=STEP_SECONDS)
        failed: list[BaseException] = []
        for name, task in [*self._tasks.items()]:
            if task.done():
                del self._tasks[name]
                if (error := task.exception()) is not None:
                    failed.append(error)
        for error in failed[1:]:
            logger.error("sink.crashed", error=type(error).__name__, exc_info=error)
        if failed:
            raise failed[0]

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


async def ship(runtime: Runtime) -> bool:
    """Everything that every sink takes now; whether anything went out."""
    return any(await asyncio.gather(*(ship_one(runtime, name, sink) for name, sink in runtime.sinks.items())))


async def ship_one(runtime: Runtime, name: str, sink: Sink) -> bool:
    for sent in range(ROUNDS_MAX):
        if not await one_batch(runtime, name, sink):
            return sent > 0
    return True


async def one_batch(runtime: Runtime, name: str, sink: Sink) -> bool:
    """Whether there may be more to do at once."""
    async with begin(runtime.engine) as conn:
        if await say_left_behind(conn, name, list(runtime.notifiers)):
            return True
        now = await readers.clock(conn)
        claimed = await shipping.claim(conn, reader_name(name), now, LEASE)
        if claimed is None:
            return False
        page = await shipping.next_page(conn, claimed.position, runtime.wants[name], items_max(sink, claimed))
        if page.upto == claimed.position:
            await shipping.idle(conn, claimed, now)
            return False
        if not page.items:  # nothing that it wants: it passes over
            await shipping.shipped(conn, claimed, page.upto, now)
            return True
        await shipping.sending(conn, claimed, len(page.items))
    try:
        async with asyncio.timeout(SEND_SECONDS_MAX):
            sent = await send(sink, page.items)
        refused = refused_in_a_row(claimed, sent, name)
    except (DeliveryFailed, TimeoutError) as exc:
        await back_off(runtime, claimed, exc, len(page.items))
        return False
    except asyncio.CancelledError:
        await last_words(give_up(runtime, claimed))
        raise
    done = len(page.items) if sent.upto is None else sent.upto
    upto = page.upto if done == len(page.items) else page.items[done - 1].position
    bad = [Bad(page.items[one.index].position, page.items[one.index].id, one.reason) for one in sent.poison]

    async def move(conn: AsyncConnection) -> None:
        await shipping.shipped(
            conn,
            claimed,
            upto,
            await readers.clock(conn),
            items=done,
            bad=bad,
            refused_in_a_row=refused,
            in_doubt=sent.in_doubt,
        )

    # A database that is away just now is waited for: the batch is not sent again, and the lease does not outlive it.
    await persist(runtime, move)
    if bad:
        logger.warning("sink.poison", sink=name, items=len(bad))
    return True


async def send(sink: Sink, items: Sequence[Event]) -> Sent:
    """A mistake of ours in a sink is narrowed down to the item that it comes by, which is put aside: neither the copy nor
    the other sinks stand still for it. Raises DeliveryFailed."""
    try:
        return await sink.send(items)
    except (DeliveryFailed, TimeoutError):
        raise
    except Exception as exc:
        logger.error("sink.crashed", sink=sink.name, items=len(items), error=type(exc).__name__, exc_info=exc)
        said = (
            f"the sink {sink.name} crashed ({type(exc).__name__}): a mistake of ours, which the worker's log has whole"
        )
        if len(items) > 1:
            raise DeliveryFailed(said, code=CRASHED, ambiguous=True) from exc
        return Sent(0, (Poison(0, said),))


def items_max(sink: Sink, claimed: Claimed) -> int:
    """What may have arrived is sent again as the same batch, by which a receiver may know it; but not for ever, where the
    batch is what it cannot take."""
    if claimed.last_code == CRASHED:
        return max(1, sink.batch_items_max >> CRASHED_SHIFT * claimed.failures_in_a_row)
    if claimed.failures_in_a_row >= BREAKER_FAILURES:
        return min(PROBE_ITEMS, sink.batch_items_max)
    return min(claimed.in_doubt or sink.batch_items_max, sink.batch_items_max)


def refused_in_a_row(claimed: Claimed, sent: Sent, name: str) -> int:
    """Items that the sink refused since it last took one. Raises DeliveryFailed where these are so many that the fault is
    not theirs: then none is put aside, however small the batches."""
    theirs = [poison for poison in sent.poison if not poison.ours and not poison.dropped]
    if sent.accepted:
        return 0
    count = claimed.refused_in_a_row + len(theirs)
    most = 1 if claimed.last_code == "all_refused" else REFUSED_IN_A_ROW_MAX
    if theirs and count >= most:
        raise all_refused(f"the sink {name}", count, theirs[-1].reason)
    return count


async def give_up(runtime: Runtime, claimed: Claimed) -> None:
    async with begin(runtime.engine) as conn:
        await shipping.let_go(conn, claimed)


async def back_off(runtime: Runtime, claimed: Claimed, exc: DeliveryFailed | TimeoutError, items: int) -> None:
    code = exc.code if isinstance(exc, DeliveryFailed) else "timeout"
    said = str(exc) or f"it took longer than {SEND_SECONDS_MAX} s in all"
    wait = min(2.0 ** min(claimed.failures_in_a_row, 10), BACKOFF_SECONDS_MAX) * random.uniform(0.8, 1.2)
    ambiguous = True
    if isinstance(exc, DeliveryFailed):
        ambiguous = may_have_arrived(exc)
        if exc.permanent:
            wait = PERMANENT_BACKOFF_SECONDS
        if exc.retry_after_seconds is not None:
            wait = max(exc.retry_after_seconds, RETRY_SECONDS_MIN)  # 0, or a time gone by, asks for no hammering

    async def record(conn: AsyncConnection) -> None:
        until = await readers.clock(conn) + timedelta(seconds=wait)
        await shipping.failed(conn, claimed, until, code, said, in_doubt=items if ambiguous else 0)

    await persist(runtime, record)
    logger.warning("sink.refused", sink=claimed.name, code=code, retry_in_seconds=round(wait, 1))
    if claimed.failures_in_a_row + 1 == BREAKER_FAILURES:
        logger.warning("sink.breaker_open", sink=claimed.name, probe_items=PROBE_ITEMS)
