"""Each condition at its boundaries, and what every condition promises, whichever come later."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

import pytest

from service.rules import Rule, load_text
from service.rules.given import Armed, Bucket, Given, Judged, Sample
from service.rules.latch import FLAPPING_QUIET
from service.rules.model import Rule as RuleModel
from service.rules.story import Initial, tell
from service.rules.triggers import TRIGGERS
from service.rules.triggers.rolling import Rolling
from tests.unit.told import at, make_events, spans

RESOLVE_KEYS = frozenset({"event", "after", "manual", "gt", "gte", "lt", "lte"})
FAILED, SUCCEEDED = "{kind: token.refresh_failed}", "{kind: token.refresh_succeeded}"
# One rule of each condition, which the conformance suite walks; a newcomer without one fails there.
EXAMPLES = {
    "count": f"count: {{match: {FAILED}, within: 30s, gte: 3}}",
    "ratio": f"ratio: {{good: {SUCCEEDED}, total: {{kind: [token.refresh_failed, token.refresh_succeeded]}}, "
    "within: 30s, lt: 0.5, min_total: 4}",
    "quantile": f"quantile: {{match: {SUCCEEDED}, field: details.ms, q: 0.9, within: 30s, gt: 100, min_total: 3}}",
    "gauge": "gauge: {metric: evaluator_lag_seconds, gt: 30}",
    "state": "state: {of: account, match: {status: EXPIRED, for: 10s}}",
    "absence": f"absence: {{after: {FAILED}, expect: {SUCCEEDED}, within: 30s}}",
}


def rule(condition: str, extra: str = "") -> Rule:
    text = f"version: 1\nrules:\n- id: r\n  severity: P3\n  annotations: {{summary: x}}\n  {condition}\n"
    text += "".join(f"  {line}\n" for line in extra.splitlines())
    loaded = load_text(text.encode(), "r.yml")
    assert loaded.problems == ()
    return loaded.rules[0]


def many(role: str, *seconds: float, prefix: str = "e", distinct: str | None = None) -> list[Sample]:
    return [Sample(at(s), role, f"{prefix}_{n:02}", distinct=distinct) for n, s in enumerate(seconds)]


def judged(
    one: Rule,
    samples: Sequence[Sample] = (),
    *,
    now: float,
    judge_from: float = 0,
    open_since: float | None = None,
    recent: Sequence[float] = (),
    armed: Armed | None = None,
) -> Judged:
    condition = one.condition
    buckets: Sequence[Bucket] = condition.in_buckets(samples) if isinstance(condition, Rolling) else ()
    return one.judge(
        Given(
            judge_from=at(judge_from),
            now=at(now),
            open_since=None if open_since is None else at(open_since),
            recent=[at(s) for s in recent],
            samples=() if buckets else samples,
            buckets=buckets,
            armed=armed,
        )
    )


# count


def test_count_wakes_when_its_window_empties_and_then_ends_at_its_last_instant() -> None:
    one = rule(EXAMPLES["count"])
    open_ = judged(one, many("match", 0, 1, 2), now=30)
    assert spans(open_) == [(2, None)], "the window's last instant belongs to it"
    assert open_.wake_at is not None
    assert at(30) < open_.wake_at <= at(30.001)
    woken = one.judge(Given(judge_from=at(2), now=open_.wake_at, samples=many("match", 0, 1, 2)))
    assert spans(woken) == [(2, 30)]


def test_count_of_an_event_that_fills_the_window_at_its_last_instant_fires() -> None:
    assert spans(judged(rule(EXAMPLES["count"]), many("match", 0, 15, 30), now=30)) == [(30, None)]


def test_count_that_is_true_for_its_last_instant_alone_is_so_whenever_it_is_judged() -> None:
    one = rule(EXAMPLES["count"], "for: 28s")
    for now in (30, 1000):
        assert spans(judged(one, many("match", 0, 1, 2), now=now))[0][0] == 30, now


def test_count_distinct_counts_each_value_once_by_its_last_event() -> None:
    one = rule(f"count: {{match: {FAILED}, within: 30s, gte: 2, distinct: account_id}}", "group_by: [connection_id]")
    same = many("match", 0, 1, 2, distinct="ca_1")
    assert spans(judged(one, same, now=10)) == []
    other = many("match", 31, prefix="f", distinct="ca_2")
    assert spans(judged(one, [*same, *other], now=40)) == [(31, 32)], "ca_1 failed last at 2"
    late = many("match", 33, prefix="f", distinct="ca_2")
    assert spans(judged(one, [*same, *late], now=40)) == []
    assert spans(judged(one, many("match", 0, 1, 2), now=10)) == [], "an event without the value counts for none"


def test_count_distinct_resolves_alike_whether_or_not_what_left_the_window_is_still_in_sight() -> None:
    extra = f"group_by: [connection_id]\nresolve: {{event: {SUCCEEDED}}}"
    one = rule(f"count: {{match: {FAILED}, within: 30s, gte: 2, distinct: account_id}}", extra)
    failed = [Sample(at(0), "match", f"f_{n}", distinct=f"ca_{n}") for n in range(8)]
    well = Sample(at(7200), "resolve", "w", distinct="ca_0")
    whole = judged(one, [*failed, well], now=7200)
    later = judged(one, [well], now=7200, judge_from=7200, open_since=0)
    assert spans(whole) == spans(later) == [(0, 7200)]


def test_count_quiet_is_looked_at_when_it_is_over_and_not_keep_firing_for_later() -> None:
    one = rule(EXAMPLES["count"], "resolve: {after: 1m}\nkeep_firing_for: 10m")
    open_ = judged(one, many("match", 0, 1, 2), now=10)
    assert (spans(open_), open_.wake_at) == ([(2, None)], at(62))
    assert spans(judged(one, many("match", 0, 1, 2), now=62)) == [(2, 62)]


def test_count_quiet_ends_though_the_last_match_is_out_of_sight() -> None:
    one = rule(EXAMPLES["count"], "resolve: {after: 1m}")
    assert spans(judged(one, now=900, judge_from=900, open_since=2)) == [(2, 900)]


def test_count_by_hand_only_neither_time_nor_success_ends() -> None:
    one = rule(EXAMPLES["count"], "resolve: {manual: true}")
    open_ = judged(one, many("match", 0, 1, 2), now=10**6)
    assert (spans(open_), open_.wake_at) == ([(2, None)], None)


# for, keep_firing_for, flapping: what all of them share


def test_for_that_ran_out_while_nobody_looked_opens_at_its_own_instant() -> None:
    one = rule(EXAMPLES["count"], "for: 10s")
    assert spans(judged(one, many("match", 0, 1, 2), now=25, judge_from=25)) == [(12, None)]


def test_keep_firing_for_that_ran_out_while_nobody_looked_ends_at_its_own_instant() -> None:
    one = rule(EXAMPLES["count"], "keep_firing_for: 10s")
    assert spans(judged(one, many("match", 0, 1, 2), now=60, judge_from=60, open_since=2)) == [(2, 40)]


def test_true_again_within_keep_firing_for_goes_on() -> None:
    one = rule(EXAMPLES["count"], "keep_firing_for: 10s")
    assert spans(judged(one, many("match", 0, 1, 2, 33, 34, 35), now=50)) == [(2, None)]


def test_true_for_less_than_for_is_nothing() -> None:
    one = rule(EXAMPLES["count"], "for: 29s")
    assert judged(one, many("match", 0, 1, 2), now=10).wake_at is not None
    assert spans(judged(one, many("match", 0, 1, 2), now=100)) == []


FLAPS = [2.0, 5, 12, 15, 22]  # opened, ended, opened, ended, opened


def flapping_story() -> list[Sample]:
    failed = many("match", *(begin + s for begin in (0, 10, 20) for s in (0, 1, 2)))
    return [*failed, *many("resolve", 5, 15, prefix="w")]


def test_the_third_opening_in_a_short_time_flaps_and_is_held_until_it_was_quiet() -> None:
    one = rule(EXAMPLES["count"], f"resolve: {{event: {SUCCEEDED}}}")
    story = [*flapping_story(), Sample(at(25), "resolve", "w_9")]
    held = judged(one, story, now=100)
    quiet = 25 + FLAPPING_QUIET.total_seconds()
    assert spans(held) == [(2, 5), (12, 15), (22, None)]
    assert [episode.flapping for episode in held.episodes] == [False, False, True]
    assert held.wake_at == at(quiet)
    assert spans(judged(one, story, now=quiet)) == [(2, 5), (12, 15), (22, quiet)]


def test_a_flapping_episode_that_is_told_in_a_later_batch_ends_all_the_same() -> None:
    one = rule(EXAMPLES["count"], f"resolve: {{event: {SUCCEEDED}}}")
    story = [*flapping_story(), Sample(at(25), "resolve", "w_9")]
    later = judged(one, story, now=325, judge_from=325, open_since=22, recent=FLAPS)
    assert spans(later) == [(22, 325)]
    assert later.episodes[0].flapping


def test_further_successes_do_not_put_off_the_end_of_what_flaps() -> None:
    one = rule(EXAMPLES["count"], f"resolve: {{event: {SUCCEEDED}}}")
    story = [*flapping_story(), *many("resolve", 25, 200, 320, prefix="v")]
    assert spans(judged(one, story, now=400))[-1] == (22, 325)


def test_a_window_that_subsides_in_a_later_batch_holds_what_flaps_until_it_was_quiet() -> None:
    one = rule(EXAMPLES["count"])
    samples = many("match", 20, 21, 22)
    later = judged(one, samples, now=200, judge_from=200, open_since=22, recent=FLAPS)
    assert (spans(later), later.wake_at) == ([(22, None)], at(50 + FLAPPING_QUIET.total_seconds()))


# absence


def armed_by(second: float, due: float, id_: str = "a_00") -> Sample:
    return Sample(at(second), "after", id_, due=at(due))


def test_absence_fires_at_the_deadline_and_not_before() -> None:
    one = rule(EXAMPLES["absence"])
    early = judged(one, [armed_by(0, 30)], now=29.9)
    assert (spans(early), early.wake_at, early.armed) == ([], at(30), Armed(at(0), "a_00", at(30)))
    due = judged(one, [armed_by(0, 30)], now=30)
    assert (spans(due), due.episodes[0].evidence) == ([(30, None)], ("a_00",))


def test_absence_is_answered_at_the_deadline_itself() -> None:
    one = rule(EXAMPLES["absence"])
    assert spans(judged(one, [armed_by(0, 30), *many("expect", 30)], now=40)) == []
    assert spans(judged(one, [armed_by(0, 30), *many("expect", 30.1)], now=40)) == [(30, 30.1)]


def test_absence_within_counts_from_the_first_that_armed_it() -> None:
    one = rule(EXAMPLES["absence"])
    assert spans(judged(one, [armed_by(0, 30), armed_by(20, 50, "b")], now=60)) == [(30, None)]


def test_absence_with_a_deadline_goes_by_the_newest() -> None:
    one = rule(f"absence: {{after: {SUCCEEDED}, expect: {FAILED}, deadline: details.expires_at}}")
    moved = [armed_by(0, 30), armed_by(20, 90, "b")]
    assert spans(judged(one, moved, now=60)) == []
    assert spans(judged(one, moved, now=90)) == [(90, None)]


def test_absence_keeps_firing_for_as_long_as_it_says_and_arms_anew_meanwhile() -> None:
    one = rule(EXAMPLES["absence"], "keep_firing_for: 1m")
    story = [armed_by(0, 30), *many("expect", 40)]
    held = judged(one, story, now=50)
    assert (spans(held), held.wake_at) == ([(30, None)], at(100))
    assert spans(judged(one, story, now=100)) == [(30, 100)]
    again = judged(one, [*story, armed_by(45, 75, "b")], now=50)
    assert again.armed == Armed(at(45), "b", at(75))


def test_absence_goes_on_from_what_was_armed_before_and_from_what_was_open() -> None:
    one = rule(EXAMPLES["absence"])
    waiting = Armed(at(0), "a_00", at(30))
    assert spans(judged(one, now=1000, judge_from=1000, armed=waiting)) == [(30, None)], "found late, true since 30"
    open_ = judged(one, many("expect", 60), now=60, judge_from=60, open_since=30, armed=waiting)
    assert spans(open_) == [(30, 60)]


def test_absence_before_an_episode_that_is_open_arms_what_opened_it() -> None:
    one = rule(EXAMPLES["absence"])
    whole = judged(one, [armed_by(0, 30)], now=50)
    later = judged(one, [armed_by(0, 30)], now=50, judge_from=40, open_since=30)
    assert (spans(whole), whole.armed) == (spans(later), later.armed)


# ratio and quantile


def outcomes(*values: tuple[float, float]) -> list[Sample]:
    return [Sample(at(s), "total", f"t_{n:02}", value=value) for n, (s, value) in enumerate(values)]


def test_ratio_at_its_bound_is_good_and_below_it_fires_at_the_end_of_its_bucket() -> None:
    one = rule(EXAMPLES["ratio"])
    assert spans(judged(one, outcomes((0, 1), (0, 1), (0, 0), (0, 0)), now=20)) == []
    low = judged(one, outcomes((0, 1), (0, 0), (0, 0), (0, 0)), now=20)
    assert (spans(low), low.value) == ([(1, None)], 0.25)


def test_ratio_of_too_few_is_unknown_and_keeps_what_was() -> None:
    one = rule(EXAMPLES["ratio"])
    assert judged(one, outcomes((0, 0), (0, 0), (0, 0)), now=20).value is None
    fired = outcomes((0, 0), (0, 0), (0, 0), (5, 0))
    assert spans(judged(one, fired, now=20)) == [(6, None)]
    assert spans(judged(one, fired, now=10**5)) == [(6, None)], "silence is no recovery"
    well = [*fired, *outcomes((100, 1), (100, 1), (100, 1), (100, 1))]
    assert spans(judged(one, well, now=200)) == [(6, 101)]


def test_ratio_shows_the_lowest_it_was() -> None:
    one = rule(EXAMPLES["ratio"])
    worse = judged(one, outcomes((0, 1), (0, 0), (0, 0), (0, 0), (3, 0), (3, 0), (3, 0), (3, 0)), now=10)
    assert worse.episodes[0].value == 0.125


def test_ratio_resolves_where_its_threshold_says_and_pends_by_its_own() -> None:
    one = rule(EXAMPLES["ratio"], "resolve: {gte: 0.75}\nfor: 5s")
    low = outcomes((0, 1), (0, 0), (0, 0), (0, 0))
    half = outcomes(*[(2, 1.0)] * 3, *[(2, 0.0)])
    assert spans(judged(one, [*low, *half], now=20)) == [], "0.5 is not below: what is pending has nothing to keep"
    half_later = outcomes(*[(8, 1.0)] * 3, *[(8, 0.0)])
    assert spans(judged(one, [*low, *half_later], now=20)) == [(6, None)], "0.5 does not yet resolve"
    good = outcomes(*[(8, 1.0)] * 12)
    assert spans(judged(one, [*low, *good], now=20)) == [(6, 9)]


def test_ratio_makes_nothing_of_a_window_of_which_only_a_part_is_in_sight() -> None:
    one = rule(EXAMPLES["ratio"])
    bad = outcomes(*[(25, 0.0)] * 4, (33, 0.0))
    judge_from = 25 + one.lookback.total_seconds()
    assert spans(judged(one, bad, now=judge_from, judge_from=judge_from)) == [], "good ones may lie before 25"


def test_quantile_is_known_to_within_two_percent() -> None:
    one = rule(EXAMPLES["quantile"])

    def sized(*sizes: float) -> list[Sample]:
        return [Sample(at(0), "match", f"q_{n:02}", value=size) for n, size in enumerate(sizes)]

    assert spans(judged(one, sized(*[98.0] * 10), now=20)) == []
    assert spans(judged(one, sized(*[102.0] * 10), now=20)) == [(1, None)]
    assert spans(judged(one, sized(*[1.0] * 19, 1e6), now=20)) == [], "one of twenty is beyond the 0.9 quantile"
    assert judged(one, sized(500.0, 500.0), now=20).value is None
    assert judged(one, sized(0.0, 0.0, 0.0), now=20).value == 0.0


@pytest.mark.parametrize("name", ["ratio", "quantile"])
def test_examples_of_a_bucket_do_not_depend_on_the_order_of_arrival(name: str) -> None:
    one = rule(EXAMPLES[name])
    condition = one.condition
    assert isinstance(condition, Rolling)
    role, value = ("total", 0.0) if name == "ratio" else ("match", 500.0)
    samples = [Sample(at(0), role, f"x_{n}", value=value) for n in range(9)]
    assert condition.in_buckets(samples) == condition.in_buckets(samples[::-1])


# What every condition promises.


@pytest.fixture(params=sorted(TRIGGERS), name="condition")
def each_condition(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(TRIGGERS.keys() - {"gauge"}), name="folding")
def each_that_folds_a_history(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_each_is_registered_under_its_name_and_has_an_example(condition: str) -> None:
    assert condition == TRIGGERS[condition].NAME
    assert rule(EXAMPLES[condition]).kind == condition


def test_each_resolves_by_what_resolve_knows(condition: str) -> None:
    assert TRIGGERS[condition].RESOLVES <= RESOLVE_KEYS


def test_each_says_in_the_schema_what_it_is(condition: str) -> None:
    schema = RuleModel.model_json_schema(by_alias=True)
    definition = schema["$defs"][TRIGGERS[condition].__name__]
    assert len(definition.get("description", "")) > 20
    assert definition["additionalProperties"] is False
    assert condition in schema["properties"]


SPARSE = [("ACTIVE", 195.0), ("failed", 200.0), ("succeeded", 300.0), ("EXPIRED", 320.0), ("ACTIVE", 400.0)]


def history(condition: str) -> tuple[Rule, dict[str, Any]]:
    """A rule and some of what may happen to it, with ties."""
    one = rule(EXAMPLES[condition], "for: 1s\nkeep_firing_for: 3s" if condition != "state" else "")
    rng = random.Random(7)
    words = ["failed", "failed", "succeeded", "EXPIRED", "ACTIVE", "DELETED"]
    events = make_events([(rng.choice(words), float(rng.randrange(90))) for _ in range(60)] + SPARSE)
    for event in events:
        object.__setattr__(event, "details", {"ms": rng.choice([1, 90, 5000])})
    steps = tell(Initial(), events).steps
    samples = [sample for step in steps for sample in one.samples(step)]
    given: dict[str, Any] = {"steps": steps, "samples": samples}
    if isinstance(one.condition, Rolling):
        given = {"buckets": one.condition.in_buckets(samples)}
    return one, given


@pytest.mark.parametrize("now", [0.0, 10.0, 44.5, 60.0, 90.0, 10_000.0])
def test_each_gives_the_same_for_the_same_and_wakes_later_than_now(folding: str, now: float) -> None:
    one, given = history(folding)
    known: dict[str, Any] = {name: [item for item in items if moment(item) <= at(now)] for name, items in given.items()}
    first = one.judge(Given(judge_from=at(0), now=at(now), **known))
    assert one.judge(Given(judge_from=at(0), now=at(now), **known)) == first
    assert first.wake_at is None or first.wake_at > at(now)
    assert now < 10_000 or first.episodes, "the history is of a kind that fires"


def test_each_is_the_same_in_whatever_order_its_samples_are_given(folding: str) -> None:
    one, given = history(folding)
    first = one.judge(Given(judge_from=at(0), now=at(10_000), **given))
    for seed in range(10):
        shuffled: dict[str, Any] = {name: list(items) for name, items in given.items()}
        for name in {"samples", "buckets"} & shuffled.keys():
            # Those of one instant keep the order of the story, which the provider made.
            instants = [list(of_one) for _, of_one in groupby(shuffled[name], key=lambda one: one.at)]
            random.Random(seed).shuffle(instants)
            shuffled[name] = [one for of_one in instants for one in of_one]
        assert one.judge(Given(judge_from=at(0), now=at(10_000), **shuffled)) == first


@pytest.mark.parametrize("last", [40.0, 90.0, 210.0, 330.0])
def test_each_wakes_at_every_instant_at_which_it_changes_by_time_alone(folding: str, last: float) -> None:
    """Judged only when it asked to be, it says the same as judged each half second."""
    one, given = history(folding)
    upto = at(last)
    known: dict[str, Any] = {name: [item for item in items if moment(item) <= upto] for name, items in given.items()}
    believed = one.judge(Given(judge_from=at(0), now=upto, **known))
    for half in range(int(last) * 2 + 1, 1600):
        now = at(half / 2)
        while believed.wake_at is not None and believed.wake_at <= now:
            believed = one.judge(Given(judge_from=at(0), now=believed.wake_at, **known))
        assert one.judge(Given(judge_from=at(0), now=now, **known)).episodes == believed.episodes


def moment(item: Any) -> datetime:
    if isinstance(item, Sample):
        return item.at
    if isinstance(item, Bucket):
        return item.at + timedelta(seconds=1)
    when: datetime = item.event.occurred_at
    return when
