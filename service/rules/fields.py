"""The small words of a rule file: strict models, durations, templates, matches. Pure."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from service.rules.match import nearest

DURATION = re.compile(r"(\d{1,6})([smhd])")
DURATION_MAX = timedelta(days=30)
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PLACEHOLDER = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
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


class Strict(BaseModel):
    """Unknown keys are mistakes, and so is a value of another type: `gte: '3'` is a word, not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def duration(value: Any) -> Any:
    if isinstance(value, str) and (match := DURATION.fullmatch(value)):
        length = timedelta(seconds=int(match[1]) * UNIT_SECONDS[match[2]])
        if length > DURATION_MAX:
            raise ValueError(f"{value} is longer than {DURATION_MAX.days}d, which nothing here can look back")
        return length
    if isinstance(value, timedelta):
        return value
    raise ValueError("write a duration such as 30s, 10m, 2h or 1d")


def positive(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("a window has a length; write a duration such as 15m")
    return value


def one_or_many(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def template(value: Any) -> Any:
    if isinstance(value, str):
        for name in PLACEHOLDER.findall(value):
            if name not in PLACEHOLDERS:
                raise ValueError(f'unknown placeholder "{name}"; {nearest(name, PLACEHOLDERS)}')
    return value


DURATION_SCHEMA = WithJsonSchema(
    {"type": "string", "pattern": r"^\d{1,6}[smhd]$", "description": "30s, 10m, 2h or 1d; at most 30d"}
)
Duration = Annotated[timedelta, BeforeValidator(duration), DURATION_SCHEMA]
Window = Annotated[timedelta, BeforeValidator(lambda value: positive(duration(value))), DURATION_SCHEMA]
Template = Annotated[str, BeforeValidator(template), Field(min_length=1, max_length=2000)]
Match = dict[str, Any]
Matches = Annotated[list[Match], BeforeValidator(one_or_many), Field(min_length=1, max_length=MATCHES_MAX)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
