"""The shapes an event can leave in, for the sinks and for the pull feed alike; all of them redacted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Literal

from service.event import Event
from service.redact import redact, redact_text
from service.sinks.ecs import to_ecs
from service.sinks.ocsf import to_ocsf

FormatName = Literal["ocsf", "ecs", "raw"]


# What `Event` holds as text from outside; `details` is redacted as data.
TEXT_FIELDS = tuple(f.name for f in fields(Event) if f.type in ("str", "str | None"))


def redacted(event: Event) -> Event:
    """The same event without tokens. Before shaping and not after: a target's own field names, such as ECS's
    `event.code`, say nothing about what is inside."""
    texts: dict[str, Any] = {
        name: redact_text(value) for name in TEXT_FIELDS if (value := getattr(event, name)) is not None
    }
    details = None if event.details is None else redact(event.details)
    return replace(event, **texts, details=details)


FORMATS: dict[FormatName, Callable[[Event], dict[str, Any]]] = {
    "raw": lambda event: redacted(event).to_json(),
    "ocsf": lambda event: to_ocsf(redacted(event)),
    "ecs": lambda event: to_ecs(redacted(event)),
}
