"""The kinds of SIEM destination there are, one line each, and how a section of the config file becomes one of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import ValidationError

from service.errors import ConfigError
from service.sinks import splunk_hec
from service.sinks.base import Poison, Sent, Sink, SinkConfig, SinkKind

__all__ = ["SINKS", "Poison", "Sent", "Sink", "SinkConfig", "SinkKind", "open_sink"]

SINKS: dict[str, SinkKind] = {
    "splunk_hec": splunk_hec.KIND,
}


def open_sink(name: str, section: Mapping[str, Any], client: httpx.AsyncClient) -> Sink:
    """Raises ConfigError, one sentence that names the setting and never its value."""
    kind = SINKS.get(str(section.get("kind")))
    if kind is None:
        raise ConfigError(f"sinks.{name}.kind is missing or unknown; known: {', '.join(SINKS)}")
    try:
        config = kind.Config.model_validate({**section, "name": name})
    except ValidationError as exc:
        error = exc.errors(include_input=False, include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, kind.Config.model_fields, n=1)
            mend = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(kind.Config.model_fields)}"
            raise ConfigError(f"sinks.{name}.{key} is an unknown key; {mend}") from None
        raise ConfigError(f"sinks.{name}.{key}: {error['msg'].removeprefix('Value error, ')}") from None
    return kind.open(config, client)
