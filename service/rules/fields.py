"""The small words of a rule file: strict models, durations, templates, matches. Pure."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from service.rules.mistake import Mistake, nearest, quoted

DURATION = re.compile(r"([0-9]{1,6})([smhd])")
DURATION_MAX = timedelta(days=30)
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PLACEHOLDER = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
BRACES = re.compile(r"\{\{|\}\}")
# What a template may name; the values are the alert's.
PLACEHOLDERS = (
    "account_id",
    "connection_id",
    "environment_id",
    "group",
    "identifier",
    "organization_id",
    "provider",
    "source",
    "status",
    "value",
)
MATCHES_MAX = 50
DURATION_MEND = "write a duration such as 30s, 10m, 2h or 1d"
# How people write a length of time elsewhere, for the mend alone.
SPOKEN = re.compile(r"([0-9]{1,6})\s*(s|sec|second|m|min|minute|h|hr|hour|d|day)s?", re.IGNORECASE)


class Strict(BaseModel):
    """Unknown keys are mistakes, and so is a value of another type: `gte: '3'` is a word, not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def duration(value: Any) -> Any:
    if isinstance(value, str) and (match := DURATION.fullmatch(value)):
        length = timedelta(seconds=int(match[1]) * UNIT_SECONDS[match[2]])
        if length > DURATION_MAX:
            raise Mistake(f"{value} is longer than {DURATION_MAX.days}d, further than anything here looks back")
        return length
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and (spoken := SPOKEN.fullmatch(value.strip())):
        raise Mistake(f"{quoted(value)} is no duration", f"write {spoken[1]}{spoken[2][0].lower()}")
    if isinstance(value, int) and not isinstance(value, bool):
        raise Mistake(f"{value} is a number without a unit", f"write {value}s if seconds are meant, or 10m, 2h, 1d")
    raise Mistake(
        f"{quoted(value)} is no duration" if isinstance(value, str) else "a duration is wanted", DURATION_MEND
    )


def positive(value: timedelta) -> timedelta:
    if not value:
        raise Mistake("a window has a length", "write a duration such as 15m")
    return value


def one_or_many(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def template(value: Any) -> Any:
    if isinstance(value, str):
        for name in PLACEHOLDER.findall(value):
            if name not in PLACEHOLDERS:
                raise Mistake(f"unknown placeholder {quoted(name)}", nearest(name, PLACEHOLDERS), word=name)
        rest = PLACEHOLDER.sub("", value)
        if found := BRACES.search(rest):
            raise Mistake("a placeholder is not closed", "write it as {{ account_id }}", word=found[0])
    return value


def switch(value: Any) -> Any:
    if value is True or value is False or value == "shadow":
        return value
    meant = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
    mend = meant.get(str(value).lower())
    raise Mistake(f"{quoted(value)} is not true, false or shadow", f"write {mend}, no quotes" if mend else None)


DURATION_SCHEMA = WithJsonSchema(
    {"type": "string", "pattern": "^[0-9]{1,6}[smhd]$", "description": "30s, 10m, 2h or 1d; at most 30d"}
)
Duration = Annotated[timedelta, BeforeValidator(duration), DURATION_SCHEMA]
Window = Annotated[timedelta, BeforeValidator(lambda value: positive(duration(value))), DURATION_SCHEMA]
Template = Annotated[str, BeforeValidator(template), Field(min_length=1, max_length=2000)]
Match = dict[str, Any]
Matches = Annotated[list[Match], BeforeValidator(one_or_many), Field(min_length=1, max_length=MATCHES_MAX)]
Enabled = Annotated[
    bool | Literal["shadow"], BeforeValidator(switch), WithJsonSchema({"enum": [True, False, "shadow"]})
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
