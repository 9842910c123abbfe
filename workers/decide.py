"""Who is told what is decided beside what is done: as long as there is news, or a deadline has come."""

from __future__ import annotations

from service.runtime import Runtime
from service.store import readers
from service.store.session import begin
from service.tell import tell

ROUNDS_MAX = 50


async def decide(runtime: Runtime) -> bool:
    """Whether there was anything to decide."""
    for number in range(ROUNDS_MAX):
        async with begin(runtime.engine) as conn:
            if not await tell(conn, runtime.settings.routing, await readers.clock(conn)):
                return number > 0
    return True
