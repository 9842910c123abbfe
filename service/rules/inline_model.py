"""What an inline test may say. Pure."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from service.event import PROVIDER_KINDS
from service.rules.fields import DURATION, DURATION_MAX, UNIT_SECONDS, Number, Strict, one_or_many
from service.rules.mistake import Mistake, nearest

EVENTS_MAX = 20_000  # of one test, each turn and each account counted: it is judged at every arrival
OFFSET = re.compile(r"(?:\d{1,6}[smhd]){1,4}")


def offset(value: Any) -> Any:
    if isinstance(value, str) and OFFSET.fullmatch(value):
        length = timedelta(seconds=sum(int(part[1]) * UNIT_SECONDS[part[2]] for part in DURATION.finditer(value)))
        if length <= DURATION_MAX:
            return length
        raise ValueError(f"{value} is longer than {DURATION_MAX.days}d")
    if isinstance(value, timedelta):
        return value
    raise ValueError("write how long after the test's begin, such as 0s, 10m or 1h5m30s")


Offset = Annotated[
    timedelta,
    BeforeValidator(offset),
    WithJsonSchema(
        {"type": "string", "pattern": rf"^{OFFSET.pattern}$", "description": "since the begin: 0s, 10m, 1h5m30s"}
    ),
]


class TestEvent(Strict):
    """An event of an inline test. `at`: so long after the test's begin it happened, by the provider's clock; `arrives`: it
    reached us, where that is later. `repeat` times, `every` so long apart. With several `account_id`s, one for each.

    Everything else is a field of the event, as matches name it. A `status` that is not given is the one the kind implies.
    In `details` a duration under a name that ends in `_at` is an instant so long after the begin: `token_expires_at: 10m`.
    """

    __test__: ClassVar[bool] = False

    at: Offset
    arrives: Offset | None = None
    kind: str
    repeat: int = Field(1, ge=1, le=1000, strict=True)
    every: Offset = timedelta(0)
    event_id: str | None = None
    type: str | None = None
    status: str | None = None
    old_status: str | None = None
    account_id: Annotated[
        tuple[str, ...], BeforeValidator(one_or_many), Field(strict=False, min_length=1, max_length=100)
    ] = ("ca_1",)
    connection_id: str | None = "conn_1"
    provider: str | None = None
    identifier: str | None = None
    organization_id: str | None = None
    environment_id: str | None = None
    source: str = "scalekit"
    details: dict[str, Any] = Field(default_factory=dict, max_length=20)

    @field_validator("kind")
    @classmethod
    def is_known(cls, value: str) -> str:
        if value not in PROVIDER_KINDS:
            raise ValueError(f'unknown kind "{value}"; {nearest(value, PROVIDER_KINDS)}')
        return value

    @model_validator(mode="after")
    def comes_after_it_happened(self) -> Self:
        if self.repeat > 1 and not self.every and self.event_id is None:
            raise ValueError("repeat: say how far apart with every, such as every: 1m")
        return self


class TestReading(Strict):
    """A reading of a gauge's metric; it stands until the next one. `labels`: those of its series, such as `source`."""

    __test__: ClassVar[bool] = False

    at: Offset
    value: Number
    labels: dict[str, str] = Field(default_factory=dict, max_length=5)


class TestExpectation(Strict):
    """What must be seen `at` that time: `inactive` (nothing so far), `pending` (true, and `for` has not passed), `firing` or
    `resolved`. Without `group`, of all groups: firing if one is.

    `value`: what the alert says, or the window's. `episodes`: how many alerts there were so far. `reason`: why the last one
    ended.
    """

    __test__: ClassVar[bool] = False

    at: Offset
    state: Literal["inactive", "pending", "firing", "resolved"]
    group: dict[str, str] | None = None
    value: Number | None = None
    episodes: int | None = Field(None, ge=0, strict=True)
    reason: str | None = Field(None, max_length=40)


class RuleTest(Strict):
    """An inline test: events (or a gauge's `readings`) on a virtual clock, and what must be seen when. `active_workflows: 0`:
    nothing depends on the accounts."""

    __test__: ClassVar[bool] = False

    name: str = Field(min_length=1, max_length=200)
    events: list[TestEvent] = Field(default_factory=list, max_length=1000)
    readings: list[TestReading] = Field(default_factory=list, max_length=1000)
    active_workflows: int = Field(1, ge=0, le=1, strict=True)
    expect: Annotated[list[TestExpectation], BeforeValidator(one_or_many), Field(min_length=1, max_length=200)]

    @model_validator(mode="after")
    def ends_some_day(self) -> Self:
        events = sum(event.repeat * len(event.account_id) for event in self.events)
        if events > EVENTS_MAX:
            message = f"a test has at most {EVENTS_MAX} events, and here are {events}"
            raise Mistake(message, "repeat less, or name fewer accounts", path=("events",), on_key=True)
        return self
