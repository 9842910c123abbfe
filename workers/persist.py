"""Records what was done outside: known nowhere else until it is written, so a database that is away is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import Unavailable
from service.runtime import Runtime
from service.store.session import begin

RECORD_SECONDS_MAX = 30  # the leases of those who call this are that much longer than their work
RECORD_RETRY_SECONDS = 0.3


async def persist(runtime: Runtime, write: Callable[[AsyncConnection], Awaitable[object]]) -> None:
    """One short transaction, tried again while the database is away and the lease is ours."""
    until = time.monotonic() + RECORD_SECONDS_MAX
    while True:
        try:
            async with begin(runtime.engine) as conn:
                await write(conn)
                return
        except Unavailable:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(RECORD_RETRY_SECONDS)
