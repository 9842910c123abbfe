"""The story of an account is told by what happened and when, never by how it arrived."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from service.event import AccountKey, Event, order_key
from service.rules.story import Initial, believed, believed_in_order, tell
from tests.unit.told import at, make_events, words


@given(st.lists(st.tuples(words, st.integers(0, 60)), max_size=12), st.randoms())
def test_order_and_duplicates_do_not_matter(story: list[tuple[str, int]], random_: random.Random) -> None:
    events = make_events(story)
    shuffled = [*events, *random_.choices(events, k=3)] if events else []
    random_.shuffle(shuffled)
    assert tell(Initial(), shuffled) == tell(Initial(), events)


@given(st.lists(st.tuples(words, st.integers(0, 60)), min_size=1, max_size=12), st.integers(0, 60))
def test_told_in_two_parts_it_ends_the_same(story: list[tuple[str, int]], cut: int) -> None:
    events = make_events(story)
    first = [event for event in events if event.occurred_at <= at(cut)]
    second = [event for event in events if event.occurred_at > at(cut)]
    assert tell(tell(Initial(), first).final, second).final == tell(Initial(), events).final


def test_in_a_tie_a_break_comes_after_a_recovery() -> None:
    for story in ([("ACTIVE", 5), ("DISCONNECTED", 5)], [("DISCONNECTED", 5), ("ACTIVE", 5)]):
        assert tell(Initial(), make_events(story)).final.status == "DISCONNECTED"


def test_only_active_ends_what_is_wrong() -> None:
    told = tell(Initial(), make_events([("EXPIRED", 1), ("PENDING_AUTH", 2), ("HIBERNATING", 3), ("EXPIRED", 4)]))
    assert dict(told.final.not_well) == {"EXPIRED": at(1), "PENDING_AUTH": at(2), "HIBERNATING": at(3)}
    assert told.final.status_since == at(4)
    assert tell(told.final, make_events([("ACTIVE", 5)])).final == Initial(status="ACTIVE", status_since=at(5))


def test_a_failed_refresh_moves_nothing() -> None:
    told = tell(Initial(), make_events([("ACTIVE", 1), ("failed", 2)]))
    assert [(step.became, step.status) for step in told.steps] == [("ACTIVE", "ACTIVE"), (None, "ACTIVE")]


def test_an_account_is_written_in_full() -> None:
    assert str(AccountKey("scalekit", "env_1", "ca_1")) == "scalekit:env_1:ca_1"


@given(st.randoms())
def test_the_providers_word_outweighs_a_report_within_a_minute(random_: random.Random) -> None:
    events = [
        replace(event, id=str(n)) for n, event in enumerate(make_events([("failed", s) for s in (0, 60, 121, 200)]))
    ]
    events = [replace(event, origin="report" if n % 2 == 0 else "webhook") for n, event in enumerate(events)]
    events.append(replace(events[0], id="call", kind="tool_call.completed"))
    random_.shuffle(events)
    assert {step.event.id for step in tell(Initial(), events).steps} == {"1", "2", "3", "call"}


TOLD = st.tuples(
    words, st.integers(0, 400), st.sampled_from(["webhook", "report", "recovery"]), st.sampled_from(["env_1", "env_2"])
)


@given(st.lists(st.tuples(st.sampled_from(["ca_1", "ca_2"]), TOLD), max_size=30))
def test_a_log_read_in_order_is_believed_as_a_story_is(said: list[tuple[str, tuple[str, int, str, str]]]) -> None:
    made = make_events([(word, second) for _, (word, second, _, _) in said])
    events = [
        replace(event, account_id=account, origin=origin, environment_id=environment)
        for event, (account, (_, _, origin, environment)) in zip(made, said, strict=True)
    ]
    log = sorted(events, key=lambda event: (event.account_id, order_key(event)))
    kept = list(believed_in_order(log))
    of_accounts: list[Event] = []
    for key in {event.account for event in log}:
        of_accounts += believed([event for event in log if event.account == key])
    assert {event.id for event in kept} == {event.id for event in of_accounts}
    assert kept == [event for event in log if event in kept], "and in the order in which it was read"
