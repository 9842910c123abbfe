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
from service.rules.given import Bucket, Given, Judged, Sample
from service.rules.latch import Latch
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

    def value(self, buckets: Sequence[Bucket]) -> float | None:
        """None where it is unknown."""
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
        latch = Latch(given, for_=rule.for_, keep=rule.keep_firing_for)
        now, width, resolve = given.now, self.width, rule.resolve
        buckets = sorted(given.buckets, key=lambda bucket: bucket.at)
        ends = [bucket.at + width for bucket in buckets]
        instants = sorted({at for end in ends for at in (end, end + self.within)})
        # Before this, windows are only partly in sight: judged by what is left of them, they would say anything.
        settled = given.judge_from - (rule.lookback - self.lookback)
        value: float | None = None
        low = high = 0
        for at in instants:
            if at < settled:
                continue
            if at > now:
                break
            while high < len(buckets) and ends[high] <= at:
                high += 1
            while low < high and ends[low] <= at - self.within:
                low += 1
            value = self.value(buckets[low:high])
            if value is None:
                continue
            holds = latch.holds
            if not resolve_by_hand(resolve) and holds and resolve is not None and resolve.has_threshold:
                still = not resolve.met(value)
            else:
                still = self.breached(value) or (holds and resolve_by_hand(resolve))
            if still:
                examples = tuple(id_ for bucket in buckets[low:high] for id_ in bucket.examples)
                latch.true(at, value, examples[:EXAMPLES_MAX] if holds else examples[-50:])
            else:
                latch.false(at, "recovered")
        episodes, wake = latch.finish()
        later = [at for at in instants if at > now]
        if later and (high < len(buckets) or latch.holds or self.value(buckets[low:high]) is not None):
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
        value = self.value(inside)
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


def resolve_by_hand(resolve: Any) -> bool:
    return resolve is not None and bool(resolve.manual)
