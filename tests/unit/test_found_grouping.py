"""Found by reading issue 5 against the code: where a group puts an alert, and several routes to one notifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from service.routing import elsewhere, grouping
from service.routing.model import Escalate, RoutingKeys
from service.routing.tree import Node, Routing, routing_in_force

NOW = datetime(2026, 11, 26, tzinfo=UTC)
VALUES: Mapping[str, Any] = {
    "route": "route",
    "receiver": "r",
    "destination": "d",
    "group_key": "k",
    "group_labels": {},
    "severity": "P4",
    "members": 1,
    "opened_at": NOW,
    "joined_at": NOW,
}


def test_what_is_more_severe_than_its_group_does_not_wait_with_what_is_held_back() -> None:
    told = replace(grouping.Notification(id="n1", **VALUES), first_post_at=NOW, last_post_at=NOW)
    later = NOW + timedelta(minutes=2)
    held_back = grouping.Notification(
        id="n2", **{**VALUES, "opened_at": later, "joined_at": later, "flush_at": NOW + timedelta(minutes=15)}
    )
    node = Node(path="route", receiver="r", group_interval=timedelta(minutes=15))
    assert grouping.place(node, [told], "P1", later) == later, "alone it is told at once"
    assert grouping.place(node, [told, held_back], "P1", later) == later, "and so beside a P4 that waits"


def test_several_routes_to_one_notifier_tell_as_soon_as_any_and_escalate_as_all() -> None:
    steps = [Escalate(after=timedelta(minutes=minutes), to=to) for minutes, to in ((30, "a"), (10, "b"))]
    slow = Node(path="route.routes.0", receiver="r", group_wait=timedelta(minutes=5), escalate=(steps[0],))
    fast = Node(path="route.routes.1", receiver="r", repeat_interval=timedelta(minutes=20), escalate=(steps[1],))
    both = grouping.combined([slow, fast], [slow, fast])
    assert (both.path, both.group_wait, both.repeat_interval) == ("route.routes.0", timedelta(0), fast.repeat_interval)
    assert both.escalate == (steps[1], steps[0])
    assert grouping.combined([slow, fast], [fast]).path == "route.routes.1", "the first is muted"
    assert grouping.combined([slow], [slow]) is slow


def test_what_joins_after_all_was_over_begins_escalation_anew() -> None:
    node = Node(path="route", receiver="r", escalate=(Escalate(after=timedelta(minutes=10), to="a"),))
    one = grouping.posted(grouping.Notification(id="n1", **VALUES), node, "first", NOW)
    taken = replace(one, escalate_at=None, escalated=1)
    later = NOW + timedelta(seconds=30)
    assert grouping.joined(taken, "P4", later, node).escalate_at is None, "all its steps were taken"
    anew = grouping.joined(taken, "P4", later, node, anew=True)
    assert anew.escalate_at == later + timedelta(minutes=10)
    assert anew.repeat_at == later + grouping.REJOIN_WAIT
    dropped = replace(one, escalate_at=None)
    assert grouping.joined(dropped, "P4", later, node).escalate_at == later + timedelta(minutes=10)


# ---- a notifier that takes nothing


def two(receiver: str) -> Routing:
    keys = RoutingKeys.model_validate({"route": {"receiver": receiver}})
    return routing_in_force(keys, ("team", "oncall", "boss"))


def test_that_a_notifier_takes_nothing_is_told_to_others_whatever_the_routes_say() -> None:
    """It waited at the very notifier that it is about."""
    stalled = {"alertname": elsewhere.NOTIFIER_STALLED, "notifier": "team"}
    assert list(elsewhere.destinations(two("team"), stalled)) == ["team", "oncall", "boss"]
    assert list(elsewhere.destinations(two("oncall"), stalled)) == ["oncall"], (
        "where others hear, the routes are followed"
    )
    assert list(elsewhere.destinations(two("team"), stalled, {"boss"})) == ["team", "oncall"]
    assert list(elsewhere.destinations(two("oncall"), stalled, {"oncall"})) == ["oncall", "boss"]
    refused = {"alertname": elsewhere.NOTIFIER_REFUSED, "about": "team"}
    assert list(elsewhere.destinations(two("team"), refused)) == ["oncall", "boss"], "it would never get there"
    other = {"alertname": "notifier-other", "notifier": "team"}
    assert list(elsewhere.destinations(two("team"), other)) == ["team"]


def test_the_shipped_rule_is_the_one_that_is_meant() -> None:
    rules = (Path(__file__).resolve().parents[2] / "alert_rules" / "own-stalls.yml").read_text()
    [section] = [part for part in rules.split("\n- id: ") if part.startswith(elsewhere.NOTIFIER_STALLED + "\n")]
    assert f"group_by: [{elsewhere.NAMED_BY[elsewhere.NOTIFIER_STALLED]}]" in section
