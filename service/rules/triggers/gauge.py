"""`gauge`: something we measure ourselves, once a second, stands too high or too low.

What is measured is read and judged in the same instant (`workers/gauges.py`): there is no past to be told again.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import field_validator, model_validator

from service.habits import LATE_SECONDS
from service.rules.explaining import Explanation
from service.rules.fields import Number
from service.rules.given import Given
from service.rules.mistake import Mistake, nearest, quoted
from service.rules.triggers.base import Condition

# name -> (what it is, the labels of its series); `workers/gauges.py` measures each. A series has at most one label.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "delivery_lag_seconds": (
        "by how much the last late events of a source came late; 0 once none was late for ten minutes",
        ("source",),
    ),
    "break_delivery_lag_seconds": (
        "the same of disconnections and refresh failures, which matter most and are not in delivery_lag_seconds",
        ("source",),
    ),
    "source_silence_seconds": (
        "how much longer than usual a source has been silent; 0 until it is far longer",
        ("source",),
    ),
    "evaluator_lag_seconds": ("age of the oldest event that no rule has judged yet", ()),
    "actions_lag_seconds": ("age of the oldest pause or resume an orchestrator was not told yet", ("destination",)),
    "notifier_lag_seconds": ("age of the oldest message that a notifier did not take yet", ("notifier",)),
    "sink_lag_seconds": ("age of the oldest event a sink has not taken yet", ("sink",)),
    "sink_lag_items": ("about how many rows of the log a sink has not passed yet", ("sink",)),
    "sink_poison_items": ("items that a sink refused for good and that were put aside in the last hour", ("sink",)),
    "siem_poller_silence_seconds": (
        "how long a token that asked GET /v1/siem/events regularly has not; 0 until that is far longer than usual",
        ("token",),
    ),
    "tool_call_success_rate": (
        "reported tool calls of an account that succeeded, over all of the last five minutes; read once two have failed",
        ("account_id",),
    ),
    "refresh_success_rate": (
        "token refreshes at a provider that succeeded, over all of the last 15 minutes; read from five of them on",
        ("provider",),
    ),
    "refresh_p99_seconds": (
        "what the slowest hundredth of a provider's reported refreshes took in the last 15 minutes; read from 20 on",
        ("provider",),
    ),
}
# What comes sooner than this is in time and reads as 0: a lower threshold would never be met, and look as if all were well.
FROM_SECONDS = {"delivery_lag_seconds": LATE_SECONDS, "break_delivery_lag_seconds": LATE_SECONDS}


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
            raise Mistake(f"unknown metric {quoted(value)}", nearest(value, tuple(METRICS)))
        return value

    @model_validator(mode="after")
    def has_one_threshold(self) -> Self:
        if sum(1 for bound in (self.gt, self.gte, self.lt, self.lte) if bound is not None) != 1:
            raise Mistake("a gauge has one threshold", "write one of gt, gte, lt, lte")
        return self

    @model_validator(mode="after")
    def can_be_reached(self) -> Self:
        least = FROM_SECONDS.get(self.metric)
        for name, bound in (("gt", self.gt), ("gte", self.gte)):
            if least is not None and bound is not None and bound < least:
                message = f"{self.metric} is known from {least:g} s on"
                raise Mistake(message, f"write {name}: {least:g} or more", path=(name,))
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

    @property
    def looks_up(self) -> bool:
        """Whether large values are the bad ones; of several series in one group the worst speaks."""
        return self.gt is not None or self.gte is not None

    def holds(self, rule: Any, value: float, *, is_open: bool, by_hand: bool = False) -> bool:
        """With a threshold in `resolve`, what is open stays so until that is met. `by_hand`: a person has resolved it."""
        resolve = rule.resolve
        if is_open and resolve is not None:
            if resolve.manual and not by_hand:
                return True
            if resolve.has_threshold:
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
