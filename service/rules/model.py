"""A rule as its YAML says it: strict, compiled once, and then only values. The schema grows by one condition at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from service.event import KINDS, WELL
from service.rules.match import Predicate, compile_match, nearest
from service.rules.story import Step

DURATION = re.compile(r"(\d{1,6})([smhd])")
DURATION_MAX = timedelta(days=30)
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PLACEHOLDER = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
# What a template may name; the values are the alert's.
PLACEHOLDERS = (
    "account_id",
    "connection_id",
    "environment_id",
    "identifier",
    "organization_id",
    "provider",
    "source",
    "status",
    "value",
)
RULE_ID = r"^[a-z0-9][a-z0-9-]{0,79}$"


def duration(value: Any) -> Any:
    if isinstance(value, str) and (match := DURATION.fullmatch(value)):
        length = timedelta(seconds=int(match[1]) * UNIT_SECONDS[match[2]])
        if length > DURATION_MAX:
            raise ValueError(f"{value} is longer than {DURATION_MAX.days}d, which nothing here can look back")
        return length
    if isinstance(value, timedelta):
        return value
    raise ValueError("write a duration such as 30s, 10m, 2h or 1d")


def one_or_many(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def template(value: Any) -> Any:
    if isinstance(value, str):
        for name in PLACEHOLDER.findall(value):
            if name not in PLACEHOLDERS:
                raise ValueError(f'unknown placeholder "{name}"; {nearest(name, PLACEHOLDERS)}')
    return value


Duration = Annotated[timedelta, BeforeValidator(duration)]
Template = Annotated[str, BeforeValidator(template), Field(min_length=1, max_length=2000)]
Match = dict[str, Any]
Matches = Annotated[list[Match], BeforeValidator(one_or_many), Field(min_length=1, max_length=50)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def compiled(matches: list[Match]) -> Predicate:
    """A list of matches is joined by OR."""
    for match in matches:
        wanted = one_or_many(match["kind"]) if isinstance(match.get("kind"), str | list) else []
        for kind in wanted:
            if kind not in KINDS:
                raise ValueError(f'unknown kind "{kind}"; {nearest(str(kind), KINDS)}')
    tests = [compile_match(match) for match in matches]
    return lambda step: any(test(step) for test in tests)


class Count(Strict):
    """`gte` events that match within `within`."""

    match: Matches
    within: Duration
    gte: int = Field(ge=1, le=10_000)


class Comparison(Strict):
    gte: int = Field(ge=1, le=1)


class StateMatch(Strict):
    """A status (or several) of the account, for so long, while at least one active workflow depends on it."""

    status: Annotated[list[str], BeforeValidator(one_or_many), Field(min_length=1)]
    active_workflows: Comparison
    for_: Duration = Field(timedelta(0), alias="for")


class State(Strict):
    of: Literal["account"]
    match: Annotated[list[StateMatch], BeforeValidator(one_or_many), Field(min_length=1)]


class Resolve(Strict):
    """`event`: such an event ends the episode and empties the window."""

    event: Matches


class PauseWorkflows(Strict):
    depends_on: Literal["account_id"] = "account_id"
    stable_for: Duration = timedelta(seconds=30)


class Action(Strict):
    pause_workflows: PauseWorkflows


class Annotations(Strict):
    summary: Template
    what_to_do: Template | None = None
    reason: str | None = Field(None, max_length=2000)


class Objective(Strict):
    detect_within: Duration


class Rule(Strict):
    """Exactly one condition. `version` is the content's hash, put there by the loader."""

    id: str = Field(pattern=RULE_ID)
    severity: Literal["P1", "P2", "P3", "P4"]
    enabled: bool = True
    count: Count | None = None
    state: State | None = None
    group_by: tuple[Literal["account_id"]] = ("account_id",)
    resolve: Resolve | None = None
    keep_firing_for: Duration = timedelta(0)
    allowed_lateness: Duration = timedelta(hours=1)
    objective: Objective | None = None
    labels: dict[str, str] = Field(default_factory=dict, max_length=20)
    annotations: Annotations
    actions: list[Action] = Field(default_factory=list, max_length=5)

    _version: str = PrivateAttr(default="")
    _counts: Predicate | None = PrivateAttr(default=None)
    _resolves: Predicate | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def can_be_judged(self) -> Self:
        given = [name for name in CONDITIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a rule has exactly one condition of {', '.join(CONDITIONS)}; this one has {len(given)}")
        if self.state is not None and self.resolve is not None:
            raise ValueError("a state rule resolves by itself, when the account is well; take resolve out")
        self._counts = compiled(self.count.match) if self.count else None
        self._resolves = compiled(self.resolve.event) if self.resolve else None
        return self

    @property
    def kind(self) -> str:
        return "count" if self.count is not None else "state"

    @property
    def version(self) -> str:
        return self._version

    def stamped(self, version: str) -> Rule:
        self._version = version
        return self

    @property
    def resolve_events(self) -> bool:
        return self._resolves is not None

    def count_matches(self, step: Step) -> bool:
        return self._counts is not None and self._counts(step)

    def resolves(self, step: Step) -> bool:
        return self._resolves is not None and self._resolves(step)

    def may_open(self, step: Step) -> bool:
        """Whether an episode of this rule could begin with this step; with any other it can only go on, or end."""
        return self.count_matches(step) or (self.state is not None and step.became not in (None, WELL))

    @cached_property
    def within(self) -> timedelta:
        """How far back from the first new event the history is needed."""
        if self.count is None:
            return timedelta(0)
        # Without a resolve event, when the window fell below is found from twice its length.
        return self.count.within if self.resolve_events else self.count.within * 2 + self.keep_firing_for

    @property
    def pauses(self) -> bool:
        return bool(self.actions)

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


CONDITIONS = ("count", "state")
