"""A token bucket: how many requests a second, with one second's worth saved up. Pure: it is told the time."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RateLimit:
    per_second: float
    _tokens: float = field(init=False)
    _at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._tokens = max(1.0, self.per_second)

    def take(self, now: float) -> bool:
        """One token at `now`, seconds on a clock that never goes back; False when there is none."""
        burst = max(1.0, self.per_second)
        self._tokens = min(burst, self._tokens + max(0.0, now - self._at) * self.per_second)
        self._at = max(self._at, now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
