"""`gauge`: something we measure ourselves, once a second, stands too high or too low.

What is measured is read and judged in the same instant (`workers/gauges.py`): there is no past to be told again.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import field_validator, model_validator

from service.rules.explaining import Explanation
from service.rules.fields import Number
from service.rules.given import Given
from service.rules.match import nearest
from service.rules.triggers.base import Condition

# name -> (what it is, the labels of its series); `workers/gauges.py` measures each.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "delivery_lag_seconds": ("how late the newest events of a source came; 0 once they come in time", ("source",)),
    "break_delivery_lag_seconds": (
        "the same of disconnections and refresh failures, which matter most",
        ("source",),
    ),
    "source_silence_seconds": ("how long a source has been silent beyond what is usual for it", ("source",)),
    "evaluator_lag_seconds": ("age of the oldest event that no rule has judged yet", ()),
    "actions_lag_seconds": ("age of the oldest action that is due and not done", ("destination",)),
    "sink_lag_seconds": ("age of the oldest event a sink has not taken yet", ("sink",)),
}


class Gauge(Condition):
    """`metric` is above `gt` (or at `gte`), or below `lt` (or at `lte`). `by` its labels, unless `group_by` says fewer."""

    NAME: ClassVar[str] = "gauge"
    RESOLVES: ClassVar[frozenset[str]] = frozenset({"gt", "gte", "lt", "lte", "manual"})

    metric: str
    gt: Number | None = None
    gte: Number | None = None
    lt: Number | None = None
    lte: Number | None = None

    @field_validator("metric")
    @classmethod
    def is_measured(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(f'unknown metric "{value}"; {nearest(value, tuple(METRICS))}')
        return value

    @model_validator(mode="after")
    def has_one_threshold(self) -> Self:
        if sum(1 for bound in (self.gt, self.gte, self.lt, self.lte) if bound is not None) != 1:
            raise ValueError("a gauge has one threshold of gt, gte, lt, lte")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        return METRICS[self.metric][1]

    def breached(self, value: float) -> bool:
        return (
            (self.gt is not None and value > self.gt)
            or (self.gte is not None and value >= self.gte)
            or (self.lt is not None and value < self.lt)
            or (self.lte is not None and value <= self.lte)
        )

    def holds(self, rule: Any, value: float, *, is_open: bool) -> bool:
        """With a threshold in `resolve`, what is open stays so until that is met."""
        resolve = rule.resolve
        if is_open and resolve is not None and resolve.manual:
            return True
        if is_open and resolve is not None and resolve.has_threshold:
            return not resolve.met(value)
        return self.breached(value)

    @property
    def needs(self) -> str:
        bounds = ((">", self.gt), (">=", self.gte), ("<", self.lt), ("<=", self.lte))
        return next(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)

    def in_words(self) -> str:
        return f"{self.metric} ({METRICS[self.metric][0]}) {self.needs}"

    def explain(self, rule: Any, given: Given) -> Explanation:
        """There is no past to judge: only the alerts that it raised say what it measured."""
        said = f"{self.metric} is measured once a second and not kept; alerts say when it was {self.needs}"
        return Explanation(state="unknown", missing=(said,), needs=self.needs, until=given.now)
