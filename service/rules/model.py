"""A rule as its YAML says it: strict, compiled once, and then only values. Each condition's shape is in `triggers/`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, create_model, field_validator, model_validator

from service.event import WELL
from service.rules.fields import PLACEHOLDER, Duration, Enabled, Match, Number, Strict, Template, Window, one_or_many
from service.rules.given import Armed, Given, Judged, Sample
from service.rules.inline_model import RuleTest
from service.rules.latch import FLAPPING_QUIET
from service.rules.match import DETAIL, Matcher, compile_matches
from service.rules.mistake import Mistake, nearest, quoted
from service.rules.story import Step
from service.rules.triggers import TRIGGERS, Condition
from service.rules.triggers.absence import Absence
from service.rules.triggers.gauge import METRICS, Gauge

RULE_ID = r"^[a-z0-9][a-z0-9-]{0,79}$"
LABEL = r"^[a-z_][a-z0-9_]{0,59}$"
GROUP_FIELDS = ("account_id", "connection_id", "provider", "organization_id", "environment_id", "source")
GROUP_MAX = 10_000
ZERO = timedelta(0)
CONDITIONS = tuple(TRIGGERS)
MATCH_KEYS = ("match", "good", "total", "after", "expect", "unless")  # the keys of conditions that hold matches


class Resolve(Strict):
    """How it ends, where that is not simply the condition being false. `event`: such an event ends the episode and empties
    the window. `after`: so long without a match. `manual`: only a person. A threshold: what the value must reach."""

    event: Annotated[list[Match], BeforeValidator(one_or_many), Field(min_length=1, max_length=50)] | None = None
    after: Window | None = None
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

    @model_validator(mode="after")
    def says_something(self) -> Self:
        """Nothing would ever end what only this may end."""
        if self.event is None and self.after is None and not self.manual and not self.has_threshold:
            mend = "take resolve out, or say what ends it; manual: true is a person"
            raise Mistake("resolve names nothing that ends the alert, so that it would never end", mend)
        return self

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

    summary: Template | None = None
    what_to_do: Template | None = None
    reason: str | None = Field(None, max_length=2000)


class Objective(Strict):
    """How soon after the event an alert should be out; said in `explain` and measured in backtests."""

    detect_within: Duration


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
    enabled: Enabled = True
    for_: Duration = Field(ZERO, alias="for")
    keep_firing_for: Duration = ZERO
    group_by: list[str] = Field(default_factory=lambda: ["account_id"], max_length=5)
    resolve: Resolve | None = None
    allowed_lateness: Duration = timedelta(hours=1)
    objective: Objective | None = None
    labels: dict[Annotated[str, Field(pattern=LABEL)], Annotated[str, Field(max_length=200)]] = Field(
        default_factory=dict, max_length=20
    )
    annotations: Annotations = Field(default_factory=Annotations)
    actions: list[Action] = Field(default_factory=list, max_length=5)
    tests: list[RuleTest] = Field(default_factory=list, max_length=50)

    @field_validator("group_by")
    @classmethod
    def groups_by_fields(cls, value: list[str]) -> list[str]:
        for index, name in enumerate(value):
            if (
                name not in GROUP_FIELDS
                and not DETAIL.fullmatch(name)
                and not any(name in labels for _, labels in METRICS.values())
            ):
                mend = nearest(name, (*GROUP_FIELDS, "details.NAME"))
                raise Mistake(f"cannot group by {quoted(name)}", mend, path=(index,))
            if name in value[:index]:
                raise Mistake(f"{name} is named twice", "take one out", path=(index,))
        return value

    @model_validator(mode="after")
    def can_be_judged(self) -> Self:
        given = [name for name in CONDITIONS if getattr(self, name) is not None]
        if len(given) != 1:
            message = f"a rule has exactly one condition; this one has {len(given)}"
            if given:
                mend = f"make a rule of its own of each of {', '.join(given)}"
                raise Mistake(message, mend, path=(given[-1],), on_key=True)
            raise Mistake(message, f"add one of {', '.join(CONDITIONS)}")
        condition: Condition = getattr(self, given[0])
        self._check_resolve(condition)
        self._check_groups(condition)
        if condition.NAME == "state" and self.keep_firing_for:
            message = "a state rule ends when the account is well"
            raise Mistake(message, "take keep_firing_for out", path=("keep_firing_for",), on_key=True)
        self._check_tests(condition)
        for index, action in enumerate(self.actions):
            if isinstance(condition, Gauge):
                mend = "take actions out; a count of tool_call.completed pauses, say"
                raise Mistake("a gauge pauses nothing", mend, path=("actions",), on_key=True)
            wanted = action.pause_workflows.depends_on
            if wanted not in self.group_by:
                message = f"pause_workflows depends on {wanted}, which is not in group_by"
                mend = (
                    f"pause by one of group_by ({', '.join(self.group_by) or 'which is empty'}), or group by {wanted}"
                )
                raise Mistake(message, mend, path=("actions", index, "pause_workflows", "depends_on"))
        return self

    def _check_resolve(self, condition: Condition) -> None:
        if self.resolve is None:
            return
        if condition.NAME == "state":
            message = "a state rule resolves by itself, when the account is well"
            raise Mistake(message, "take resolve out", path=("resolve",), on_key=True)
        for name in self.resolve.model_fields_set:
            if name not in condition.RESOLVES:
                known = ", ".join(sorted(condition.RESOLVES)) or "nothing"
                message = f"resolve.{name} does not go with {condition.NAME}"
                raise Mistake(message, f"known there: {known}", path=("resolve", name), on_key=True)
        if self.resolve.manual and len(self.resolve.model_fields_set) > 1:
            raise Mistake("manual: only a person resolves it", "take the rest of resolve out", path=("resolve",))
        self._check_hysteresis(condition, self.resolve)

    def _check_hysteresis(self, condition: Condition, resolve: Resolve) -> None:
        """Where it ends must not lie on the side where it begins: it would do both at once."""
        for name in ("lt", "lte", "gt", "gte"):
            bound = getattr(condition, name, None)
            if bound is None or condition.NAME == "count":
                continue
            for same in ("lt", "lte") if name.startswith("l") else ("gt", "gte"):
                if getattr(resolve, same) is not None:
                    mend = f"write {'gte' if name.startswith('l') else 'lte'}: {bound:g}, or further off"
                    message = f"resolve.{same} ends it on the side where it fires ({name} {bound:g})"
                    raise Mistake(message, mend, path=("resolve", same), on_key=True)
            for ends in ("gt", "gte") if name.startswith("l") else ("lt", "lte"):
                value = getattr(resolve, ends)
                if value is not None and (value < bound if name.startswith("l") else value > bound):
                    message = f"resolve.{ends} {value:g} lies where it fires ({name} {bound:g})"
                    mend = f"write {bound:g} or {'more' if name.startswith('l') else 'less'}"
                    raise Mistake(message, mend, path=("resolve", ends))

    def _check_tests(self, condition: Condition) -> None:
        names: set[str] = set()
        for number, test in enumerate(self.tests):
            here = ("tests", number)
            if test.name in names:
                message = f"two tests are called {quoted(test.name)}"
                raise Mistake(message, "say how they differ", path=(*here, "name"))
            names.add(test.name)
            if bool(test.readings) and not isinstance(condition, Gauge):
                message = "readings go with gauge"
                raise Mistake(message, f"give {condition.NAME} events", path=(*here, "readings"), on_key=True)
            if bool(test.events) and isinstance(condition, Gauge):
                message = "a gauge is read, not told"
                raise Mistake(message, "give it readings", path=(*here, "events"), on_key=True)
            for index, expected in enumerate(test.expect):
                for name in expected.group or {}:
                    if name not in self.group_by:
                        message = f"it groups by {', '.join(self.group_by) or 'nothing'}, not by {quoted(name)}"
                        mend = nearest(name, self.group_by) if self.group_by else "take group out"
                        raise Mistake(message, mend, path=(*here, "expect", index, "group", name), on_key=True)

    def _check_groups(self, condition: Condition) -> None:
        if isinstance(condition, Gauge):
            if "group_by" not in self.model_fields_set:
                object.__setattr__(self, "group_by", list(condition.labels))
            if not set(self.group_by) <= set(condition.labels):
                message = f"{condition.metric} is measured by {', '.join(condition.labels) or 'nothing'}"
                raise Mistake(message, f"write group_by: [{', '.join(condition.labels)}]", path=("group_by",))
        elif not condition.GROUPS and self.group_by != ["account_id"]:
            message = f"{condition.NAME} groups by account_id"
            raise Mistake(message, "take group_by out", path=("group_by",))
        if not isinstance(condition, Gauge):
            for index, name in enumerate(self.group_by):
                if name not in GROUP_FIELDS and not DETAIL.fullmatch(name):  # a label that gauges alone have
                    mend = f"known: {', '.join(GROUP_FIELDS)}, details.NAME"
                    raise Mistake(f"no event has a {name} to group by", mend, path=("group_by", index))
        if self.group_by != ["account_id"] or condition.STORED:  # judged without the account's own story
            message = "became is known only where a count or an absence groups by account_id"
            if getattr(condition, "distinct", None) == "became":
                raise Mistake(message, "count different values of status", path=(condition.NAME, "distinct"))
            for path, match in self.matches_of(condition):
                if "became" in match:
                    raise Mistake(message, "match status and kind instead", path=(*path, "became"), on_key=True)

    def matches_of(self, condition: Condition) -> Iterator[tuple[tuple[str | int, ...], Match]]:
        """Every match of the rule, and the path that leads to it."""
        if condition.NAME != "state":
            for name in MATCH_KEYS:
                for index, match in enumerate(getattr(condition, name, None) or ()):
                    yield (condition.NAME, name, index), match
        for index, match in enumerate((self.resolve.event or ()) if self.resolve is not None else ()):
            yield ("resolve", "event", index), match

    # Cached in the instance: a private attribute of pydantic's would be looked up in three steps, for every event.
    @cached_property
    def condition(self) -> Condition:
        found: Condition = next(value for name in CONDITIONS if (value := getattr(self, name)) is not None)
        return found

    @cached_property
    def kind(self) -> str:
        return self.condition.NAME

    @cached_property
    def by_account(self) -> bool:
        return self.group_by == ["account_id"]

    @cached_property
    def told(self) -> bool:
        """Judged from one account's own story in the log, rather than from samples kept for a group."""
        return self.by_account and not self.condition.STORED and self.kind != "gauge"

    @property
    def of_account(self) -> bool:
        """Whether its groups are each about one account, though it may not be told from that account's story."""
        return "account_id" in self.group_by

    @property
    def names_deadlines(self) -> bool:
        """Whether an event names the deadline, however far away, that this rule waits for."""
        return isinstance(self.condition, Absence) and self.condition.deadline is not None

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
    def sample_version(self) -> str:
        """A digest of what its samples are: while it stays, what is kept of a group goes on through an edit."""
        kept = self.condition.model_dump(mode="json", by_alias=True, exclude=set(self.condition.THRESHOLDS))
        ends = self.resolve.event if self.resolve is not None else None
        return digest([self.kind, kept, self.group_by, ends])

    @cached_property
    def lookback(self) -> timedelta:
        """How far back from the first new event samples are needed; what flaps ends later than it would otherwise."""
        quiet = self.resolve.after if self.resolve is not None and self.resolve.after is not None else ZERO
        # A flapping episode ends so long after what would have ended it.
        kept = self.keep_firing_for if self.kind == "state" else max(self.keep_firing_for, FLAPPING_QUIET)
        return max(self.condition.lookback, quiet) + self.for_ + kept

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

    @property
    def events_needed(self) -> int:
        """With fewer events of an account in sight, and nothing open, it says nothing."""
        return self.condition.events_needed

    def can_match(self, kind: str) -> bool:
        """Whether an event of this kind may count for its window."""
        return any(
            role == "match" and (matcher.kinds is None or kind in matcher.kinds) for role, matcher in self.matchers
        )

    @cached_property
    def _roles_of(self) -> dict[str, tuple[tuple[str, Callable[[Step], bool] | None], ...]]:
        """By the kind of event, found once for each kind that comes."""
        return {}

    def samples(self, step: Step) -> list[Sample]:
        """What this event means to the rule: nothing, nearly always."""
        found: list[Sample] = []
        kind = step.event.kind
        roles = self._roles_of.get(kind)
        if roles is None:
            roles = self._roles_of[kind] = tuple(
                (role, None if kind in matcher.told_by_kind else matcher.test)
                for role, matcher in self.matchers
                if matcher.kinds is None or kind in matcher.kinds
            )
        for role, test in roles:
            if test is not None and not test(step):
                continue
            if role == "resolve":
                found.append(
                    Sample(step.event.occurred_at, role, step.event.id, distinct=self.condition.value_of(step))
                )
                if self.kind == "count":
                    break  # what says that it is well again is no further failure
            elif (sample := self.condition.sample(role, step)) is not None:
                found.append(sample)
        return found

    def judge(self, given: Given) -> Judged:
        return self.condition.judge(self, given)

    def arm(self, armed: Armed | None, sample: Sample) -> Armed | None:
        """What an absence waits for after this sample, whose account missed no deadline before it."""
        assert isinstance(self.condition, Absence)
        return self.condition.step(armed, sample)

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
        """Without one, the id is what people read."""
        return self.annotations.summary or self.id.replace("-", " ").capitalize()

    @property
    def what_to_do(self) -> str | None:
        return self.annotations.what_to_do

    @staticmethod
    def render(text: str, values: Mapping[str, str]) -> str:
        return PLACEHOLDER.sub(lambda match: values.get(match[1], ""), text)


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
