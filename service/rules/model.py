"""A rule as its YAML says it: strict, compiled once, and then only values. Each condition's shape is in `triggers/`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, create_model, field_validator, model_validator

from service.event import WELL
from service.rules.fields import PLACEHOLDER, Duration, Match, Number, Strict, Template, one_or_many
from service.rules.given import Given, Judged, Sample
from service.rules.latch import FLAPPING_QUIET
from service.rules.match import DETAIL, Matcher, compile_matches, nearest
from service.rules.story import Step
from service.rules.triggers import TRIGGERS, Condition
from service.rules.triggers.gauge import METRICS, Gauge

RULE_ID = r"^[a-z0-9][a-z0-9-]{0,79}$"
LABEL = r"^[a-z_][a-z0-9_]{0,59}$"
GROUP_FIELDS = ("account_id", "connection_id", "provider", "organization_id", "environment_id", "source")
GROUP_MAX = 10_000
ZERO = timedelta(0)
CONDITIONS = tuple(TRIGGERS)


class Resolve(Strict):
    """How it ends, where that is not simply the condition being false. `event`: such an event ends the episode and empties
    the window. `after`: so long without a match. `manual`: only a person. A threshold: what the value must reach."""

    event: Annotated[list[Match], BeforeValidator(one_or_many), Field(min_length=1, max_length=50)] | None = None
    after: Duration | None = None
    manual: bool = Field(False, strict=True)
    gt: Number | None = None
    gte: Number | None = None
    lt: Number | None = None
    lte: Number | None = None

    @field_validator("event")
    @classmethod
    def can_match(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if value is not None:
            compile_matches(value)
        return value

    @cached_property
    def matcher(self) -> Matcher | None:
        return compile_matches(self.event) if self.event is not None else None

    @property
    def has_threshold(self) -> bool:
        return any(bound is not None for bound in (self.gt, self.gte, self.lt, self.lte))

    def met(self, value: float) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.gte is None or value >= self.gte)
            and (self.lt is None or value < self.lt)
            and (self.lte is None or value <= self.lte)
        )


class PauseWorkflows(Strict):
    """`account_id`: what depends on the group's account. `connection_id`: the whole of what serves its connection."""

    depends_on: Literal["account_id", "connection_id"] = "account_id"
    stable_for: Duration = timedelta(seconds=30)


class Action(Strict):
    pause_workflows: PauseWorkflows


class Annotations(Strict):
    """What people read. `reason` says why the rule exists, `what_to_do` what to do now."""

    summary: Template
    what_to_do: Template | None = None
    reason: str | None = Field(None, max_length=2000)


class Objective(Strict):
    """How soon after the event an alert should be out; said in `explain` and measured in backtests."""

    detect_within: Duration


class TestEvent(Strict):
    """An event of an inline test. `at`: so long after its begin, by the provider's clock; `arrives`: by ours, where that
    is later. Everything else is a field of the event, as matches name it."""

    __test__: ClassVar[bool] = False

    at: Duration
    arrives: Duration | None = None
    kind: str
    repeat: int = Field(1, ge=1, le=1000, strict=True)
    every: Duration = ZERO
    type: str | None = None
    status: str | None = None
    account_id: str = "ca_1"
    connection_id: str | None = "conn_1"
    provider: str | None = None
    identifier: str | None = None
    organization_id: str | None = None
    environment_id: str | None = None
    details: dict[str, Any] = Field(default_factory=dict, max_length=20)


class TestExpectation(Strict):
    """What must hold `at` that time: `inactive`, `pending`, `firing` or `resolved`, of one group or of all there are."""

    __test__: ClassVar[bool] = False

    at: Duration
    state: Literal["inactive", "pending", "firing", "resolved"]
    group: dict[str, str] | None = None
    episodes: int | None = Field(None, ge=0, strict=True)


class RuleTest(Strict):
    """An inline test: events on a virtual clock, and what must hold when. `readings` are a gauge's."""

    name: str = Field(min_length=1, max_length=200)
    events: list[TestEvent] = Field(default_factory=list, max_length=1000)
    readings: list[dict[str, Any]] = Field(default_factory=list, max_length=1000)
    active_workflows: int = Field(1, ge=0, le=1, strict=True)
    expect: list[TestExpectation] = Field(min_length=1, max_length=200)


# Each condition is a key of the rule; the registry is the one place that knows them.
Conditions: TypeAlias = create_model(  # type: ignore[valid-type]
    "Conditions",
    __base__=Strict,
    **{name: (condition | None, None) for name, condition in TRIGGERS.items()},  # type: ignore[call-overload]
)


class Rule(Conditions):
    """Exactly one condition, and what follows from it."""

    id: str = Field(pattern=RULE_ID)
    severity: Literal["P1", "P2", "P3", "P4"]
    enabled: Annotated[bool, Field(strict=True)] | Literal["shadow"] = True
    for_: Duration = Field(ZERO, alias="for")
    keep_firing_for: Duration = ZERO
    group_by: list[str] = Field(default_factory=lambda: ["account_id"], max_length=5)
    resolve: Resolve | None = None
    allowed_lateness: Duration = timedelta(hours=1)
    objective: Objective | None = None
    labels: dict[Annotated[str, Field(pattern=LABEL)], Annotated[str, Field(max_length=200)]] = Field(
        default_factory=dict, max_length=20
    )
    annotations: Annotations
    actions: list[Action] = Field(default_factory=list, max_length=5)
    tests: list[RuleTest] = Field(default_factory=list, max_length=50)

    @field_validator("group_by")
    @classmethod
    def groups_by_fields(cls, value: list[str]) -> list[str]:
        for name in value:
            if (
                name not in GROUP_FIELDS
                and not DETAIL.fullmatch(name)
                and not any(name in labels for _, labels in METRICS.values())
            ):
                raise ValueError(f'cannot group by "{name}"; {nearest(name, (*GROUP_FIELDS, "details.NAME"))}')
        if len(set(value)) != len(value):
            raise ValueError("a field is named twice")
        return value

    @model_validator(mode="after")
    def can_be_judged(self) -> Self:
        given = [name for name in CONDITIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a rule has exactly one condition of {', '.join(CONDITIONS)}; this one has {len(given)}")
        condition = self.condition
        self._check_resolve(condition)
        self._check_groups(condition)
        for action in self.actions:
            if action.pause_workflows.depends_on not in self.group_by:
                raise ValueError(
                    f"pause_workflows depends_on {action.pause_workflows.depends_on}, which is not in group_by"
                )
        return self

    def _check_resolve(self, condition: Condition) -> None:
        if self.resolve is None:
            return
        if condition.NAME == "state":
            raise ValueError("a state rule resolves by itself, when the account is well; take resolve out")
        for name in self.resolve.model_fields_set:
            if name not in condition.RESOLVES:
                known = ", ".join(sorted(condition.RESOLVES)) or "nothing"
                raise ValueError(f"resolve.{name} does not go with {condition.NAME}; known: {known}")

    def _check_groups(self, condition: Condition) -> None:
        if isinstance(condition, Gauge):
            if "group_by" not in self.model_fields_set:
                object.__setattr__(self, "group_by", list(condition.labels))
            if not set(self.group_by) <= set(condition.labels):
                raise ValueError(f"{condition.metric} is measured by {', '.join(condition.labels) or 'nothing'}")
        elif not condition.GROUPS and self.group_by != ["account_id"]:
            raise ValueError(f"{condition.NAME} groups by account_id")
        if not self.by_account:
            matchers = [*condition.roles().values()]
            if self.resolve is not None and self.resolve.matcher is not None:
                matchers.append(self.resolve.matcher)
            if any("became" in matcher.fields for matcher in matchers):
                raise ValueError("became is known only where a rule groups by account_id; match status instead")

    @cached_property
    def condition(self) -> Condition:
        """Asked for every event: found once, since pydantic looks for a private attribute anew each time."""
        found: Condition = next(getattr(self, name) for name in CONDITIONS if getattr(self, name) is not None)
        return found

    @property
    def kind(self) -> str:
        return self.condition.NAME

    @property
    def by_account(self) -> bool:
        return self.group_by == ["account_id"]

    @property
    def told(self) -> bool:
        """Judged from one account's own story in the log, rather than from samples kept for a group."""
        return self.by_account and not self.condition.STORED and self.kind != "gauge"

    @property
    def shadow(self) -> bool:
        return self.enabled == "shadow"

    @cached_property
    def version(self) -> str:
        """A digest of all the rule says."""
        return digest(self.model_dump(mode="json", by_alias=True, exclude={"tests"}))

    @cached_property
    def condition_version(self) -> str:
        """A digest of what decides when it holds; while it stays, open episodes go on through an edit."""
        kept = {*CONDITIONS, "for_", "keep_firing_for", "group_by", "resolve", "allowed_lateness"}
        return digest(self.model_dump(mode="json", by_alias=True, include=kept))

    @cached_property
    def lookback(self) -> timedelta:
        """How far back from the first new event samples are needed; what flaps ends later than it would otherwise."""
        quiet = self.resolve.after if self.resolve is not None and self.resolve.after is not None else ZERO
        return max(self.condition.lookback, quiet) + self.for_ + max(self.keep_firing_for, FLAPPING_QUIET)

    @cached_property
    def matchers(self) -> tuple[tuple[str, Matcher], ...]:
        """Roles in the order in which one event may play them."""
        roles = tuple(self.condition.roles().items())
        if self.resolve is not None and self.resolve.matcher is not None:
            return (("resolve", self.resolve.matcher), *roles)
        return roles

    @cached_property
    def kinds(self) -> frozenset[str] | None:
        """The event kinds that concern it, None when it may be any."""
        found: frozenset[str] = frozenset()
        for _, matcher in self.matchers:
            if matcher.kinds is None:
                return None
            found |= matcher.kinds
        return found

    def samples(self, step: Step) -> list[Sample]:
        """What this event means to the rule: nothing, nearly always."""
        found: list[Sample] = []
        for role, matcher in self.matchers:
            if (matcher.kinds is None or step.event.kind in matcher.kinds) and matcher.test(step):
                if role == "resolve":
                    value_of = getattr(self.condition, "value_of", None)
                    distinct = value_of(step) if value_of is not None else None
                    found.append(Sample(step.event.occurred_at, role, step.event.id, distinct=distinct))
                    if self.kind == "count":
                        break  # what says that it is well again is no further failure
                elif (sample := self.condition.sample(role, step)) is not None:
                    found.append(sample)
        return found

    def judge(self, given: Given) -> Judged:
        return self.condition.judge(self, given)

    def may_open(self, step: Step) -> bool:
        """Whether an episode of this rule could begin with this step; with any other it can only go on, or end."""
        if self.kind == "state":
            return step.became not in (None, WELL)
        return self.kind == "count" and any(sample.role == "match" for sample in self.samples(step))

    @property
    def pauses(self) -> bool:
        return bool(self.actions)

    @property
    def pauses_connection(self) -> bool:
        return any(action.pause_workflows.depends_on == "connection_id" for action in self.actions)

    @property
    def stable_for(self) -> timedelta:
        return max((action.pause_workflows.stable_for for action in self.actions), default=timedelta(seconds=30))

    @property
    def summary(self) -> str:
        return self.annotations.summary

    @property
    def what_to_do(self) -> str | None:
        return self.annotations.what_to_do

    @staticmethod
    def render(text: str, values: Mapping[str, str]) -> str:
        return PLACEHOLDER.sub(lambda match: values.get(match[1], ""), text)


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
