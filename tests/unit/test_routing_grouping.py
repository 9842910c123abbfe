"""What one message may take in, whatever comes when: nothing waits long, and no edit hides what should be heard."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from service.routing import grouping
from service.routing.grouping import Members, Notification
from service.routing.model import Escalate
from service.routing.tree import Node, everybody

START = datetime(2026, 11, 26, tzinfo=UTC)


def make(at: datetime, number: int, flush_at: datetime, severity: str) -> Notification:
    return Notification(
        id=str(number),
        route="route",
        receiver="r",
        destination="d",
        group_key="k",
        group_labels={},
        severity=severity,
        members=1,
        opened_at=at,
        joined_at=at,
        flush_at=flush_at,
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 150), st.sampled_from(["P1", "P2", "P3"])), min_size=1, max_size=60),
    st.integers(0, 120),
    st.integers(0, 300),
)
def test_whatever_joins_when_is_told_in_time_and_no_edit_takes_in_too_much(
    joins: list[tuple[int, str]], wait: int, interval: int
) -> None:
    node = Node(
        path="route", receiver="r", group_wait=timedelta(seconds=wait), group_interval=timedelta(seconds=interval)
    )
    known: list[Notification] = []
    now = START
    for gap, severity in joins:
        now += timedelta(seconds=gap)
        known = [
            grouping.posted(one, node, "first", one.flush_at)
            if one.flush_at is not None and one.flush_at <= now
            else one
            for one in known
        ]
        placed = grouping.place(node, known, severity, now)
        if isinstance(placed, datetime):
            assert timedelta(0) <= placed - now <= max(node.group_wait, node.group_interval)
            known.append(make(now, len(known), placed, severity))
            continue
        if placed.flush_at is None:
            assert placed.first_post_at is not None
            assert now - placed.joined_at <= grouping.STORM_GAP
            assert now - placed.first_post_at <= grouping.STORM_MAX
            assert grouping.rank(placed.severity) <= grouping.rank(severity)
        known[known.index(placed)] = grouping.joined(placed, severity, now)
    assert sum(one.members for one in known) == len(joins), "each is in one message"


def test_a_group_says_in_a_message_of_its_own_that_it_has_grown_over_a_step() -> None:
    one = grouping.posted(make(START, 1, START, "P2"), everybody(["d"]).root, "first", START)
    grown = [replace(one, members=members) for members in (1, 20, 24, 25, 99, 100)]
    assert [grouping.outgrown(at) for at in grown] == [False, False, False, True, True, True]
    told = grouping.posted(grown[3], None, "growth", START)
    assert [grouping.outgrown(replace(told, members=members)) for members in (25, 99, 100)] == [False, False, True]


def test_escalation_goes_on_step_by_step_until_acknowledged() -> None:
    steps = (Escalate(after=timedelta(minutes=10), to="a"), Escalate(after=timedelta(minutes=30), to="b"))
    node = Node(path="route", receiver="r", escalate=steps)
    loud, quiet = Members(total=1, unresolved=1, loud=1), Members(total=1, unresolved=1, loud=0)
    one = grouping.posted(make(START, 1, START, "P1"), node, "first", START)
    assert grouping.escalation(one, node, loud, START + timedelta(minutes=9)) == (one, None)
    one, step = grouping.escalation(one, node, loud, START + timedelta(minutes=10))
    assert (step, one.escalate_at) == (steps[0], START + timedelta(minutes=30))
    acknowledged, none = grouping.escalation(one, node, quiet, START + timedelta(minutes=30))
    assert (none, acknowledged.escalate_at) == (None, None)
    one, step = grouping.escalation(one, node, loud, START + timedelta(minutes=31))
    assert (step, one.escalate_at) == (steps[1], None)


def test_repeats_wait_for_the_message_before_them_and_for_a_snooze() -> None:
    node = Node(path="route", receiver="r", repeat_interval=timedelta(hours=1))
    one = grouping.posted(make(START, 1, START, "P1"), node, "first", START)
    at = START + timedelta(hours=1)
    loud = Members(total=1, unresolved=1, loud=1)
    assert grouping.repeat_is_due(one, node, loud, at, out=True, heard=True) == (one, True)
    waiting, due = grouping.repeat_is_due(one, node, loud, at, out=False, heard=True)
    assert (due, waiting.repeat_at) == (False, at + grouping.REPEAT_RETRY)
    until = at + timedelta(minutes=5)
    snoozed = Members(total=1, unresolved=1, loud=0, quiet_until=until)
    assert grouping.repeat_is_due(one, node, snoozed, at, out=True, heard=False)[0].repeat_at == until
    assert grouping.repeat_is_due(one, None, loud, at, out=True, heard=True)[0].repeat_at is None, "its route is gone"
