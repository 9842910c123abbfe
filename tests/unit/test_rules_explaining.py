"""What a rule says of itself: why it fires, what is missing for it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from service.rules import Rule, load_text
from service.rules.explaining import Explanation, rule_words
from service.rules.given import Bucket, Given
from service.rules.story import Initial, tell
from tests.unit.told import at, make_events

HEAD = "version: 1\nrules:\n- id: one\n  severity: P3\n  annotations: {summary: One}\n"


def make_rule(text: str) -> Rule:
    loaded = load_text((HEAD + "\n".join("  " + line for line in text.splitlines())).encode(), "one.yml")
    assert not loaded.problems, loaded.problems
    return loaded.rules[0]


FAILING = make_rule(
    """\
count: {match: {kind: token.refresh_failed}, within: 15m, gte: 3}
resolve: {event: [{kind: [token.refresh_succeeded, account.authorized]}, {became: ACTIVE}]}"""
)
BROKEN = make_rule(
    """\
state:
  of: account
  match:
  - {status: [DISCONNECTED, DELETED], active_workflows: {gte: 1}}
  - {status: EXPIRED, active_workflows: {gte: 1}, for: 10s}"""
)
MISSED = make_rule(
    """\
absence:
  after: {kind: account.authorized}
  expect: {kind: token.refresh_succeeded}
  unless: {kind: account.disconnected}
  within: 10m
  grace: 30s"""
)
RATIO = make_rule(
    """\
ratio:
  good: {details.outcome: success}
  total: {kind: tool_call.completed}
  within: 1m
  lt: 0.95
  min_total: 10
group_by: [connection_id]
for: 2m"""
)


def explain(rule: Rule, story: Iterable[tuple[str, float]], now: float, *, dependents: bool = True) -> Explanation:
    steps = tell(Initial(), [event for event in make_events(story) if event.occurred_at <= at(now)]).steps
    samples = [sample for step in steps for sample in rule.samples(step)]
    return rule.condition.explain(
        rule, Given(judge_from=at(-10_000), now=at(now), samples=samples, steps=steps, dependents=dependents)
    )


def test_a_count_says_how_many_are_missing_and_what_emptied_the_window() -> None:
    said = explain(FAILING, [("failed", 0), ("failed", 60), ("succeeded", 70), ("failed", 80), ("failed", 90)], 100)
    assert said.state == "inactive"
    assert said.missing == (
        "2 of 3 matching events within 15m",
        "a success at 2026-11-01 12:01:10Z emptied the window of 2 events",
    )
    assert (said.value, said.needs, said.event_ids) == (2.0, ">= 3", ("id_003", "id_004"))
    assert said.since == at(100 - 900)


def test_a_count_that_fires_names_its_events_and_since_when() -> None:
    said = explain(FAILING, [("failed", 0), ("failed", 1), ("failed", 2)], 5)
    assert (said.state, said.value, said.missing) == ("firing", 3.0, ())
    assert said.because == ("it has held since 2026-11-01 12:00:02Z", "3 of 3 matching events within 15m")
    assert said.event_ids == ("id_000", "id_001", "id_002")


def test_what_stays_open_by_its_resolve_says_so() -> None:
    said = explain(FAILING, [("failed", 0), ("failed", 1), ("failed", 2)], 5000)
    assert said.state == "firing"
    assert "it would not fire now: 0 of 3 matching events within 15m" in said.because
    assert any(sentence.startswith("it stays open: ended by an event with kind one of") for sentence in said.because)
    assert said.event_ids == ("id_000", "id_001", "id_002")


def test_what_is_over_says_when_and_why() -> None:
    said = explain(FAILING, [("failed", 0), ("failed", 1), ("failed", 2), ("succeeded", 9)], 20)
    assert said.state == "resolved"
    assert said.because == ("it held from 2026-11-01 12:00:02Z to 2026-11-01 12:00:09Z: it recovered",)
    assert said.missing[0] == "0 of 3 matching events within 15m"


def test_a_count_without_any_match_says_what_it_waits_for() -> None:
    assert explain(FAILING, [("EXPIRED", 0)], 20).missing == (
        "0 of 3 matching events within 15m",
        "no event matched: kind token.refresh_failed",
    )


@pytest.mark.parametrize(
    ("story", "dependents", "state", "missing"),
    [
        ([], True, "unknown", ("no event has said what status the account has",)),
        ([("EXPIRED", 0), ("ACTIVE", 3)], True, "inactive", ("status ACTIVE since 2026-11-01 12:00:03Z",)),
        ([("EXPIRED", 0)], True, "inactive", ("EXPIRED for 4 s of 10 s",)),
        ([("DISCONNECTED", 0)], False, "inactive", ("no active workflow depends on it",)),
        (
            [("PENDING_AUTH", 0)],
            True,
            "inactive",
            ("status PENDING_AUTH since 2026-11-01 12:00:00Z; the rule asks for DELETED, DISCONNECTED, EXPIRED",),
        ),
        ([("DISCONNECTED", 0)], True, "firing", ()),
    ],
)
def test_a_state_says_what_the_account_is(
    story: list[tuple[str, float]], dependents: bool, state: str, missing: tuple[str, ...]
) -> None:
    said = explain(BROKEN, story, 4, dependents=dependents)
    assert (said.state, said.missing) == (state, missing)


def test_an_absence_says_its_deadline() -> None:
    waiting = explain(MISSED, [("ACTIVE", 0)], 600)
    assert waiting.missing == ("deadline 2026-11-01 12:10:30Z not passed, 30 s to go",)
    assert (waiting.state, waiting.event_ids) == ("inactive", ("id_000",))
    missed = explain(MISSED, [("ACTIVE", 0)], 631)
    assert missed.state == "firing"
    assert "deadline 2026-11-01 12:10:30Z passed with nothing" in missed.because
    assert explain(MISSED, [("ACTIVE", 0), ("succeeded", 5)], 900).missing == (
        "the expected event came at 2026-11-01 12:00:05Z, and nothing has armed it since",
    )
    assert explain(MISSED, [("failed", 0)], 900).missing == ("nothing armed it: no event with kind account.authorized",)


def told_of_buckets(good: int, total: int, *, seconds: int = 1, now: float = 30) -> Explanation:
    buckets = [Bucket(at(second), total=total, good=good) for second in range(seconds)]
    return RATIO.condition.explain(RATIO, Given(judge_from=at(-10_000), now=at(now), buckets=buckets))


def test_a_ratio_says_its_value_and_that_too_little_is_unknown() -> None:
    assert told_of_buckets(97, 100).missing == ("value 0.97, needs < 0.95, of 100 events",)
    unknown = told_of_buckets(0, 3)
    assert (unknown.state, unknown.value) == ("unknown", None)
    assert unknown.missing == ("unknown: 3 of min_total 10, which neither fires nor resolves",)


def test_what_is_true_and_not_yet_for_long_enough_is_pending() -> None:
    said = told_of_buckets(1, 10, seconds=60, now=61)
    assert (said.state, said.missing) == ("pending", ("true for 60 s of 2m",))


def test_a_rule_in_words() -> None:
    assert rule_words(FAILING) == (
        "3 events with kind token.refresh_failed within 15m; ended by an event with kind one of "
        "token.refresh_succeeded, account.authorized; or became ACTIVE"
    )
    assert rule_words(RATIO) == (
        "of at least 10 events with kind tool_call.completed within 1m, less than 0.95 also have "
        "details.outcome success, for 2m, for each connection_id"
    )
    assert rule_words(MISSED).startswith("after an event with kind account.authorized, none with kind token.refresh_")


def test_a_gauge_has_no_past() -> None:
    gauge = make_rule("gauge: {metric: delivery_lag_seconds, gt: 30}")
    said = gauge.condition.explain(gauge, Given(judge_from=at(0), now=at(1)))
    assert (said.state, said.needs) == ("unknown", "> 30")
    assert "measured once a second" in said.missing[0]
