"""What `ratio` and `quantile` share: a window that rolls over buckets, and a value that may be unknown.

A window is cut into at most `BUCKETS_MAX` buckets, a second wide or more, and judged at their ends: what it says of an
instant depends on which events came before it, and not on how they were batched. With fewer than `min_total` the value
is unknown, and unknown neither fires nor resolves.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from math import ceil
from typing import Any, ClassVar

from pydantic import Field

from service.rules.explaining import Found, many
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

    @cached_property
    def width(self) -> timedelta:
        return timedelta(seconds=max(1, ceil(self.within.total_seconds() / BUCKETS_MAX)))

    def bucket_of(self, at: datetime) -> datetime:
        """When the bucket of this instant begins; it includes its begin and not its end."""
        return EPOCH + (at - EPOCH) // self.width * self.width

    def add(self, bucket: Bucket, sample: Sample) -> None:
        raise NotImplementedError

    def value(self, window: Bucket) -> float | None:
        """Of the whole window as one bucket; None where it is unknown."""
        raise NotImplementedError

    def breached(self, value: float) -> bool:
        raise NotImplementedError

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
        window, low, high = Bucket(EPOCH), 0, 0
        for at in instants:
            if at > now:
                break
            # Added and taken away, so that a window costs what moves in it and not what is in it.
            while high < len(buckets) and ends[high] <= at:
                add_up(window, buckets[high], 1)
                high += 1
            while low < high and ends[low] <= at - self.within:
                add_up(window, buckets[low], -1)
                low += 1
            value = self.value(window)
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
        if later and (high < len(buckets) or latch.holds or self.value(window) is not None):
            wake = later[0] if wake is None else min(wake, later[0])
        return Judged(episodes, wake, value=value)

    @property
    def needs(self) -> str:
        """Such as `< 0.95`."""
        raise NotImplementedError

    def find(self, rule: Any, given: Given, judged: Judged) -> Found:
        """By the buckets that had ended by then, as it is judged."""
        buckets = sorted(given.buckets or self.in_buckets(given.samples), key=lambda bucket: bucket.at)
        ended = [bucket for bucket in buckets if bucket.at + self.width <= given.now]
        inside = [bucket for bucket in ended if bucket.at + self.width > given.now - self.within]
        total = sum(bucket.total for bucket in inside)
        window = Bucket(EPOCH)
        for bucket in inside:
            add_up(window, bucket, 1)
        value = self.value(window)
        base: dict[str, Any] = {
            "value": value,
            "needs": self.needs,
            "since": given.now - self.within,
            "event_ids": tuple(id_ for bucket in inside for id_ in bucket.examples),
        }
        if value is None:
            said = f"unknown: {total} of min_total {self.min_total}, which neither fires nor resolves"
            return Found(known=False, missing=(said,), **base)
        said = f"value {value:.4g}, needs {self.needs}, of {many(total, 'event')}"
        if self.breached(value):
            return Found(true=True, because=(said,), **base)
        return Found(missing=(said,), **base)


def add_up(window: Bucket, bucket: Bucket, sign: int) -> None:
    window.total += sign * bucket.total
    window.good += sign * bucket.good
    for size, count in bucket.sizes.items():
        left = window.sizes.get(size, 0) + sign * count
        if left:
            window.sizes[size] = left
        else:
            del window.sizes[size]


def resolve_by_hand(resolve: Any) -> bool:
    return resolve is not None and bool(resolve.manual)
