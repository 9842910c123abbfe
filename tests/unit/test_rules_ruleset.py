"""The rules that an event is shown to: every rule that it can mean something to, and few others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service import grouped
from service.rules import Rule, Ruleset, load_text
from service.rules.model import GROUP_FIELDS
from service.rules.simulate import group_of
from service.rules.story import Step
from service.rules.triggers.gauge import METRICS
from tests.unit.rule_texts import CONDITIONS
from tests.unit.rule_texts import rule as rule_text
from tests.unit.test_rules_explaining import make_rule
from tests.unit.told import make_events

EVENT = make_events([("fail", 0.0)])[0]


def counting(rule_id: str, match: str, more: str = "", by: str = "account_id") -> Rule:
    text = f"count: {{match: {match}, within: 5m, gte: 2}}\ngroup_by: [{by}]\n{more}"
    return make_rule(text).model_copy(update={"id": rule_id})


def step(**values: object) -> Step:
    return Step(replace(EVENT, kind="token.refresh_failed", **values), None, None)  # type: ignore[arg-type]


FAILED = "kind: token.refresh_failed"
RULES = (
    counting("any-provider", f"{{{FAILED}}}"),
    counting("of-gmail", f"{{{FAILED}, provider: GMAIL}}"),
    counting("of-two", f"{{{FAILED}, provider: [GMAIL, SLACK]}}"),
    counting("either", f"[{{{FAILED}, provider: GMAIL}}, {{{FAILED}, status: EXPIRED}}]"),
    counting("either-provider", f"[{{{FAILED}, provider: GMAIL}}, {{{FAILED}, provider: HUBSPOT, status: EXPIRED}}]"),
    counting("by-glob", f"{{{FAILED}, provider: {{glob: GM*}}}}"),
    counting("not-gmail", f"{{{FAILED}, provider: {{ne: GMAIL}}}}"),
    counting("no-kind", "{provider: SLACK}"),
    counting("by-detail", f"{{{FAILED}, details.reason: revoked}}"),
    counting("by-number", f"{{{FAILED}, details.code: 1}}"),
    counting("resolved-by-any", f"{{{FAILED}, provider: GMAIL}}", "resolve: {event: {kind: account.authorized}}"),
    counting("resolved-by-same", f"{{{FAILED}, provider: GMAIL}}", f"resolve: {{event: {{{FAILED}, status: ACTIVE}}}}"),
    counting("of-a-connection", f"{{{FAILED}, provider: GMAIL}}", by="connection_id"),
)
STEPS = [
    step(provider=provider, status=status, details=details)
    for provider in ("GMAIL", "SLACK", "HUBSPOT", "NOTION", None)
    for status in ("ACTIVE", "EXPIRED", None)
    for details in (None, {"reason": "revoked"}, {"reason": ["revoked"]}, {"code": 1}, {"code": True})
]


@pytest.mark.parametrize("shown", STEPS, ids=lambda of: f"{of.event.provider}-{of.event.status}-{of.event.details}")
def test_an_event_is_shown_to_every_rule_it_means_something_to_in_their_order(shown: Step) -> None:
    rules = Ruleset(RULES)
    told, grouped = list(rules.told_for(shown)), list(rules.grouped_for(shown))
    assert [rule for rule in told if rule.samples(shown)] == [rule for rule in rules.told if rule.samples(shown)]
    assert [rule for rule in grouped if rule.samples(shown)] == [rule for rule in rules.grouped if rule.samples(shown)]


def test_of_a_thousand_rules_it_is_shown_to_its_own() -> None:
    rules = Ruleset(
        counting(f"of-{provider}-{number}", f"{{{FAILED}, provider: P{provider}}}")
        for provider in range(100)
        for number in range(10)
    )
    assert [rule.id for rule in rules.told_for(step(provider="P7"))] == [f"of-7-{number}" for number in range(10)]
    assert list(rules.told_for(step(provider="elsewhere"))) == []
    assert list(rules.told_for(step(provider=None))) == []


def test_what_ends_an_episode_is_found_whatever_its_provider() -> None:
    rules = Ruleset([RULES[-3]])
    [ending] = rules.told_for(Step(replace(EVENT, kind="account.authorized", provider="SLACK"), None, None))
    assert ending.id == "resolved-by-any"


def test_a_rule_of_several_values_is_shown_once() -> None:
    rules = Ruleset([counting("twice", f"{{{FAILED}, provider: [GMAIL, GMAIL], status: [ACTIVE, EXPIRED, DELETED]}}")])
    assert len(rules.told_for(step(provider="GMAIL", status="ACTIVE"))) == 1


@pytest.mark.parametrize("condition", sorted(CONDITIONS))
@pytest.mark.parametrize(
    "name", [*GROUP_FIELDS, "details.tool", *sorted({one for _, of in METRICS.values() for one in of})]
)
def test_what_loads_can_be_grouped(condition: str, name: str) -> None:
    """One rule whose group cannot be read would stop the evaluator for all of them."""
    for rule in load_text(rule_text(condition, f"  group_by: [{name}]\n").encode(), "a.yml").rules:
        if rule.kind != "gauge":
            assert group_of(rule, STEPS[0]) is None or name in (group_of(rule, STEPS[0]) or {})


@pytest.mark.parametrize(
    "by",
    ["connection_id", "connection_id, environment_id", "environment_id", "provider, source", "account_id, provider"],
)
@pytest.mark.parametrize("environment_id", ["env_1", None])
@pytest.mark.parametrize("connection_id", ["conn_1", None])
def test_tests_and_backtests_group_as_the_evaluator_does(
    by: str, environment_id: str | None, connection_id: str | None
) -> None:
    rule, shown = (
        counting("x", f"{{{FAILED}}}", by=by),
        step(environment_id=environment_id, connection_id=connection_id),
    )
    live = grouped.group_of(rule, shown)
    assert group_of(rule, shown) == (live.values if live is not None else None)
