"""Routing against Alertmanager's own word: what amtool said of the same trees, recorded, and asked again where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.routing.matchers import BadMatcher, make_matcher, read_matchers
from service.routing.model import RoutingKeys
from service.routing.tree import routing_in_force
from tests import amtool

RECORDED: dict[str, Any] = json.loads(amtool.RECORD.read_text())
# What Alertmanager takes and we refuse: it drops a brace at the end that has no partner, and so reads another pattern
# than is written there.
STRICTER = {"{a=b", "a=~b{1001}"}


def ours(route: dict[str, Any], labels: dict[str, str]) -> list[str]:
    keys = RoutingKeys.model_validate({"route": route, "receivers": [{"name": name} for name in amtool.RECEIVERS]})
    routing = routing_in_force(keys, amtool.RECEIVERS)
    return [node.receiver for node in routing.root.match(labels)]


@pytest.mark.parametrize("number", range(len(RECORDED["routes"])))
def test_the_tree_sends_where_alertmanager_sends(number: int) -> None:
    recorded = RECORDED["routes"][number]
    for labels, receivers in recorded["cases"]:
        assert ours(recorded["route"], labels) == receivers, (recorded["route"], labels)


def test_the_record_is_of_these_trees() -> None:
    """The record is worth what was asked: the same trees and labels that a live amtool is asked."""
    asked = [[route, labels] for route, labels in amtool.questions()]
    assert [[one["route"], [case[0] for case in one["cases"]]] for one in RECORDED["routes"]] == asked
    assert [text for text, _ in RECORDED["matchers"]] == amtool.MATCHERS
    assert RECORDED["amtool"].startswith("amtool, version 0.")
    answers = {tuple(case[1]) for one in RECORDED["routes"] for case in one["cases"]}
    assert len(answers) >= 20, "the trees would not tell a wrong answer from a right one"


@pytest.mark.parametrize(("text", "taken"), RECORDED["matchers"])
def test_a_matcher_is_taken_where_alertmanager_takes_it(text: str, taken: bool) -> None:
    try:
        read_matchers([text])
        mine = True
    except BadMatcher:
        mine = False
    assert mine == (taken and text not in STRICTER)


@pytest.mark.parametrize(("pattern", "values"), RECORDED["patterns"])
def test_a_pattern_matches_what_alertmanager_matches(pattern: str, values: list[tuple[str, bool]]) -> None:
    matcher = make_matcher("a", "=~", pattern)
    assert {value: matcher.matches({"a": value}) for value, _ in values} == dict(values)


def test_amtool_itself_says_the_same(tmp_path: Path) -> None:
    found = amtool.find()
    if found is None:
        pytest.skip("amtool is not installed (Debian: prometheus-alertmanager); its recorded answers were checked")
    for route, asked in amtool.questions():
        file = amtool.written(route, tmp_path)
        for labels in asked:
            assert ours(route, labels) == amtool.ask(found, file, labels), (route, labels)
