"""`count`: so many matching events within a window, or so many accounts that have them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

from pydantic import Field, field_validator

from service.rules.explaining import Found, length, many, matches_words, when
from service.rules.fields import Matches, Window
from service.rules.given import Given, Judged, Sample
from service.rules.latch import FLAPPING_QUIET, Latch, in_order
from service.rules.match import Matcher, check_field, compile_matches, reader
from service.rules.story import Step
from service.rules.triggers.base import Condition

GTE_MAX = 10_000
INSTANT = timedelta(microseconds=1)  # the database knows none that is shorter


class Count(Condition):
    """`gte` events that match, no two of them further apart than `within`.

    With `distinct`, so many different values of that field, such as `account_id`, each counted once.
    """

    NAME: ClassVar[str] = "count"
    RESOLVES: ClassVar[frozenset[str]] = frozenset({"event", "after", "manual"})
    THRESHOLDS: ClassVar[frozenset[str]] = frozenset({"gte", "within"})

    match: Matches
    within: Window
    gte: int = Field(ge=1, le=GTE_MAX, strict=True)
    distinct: str | None = None

    @field_validator("match")
    @classmethod
    def can_match(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        compile_matches(value)
        return value

    @field_validator("distinct")
    @classmethod
    def is_a_field(cls, value: str | None) -> str | None:
        if value is not None:
            check_field(value)
        return value

    @property
    def lookback(self) -> timedelta:
        return self.within

    @property
    def events_needed(self) -> int:
        return self.gte

    @cached_property
    def matcher(self) -> Matcher:
        return compile_matches(self.match)

    def roles(self) -> Mapping[str, Matcher]:
        return {"match": self.matcher}

    def sample(self, role: str, step: Step) -> Sample | None:
        return Sample(step.event.occurred_at, role, step.event.id, distinct=self.value_of(step))

    def value_of(self, step: Step) -> str | None:
        if self.distinct is None:
            return None
        value = self._read(step)
        return None if value is None else str(value)

    @cached_property
    def _read(self) -> Any:
        return reader(self.distinct or "account_id")

    def judge(self, rule: Any, given: Given) -> Judged:
        """With `resolve` only what it says ends an episode: a paused agent makes no more failures, and silence is not
        recovery. Without it, it ends when too few are left in the window."""
        latch = Latch(given, for_=rule.for_, keep=rule.keep_firing_for)
        resolve = rule.resolve
        window: OrderedDict[str, datetime] = OrderedDict()  # what is counted, and when last; oldest first
        newest: dict[str, str] = {}  # the event by which each was counted last
        last: datetime | None = None
        filling = True
        # What might have ended an open episode before was judged when it came, and of its window not all is in sight any
        # more; it has a say only where the end of what flaps may still wait.
        quiet = max(rule.keep_firing_for, FLAPPING_QUIET)
        settled_before = None if given.open_since is None else given.judge_from - quiet
        for sample in in_order(given.samples):
            at = sample.at
            if filling and at >= given.judge_from:
                filling = False
                self._catch_up(latch, window, resolve, last, given.judge_from)
            self._expire(latch, window, resolve, last, at)
            if sample.role == "resolve":
                last = None if self.distinct is None else last
                if self.distinct is None:
                    window.clear()
                else:
                    # What has left the window counts no longer, whether or not it is remembered here.
                    self._slide(window, at)
                    if sample.distinct is not None:
                        window.pop(sample.distinct, None)
                if len(window) < self.gte and (settled_before is None or at >= settled_before):
                    latch.end(at, "recovered")
                continue
            name = sample.id if self.distinct is None else sample.distinct
            if name is None:
                continue
            fresh = not latch.holds
            window[name], newest[name] = at, sample.id
            last = at
            window.move_to_end(name)
            self._slide(window, at)
            if len(window) >= self.gte:
                evidence = tuple(newest[one] for one in window) if fresh else (sample.id,)
                latch.true(at, float(len(window)), evidence, sample.id)
        if filling:
            self._catch_up(latch, window, resolve, last, given.judge_from)
        until = self._expire(latch, window, resolve, last, given.now, inclusive=True)
        episodes, wake = latch.finish()
        if latch.holds and until is not None:
            # The window's last instant belongs to it, so that its end is seen only after it.
            ends = until if resolve is not None else until + max(rule.keep_firing_for, INSTANT)
            wake = ends if wake is None else min(wake, ends)
        self._slide(window, given.now)
        if resolve is not None and resolve.after is not None and last is not None and last + resolve.after <= given.now:
            window.clear()  # it has been quiet: nothing is under way
        return Judged(episodes, wake, value=float(len(window)))

    def _slide(self, window: OrderedDict[str, datetime], at: datetime) -> None:
        while window and at - next(iter(window.values())) > self.within:
            window.popitem(last=False)

    def _until(self, window: OrderedDict[str, datetime]) -> datetime | None:
        """The last instant at which as many as needed are still in the window, if no more come."""
        if len(window) < self.gte:
            return None
        return next(islice(reversed(window.values()), self.gte - 1, None)) + self.within

    def _expire(
        self,
        latch: Latch,
        window: OrderedDict[str, datetime],
        resolve: Any,
        last: datetime | None,
        at: datetime,
        *,
        inclusive: bool = False,
    ) -> datetime | None:
        """Tells what ended by time before `at` (a quiet time at `at` itself, once all that happened then is known); when the
        next such end would be."""
        if not latch.holds:
            return None
        if resolve is not None:
            if resolve.after is None or last is None:
                return None
            quiet: datetime = last + resolve.after
            if quiet < at or (inclusive and quiet == at):
                latch.end(quiet, "quiet")
            return quiet
        until = self._until(window)
        if until is not None and until < at:
            latch.false(until, "subsided", last=True)
        return until

    def _catch_up(
        self, latch: Latch, window: OrderedDict[str, datetime], resolve: Any, last: datetime | None, at: datetime
    ) -> None:
        """What was open and of which too little is in sight ended while nobody looked."""
        self._expire(latch, window, resolve, last, at)
        if not latch.holds:
            return
        if resolve is None and self._until(window) is None:
            latch.false(at, "subsided")
        elif resolve is not None and resolve.after is not None and last is None:
            latch.end(at, "quiet")

    def in_words(self) -> str:
        what = "events" if self.distinct is None else f"different values of {self.distinct} among events"
        return f"{self.gte} {what} with {matches_words(self.match)} within {length(self.within)}"

    def find(self, rule: Any, given: Given, judged: Judged) -> Found:
        counted: OrderedDict[str, Sample] = OrderedDict()  # since the window was last emptied, oldest first
        emptied: Sample | None = None
        emptied_of = 0
        for sample in given.samples:
            name = sample.id if self.distinct is None else sample.distinct
            if sample.role != "resolve":
                if name is not None:
                    counted[name] = sample
                    counted.move_to_end(name)
            elif self.distinct is None:
                recent = sum(1 for one in counted.values() if sample.at - one.at <= self.within)
                emptied, emptied_of = (sample, recent) if recent or emptied is None else (emptied, emptied_of)
                counted.clear()
            elif name is not None:
                counted.pop(name, None)
        since = given.now - self.within
        inside = [sample for sample in counted.values() if sample.at >= since]
        count = len(inside)
        what = "matching events" if self.distinct is None else f"different {self.distinct}"
        said = f"{count} of {self.gte} {what} within {length(self.within)}"
        missing = [] if count >= self.gte else [said]
        if missing and emptied is not None and emptied_of and emptied.at >= since:
            missing.append(f"a success at {when(emptied.at)} emptied the window of {many(emptied_of, 'event')}")
        if missing and not inside and counted:
            missing.append(f"the last match was at {when(next(reversed(counted.values())).at)}")
        elif missing and not given.samples:
            missing.append(f"no event matched: {matches_words(self.match)}")
        return Found(
            true=count >= self.gte,
            because=(said,) if count >= self.gte else (),
            missing=tuple(missing),
            value=float(count),
            needs=f">= {self.gte}",
            since=since,
            event_ids=tuple(sample.id for sample in inside),
        )
