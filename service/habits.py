"""A source's habit: how long it is usually silent, and whether what it sends comes late. Pure; takes `now`.

Silence is judged against the second largest of the daily largest gaps of two weeks: nights and weekends are in it twice,
an incident only once, so that one outage does not teach us that silence is normal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any

HABIT_DAYS = 14
EVENTS_MIN, HISTORY_MIN = 20, timedelta(hours=24)  # before that, a source has no habit yet
SILENCE_TIMES, SILENCE_MIN = 4.0, timedelta(minutes=15)
LATE_SECONDS = 30.0
LATE_OVER_AFTER = timedelta(minutes=10)
PROVIDER_RETRIES = timedelta(minutes=22)  # the provider's own attempts end then, by its documentation
AHEAD_MAX = timedelta(seconds=5)  # further ahead of the clock is no reading of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Habit:
    """`gaps`: for each day the largest gap, in seconds, that ended on it. `late_*`: the last event that came late, and by
    how much; `late_break_*` the same of disconnections and failed refreshes."""

    source: str
    first_at: datetime
    last_at: datetime
    events: int = 0
    gaps: Mapping[date, float] = field(default_factory=dict)
    late_at: datetime | None = None
    late_seconds: float | None = None
    late_break_at: datetime | None = None
    late_break_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What the log newly holds of one source: webhooks, by `received_at`. `gaps` are those between them, as in Habit."""

    source: str
    events: int
    first_at: datetime
    last_at: datetime
    gaps: Mapping[date, float] = field(default_factory=dict)
    late_at: datetime | None = None
    late_seconds: float | None = None
    late_break_at: datetime | None = None
    late_break_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Down:
    """Our own last outage, during which a source could not be heard."""

    since: datetime
    until: datetime


def learn(habit: Habit | None, heard: Heard, down: Down | None) -> Habit:
    """A gap that our own outage is part of teaches nothing about the source."""
    if habit is None:
        habit = Habit(source=heard.source, first_at=heard.first_at, last_at=heard.first_at)
    gaps = dict(habit.gaps)
    between = dict(heard.gaps)
    seconds = (heard.first_at - habit.last_at).total_seconds()
    ours = down is not None and habit.last_at <= down.until and heard.first_at >= down.since
    if seconds > 0 and not ours:
        day = heard.first_at.date()
        between[day] = max(between.get(day, 0.0), seconds)
    for day, gap in between.items():
        gaps[day] = max(gaps.get(day, 0.0), gap)
    oldest = heard.last_at.date() - timedelta(days=HABIT_DAYS)
    habit = replace(
        habit,
        last_at=max(habit.last_at, heard.last_at),
        events=habit.events + heard.events,
        gaps={day: gap for day, gap in gaps.items() if day > oldest},
    )
    if heard.late_at is not None:
        habit = replace(habit, late_at=heard.late_at, late_seconds=heard.late_seconds)
    if heard.late_break_at is not None:
        habit = replace(habit, late_break_at=heard.late_break_at, late_break_seconds=heard.late_break_seconds)
    return habit


def righted(habit: Habit, now: datetime) -> Habit:
    """The same habit unless it was learnt from a clock that ran ahead and was put right: until real time came to there,
    the source would be taken for heard, and late, whatever it does."""
    ahead: dict[str, Any] = {
        name: now
        for name in ("first_at", "last_at", "late_at", "late_break_at")
        if (at := getattr(habit, name)) is not None and at > now + AHEAD_MAX
    }
    return replace(habit, **ahead) if ahead else habit


def usual_gap(habit: Habit) -> timedelta | None:
    """None while too little is known."""
    if habit.events < EVENTS_MIN or habit.last_at - habit.first_at < HISTORY_MIN or not habit.gaps:
        return None
    largest = sorted(habit.gaps.values(), reverse=True)
    return timedelta(seconds=largest[1] if len(largest) >= 3 else largest[0])


def silent_since(habit: Habit, down: Down | None, now: datetime) -> datetime | None:
    """The last we heard of a source that is silent for far longer than it usually is; None while it is not."""
    usual = usual_gap(habit)
    if usual is None:
        return None
    # While we were down nobody could be heard: the wait begins when we came back.
    since = max(habit.last_at, down.until) if down is not None else habit.last_at
    return habit.last_at if now - since > max(usual * SILENCE_TIMES, SILENCE_MIN) else None


def silence_beyond_seconds(habit: Habit, down: Down | None, now: datetime) -> float:
    """How much longer than usual a silent source has been silent; 0 while it is not far longer."""
    usual = usual_gap(habit)
    if usual is None or silent_since(habit, down, now) is None:
        return 0.0
    since = max(habit.last_at, down.until) if down is not None else habit.last_at
    return (now - since - usual).total_seconds()


def is_late(last_late_at: datetime | None, now: datetime) -> bool:
    return last_late_at is not None and now - last_late_at < LATE_OVER_AFTER
