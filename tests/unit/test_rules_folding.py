"""A log folded in pieces is the log judged whole, and holds little however long it is."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from service.event import order_key
from service.rules import Rule, Ruleset
from service.rules.folding import AccountFold, Fold
from service.rules.given import Sample
from service.rules.story import Initial, tell
from tests.unit.test_rules_explaining import BROKEN, FAILING, MISSED, RATIO, make_rule
from tests.unit.told import at, judge, make_events, words

SUBSIDING = make_rule("count: {match: {kind: token.refresh_failed}, within: 31s, gte: 2}\nkeep_firing_for: 5s")
HELD = make_rule("count: {match: {kind: token.refresh_failed}, within: 61s, gte: 2}\nfor: 20s")
TOLD = (FAILING, BROKEN, MISSED, SUBSIDING, HELD)
# Even seconds and odd windows: what is true for one instant alone is not judged alike in pieces and whole.
PHASES = (
    Phase.explicit,
    Phase.reuse,
    Phase.generate,
)  # a counterexample is short as it is, and shrinking takes minutes
stories = st.lists(st.tuples(words, st.integers(0, 750).map(lambda number: 2.0 * number)), max_size=40)


def folded(rule: Rule, story: list[tuple[str, float]], *, held_max: int) -> list[object]:
    ruleset = Ruleset([rule])
    account = AccountFold(ruleset.told, held_max=held_max)
    for event in sorted(make_events(story), key=order_key):
        account.add(event, ruleset.told_of(event.kind))
    pasts = [past.episode for _, pasts in account.finish(at(10_000)) for past in pasts]
    return [(episode.opened_at, episode.ended_at, episode.end_reason) for episode in pasts]


def whole(rule: Rule, story: list[tuple[str, float]]) -> list[object]:
    judged = judge(rule, story, now=10_000, judge_from=-100_000)
    return [(episode.opened_at, episode.ended_at, episode.end_reason) for episode in judged.episodes]


@pytest.mark.parametrize("rule", TOLD, ids=lambda rule: rule.kind)
@pytest.mark.parametrize("held_max", [1, 3, 5_000])
@given(story=stories)
@settings(max_examples=40, deadline=None, phases=PHASES)
def test_in_pieces_as_whole(rule: Rule, held_max: int, story: list[tuple[str, float]]) -> None:
    assert folded(rule, story, held_max=held_max) == whole(rule, story)


@given(
    outcomes=st.lists(st.tuples(st.integers(0, 900), st.booleans()), max_size=120),
    held_max=st.sampled_from([1, 7, 200]),
)
@settings(max_examples=40, deadline=None, phases=PHASES)
def test_buckets_in_pieces_as_whole(outcomes: list[tuple[int, bool]], held_max: int) -> None:
    rule = make_rule(
        """\
ratio: {good: {details.outcome: success}, total: {kind: tool_call.completed}, within: 1m, lt: 0.9, min_total: 2}
group_by: [connection_id]
for: 20s"""
    )
    event = make_events([("ACTIVE", 0)])[0]

    def spans(limit: int) -> list[object]:
        fold = Fold(rule, held_max=limit)
        for second, good in sorted(outcomes):
            fold.add(Sample(at(second), "total", f"id_{second}", value=float(good)), event)
        return [(past.episode.opened_at, past.episode.ended_at) for past in fold.finish(at(2_000))]

    assert spans(held_max) == spans(10**6)
    assert RATIO.kind == rule.kind


def test_it_holds_little() -> None:
    story = [("failed", float(second)) for second in range(0, 20_000, 20)]
    ruleset = Ruleset([SUBSIDING])
    account = AccountFold(ruleset.told, held_max=50)
    most = 0
    for event in make_events(story):
        account.add(event, ruleset.told_of(event.kind))
        [fold] = account._folds.values()
        most = max(most, len(fold._samples))
    assert most <= 51


def test_what_was_over_when_it_came_is_late() -> None:
    events = make_events([("failed", 0), ("failed", 1), ("failed", 2), ("succeeded", 60)])
    steps = tell(Initial(), events).steps
    assert len(steps) == 4

    def late(received: dict[int, float]) -> list[bool]:
        ruleset = Ruleset([FAILING])
        account = AccountFold(ruleset.told)
        for number, event in enumerate(events):
            moved = make_events([("failed", 0)])[0].received_at + timedelta(seconds=received.get(number, 0))
            came = type(event)(**{name: getattr(event, name) for name in event.__slots__} | {"received_at": moved})
            account.add(came, ruleset.told_of(event.kind))
        return [past.discovered_late for _, pasts in account.finish(at(100)) for past in pasts]

    assert late({1: 1, 2: 2, 3: 60}) == [False]
    assert late({1: 1, 2: 70, 3: 60}) == [True], "the third failure came after the success"
