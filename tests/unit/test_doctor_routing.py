"""What the doctor says about who hears what, by the config file and the rules alone."""

from __future__ import annotations

from typing import Any

import pytest

from service.doctor_routing import of_routing
from service.routing.model import RoutingKeys
from service.routing.tree import routing_in_force
from service.rules import Rule, RuleBook

NOTIFIERS = ("oncall", "team", "digest")
RULES = """\
version: 1
rules:
- {id: broken, severity: P1, count: {match: {kind: auth.failed}, within: 1m, gte: 1}, labels: {team: payments}}
- {id: slow, severity: P4, count: {match: {kind: account.updated}, within: 1m, gte: 9}}
- {id: tried, severity: P1, enabled: shadow, count: {match: {kind: other}, within: 1m, gte: 9}}
"""


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rule, ...]:
    folder = tmp_path_factory.mktemp("rules")
    (folder / "all.yml").write_text(RULES)
    book = RuleBook(folder)
    book.reload()
    assert not book.problems
    return book.rules


def said(rules: tuple[Rule, ...], **keys: Any) -> list[tuple[bool | None, str]]:
    routing = routing_in_force(RoutingKeys.model_validate(keys), NOTIFIERS)
    return [(finding.ok, finding.said) for finding in of_routing(routing, NOTIFIERS, rules)]


def test_without_a_route_everybody_hears_everything(rules: tuple[Rule, ...]) -> None:
    assert said(rules) == [
        (True, "no route in the config file: every notifier hears every alert (oncall, team, digest)")
    ]


def test_a_tree_that_leads_to_everybody_is_well(rules: tuple[Rule, ...]) -> None:
    route = {
        "receiver": "digest",
        "routes": [
            {"matchers": ["severity=P1"], "receiver": "oncall", "escalate": {"after": "5m", "to": "team"}},
        ],
    }
    assert said(rules, route=route) == [(True, "2 routes to 3 receivers; see `authwatch routes show`")]


def test_alerts_that_nobody_hears_of_are_named_those_in_shadow_apart(rules: tuple[Rule, ...]) -> None:
    receivers = [{"name": "all", "notifiers": [*NOTIFIERS]}, {"name": "nobody", "notifiers": []}]
    route = {"receiver": "nobody", "routes": [{"matchers": ["severity=P4"], "receiver": "all"}]}
    [_, hint] = said(rules, receivers=receivers, route=route)
    assert hint[0] is None
    assert hint[1].startswith("nobody hears of broken, unless a label of the account routes it elsewhere; ")


def test_where_no_route_leads_anywhere_it_is_a_fault(rules: tuple[Rule, ...]) -> None:
    receivers = [{"name": "all", "notifiers": [*NOTIFIERS]}, {"name": "nobody", "notifiers": []}]
    found = said(rules, receivers=receivers, route={"receiver": "nobody"})
    assert found[0][0] is False
    assert found[0][1].startswith(
        "no route leads to a notifier: nobody hears of any alert; give its receiver a notifier"
    )


def test_a_notifier_that_nothing_leads_to(rules: tuple[Rule, ...]) -> None:
    receivers = [{"name": "oncall"}, {"name": "team"}]
    assert [text for ok, text in said(rules, receivers=receivers, route={"receiver": "oncall"}) if ok is None] == [
        "no route leads to the notifier team: it hears only of others that take no message",
        "no route leads to the notifier digest: no receiver names it, so it hears of nothing",
    ]


def test_a_route_behind_one_that_takes_everything(rules: tuple[Rule, ...]) -> None:
    routes = [
        {"receiver": "team", "continue": True},
        {"receiver": "digest"},
        {"matchers": ["severity=P1"], "receiver": "oncall"},
    ]
    [(_, hint)] = [one for one in said(rules, route={"receiver": "digest", "routes": routes}) if one[0] is None]
    assert hint.startswith("route.routes.2 is never asked: route.routes.1 before it takes everything")


def test_a_label_that_no_alert_has_is_most_likely_misspelt(rules: tuple[Rule, ...]) -> None:
    routes = [
        {"matchers": ["serverity=P1"], "receiver": "oncall", "continue": True},
        {"matchers": ["team=payments", "notifier=~.+", "tier!=free"], "receiver": "team", "continue": True},
    ]
    found = said(
        rules,
        route={"receiver": "digest", "routes": routes},
        inhibit_rules=[{"source_matchers": ["rule=broken"], "target_matchers": ["rule_id=slow"]}],
        silences=[{"matchers": ["conn=c1"], "author": "ops", "comment": "c", "end": "2030-01-01T00:00:00Z"}],
    )
    hints = [text.partition(", which")[0] for ok, text in found if ok is None]
    assert hints == [
        "route.routes.0 asks for the label serverity",
        "inhibit_rules.0 asks for the label rule",
        "silences.0 asks for the label conn",
    ]
