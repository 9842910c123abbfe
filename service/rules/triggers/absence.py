"""`absence`: something should have come by a deadline, and has not. The deadline is an instant that is stored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from service.event import YEAR_MAX, YEAR_MIN
from service.rules.explaining import Found, length, matches_words, seconds, when
from service.rules.fields import MATCHES_MAX, Duration, Match, Matches, Window, one_or_many
from service.rules.given import Armed, Given, Judged, Sample
from service.rules.latch import Latch, in_order
from service.rules.match import Matcher, check_field, compile_matches, reader
from service.rules.mistake import Mistake, quoted
from service.rules.story import Step
from service.rules.triggers.base import ZERO, Condition

ANSWER = ("expect", "unless")


class Absence(Condition):
    """`after` such an event, `expect` one of those within `within`, or by the `deadline` that the event itself names, and
    `grace` on top. `unless` calls it off.

    While one waits, another `after` changes nothing with `within`: the first one counts. With `deadline` the newest says
    when.
    """

    NAME: ClassVar[str] = "absence"
    RESOLVES: ClassVar[frozenset[str]] = frozenset({"manual"})
    GROUPS: ClassVar[bool] = False

    after: Matches
    expect: Matches
    unless: Annotated[list[Match], BeforeValidator(one_or_many), Field(max_length=MATCHES_MAX)] = Field(
        default_factory=list
    )
    within: Window | None = None
    deadline: str | None = Field(None, max_length=80)
    grace: Duration = ZERO

    @field_validator("after", "expect", "unless")
    @classmethod
    def can_match(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if value:
            compile_matches(value)
        return value

    @model_validator(mode="after")
    def has_one_deadline(self) -> Self:
        if (self.within is None) == (self.deadline is None):
            message = "an absence has one deadline"
            raise Mistake(message, "write within (a duration) or deadline (a field that holds a time), one of them")
        if self.deadline is not None and not self.deadline.startswith("details."):
            message = f"deadline names a field that holds a time, which {quoted(self.deadline)} does not"
            raise Mistake(message, "write one such as details.token_expires_at", path=("deadline",))
        if self.deadline is not None:
            check_field(self.deadline, path=("deadline",))
        return self

    @property
    def lookback(self) -> timedelta:
        return (self.within or ZERO) + self.grace

    @cached_property
    def _matchers(self) -> Mapping[str, Matcher]:
        roles = {"expect": compile_matches(self.expect), "after": compile_matches(self.after)}
        return {"unless": compile_matches(self.unless), **roles} if self.unless else roles

    def roles(self) -> Mapping[str, Matcher]:
        return self._matchers

    @cached_property
    def _deadline(self) -> Any:
        return reader(self.deadline or "details.none")

    def sample(self, role: str, step: Step) -> Sample | None:
        at = step.event.occurred_at
        if role in ANSWER:
            return Sample(at, role, step.event.id)
        if self.within is not None:
            return Sample(at, role, step.event.id, due=at + self.within + self.grace)
        promised = read_instant(self._deadline(step))
        if promised is None or promised < at:
            return None  # it named no time, or one that had passed when it was said
        return Sample(at, role, step.event.id, due=promised + self.grace)

    def step(self, armed: Armed | None, sample: Sample) -> Armed | None:
        """What waits after this sample; the deadline before it has not passed."""
        if sample.role in ANSWER:
            return None
        assert sample.due is not None
        if armed is not None and self.within is not None:
            return armed
        return Armed(sample.at, sample.id, sample.due)

    def judge(self, rule: Any, given: Given) -> Judged:
        latch = Latch(given, for_=rule.for_, keep=rule.keep_firing_for)
        manual = rule.resolve is not None and rule.resolve.manual
        armed = given.armed
        for sample in in_order(given.samples):
            missed = (armed is not None and armed.due < sample.at) or (
                armed is None and latch.holds and latch.open_at(sample.at)
            )
            if armed is not None and armed.due < sample.at:
                latch.true(armed.due, 1.0, (armed.id,), armed.id)
            if missed and not manual:
                if sample.role == "unless":
                    latch.end(sample.at, "called_off")
                elif sample.role == "expect" or self.deadline is not None:
                    latch.false(sample.at, "recovered")
            if missed and self.within is not None and sample.role == "after":
                continue  # it is still missing; a further `after` does not make it wait anew
            armed = self.step(armed, sample)
        if armed is not None and armed.due <= given.now:
            latch.true(armed.due, 1.0, (armed.id,), armed.id)
        episodes, wake = latch.finish()
        if armed is not None and armed.due > given.now:
            wake = armed.due if wake is None else min(wake, armed.due)
        return Judged(episodes, wake, armed, 1.0 if latch.holds else 0.0)

    def in_words(self) -> str:
        by = f"within {length(self.within)}" if self.within is not None else f"by {self.deadline}"
        grace = f" and {length(self.grace)} of grace" if self.grace else ""
        off = f", unless one with {matches_words(self.unless)} calls it off" if self.unless else ""
        return (
            f"after an event with {matches_words(self.after)}, none with {matches_words(self.expect)} {by}{grace}{off}"
        )

    def find(self, rule: Any, given: Given, judged: Judged) -> Found:
        armed = judged.armed
        if armed is not None:
            base: dict[str, Any] = {
                "since": armed.at,
                "event_ids": (armed.id,),
                "needs": f"nothing until {when(armed.due)}",
            }
            began = f"armed by an event at {when(armed.at)}"
            if armed.due <= given.now:
                return Found(
                    true=True, value=1.0, because=(began, f"deadline {when(armed.due)} passed with nothing"), **base
                )
            left = f"deadline {when(armed.due)} not passed, {seconds(armed.due - given.now)} to go"
            return Found(value=0.0, because=(began,), missing=(left,), **base)
        last = given.samples[-1] if given.samples else None
        if last is not None and last.role in ANSWER:
            said = "the expected event came" if last.role == "expect" else "an event called it off"
            return Found(
                value=0.0, missing=(f"{said} at {when(last.at)}, and nothing has armed it since",), event_ids=(last.id,)
            )
        after = self._matchers["after"]
        unread = next((step for step in reversed(given.steps) if after.test(step)), None)
        if unread is not None:
            at = when(unread.event.occurred_at)
            said = f"the event at {at} names no {self.deadline}, or a time that had passed when it was said"
            return Found(known=False, missing=(said,), event_ids=(unread.event.id,))
        return Found(missing=(f"nothing armed it: no event with {matches_words(self.after)}",))


def read_instant(value: Any) -> datetime | None:
    """RFC 3339 as providers write it; None for anything else, and for times no token can have."""
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    if at.tzinfo is None or not YEAR_MIN <= at.year < YEAR_MAX:
        return None
    return at.astimezone(UTC)
