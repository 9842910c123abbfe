"""The retaining story, once an hour: what is over its time goes (service/retain.py). It holds up no other story."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from service import retain
from service.runtime import Runtime
from service.store import retention_state
from service.store.session import begin

EVERY_SECONDS = 3600.0
AGAIN_SECONDS = 60.0  # after a run that failed, or left something for the next


class Retaining:
    """When this process is to run it next, and what the clocks read when it last did; nothing here is truth."""

    def __init__(self) -> None:
        self._due_at = 0.0
        self._before: tuple[datetime, float] | None = None
        self._read: tuple[datetime, float] | None = None

    async def step(self, runtime: Runtime) -> bool:
        """Whether it was due."""
        if time.monotonic() < self._due_at:
            return False
        self._due_at = time.monotonic() + AGAIN_SECONDS
        keep, sinks = runtime.settings.retention, list(runtime.sinks)
        async with begin(runtime.engine) as conn:
            await retention_state.configured(conn, retain.configured(keep, sinks))
        done = await retain.retain(runtime.engine, keep, sinks, list(runtime.notifiers), jumped=self.jumped)
        # A jump holds one run: a clock that still stands there an hour later is believed.
        self._before = self._read
        if done is None or done.plan.refused is not None or not done.unfinished:
            self._due_at = time.monotonic() + EVERY_SECONDS
        return True

    def jumped(self, now: datetime) -> timedelta | None:
        """How far the database's clock moved beside this process's own since the last run that came to its end."""
        self._read = now, time.monotonic()
        if self._before is None:
            return None
        return now - self._before[0] - timedelta(seconds=self._read[1] - self._before[1])
