"""Whatever rule loads can be judged and explained: one that raised at an event would stop the evaluator for all others."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from service import grouped
from service.event import PROVIDER_KINDS, Event
from service.rules import Rule
from service.rules.explaining import rule_words
from service.rules.given import Given
from service.rules.lateness import samples_in_time
from service.rules.match import FIELDS, OPERATORS
from service.rules.simulate import Simulation
from service.rules.story import Initial, Step, tell
from tests.unit.told import BEGAN, at, make_events

PLAIN = make_events([("failed", 0.0)])[0]
NAMES = (*FIELDS, "details.tool", "details.partial", "details.http_status", "details.token_expires_at", "details.x")
VALUES = ("ACTIVE", "EXPIRED", "GMAIL", "", "x*", "[", "007", 1, 0, 1.5, True, False, *PROVIDER_KINDS[:4])
DURATIONS = ("0s", "1s", "30s", "5m", "1h", "30d")
GROUPS = ("account_id", "connection_id", "provider", "source", "environment_id", "sink", "details.x")
DETAILS: tuple[Any, ...] = (
    None,
    {},
    *({"x": value} for value in (1, "a", [1], {"a": 1}, True, 1e300, -1, None)),
    *({"token_expires_at": value} for value in ("2026-11-01T12:10:00Z", "9999-12-31T23:59:59Z", "soon", 5)),
    {"http_status": "x", "tool": 3, "partial": "true"},
)


class Maker:
    """Rules, most of which do not load, and events of every shape."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)

    def condition_of_field(self) -> Any:
        one = self.r.choice(VALUES)
        return self.r.choice(
            [one, one, [one, self.r.choice(VALUES)], {self.r.choice(OPERATORS): self.r.choice([one, [one], True])}]
        )

    def match(self) -> dict[str, Any]:
        named = {self.r.choice(NAMES): self.condition_of_field() for _ in range(self.r.randint(0, 2))}
        return named | {"kind": self.r.choice(PROVIDER_KINDS)} if self.r.random() < 0.7 or not named else named

    def condition(self) -> dict[str, Any]:
        within, match = self.r.choice(DURATIONS), self.match
        return self.r.choice(
            [
                {"count": {"match": match(), "within": within, "gte": self.r.randint(1, 3)}},
                {"count": {"match": match(), "within": within, "gte": 2, "distinct": self.r.choice(NAMES)}},
                {"ratio": {"good": match(), "total": match(), "within": within, "lt": 0.5, "min_total": 1}},
                {"quantile": {"match": match(), "field": self.r.choice(NAMES), "q": 0.5, "within": within, "gt": -1.0, "min_total": 1}},
                {"state": {"of": "account", "match": [{"status": ["EXPIRED", "DELETED"], "for": within}]}},
                {"absence": {"after": match(), "expect": match(), "unless": [match()], "within": within}},
                {"absence": {"after": match(), "expect": match(), "deadline": self.r.choice(NAMES)}},
            ]
        )  # fmt: skip

    def rule(self) -> Rule | None:
        made = {
            "id": "x",
            "severity": "P3",
            "annotations": {"summary": "{{ value }} of {{ group }}"},
            **self.condition(),
        }
        if self.r.random() < 0.4:
            made |= {self.r.choice(["for", "keep_firing_for", "allowed_lateness"]): self.r.choice(DURATIONS)}
        if self.r.random() < 0.5:
            made |= {"group_by": self.r.sample(GROUPS, self.r.randint(0, 2))}
        if self.r.random() < 0.4:
            made |= {
                "resolve": self.r.choice([{"event": self.match()}, {"after": "30s"}, {"manual": True}, {"gte": 1.0}])
            }
        try:
            return Rule.model_validate(made)
        except ValidationError:
            return None

    def event(self, number: int, second: float) -> Event:
        late = self.r.choice([0, 0, 0, 1, 100, 5000])
        status = self.r.choice([None, "ACTIVE", "EXPIRED", "DISCONNECTED", "DELETED", "PENDING_AUTH", "WEIRD"])
        return replace(
            PLAIN,
            id=f"id_{number}",
            event_id=f"evt_{self.r.randint(0, number)}",
            kind=self.r.choice(PROVIDER_KINDS),
            status=status,
            account_status=status,
            account_id=self.r.choice(["ca_1", "ca_2", None]),
            connection_id=self.r.choice(["conn_1", None]),
            provider=self.r.choice(["GMAIL", None]),
            environment_id=self.r.choice(["env_1", None]),
            occurred_at=at(second - late),
            received_at=at(second),
            lag_seconds=float(late),
            details=self.r.choice(DETAILS),
        )


@pytest.mark.parametrize("seed", range(2))
def test_whatever_loads_is_judged_and_explained(seed: int) -> None:
    maker = Maker(seed)
    rules = [rule for rule in (maker.rule() for _ in range(300)) if rule is not None]
    assert len(rules) > 20
    for rule in rules:
        events = [maker.event(number, 40.0 * number) for number in range(8)]
        simulation = Simulation([rule], began=at(0))
        for number, event in enumerate(events):
            simulation.feed([event], at(40.0 * number))
            grouped.group_of(rule, Step(event, None, None))
        simulation.advance(at(100_000))
        story = tell(Initial(), [event for event in events if event.account_id == "ca_1"])
        samples = [sample for step in story.steps for sample in samples_in_time(rule, step)[0]]
        given = Given(judge_from=BEGAN - timedelta(days=1), now=at(500), samples=samples, steps=story.steps)
        said = rule.condition.explain(rule, given)
        assert said.because or said.missing, "neither why nor why not"
        assert rule_words(rule)
