"""A gauge from reading to reading: `for`, `keep_firing_for`, thresholds, and that a restart in between changes nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.habits import LATE_SECONDS
from service.rules import Rule, load_text
from service.rules.gauging import Held, Turn, flaps, gauge_of, grouped, step
from service.rules.latch import FLAPPING_QUIET
from service.rules.triggers.gauge import METRICS
from workers.measure import MEASURES, OF_HABITS

BEGAN = datetime(2026, 11, 25, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def read(gauge: str = "{metric: sink_lag_seconds, gt: 10}", **more: str) -> tuple[Rule | None, list[str]]:
    keys = "".join(f"  {name.rstrip('_')}: {value}\n" for name, value in more.items())
    text = f"version: 1\nrules:\n- id: g\n  severity: P3\n  gauge: {gauge}\n{keys}  annotations: {{summary: s}}\n"
    loaded = load_text(text.encode(), "g.yml")
    return (loaded.rules[0] if loaded.rules else None), [problem.message for problem in loaded.problems]


def make_rule(gauge: str = "{metric: sink_lag_seconds, gt: 10}", **more: str) -> Rule:
    rule, problems = read(gauge, **more)
    assert rule is not None, problems
    return rule


def spans(rule: Rule, readings: list[tuple[float, float]], by_hand: float | None = None) -> list[tuple[float, float]]:
    """Episodes as (opened, ended) in seconds; an ended of infinity lasts."""
    held, found = Held(), list[tuple[float, float]]()
    for second, value in readings:
        person = held.is_open and by_hand is not None and second >= by_hand
        held, turn = step(rule, held, value, at(second), by_hand=person)
        if turn is not None:
            instant = (turn.at - BEGAN).total_seconds()
            if turn.opens:
                found.append((instant, float("inf")))
            else:
                found[-1] = (found[-1][0], instant)
    return found


LASTS = float("inf")


def test_every_metric_is_measured_and_has_at_most_one_label() -> None:
    """A group's key is its labels' values joined: unambiguous as long as there is one."""
    assert MEASURES.keys() == METRICS.keys()
    assert METRICS.keys() > OF_HABITS
    assert all(len(labels) <= 1 for _, labels in METRICS.values())


@pytest.mark.parametrize(
    ("bound", "bad", "good"), [("gt: 10", 10.1, 10), ("gte: 10", 10, 9.9), ("lt: 10", 9.9, 10), ("lte: 10", 10, 10.1)]
)
def test_a_threshold_means_what_it_says(bound: str, bad: float, good: float) -> None:
    rule = make_rule(f"{{metric: sink_lag_seconds, {bound}}}")
    assert spans(rule, [(0, good), (1, bad), (2, bad), (3, good)]) == [(1, 3)]


def test_for_counts_from_the_first_of_an_unbroken_row_of_readings() -> None:
    rule = make_rule(for_="10s")
    assert spans(rule, [(0, 11), (9, 11)]) == []
    assert spans(rule, [(0, 11), (5, 1), (6, 11), (15, 11)]) == []
    assert spans(rule, [(0, 11), (5, 12), (10, 11)]) == [(10, LASTS)]
    assert spans(rule, [(0, 11), (60, 11)]) == [(10, LASTS)], "nobody looked in between, and it held before and after"


def test_keep_firing_for_bridges_a_lull() -> None:
    rule = make_rule(keep_firing_for="10s")
    assert spans(rule, [(0, 11), (1, 1), (8, 11), (9, 1), (18, 1)]) == [(0, LASTS)]
    assert spans(rule, [(0, 11), (1, 1), (8, 11), (9, 1), (19, 1)]) == [(0, 19)]


def test_a_threshold_in_resolve_keeps_it_open_until_that_is_met() -> None:
    rule = make_rule(resolve="{lt: 5}")
    assert spans(rule, [(0, 7), (1, 11), (2, 7), (3, 5), (4, 4.9), (5, 7)]) == [(1, 4)]


def test_what_only_a_person_ends_stays_and_is_not_said_again_before_it_was_over() -> None:
    rule = make_rule(resolve="{manual: true}")
    story = [(0.0, 11.0), (1, 1), (2, 1), (3, 11), (4, 11), (5, 1), (6, 11)]
    assert spans(rule, story) == [(0, LASTS)]
    assert spans(rule, story[:4], by_hand=2) == [(0, 2), (3, LASTS)]
    assert spans(rule, story[:5], by_hand=3.5) == [(0, LASTS)]
    assert spans(rule, story[:6], by_hand=3.5) == [(0, 5)]


def test_a_persons_word_ends_nothing_that_is_still_true() -> None:
    assert spans(make_rule(), [(0, 11), (1, 11), (2, 11), (3, 1), (4, 11)], by_hand=1) == [(0, 3), (4, LASTS)]


def test_a_clock_that_was_put_back_is_not_waited_for() -> None:
    rule = make_rule(for_="10s")
    assert spans(rule, [(100, 11), (0, 11), (10, 11)]) == [(10, LASTS)]


def test_one_that_flaps_is_held_open_until_it_was_quiet() -> None:
    turns = [at(second) for second in (0, 1, 2, 3)]
    assert flaps(turns, at(4))
    assert not flaps(turns[:3], at(4))
    assert not flaps(turns, at(3600))
    held = Held(is_open=True, flapping=True)
    held, turn = step(make_rule(), held, 1, at(10))
    assert turn is None
    assert step(make_rule(), held, 1, at(10) + FLAPPING_QUIET) == (Held(), Turn(False, at(10) + FLAPPING_QUIET))


def test_series_that_differ_in_what_is_not_grouped_by_are_one_and_the_worst_speaks() -> None:
    readings: dict[tuple[str, ...], float] = {("a",): 3.0, ("b",): 12.0}
    assert grouped(make_rule(), readings) == {"a": ({"sink": "a"}, 3), "b": ({"sink": "b"}, 12)}
    assert grouped(make_rule(group_by="[]"), readings) == {"": ({}, 12)}
    assert grouped(make_rule("{metric: sink_lag_seconds, lt: 10}", group_by="[]"), readings) == {"": ({}, 3)}
    assert grouped(make_rule(group_by="[]"), {}) == {}


@pytest.mark.parametrize("metric", ["delivery_lag_seconds", "break_delivery_lag_seconds"])
def test_a_threshold_that_could_never_be_met_is_refused(metric: str) -> None:
    assert read(f"{{metric: {metric}, gt: {LATE_SECONDS}}}")[1] == []
    for bound in ("gt: 29.9", "gte: 5"):
        [said] = read(f"{{metric: {metric}, {bound}}}")[1]
        assert said.startswith(f"{metric} is known from 30 s on")


GAUGES = st.builds(
    lambda bound, wait, keep, ends: make_rule(
        f"{{metric: sink_lag_seconds, {bound}}}", for_=f"{wait}s", keep_firing_for=f"{keep}s", **ends
    ),
    st.sampled_from(["gt: 5", "gte: 5"]),
    st.integers(0, 8),
    st.integers(0, 8),
    st.sampled_from([dict[str, str](), {"resolve": "{lt: 3}"}, {"resolve": "{lte: 4}"}]),
)
# Readings come about once a second, and not at all while nobody looks.
STORIES = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), max_size=30).map(
    lambda steps: [(sum(gap for gap, _ in steps[: n + 1]), value) for n, (_, value) in enumerate(steps)]
)


@given(GAUGES, STORIES)
def test_it_is_what_a_slow_reading_of_the_whole_past_says(rule: Rule, story: list[tuple[int, int]]) -> None:
    """For each reading: the row of like readings up to it, since the last turn, is long enough or it is not."""
    expected: list[tuple[float, float]] = []
    last = 0  # the first reading after the last turn
    for n, (second, _) in enumerate(story):
        is_open = bool(expected) and expected[-1][1] == LASTS
        wants = [gauge_of(rule).holds(rule, value, is_open=is_open) != is_open for _, value in story[last : n + 1]]
        row = len(wants) - 1 - max((k for k, want in enumerate(wants) if not want), default=-1)
        if not row:
            continue
        due = story[n - row + 1][0] + (rule.keep_firing_for if is_open else rule.for_).total_seconds()
        if due <= second:
            if is_open:
                expected[-1] = (expected[-1][0], due)
            else:
                expected.append((due, LASTS))
            last = n + 1
    assert spans(rule, [(float(second), float(value)) for second, value in story]) == expected


@given(GAUGES, STORIES, st.sets(st.integers(0, 30)))
def test_a_restart_at_any_instant_gives_the_same_turns(
    rule: Rule, story: list[tuple[int, int]], restarts: set[int]
) -> None:
    """Nothing is held but what is stored: a new process has the rule read anew and the columns of `gauge_states`."""

    def run(restarts: set[int]) -> list[Turn]:
        held, mine, turns = Held(), rule, list[Turn]()
        for n, (second, value) in enumerate(story):
            if n in restarts:
                row: dict[str, Any] = {name: getattr(held, name) for name in Held.__slots__}
                held, mine = Held(**row), Rule.model_validate(rule.model_dump(by_alias=True, exclude_unset=True))
                assert mine.condition_version == rule.condition_version
            held, turn = step(mine, held, float(value), at(second))
            turns += [turn] if turn is not None else []
        return turns

    assert run(restarts) == run(set())


@given(GAUGES, STORIES)
def test_what_is_open_is_not_pending_and_what_is_closed_is_not_ending(rule: Rule, story: list[tuple[int, int]]) -> None:
    held = Held()
    for second, value in story:
        held, turn = step(rule, held, float(value), at(second))
        assert held.pending_since is None if held.is_open else held.false_since is None
        assert turn is None or turn.opens == held.is_open
        assert turn is None or held == replace(Held(), is_open=turn.opens)
