"""How far evaluation is behind, without searching the log for each question. No I/O here.

Positions are given out in the order of commits, and a row's `received_at` is read just before its position is given. So
if `given` was the last position when an earlier question was asked, and everything up to it is evaluated now, whatever is
not was received since: while evaluation is current, that alone says that the lag is a part of a second. Otherwise the
oldest row among today's is asked for, and the same proves that there is none of an earlier day.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from service.store.gate import TODAY_REACHES_BACK_SECONDS, Progress

RECENT_SECONDS, RECENT_SAMPLE_SECONDS = 1.0, 0.1  # a tenth of what makes evaluation "behind"
RECENT_MAX = int(RECENT_SECONDS / RECENT_SAMPLE_SECONDS) + 2
SAMPLE_SECONDS = 10.0
PROOF_SECONDS = TODAY_REACHES_BACK_SECONDS / 2
SAMPLES_MAX = int(PROOF_SECONDS / SAMPLE_SECONDS) + 2
CLOCK_BACK_SECONDS = 2.0  # less is two questions that were answered in another order than asked


class Sample(NamedTuple):
    """At that time, seconds since 1970 by the database, no position after `given` had been given out."""

    at: float
    given: int


@dataclass(slots=True)
class LagProof:
    _recent: deque[Sample] = field(default_factory=lambda: deque(maxlen=RECENT_MAX))
    _samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))

    def bound(self, now: Progress) -> float | None:
        """No row that is not evaluated is older than this, RECENT_SECONDS at most; None: not proven, ask for `oldest`."""
        if self._recent and now.at < self._recent[-1].at - CLOCK_BACK_SECONDS:
            self._recent.clear()  # the clock was put back
        if now.given <= now.evaluated:
            found: float | None = 0.0
        else:
            ages = (max(0.0, now.at - one.at) for one in reversed(self._recent) if one.given <= now.evaluated)
            found = next((age for age in ages if age <= RECENT_SECONDS), None)
        if not self._recent or now.at - self._recent[-1].at >= RECENT_SAMPLE_SECONDS:
            self._recent.append(Sample(now.at, now.given))
        if not self._samples or now.at - self._samples[-1].at >= SAMPLE_SECONDS:
            self._samples.append(Sample(now.at, now.given))
        return found

    def seconds(self, now: Progress) -> float | None:
        """The age of the oldest row that is not evaluated, `oldest` having been asked for; None: not proven, the log has to
        be searched."""
        if self._samples and now.at < self._samples[-1].at - CLOCK_BACK_SECONDS:
            self._samples.clear()
        proven = (
            now.given <= now.evaluated
            or now.oldest == now.evaluated + 1
            or any(one.given <= now.evaluated and now.at - one.at <= PROOF_SECONDS for one in self._samples)
        )
        if not self._samples or now.at - self._samples[-1].at >= SAMPLE_SECONDS:
            self._samples.append(Sample(now.at, now.given))
        if not proven:
            return None
        return 0.0 if now.oldest_at is None else max(0.0, now.at - now.oldest_at)

    def nothing_waits(self, before: Progress) -> None:
        """The log was asked after `before` was read, and held no row that was not evaluated: positions were given out,
        but by transactions that were undone, or are not done yet."""
        self._samples.append(Sample(before.at, before.evaluated))
