"""The receivers' own sign of life: that receipts could be committed until now. What is missing in it was missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from service.errors import AuthwatchError
from service.observe import log
from service.store import recoveries
from service.store.session import begin

BEAT_SECONDS = 5.0


@asynccontextmanager
async def watched(engine: AsyncEngine, sources: Collection[str]) -> AsyncIterator[None]:
    """While open, notes every few seconds that this receiver can commit. Of several receivers any one is enough.

    `sources` is looked at each time: a change of the configuration may switch one on or off. What is off is answered
    404 and can not be committed, so it is not noted.
    """
    task = asyncio.create_task(keep_noting(engine, sources), name="intake")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def keep_noting(engine: AsyncEngine, sources: Collection[str]) -> None:
    while True:
        try:
            if sources:
                await note(engine, list(sources))
        except (AuthwatchError, SQLAlchemyError, OSError) as exc:
            # Nothing to mend here: the gap that grows is the message, and whoever commits next reads it.
            log.debug("intake.not_noted", error=type(exc).__name__)
        await asyncio.sleep(BEAT_SECONDS)


async def note(engine: AsyncEngine, sources: Sequence[str]) -> None:
    async with begin(engine) as conn:
        outages = await recoveries.able(conn, sources)
    for source, since, until in outages:
        log.warning("intake.outage", source=source, since=since.isoformat(), until=until.isoformat())
