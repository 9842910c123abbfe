"""Any order within `allowed_lateness`, any duplicates, any batches: the episodes of the reference, at every instant."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.event import Event
from tests.properties import histories as by_chance
from tests.properties import reference
from tests.properties.histories import (
    FAILED,
    SIGNALS,
    STATES,
    WELL,
    Arrival,
    History,
    arrivals,
    build,
    stories,
    to_yaml,
)
from tests.properties.incremental import Incremental, Restless
from tests.properties.running import EXAMPLES, Progress, profile
from tests.unit.told import BEGAN, make_event
from tests.unit.told import at as told_at

PLANS = 3  # ways in which the events of one example arrive
REFERENCE_LINES_MAX = 200
CASES: dict[str, tuple[Any, Any]] = {
    "count": (by_chance.counts, stories(SIGNALS, tight=True)),
    "distinct": (by_chance.distincts, stories(SIGNALS)),
    "ratio": (by_chance.ratios, stories(("called", "called_badly"))),
    "quantile": (by_chance.quantiles, stories(("called", "called_badly"))),
    "state": (by_chance.states, stories(STATES)),
    "absence": (by_chance.absences, stories(("succeeded", "ACTIVE", "failed", "DELETED"), promises=True, tight=True)),
}


def seconds(at: datetime | None) -> float | None:
    return None if at is None else (at - BEGAN).total_seconds()


def spans(found: Any) -> dict[Any, list[tuple[float | None, float | None, str | None]]]:
    """By group; `reference.Span` and `Episode` alike."""
    out = {}
    for group, episodes in found.items():
        mine = [
            (
                seconds(getattr(one, "opened", None) or getattr(one, "opened_at", None)),
                seconds(one.ended if hasattr(one, "ended") else one.ended_at),
                one.reason if hasattr(one, "reason") else one.end_reason,
            )
            for one in episodes
        ]
        if mine:
            out[group] = mine
    return out


def describe(rule: dict[str, Any], history: History) -> str:
    lines = [to_yaml(rule), f"now {seconds(history.now)}"]
    for arrival in history.arrivals:
        lines.append(f"batch at {seconds(arrival.at)}:")
        lines += [
            f"  {one.id} {one.kind} {one.account_status} {one.account_id} {one.connection_id} "
            f"at {seconds(one.occurred_at)} {dict(one.details or {})}"
            for one in arrival.events
        ]
    return "\n".join(lines)


def check(raw: dict[str, Any], history: History) -> None:
    rule = build(raw)
    run = Incremental(rule)

    def see(now: datetime) -> None:
        known = [event for kept in run.groups.values() for event in kept.events.values()]
        expected = spans(reference.episodes(rule, known, now))
        found = spans({group: kept.episodes for group, kept in run.groups.items()})
        if found != expected:
            raise AssertionError(
                f"{describe(raw, history)}\nat {seconds(now)}\n  expected {expected}\n  got      {found}"
            )

    try:
        run.run(history, see)
    except Restless as exc:
        raise AssertionError(f"{describe(raw, history)}\n{exc}") from exc
    see(history.now)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.timeout(1200)
def test_any_arrival_gives_the_episodes_of_the_reference(name: str) -> None:
    rules, told = CASES[name]
    progress = Progress(name, every=500)

    @profile(EXAMPLES)
    @given(rules, told, st.integers(0, 2**20))
    def prove(rule: dict[str, Any], events: list[Event], chance: int) -> None:
        progress.one_more()
        random = Random(chance)
        for _ in range(PLANS):
            check(rule, arrivals(events, random))

    prove()


def test_a_success_of_which_the_failures_are_out_of_sight_ends_nothing() -> None:
    """Six minutes later the slice of samples begins with it; two accounts of the connection were left in the window."""
    rule: dict[str, Any] = {
        "id": "distinct",
        "severity": "P3",
        "annotations": {"summary": "Two accounts"},
        "count": {"match": FAILED, "within": "60s", "gte": 2, "distinct": "account_id"},
        "resolve": {"event": WELL},
        "group_by": ["connection_id"],
    }
    first = [make_event(number, "failed", 0, account=f"ca_{number}") for number in range(3)]
    first.append(make_event(3, "succeeded", 0.5, account="ca_0"))
    late = make_event(4, "failed", 360.5, account="ca_0")
    check(rule, History((Arrival(told_at(1), tuple(first)), Arrival(told_at(361), (late,))), told_at(400)))
    # The failures in sight and their success so long ago open nothing anew.
    rule["count"] |= {"within": "1s", "gte": 1}
    late = make_event(4, "failed", 301, account="ca_0")
    check(rule, History((Arrival(told_at(1), (first[0], first[3])), Arrival(told_at(301), (late,))), told_at(400)))


def test_the_reference_stays_small() -> None:
    lines = Path(reference.__file__).read_text().count("\n")
    assert lines <= REFERENCE_LINES_MAX
