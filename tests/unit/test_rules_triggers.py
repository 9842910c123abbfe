"""`count` and `state`: when an episode begins, when it ends, and that a verdict continued is the verdict whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.rules import Rule, load_file, load_text
from tests.unit.told import at, judge, spans, words

SHIPPED = Path(__file__).resolve().parents[2] / "alert_rules"
RULES = {rule.id: rule for path in SHIPPED.glob("*.yml") for rule in load_file(path).rules}
FAILING, BROKEN = RULES["token-refresh-failing"], RULES["account-disconnected-active-workflow"]
SUBSIDING: Rule = load_text(
    b"""
version: 1
rules:
- id: many
  severity: P3
  count: {match: {kind: token.refresh_failed}, within: 30s, gte: 3}
  keep_firing_for: 5s
  annotations: {summary: Many}
""",
    "many.yml",
).rules[0]


def failures(*seconds: float) -> list[tuple[str, float]]:
    return [("failed", second) for second in seconds]


def test_the_third_failure_in_the_window_opens_and_a_fourth_belongs_to_it() -> None:
    assert spans(judge(FAILING, failures(0, 1))) == []
    judged = judge(FAILING, failures(0, 1, 2, 3))
    assert spans(judged) == [(2, None)]
    [episode] = judged.episodes
    assert (episode.value, episode.trigger_event_id) == (4, "id_002")
    assert episode.evidence == ("id_000", "id_001", "id_002", "id_003")


def test_within_is_inclusive() -> None:
    assert spans(judge(FAILING, failures(0, 450, 900))) == [(900, None)]
    assert spans(judge(FAILING, failures(0, 450, 901))) == []


@pytest.mark.parametrize("word", ["succeeded", "ACTIVE"])
def test_a_success_in_between_starts_the_count_anew(word: str) -> None:
    story = [*failures(0, 1), (word, 2), *failures(3, 4)]
    assert spans(judge(FAILING, story)) == []
    assert spans(judge(FAILING, [*story, ("failed", 5)])) == [(5, None)]


def test_silence_is_not_recovery() -> None:
    judged = judge(FAILING, failures(0, 1, 2), now=10**7)
    assert (spans(judged), judged.wake_at) == ([(2, None)], None)


def test_in_a_tie_the_failure_comes_after_the_success() -> None:
    assert spans(judge(FAILING, [*failures(0, 1, 2), ("succeeded", 5), ("failed", 5)])) == [(2, 5)]
    assert spans(judge(FAILING, [*failures(0, 1, 2), ("succeeded", 2)])) == []


def test_a_window_without_a_resolving_event_subsides_by_itself() -> None:
    open_ = judge(SUBSIDING, failures(0, 1, 2), now=20)
    assert (spans(open_), open_.wake_at) == ([(2, None)], at(35))
    assert spans(judge(SUBSIDING, failures(0, 1, 2), now=36)) == [(2, 35)]
    assert spans(judge(SUBSIDING, failures(0, 1, 2, 34), now=36)) == [(2, 35)], "one failure does not fill a window"


def test_an_episode_that_is_open_is_not_ended_by_the_window_of_one_before_it() -> None:
    story = failures(0, 1, 2, 40, 41, 42)
    assert spans(judge(SUBSIDING, story, now=43, judge_from=43, open_since=42)) == [(42, None)]


@pytest.mark.parametrize("word", ["DISCONNECTED", "DELETED"])
def test_a_loss_counts_at_once(word: str) -> None:
    assert spans(judge(BROKEN, [(word, 0)], now=0)) == [(0, None)]


def test_expired_counts_once_it_has_been_so_for_ten_seconds() -> None:
    early = judge(BROKEN, [("EXPIRED", 0)], now=9.9)
    assert (spans(early), early.wake_at) == ([], at(10))
    due = judge(BROKEN, [("EXPIRED", 0)], now=10)
    assert (spans(due), due.wake_at) == ([(10, None)], None)
    assert spans(judge(BROKEN, [("EXPIRED", 0), ("ACTIVE", 9)])) == []
    assert spans(judge(BROKEN, [("EXPIRED", 0), ("ACTIVE", 11)])) == [(10, 11)]


def test_expired_then_pending_keeps_the_clock_running() -> None:
    story = [("EXPIRED", 0), ("PENDING_AUTH", 5)]
    assert judge(BROKEN, story, now=8).wake_at == at(10)
    assert spans(judge(BROKEN, story, now=10)) == [(10, None)]


def test_pending_never_breaks_nor_resolves() -> None:
    assert spans(judge(BROKEN, [("PENDING_AUTH", 0)])) == []
    assert spans(judge(BROKEN, [("DISCONNECTED", 0), ("PENDING_AUTH", 5), ("HIBERNATING", 6)])) == [(0, None)]


def test_disconnected_then_deleted_is_one_episode() -> None:
    judged = judge(BROKEN, [("DISCONNECTED", 0), ("DELETED", 5)])
    assert spans(judged) == [(0, None)]
    assert judged.episodes[0].evidence == ("id_000", "id_001")


def test_where_nothing_depends_on_it_what_was_open_closes_and_nothing_opens() -> None:
    story = [("DISCONNECTED", 0)]
    assert spans(judge(BROKEN, story, dependents=False)) == []
    judged = judge(BROKEN, story, judge_from=50, open_since=0, now=60, dependents=False)
    assert spans(judged) == [(0, 60)]
    assert judged.episodes[0].end_reason == "no_active_workflow"


stories = st.lists(st.tuples(words, st.integers(0, 120)), max_size=14)


@given(stories, st.integers(0, 130), st.sampled_from((FAILING, BROKEN)))
def test_a_verdict_continued_from_any_instant_is_the_verdict_whole(
    story: list[tuple[str, int]], cut: int, rule: Rule
) -> None:
    """Judged up to an instant and on from there, with the open episode handed over, as a later batch is."""
    whole = spans(judge(rule, story, now=1000))
    earlier = spans(judge(rule, [(word, second) for word, second in story if second < cut], now=cut - 0.001))
    open_ = next((opened for opened, ended in earlier if ended is None), None)
    later = spans(judge(rule, story, now=1000, judge_from=cut, open_since=open_))
    over = [span for span in earlier if span[1] is not None]
    assert over + later == whole


@given(stories)
def test_episodes_follow_one_another_and_only_the_last_is_open(story: list[tuple[str, int]]) -> None:
    for rule in (FAILING, BROKEN, SUBSIDING):
        found = spans(judge(rule, story, now=1000))
        edges = [edge for span in found for edge in span]
        assert None not in edges[:-1]
        instants = [edge for edge in edges if edge is not None]
        assert instants == sorted(instants)
