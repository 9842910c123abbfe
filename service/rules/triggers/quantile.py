"""`quantile`: most are fast, and the slowest are too slow.

Values are counted by the logarithm of their size, as DDSketch does (Masson, Rim and Lee, VLDB 2019): buckets add up in
any order, and the answer is within `ERROR` of the true one, relatively.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import ceil, log
from typing import Any, ClassVar

from pydantic import Field, field_validator

from service.rules.explaining import length, matches_words
from service.rules.fields import Matches, Number
from service.rules.given import Bucket, Sample
from service.rules.match import DETAIL, FIELDS, NUMBERS, Matcher, compile_matches, reader
from service.rules.mistake import Mistake, nearest, quoted
from service.rules.story import Step
from service.rules.triggers.rolling import EXAMPLES_MAX, Rolling

ERROR = 0.01
GAMMA = (1 + ERROR) / (1 - ERROR)
SIZE_MAX = 1e12
ZERO_SIZE = -10_000  # values of nothing, which have no logarithm


class Quantile(Rolling):
    """The `q`-quantile of `field` over the events that match within `within` is above `gt`."""

    NAME: ClassVar[str] = "quantile"
    RESOLVES: ClassVar[frozenset[str]] = frozenset({"lt", "lte", "manual"})
    THRESHOLDS: ClassVar[frozenset[str]] = frozenset({"q", "gt", "min_total"})

    match: Matches
    field: str = Field(max_length=80)
    q: float = Field(gt=0, lt=1, strict=True)
    gt: Number

    @field_validator("match")
    @classmethod
    def can_match(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        compile_matches(value)
        return value

    @field_validator("field")
    @classmethod
    def is_a_field(cls, value: str) -> str:
        if value in NUMBERS or DETAIL.fullmatch(value):
            return value
        if value in FIELDS:
            raise Mistake(f"{value} is text, which has no quantile", "name lag_seconds or a number in details.NAME")
        raise Mistake(f"unknown field {quoted(value)}", nearest(value, (*NUMBERS, "details.NAME")))

    @cached_property
    def _match(self) -> Matcher:
        return compile_matches(self.match)

    @cached_property
    def _read(self) -> Any:
        return reader(self.field)

    def roles(self) -> Mapping[str, Matcher]:
        return {"match": self._match}

    def sample(self, role: str, step: Step) -> Sample | None:
        value = self._read(step)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= SIZE_MAX:
            return None
        return Sample(step.event.occurred_at, role, step.event.id, value=float(value))

    def add(self, bucket: Bucket, sample: Sample) -> None:
        size = size_of(sample.value)
        bucket.total += 1
        bucket.sizes[size] = bucket.sizes.get(size, 0) + 1
        if sample.value > self.gt:
            bucket.examples = tuple(sorted((*bucket.examples, sample.id)))[:EXAMPLES_MAX]

    def value(self, window: Bucket) -> float | None:
        if window.total < self.min_total:
            return None
        sizes = sorted(window.sizes)
        return quantiles_of(sizes, [window.sizes[size] for size in sizes], (self.q,))[0]

    def breached(self, value: float) -> bool:
        return value > self.gt

    @property
    def needs(self) -> str:
        return f"> {self.gt:g}"

    def in_words(self) -> str:
        return (
            f"the {self.q:g} quantile of {self.field} is above {self.gt:g}, over at least {self.min_total} events with "
            f"{matches_words(self.match)} within {length(self.within)}"
        )


def quantiles_of(sizes: Sequence[int], counts: Sequence[int], wanted: Sequence[float]) -> list[float | None]:
    """Of a sketch: its buckets in their order, and how many are in each. None of an empty one."""
    if not sizes:
        return [None for _ in wanted]
    seen = list(accumulate(counts))
    # The first bucket up to which there are more than the rank.
    return [value_of(sizes[bisect_right(seen, q * (seen[-1] - 1))]) for q in wanted]


def size_of(value: float) -> int:
    return ZERO_SIZE if value <= 1e-9 else ceil(log(value) / log(GAMMA))


def value_of(size: int) -> float:
    return 0.0 if size == ZERO_SIZE else float(2 * GAMMA**size / (GAMMA + 1))
