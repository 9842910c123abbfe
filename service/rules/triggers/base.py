"""What a condition promises: its YAML shape, which events concern it, and a pure judgement of what they say.

A condition file holds one model, `Condition`'s child, and one line in `__init__.py`. `sample` turns one event into what
the condition counts; `judge` folds the samples of one group, in event time, into episodes. Neither does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

from service.rules.explaining import Explanation, Found, conclude
from service.rules.fields import Strict
from service.rules.given import Given, Judged, Sample
from service.rules.match import Matcher
from service.rules.story import Step

ZERO = timedelta(0)


class Condition(Strict):
    """`NAME` is its key in YAML. `RESOLVES`: the keys of `resolve` it understands. `STORED`: its samples of a group are
    kept by the bucket, because they are too many to be read again from the log."""

    NAME: ClassVar[str]
    RESOLVES: ClassVar[frozenset[str]] = frozenset()
    STORED: ClassVar[bool] = False
    THRESHOLDS: ClassVar[frozenset[str]] = frozenset()  # what may change while its samples stay what they are
    GROUPS: ClassVar[bool] = True  # whether it may group by something else than the account

    @property
    def lookback(self) -> timedelta:
        """How far before an instant the samples lie that decide what holds at it."""
        return ZERO

    @property
    def events_needed(self) -> int:
        """How many events at least it takes for it to hold."""
        return 0

    def roles(self) -> Mapping[str, Matcher]:
        """Which events concern it. One event may play several roles; they are taken in this order."""
        return {}

    def sample(self, role: str, step: Step) -> Sample | None:
        """None where the event matches and yet says nothing, such as a value that is missing."""
        return Sample(step.event.occurred_at, role, step.event.id)

    def value_of(self, step: Step) -> str | None:
        """What is counted apart, where the condition counts different values."""
        return None

    def worse(self, one: float, other: float) -> float:
        """Which of two values an alert shows."""
        return max(one, other)

    def judge(self, rule: Any, given: Given) -> Judged:
        raise NotImplementedError

    def in_words(self) -> str:
        """The condition as an admin would say it aloud."""
        return self.NAME

    def find(self, rule: Any, given: Given, judged: Judged) -> Found:
        """What there is at `given.now`, and what is missing for it to hold then."""
        return Found(known=False, missing=(f"{self.NAME} does not say what it misses",))

    def explain(self, rule: Any, given: Given) -> Explanation:
        """Of one group at `given.now`, with all that was told of it up to then."""
        judged = rule.judge(given)
        return conclude(rule, given, judged, self.find(rule, given, judged))
