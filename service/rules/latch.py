"""From when a condition was true to the episodes someone should know of: `for`, `keep_firing_for`, flapping. Pure.

A condition tells the latch the instants at which its truth changes, in order; every timer that runs out on the way is
honoured at its own instant, so that the same instants give the same episodes however late they are told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from service.rules.given import EVIDENCE_MAX, Episode, Given, Sample

FLAPPING_WITHIN = timedelta(minutes=15)
FLAPPING_TRANSITIONS = 4  # more than these opens and ends within that time, and it flaps
FLAPPING_QUIET = timedelta(minutes=5)
# Of samples at one instant, what says that it is well again counts first (contract.md, "Time").
RANK = {"resolve": 0, "unless": 0, "expect": 1}


def in_order(samples: Iterable[Sample]) -> list[Sample]:
    """By event time. Of one instant and rank they stay in the order of the story (`order_key`): ids tell how it arrived."""
    return sorted(samples, key=lambda sample: (sample.at, RANK.get(sample.role, 2)))


class Latch:
    """`worst`: which of two values an episode is remembered by."""

    def __init__(
        self, given: Given, *, for_: timedelta, keep: timedelta, worst: Callable[[float, float], float] = max
    ) -> None:
        self._given, self._for, self._keep, self._worst = given, for_, keep, worst
        self._done: list[Episode] = []
        self._current: Episode | None = None
        self._true_since: datetime | None = None
        self._cause: tuple[str, ...] = ()
        self._value = 0.0
        self._trigger: str | None = None
        self._ending: tuple[datetime, str] | None = None
        self._sealed = False
        self._transitions = sorted(at for at in given.recent if at < given.judge_from)
        if given.open_since is not None and given.open_since not in self._transitions:
            self._transitions = sorted((*self._transitions, given.open_since))
        self._held_flapping = given.open_since is not None and self._flaps()

    @property
    def holds(self) -> bool:
        """Whether the condition, as last told, is true; an episode that was open before has not been told false."""
        if not self._sealed and self._given.open_since is not None and self._ending is None:
            return True
        return self._true_since is not None or (self._current is not None and self._ending is None)

    def open_at(self, at: datetime) -> bool:
        """Whether an episode is open, at or after the last instant told; `for` has passed then."""
        self._come_to(at)
        if self._sealed:
            return self._current is not None
        return self._given.open_since is not None and self._given.open_since <= at

    def true(self, at: datetime, value: float, evidence: tuple[str, ...] = (), trigger: str | None = None) -> None:
        """True from `at` on, or still true and told again because something was added."""
        self._come_to(at)
        self._ending = None
        if self._true_since is None:
            self._true_since, self._trigger, self._cause, self._value = at, trigger, (), value
        self._cause = (*self._cause, *(id_ for id_ in evidence if id_ not in self._cause))[-EVIDENCE_MAX:]
        self._value = self._worst(self._value, value)
        if self._current is not None:
            self._note()

    def false(self, at: datetime, reason: str, *, last: bool = False) -> None:
        """No longer true from `at` on; an open episode ends `keep_firing_for` later unless it becomes true again. `last`:
        it was still true at `at` itself."""
        self._come_to(at, inclusive=last)
        self._true_since = None
        if self.open_at(at):
            self._ending = self._ending or (at + self._quiet(), reason)

    def end(self, at: datetime, reason: str) -> None:
        """Something said that it is over: it ends at once, unless it flaps."""
        self._come_to(at)
        self._true_since = None
        if not self.open_at(at):
            self._ending = None
        elif self._flapping:
            self._ending = self._ending or (at + self._quiet(), reason)
        elif self._sealed:
            self._close(at, reason)
        else:
            self._ending = (at, reason)

    def finish(self) -> tuple[tuple[Episode, ...], datetime | None]:
        """The episodes up to `now`, and when a timer runs out next."""
        now = self._given.now
        self._seal()
        self._run_out(now, inclusive=True)
        wake: datetime | None = None
        if self._current is None and self._true_since is not None:
            wake = self._true_since + self._for
        elif self._ending is not None:
            wake = self._ending[0]
        episodes = (*self._done, *([self._current] if self._current is not None else []))
        return episodes, wake

    # What follows keeps the order of instants: timers first, then what is told.

    def _come_to(self, at: datetime, *, inclusive: bool = False) -> None:
        if at >= self._given.judge_from:
            self._seal()
            self._run_out(at, inclusive=inclusive)

    def _seal(self) -> None:
        """From here on it is judged; before, only what is true and since when was followed."""
        if self._sealed:
            return
        self._sealed = True
        if self._given.open_since is None:
            self._ending = None
            return
        self._current = Episode(opened_at=self._given.open_since, flapping=self._held_flapping)
        if self._true_since is not None:
            self._ending = None

    def _run_out(self, at: datetime, *, inclusive: bool) -> None:
        """What ran out before `judge_from`, while nobody looked, did so at its own instant all the same."""
        if self._ending is not None:
            when, reason = self._ending
            if when < at or (inclusive and when <= at):
                self._close(when, reason)
        if self._current is None and self._true_since is not None:
            when = self._true_since + self._for
            if when < at or (inclusive and when <= at):
                self._open(when)

    def _open(self, at: datetime) -> None:
        self._transitions.append(at)
        self._current = Episode(
            opened_at=at,
            evidence=self._cause,
            value=self._value,
            trigger_event_id=self._trigger,
            flapping=self._flaps(),
        )

    def _note(self) -> None:
        assert self._current is not None
        evidence = (*self._current.evidence, *(id_ for id_ in self._cause if id_ not in self._current.evidence))
        known = bool(self._current.evidence or self._current.value)  # of what was open before, nothing is
        value = self._worst(self._current.value, self._value) if known else self._value
        self._current = replace(self._current, evidence=evidence[-EVIDENCE_MAX:], value=value)

    def _close(self, at: datetime, reason: str) -> None:
        self._ending = None
        if self._current is None:
            return
        self._transitions.append(at)
        self._done.append(replace(self._current, ended_at=at, end_reason=reason))
        self._current = None
        self._cause = ()

    @property
    def _flapping(self) -> bool:
        return self._current.flapping if self._current is not None else not self._sealed and self._held_flapping

    def _quiet(self) -> timedelta:
        return max(self._keep, FLAPPING_QUIET) if self._flapping else self._keep

    def _flaps(self) -> bool:
        if not self._transitions:
            return False
        last = self._transitions[-1]
        return sum(1 for at in self._transitions if at > last - FLAPPING_WITHIN) > FLAPPING_TRANSITIONS
