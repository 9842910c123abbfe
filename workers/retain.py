"""The retaining story, once an hour: what is over its time goes (service/retain.py). It holds up no other story."""

from __future__ import annotations

import time

from service import retain
from service.runtime import Runtime

EVERY_SECONDS = 3600.0


class Retaining:
    """When this process last came to the end of a run; nothing here is truth."""

    def __init__(self) -> None:
        self._done_at: float | None = None

    async def step(self, runtime: Runtime) -> None:
        if self._done_at is not None and time.monotonic() - self._done_at < EVERY_SECONDS:
            return
        await retain.retain(runtime.engine, runtime.settings.retention, list(runtime.sinks), list(runtime.notifiers))
        self._done_at = time.monotonic()
