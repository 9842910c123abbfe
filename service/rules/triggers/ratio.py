"""`ratio`: too few of all are good."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field, field_validator

from service.rules.explaining import length, matches_words
from service.rules.fields import Matches
from service.rules.given import Bucket, Sample
from service.rules.match import Matcher, compile_matches
from service.rules.story import Step
from service.rules.triggers.rolling import EXAMPLES_MAX, Rolling


class Ratio(Rolling):
    """Of the events that match `total` within `within`, fewer than `lt` also match `good`."""

    NAME: ClassVar[str] = "ratio"
    RESOLVES: ClassVar[frozenset[str]] = frozenset({"gt", "gte", "manual"})
    THRESHOLDS: ClassVar[frozenset[str]] = frozenset({"lt", "min_total"})

    good: Matches
    total: Matches
    lt: float = Field(gt=0, le=1, strict=True)

    @field_validator("good", "total")
    @classmethod
    def can_match(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        compile_matches(value)
        return value

    @cached_property
    def _total(self) -> Matcher:
        return compile_matches(self.total)

    @cached_property
    def _good(self) -> Matcher:
        return compile_matches(self.good)

    def roles(self) -> Mapping[str, Matcher]:
        return {"total": self._total}

    def sample(self, role: str, step: Step) -> Sample | None:
        return Sample(step.event.occurred_at, role, step.event.id, value=1.0 if self._good.test(step) else 0.0)

    def add(self, bucket: Bucket, sample: Sample) -> None:
        bucket.total += 1
        if sample.value:
            bucket.good += 1
        else:
            bucket.examples = tuple(sorted((*bucket.examples, sample.id)))[:EXAMPLES_MAX]

    def value(self, window: Bucket) -> float | None:
        return window.good / window.total if window.total >= self.min_total else None

    def breached(self, value: float) -> bool:
        return value < self.lt

    def worse(self, one: float, other: float) -> float:
        return min(one, other)

    @property
    def needs(self) -> str:
        return f"< {self.lt:g}"

    def in_words(self) -> str:
        return (
            f"of at least {self.min_total} events with {matches_words(self.total)} within {length(self.within)}, "
            f"less than {self.lt:g} also have {matches_words(self.good)}"
        )
