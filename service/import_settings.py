"""The config file's key `imports`: whose workflows are registered by themselves, as they appear at an orchestrator."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from service.errors import ConfigError
from service.retention_settings import DURATION, UNIT_SECONDS
from service.strict import Strict

EVERY_MIN, EVERY_MAX = timedelta(minutes=1), timedelta(days=1)
TEXT_CHARS_MAX = 200
IDS_MAX = 1_000
IMPORTS_MAX = 50
PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]+")


def span_of(value: Any) -> Any:
    if isinstance(value, str) and (match := DURATION.fullmatch(value)):
        value = timedelta(seconds=int(match[1]) * UNIT_SECONDS[match[2]])
    if not isinstance(value, timedelta) or not EVERY_MIN <= value <= EVERY_MAX:
        raise ValueError("write a duration from 1m to 1d, such as 5m")
    return value


def text_of(value: Any) -> Any:
    if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX or PRINTABLE.fullmatch(value) is None:
        raise ValueError(f"write a text of 1 to {TEXT_CHARS_MAX} characters")
    return value


Text = Annotated[str, BeforeValidator(text_of)]


class ImportSettings(Strict):
    """Of one orchestrator, the workflows with that tag and whose name is like that pattern (`*`, `?`, `[a-z]`); without
    either, all of them. They depend on `account_ids` and `connection_ids`."""

    orchestrator: Text
    tag: Text | None = None
    name: Text | None = None
    account_ids: tuple[Text, ...] = Field((), max_length=IDS_MAX)
    connection_ids: tuple[Text, ...] = Field((), max_length=IDS_MAX)
    every: Annotated[timedelta, BeforeValidator(span_of)] = timedelta(minutes=5)

    @model_validator(mode="after")
    def _depends_on_something(self) -> ImportSettings:
        if not self.account_ids and not self.connection_ids:
            raise ValueError("name account_ids or connection_ids; nothing else would ever pause what is imported")
        return self


def of_known(imports: Sequence[ImportSettings], orchestrators: Collection[str]) -> tuple[ImportSettings, ...]:
    for number, one in enumerate(imports):
        if one.orchestrator not in orchestrators:
            known = ", ".join(orchestrators) or "none is configured"
            raise ConfigError(f"imports.{number}.orchestrator names none of `orchestrators`; known: {known}")
    return tuple(imports)
