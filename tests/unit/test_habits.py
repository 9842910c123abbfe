"""A source's habit: what counts as silence, what as late. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from service.habits import Down, Habit, Heard, is_late, learn, righted, silent_since, usual_gap

START = datetime(2026, 11, 2, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def heard(at: datetime, *, events: int = 1, last: datetime | None = None, gap: float = 0.0) -> Heard:
    return Heard(source="s", events=events, first_at=at, last_at=last or at, gaps={at.date(): gap} if gap else {})


def regular(days: float, every: timedelta, *, down: Down | None = None, start: datetime = START) -> Habit:
    habit, at = None, start
    while at <= start + days * DAY:
        habit = learn(habit, heard(at), down)
        at += every
    assert habit is not None
    return habit


def test_too_little_is_no_habit() -> None:
    assert usual_gap(regular(0.9, HOUR / 4)) is None  # not a day yet
    assert usual_gap(regular(10, DAY)) is None  # too few events
    assert usual_gap(regular(2, HOUR)) == HOUR


def test_silent_for_more_than_four_times_its_habit() -> None:
    habit = regular(3, HOUR)
    assert silent_since(habit, None, habit.last_at + 4 * HOUR) is None
    assert silent_since(habit, None, habit.last_at + 4 * HOUR + MINUTE) == habit.last_at


def test_a_busy_source_is_given_a_quarter_of_an_hour() -> None:
    habit = regular(2, 2 * MINUTE)
    assert silent_since(habit, None, habit.last_at + 15 * MINUTE) is None
    assert silent_since(habit, None, habit.last_at + 16 * MINUTE) is not None


def test_nights_are_a_habit_and_one_incident_is_not() -> None:
    habit = None
    for day in range(5):
        for hour in range(8, 20):
            habit = learn(habit, heard(START + day * DAY + hour * HOUR), None)
    assert habit is not None
    assert usual_gap(habit) == 13 * HOUR
    incident = learn(habit, heard(habit.last_at + 40 * HOUR), None)
    assert usual_gap(incident) == 13 * HOUR


def test_what_was_two_weeks_ago_is_forgotten() -> None:
    habit = learn(regular(2, 6 * HOUR), heard(START + 3 * DAY, events=20), None)
    assert max(habit.gaps.values()) == DAY.total_seconds()
    habit = learn(habit, heard(START + 20 * DAY, last=START + 20 * DAY + HOUR, gap=60.0), None)
    assert list(habit.gaps) == [(START + 20 * DAY).date()]


def test_our_own_outage_is_neither_learnt_nor_held_against_the_source() -> None:
    habit = regular(3, HOUR)
    down = Down(habit.last_at + 10 * MINUTE, habit.last_at + 10 * HOUR)
    assert silent_since(habit, down, down.until + HOUR) is None
    assert silent_since(habit, down, down.until + 5 * HOUR) == habit.last_at
    after = learn(habit, heard(down.until + MINUTE), down)
    assert max(after.gaps.values()) == HOUR.total_seconds()
    # An outage long over excuses nothing.
    later = learn(after, heard(after.last_at + 2 * HOUR), down)
    assert max(later.gaps.values()) == (2 * HOUR).total_seconds()


def test_late_is_over_after_ten_minutes_without_it() -> None:
    assert not is_late(None, START)
    assert is_late(START, START + 9 * MINUTE)
    assert not is_late(START, START + 10 * MINUTE)


def test_a_habit_of_a_clock_that_ran_ahead_is_put_right_with_it() -> None:
    habit = regular(3, HOUR)
    now = habit.last_at
    assert righted(habit, now) is habit
    ahead = learn(habit, Heard(source="s", events=1, first_at=now + DAY, last_at=now + DAY, late_at=now + DAY), None)
    right = righted(ahead, now)
    assert (right.last_at, right.late_at, right.first_at) == (now, now, habit.first_at)
    assert silent_since(ahead, None, now + 5 * HOUR) is None, "blind until real time comes to there"
    assert silent_since(right, None, now + 5 * HOUR) == now
