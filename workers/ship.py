"""The shipping story: each sink reads the log from its own position, a batch out, then the position moves.

At least once: a crash between sending and moving sends the batch again, and every item carries its event id for that.
A sink that is down waits by itself and holds up nobody: alerts are another story.
"""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import DeliveryFailed
from service.observe import log as logger
from service.runtime import Runtime
from service.sinks.base import Sink
from service.store import log, readers
from service.store.session import begin
from workers.persist import persist

LEASE = timedelta(seconds=125)
SEND_SECONDS_MAX = 90  # with what recording it may take, as long as the lease
ROUNDS_MAX = 100
BACKOFF_SECONDS_MAX = 30.0
PERMANENT_BACKOFF_SECONDS = 60.0  # a refused token is mended by a person; the log waits for it


def reader_name(sink: str) -> str:
    return f"sink:{sink}"


async def ship(runtime: Runtime) -> bool:
    """Whether anything went out."""
    return any(await asyncio.gather(*(ship_one(runtime, name, sink) for name, sink in runtime.sinks.items())))


async def ship_one(runtime: Runtime, name: str, sink: Sink) -> bool:
    for sent in range(ROUNDS_MAX):
        if not await one_batch(runtime, reader_name(name), sink):
            return sent > 0
    return True


async def one_batch(runtime: Runtime, reader: str, sink: Sink) -> bool:
    async with begin(runtime.engine) as conn:
        now = await readers.clock(conn)
        position = await readers.lease(conn, reader, now, LEASE)
        if position is None:
            return False
        events = await log.read_after(conn, position, sink.batch_items_max)
        if not events:
            await readers.idle(conn, reader, now)
            return False
    # A probe never reaches a SIEM; the position passes over it all the same.
    items = [event for event in events if event.origin != "probe"]
    try:
        async with asyncio.timeout(SEND_SECONDS_MAX):
            sent = await sink.send(items) if items else None
    except (DeliveryFailed, TimeoutError) as exc:
        await back_off(runtime, reader, exc)
        return False
    bad = (
        [(items[poison.index].position, items[poison.index].id, poison.reason) for poison in sent.poison]
        if sent
        else []
    )

    async def move(conn: AsyncConnection) -> None:
        await readers.shipped(conn, reader, position, events[-1].position, await readers.clock(conn), bad)

    # A database that is away just now is waited for: the batch is not sent again, and the lease does not outlive it.
    await persist(runtime, move)
    if bad:
        logger.warning("sink.poison", sink=reader, items=len(bad))
    return True


async def back_off(runtime: Runtime, reader: str, exc: DeliveryFailed | TimeoutError) -> None:
    code = exc.code if isinstance(exc, DeliveryFailed) else "timeout"
    wait = 0.0

    async def let_go(conn: AsyncConnection) -> None:
        nonlocal wait
        now = await readers.clock(conn)
        wait = min(2.0 ** min(await readers.failures(conn, reader), 10), BACKOFF_SECONDS_MAX) * random.uniform(0.8, 1.2)
        if isinstance(exc, DeliveryFailed):
            if exc.permanent:
                wait = PERMANENT_BACKOFF_SECONDS
            if exc.retry_after_seconds is not None:
                wait = exc.retry_after_seconds
        await readers.refused(conn, reader, now, now + timedelta(seconds=wait), code, str(exc))

    await persist(runtime, let_go)
    logger.warning("sink.refused", sink=reader, code=code, retry_in_seconds=round(wait, 1))
