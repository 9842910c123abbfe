"""What `ratio` and `quantile` share: a window that rolls over buckets, and a value that may be unknown.

A window is cut into at most `BUCKETS_MAX` buckets, a second wide or more, and judged at their ends: what it says of an
instant depends on which events came before it, and not on how they were batched. With fewer than `min_total` the value
is unknown, and unknown neither fires nor resolves.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any, ClassVar

from pydantic import Field

from service.rules.fields import Window
from service.rules.given import EVIDENCE_MAX, Bucket, Given, Judged, Sample
from service.rules.latch import FLAPPING_QUIET, Latch
from service.rules.triggers.base import Condition

BUCKETS_MAX = 600
EXAMPLES_MAX = 3
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Rolling(Condition):
    STORED: ClassVar[bool] = True

    within: Window
    min_total: int = Field(ge=1, le=1_000_000, strict=True)

    @property
    def lookback(self) -> timedelta:
        return self.within + self.width

    @property
    def width(self) -> timedelta:
        return timedelta(seconds=max(1, ceil(self.within.total_seconds() / BUCKETS_MAX)))

    def bucket_of(self, at: datetime) -> datetime:
        """When the bucket of this instant begins; it includes its begin and not its end."""
        return EPOCH + (at - EPOCH) // self.width * self.width

    def add(self, bucket: Bucket, sample: Sample) -> None:
        raise NotImplementedError

    def value(self, buckets: Sequence[Bucket]) -> float | None:
        """None where it is unknown."""
        raise NotImplementedError

    def breached(self, value: float) -> bool:
        raise NotImplementedError

    def worse(self, one: float, other: float) -> float:
        """Which of two values an alert shows."""
        return max(one, other)

    def in_buckets(self, samples: Sequence[Sample]) -> list[Bucket]:
        found: dict[datetime, Bucket] = {}
        for sample in samples:
            at = self.bucket_of(sample.at)
            self.add(found.setdefault(at, Bucket(at)), sample)
        return [found[at] for at in sorted(found)]

    def judge(self, rule: Any, given: Given) -> Judged:
        latch = Latch(given, for_=rule.for_, keep=rule.keep_firing_for, worst=self.worse)
        now, width, resolve = given.now, self.width, rule.resolve
        buckets = sorted(given.buckets, key=lambda bucket: bucket.at)
        ends = [bucket.at + width for bucket in buckets]
        # Earlier than this the window is not wholly in sight, and what a part of it says would be made up.
        known_from = given.judge_from - rule.for_ - max(rule.keep_firing_for, FLAPPING_QUIET)
        edges = {at for end in ends for at in (end, end + self.within)}
        instants = sorted({max(at, known_from) for at in edges})
        value: float | None = None
        low = high = 0
        for at in instants:
            if at > now:
                break
            while high < len(buckets) and ends[high] <= at:
                high += 1
            while low < high and ends[low] <= at - self.within:
                low += 1
            value = self.value(buckets[low:high])
            if value is None:
                continue
            is_open, fresh = latch.open_at(at), not latch.holds
            if is_open and resolve_by_hand(resolve):
                still = True
            elif is_open and resolve is not None and resolve.has_threshold:
                still = not resolve.met(value)  # what has not fired yet has nothing to be resolved from
            else:
                still = self.breached(value)
            if still:
                examples = tuple(id_ for bucket in buckets[low:high] for id_ in bucket.examples)
                latch.true(at, value, examples[-EVIDENCE_MAX:] if fresh else examples[-EXAMPLES_MAX:])
            else:
                latch.false(at, "recovered")
        episodes, wake = latch.finish()
        later = [at for at in instants if at > now]
        if later and (high < len(buckets) or latch.holds or self.value(buckets[low:high]) is not None):
            wake = later[0] if wake is None else min(wake, later[0])
        return Judged(episodes, wake, value=value)


def resolve_by_hand(resolve: Any) -> bool:
    return resolve is not None and bool(resolve.manual)
