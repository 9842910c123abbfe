"""The shapes an event can leave in, for the sinks and for the pull feed alike; all of them redacted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, Literal

import orjson

from service.event import Event
from service.redact import redact, redact_text
from service.sinks.ecs import to_ecs
from service.sinks.ocsf import to_ocsf

FormatName = Literal["ocsf", "ecs", "raw"]

# What `Event` holds as text from outside; `details` is redacted as data. `id` is our own, and what repeats are told by.
TEXT_FIELDS = tuple(f.name for f in fields(Event) if f.type in ("str", "str | None") and f.name != "id")

# Names that come again in event after event: a source, a type, a connection.
_name = lru_cache(maxsize=4096)(redact_text)


def redacted(event: Event) -> Event:
    """The same event without tokens. Before shaping and not after: a target's own field names, such as ECS's
    `event.code`, say nothing about what is inside."""
    return Event(
        event.id,
        event.position,
        _name(event.source),
        _name(event.origin),
        None if event.event_id is None else redact_text(event.event_id),
        _name(event.type),
        _name(event.kind),
        None if event.account_id is None else redact_text(event.account_id),
        None if event.connection_id is None else _name(event.connection_id),
        None if event.provider is None else _name(event.provider),
        None if event.identifier is None else redact_text(event.identifier),
        None if event.organization_id is None else _name(event.organization_id),
        None if event.environment_id is None else _name(event.environment_id),
        None if event.status is None else _name(event.status),
        None if event.old_status is None else _name(event.old_status),
        event.occurred_at,
        event.received_at,
        event.lag_seconds,
        event.clock_suspect,
        None if event.account_status is None else _name(event.account_status),
        event.attempted_at,
        redact(event.details) if event.details else event.details,
    )


def _ocsf(event: Event) -> dict[str, Any]:
    return to_ocsf(redacted(event))


def _ecs(event: Event) -> dict[str, Any]:
    return to_ecs(redacted(event))


def _raw(event: Event) -> dict[str, Any]:
    return redacted(event).to_json()


FORMATS: Mapping[FormatName, Callable[[Event], dict[str, Any]]] = {"raw": _raw, "ocsf": _ocsf, "ecs": _ecs}
# The same as UTF-8 JSON. TypeError for what is no JSON, such as a number beyond 64 bits; what is not a number is null.
ENCODED: Mapping[FormatName, Callable[[Event], bytes]] = {
    "raw": lambda event: orjson.dumps(_raw(event)),
    "ocsf": lambda event: orjson.dumps(_ocsf(event)),
    "ecs": lambda event: orjson.dumps(_ecs(event)),
}
