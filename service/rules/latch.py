"""From when a condition was true to the episodes someone should know of: `for`, `keep_firing_for`, flapping. Pure.

A condition tells the latch the instants at which its truth changes, in order; every timer that runs out on the way is
honoured at its own instant, so that the same instants give the same episodes however late they are told.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from service.rules.given import EVIDENCE_MAX, Episode, Given

FLAPPING_WITHIN = timedelta(minutes=15)
FLAPPING_TRANSITIONS = 4  # more than these opens and ends within that time, and it flaps
FLAPPING_QUIET = timedelta(minutes=5)


class Latch:
    def __init__(self, given: Given, *, for_: timedelta, keep: timedelta) -> None:
        self._given, self._for, self._keep = given, for_, keep
        self._done: list[Episode] = []
        self._current: Episode | None = None
        self._true_since: datetime | None = None
        self._cause: tuple[str, ...] = ()
        self._value = 0.0
        self._trigger: str | None = None
        self._ending: tuple[datetime, str] | None = None
        self._sealed = False
        self._transitions = [at for at in given.recent if at < given.judge_from]

    @property
    def holds(self) -> bool:
        """Whether the condition, as last told, is true; an episode that was open before has not been told false."""
        if not self._sealed and self._given.open_since is not None and self._ending is None:
            return True
        return self._true_since is not None or (self._current is not None and self._ending is None)

    @property
    def is_open(self) -> bool:
        return self._current is not None

    def true(self, at: datetime, value: float, evidence: tuple[str, ...] = (), trigger: str | None = None) -> None:
        """True from `at` on, or still true and told again because something was added."""
        self._come_to(at)
        self._ending = None
        if self._true_since is None:
            self._true_since, self._trigger, self._cause, self._value = at, trigger, (), value
        self._cause = (*self._cause, *(id_ for id_ in evidence if id_ not in self._cause))[-EVIDENCE_MAX:]
        self._value = max(self._value, value)
        if self._current is not None:
            self._note()

    def false(self, at: datetime, reason: str) -> None:
        """No longer true from `at` on; an open episode ends `keep_firing_for` later unless it becomes true again."""
        self._come_to(at)
        self._true_since = None
        if self._current is not None or not self._sealed:
            self._ending = self._ending or (at + self._quiet(), reason)

    def end(self, at: datetime, reason: str) -> None:
        """Something said that it is over: it ends at once, unless it flaps."""
        self._come_to(at)
        self._true_since = None
        if self._is_flapping():
            self._ending = (at + self._quiet(), reason)
        elif self._current is None:
            self._ending = None
        else:
            self._close(at, reason)

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

    def _come_to(self, at: datetime) -> None:
        if at >= self._given.judge_from:
            self._seal()
            self._run_out(at, inclusive=False)

    def _seal(self) -> None:
        """From here on it is judged; before, only what is true and since when was followed."""
        if self._sealed:
            return
        self._sealed = True
        if self._given.open_since is None:
            self._ending = None
            return
        self._current = Episode(opened_at=self._given.open_since, flapping=self._flaps())
        if self._true_since is not None:
            self._ending = None

    def _run_out(self, at: datetime, *, inclusive: bool) -> None:
        if self._ending is not None:
            when, reason = self._ending
            if when < at or (inclusive and when <= at):
                self._close(max(when, self._given.judge_from), reason)
        if self._current is None and self._true_since is not None:
            when = self._true_since + self._for
            if when < at or (inclusive and when <= at):
                self._open(max(when, self._given.judge_from))

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
        self._current = replace(
            self._current, evidence=evidence[-EVIDENCE_MAX:], value=max(self._current.value, self._value)
        )

    def _close(self, at: datetime, reason: str) -> None:
        self._ending = None
        if self._current is None:
            return
        self._transitions.append(at)
        self._done.append(replace(self._current, ended_at=at, end_reason=reason))
        self._current = None
        self._cause = ()

    def _quiet(self) -> timedelta:
        return max(self._keep, FLAPPING_QUIET) if self._is_flapping() else self._keep

    def _is_flapping(self) -> bool:
        """Of the open episode; also of one that was open before, while what is told is still from its time."""
        if self._current is None:
            return not self._sealed and self._given.open_since is not None and self._flaps()
        return self._current.flapping

    def _flaps(self) -> bool:
        if not self._transitions:
            return False
        last = self._transitions[-1]
        return sum(1 for at in self._transitions if at > last - FLAPPING_WITHIN) > FLAPPING_TRANSITIONS
