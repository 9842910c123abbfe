"""The retaining story, once an hour: what is over its time goes (service/retain.py). It holds up no other story."""

from __future__ import annotations

import time

from service import retain
from service.runtime import Runtime

EVERY_SECONDS = 3600.0
AGAIN_SECONDS = 60.0  # after a run that failed


class Retaining:
    """When this process is to run it next; nothing here is truth."""

    def __init__(self) -> None:
        self._due_at = 0.0

    async def step(self, runtime: Runtime) -> bool:
        """Whether it was due."""
        if time.monotonic() < self._due_at:
            return False
        self._due_at = time.monotonic() + AGAIN_SECONDS
        await retain.retain(runtime.engine, runtime.settings.retention, list(runtime.sinks), list(runtime.notifiers))
        self._due_at = time.monotonic() + EVERY_SECONDS
        return True
