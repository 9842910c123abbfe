"""The config file's sections of routing, in Alertmanager's words. Pure: what they mean is in `tree.py` and its neighbours.

Where ours differ: a receiver names notifiers of the `notifiers` section instead of carrying its own integrations;
`escalate` and recurring silences are not Alertmanager's; `group_wait` is 0 s and `group_interval` 30 s when not given,
because an alert is to be heard within 30 s of its event; and who gives no `group_by` has one group a rule and connection.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, field_validator, model_validator

from service.routing.intervals import INTERVALS_MAX, TimeInterval
from service.routing.matchers import LABEL, BadMatcher, Matcher, read_matchers
from service.strict import Strict

ROUTES_MAX = 500
ROUTE_DEPTH_MAX = 20
RECEIVERS_MAX = 500
RULES_MAX = 200
GROUP_BY_MAX = 20
ESCALATIONS_MAX = 5
EVERY_LABEL = "..."
DURATION = re.compile(r"(?:(\d{1,4})w)?(?:(\d{1,5})d)?(?:(\d{1,6})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?(?:(\d{1,9})ms)?")
DURATION_UNITS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds")
DURATION_MAX = timedelta(days=366)


def duration(given: Any) -> timedelta:
    """As Prometheus writes durations: 30s, 5m, 1h30m, 2d, 1w, or 0."""
    if isinstance(given, timedelta):
        return given
    if given == "0" or (given == 0 and not isinstance(given, bool)):
        return timedelta(0)
    found = DURATION.fullmatch(given) if isinstance(given, str) and given else None
    if found is None:
        raise ValueError("write a duration such as 30s, 5m, 1h30m or 2d")
    said = timedelta(**{unit: int(part) for unit, part in zip(DURATION_UNITS, found.groups(), strict=True) if part})
    if said > DURATION_MAX:
        raise ValueError("longer than a year")
    return said


def more_than_nothing(given: timedelta) -> timedelta:
    if not given:
        raise ValueError("must be more than 0")
    return given


def some_matchers(given: Any) -> tuple[Matcher, ...]:
    try:
        return read_matchers(given)
    except BadMatcher as exc:
        raise ValueError(str(exc)) from None


def not_everything(given: tuple[Matcher, ...]) -> tuple[Matcher, ...]:
    """As Alertmanager: a silence of all that has no label at all would be a silence of everything."""
    if not given or all(matcher.matches({}) for matcher in given):
        raise ValueError("it matches every alert; one matcher at least must ask for a value")
    return given


Duration = Annotated[timedelta, BeforeValidator(duration)]
Interval = Annotated[Duration, AfterValidator(more_than_nothing)]
Matchers = Annotated[tuple[InstanceOf[Matcher], ...], BeforeValidator(some_matchers)]
SomeMatchers = Annotated[Matchers, AfterValidator(not_everything)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Names = Annotated[tuple[Name, ...], Field(max_length=INTERVALS_MAX)]


class Escalate(Strict):
    """Once nobody has acknowledged it for `after`, receiver `to` hears of it too."""

    after: Interval
    to: Name
    unless: Literal["acknowledged", "acked"] = "acknowledged"


class Route(Strict):
    """A node of the tree. What is not given is the parent's, save `continue` and the time intervals."""

    receiver: Name | None = None
    matchers: Matchers = ()
    group_by: tuple[str, ...] | None = Field(None, max_length=GROUP_BY_MAX)
    group_wait: Duration | None = None
    group_interval: Interval | None = None
    repeat_interval: Interval | None = None
    mute_time_intervals: Names = ()
    active_time_intervals: Names = ()
    escalate: tuple[Escalate, ...] | None = Field(None, max_length=ESCALATIONS_MAX)
    continue_: bool = Field(False, alias="continue")
    routes: tuple[Route, ...] = Field((), max_length=ROUTES_MAX)

    @field_validator("escalate", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return [given] if isinstance(given, dict) else given

    @field_validator("group_by")
    @classmethod
    def _labels(cls, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        names = given or ()
        if EVERY_LABEL in names and len(names) > 1:
            raise ValueError('"..." stands alone: it is every label')
        if len(set(names)) < len(names):
            raise ValueError("a label is named twice")
        for name in names:
            if name != EVERY_LABEL and LABEL.fullmatch(name) is None:
                raise ValueError(f'"{name[:60]}" is no name of a label')
        return given


class Receiver(Strict):
    """Whom a message goes to: notifiers by name; none at all is nobody. Not given: the notifier of its own name."""

    name: Name
    notifiers: tuple[Name, ...] | None = Field(None, max_length=RECEIVERS_MAX)


class InhibitRule(Strict):
    """While an alert that matches the source stands, those of the target with equal labels are not told."""

    source_matchers: Matchers = ()
    target_matchers: Matchers = ()
    equal: tuple[Name, ...] = Field((), max_length=GROUP_BY_MAX)


class DeclaredSilence(Strict):
    """A silence that lives in the config file instead of being posted: recurring, or until `end`."""

    matchers: SomeMatchers
    author: Name
    comment: Annotated[str, Field(min_length=1, max_length=1000)]
    start: datetime | None = None
    end: datetime | None = None
    time_intervals: Names = ()
    mutes_pauses: bool = False

    @field_validator("start", "end", mode="before")
    @classmethod
    def _text(cls, given: Any) -> Any:
        return datetime.fromisoformat(given) if isinstance(given, str) else given

    @field_validator("start", "end")
    @classmethod
    def _aware(cls, given: datetime | None) -> datetime | None:
        if given is not None and given.tzinfo is None:
            raise ValueError("needs an offset, such as Z")
        try:
            return given.astimezone(UTC) if given is not None else None
        except OverflowError:
            raise ValueError("is outside the years 1 to 9999") from None

    @model_validator(mode="after")
    def _ends(self) -> DeclaredSilence:
        if self.end is None and not self.time_intervals:
            raise ValueError("give an end, or the time_intervals in which it recurs")
        return self


class RoutingKeys(Strict):
    """The keys of the config file that are about routing."""

    route: Route | None = None
    receivers: tuple[Receiver, ...] = Field((), max_length=RECEIVERS_MAX)
    inhibit_rules: tuple[InhibitRule, ...] = Field((), max_length=RULES_MAX)
    time_intervals: tuple[TimeInterval, ...] = Field((), max_length=INTERVALS_MAX)
    silences: tuple[DeclaredSilence, ...] = Field((), max_length=RULES_MAX)
