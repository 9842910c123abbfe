"""What is due from time to time, by this process's own clock: the database's may jump ahead and be put right, and what
waited for it would then wait for days."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Every:
    seconds: float
    done_at: float | None = None  # by time.monotonic()

    @property
    def due(self) -> bool:
        return self.done_at is None or time.monotonic() - self.done_at >= self.seconds

    def done(self) -> None:
        self.done_at = time.monotonic()
