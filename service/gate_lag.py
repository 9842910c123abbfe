"""How far evaluation is behind, without searching the log for each question. No I/O here.

The statement that reads the gate's state finds the oldest row that is not evaluated among those of today, which is one
look into one index. This proves that there is none of an earlier day, by what earlier questions saw: positions are given
out in the order of commits, a row's `received_at` is read just before its position is given, and so, if `given` was the
last position at some time and everything up to it is evaluated now, whatever is not was received after that time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from service.store.gate import TODAY_REACHES_BACK_SECONDS, Progress

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
    _samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))

    def seconds(self, now: Progress) -> float | None:
        """The age of the oldest row that is not evaluated; None: not proven, the log has to be asked."""
        if self._samples and now.at < self._samples[-1].at - CLOCK_BACK_SECONDS:
            self._samples.clear()  # the clock was put back
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
