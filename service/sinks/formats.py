"""The shapes an event can leave in, for the sinks and for the pull feed alike; all of them redacted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal

import orjson

from service.event import Event
from service.redact import redact, redact_text
from service.sinks.ecs import to_ecs
from service.sinks.ocsf import to_ocsf

FormatName = Literal["ocsf", "ecs", "raw"]
KNOWN_TEXTS_MAX = 4096

_NAMES = tuple(f.name for f in fields(Event))
_VALUES = attrgetter(*_NAMES)
# What `Event` holds as text from outside; `id`, `origin` and `kind` are words of ours. `details` is redacted as data.
TEXT_FIELDS = tuple(
    f.name for f in fields(Event) if f.type in ("str", "str | None") and f.name not in ("id", "origin", "kind")
)
# Of these an account's events, or all of a source's, say the same again and again.
REPEATED = frozenset(TEXT_FIELDS) - {"event_id"}
_TEXTS = tuple((_NAMES.index(name), name in REPEATED) for name in TEXT_FIELDS)
_DETAILS = _NAMES.index("details")

_known = lru_cache(maxsize=KNOWN_TEXTS_MAX)(redact_text)


def redacted(event: Event) -> Event:
    """The same event without tokens. Before shaping and not after: a target's own field names, such as ECS's
    `event.code`, say nothing about what is inside."""
    values: list[Any] = list(_VALUES(event))
    for index, repeated in _TEXTS:
        if (value := values[index]) is not None:
            values[index] = _known(value) if repeated else redact_text(value)
    if (details := values[_DETAILS]) is not None:
        values[_DETAILS] = redact(details)
    return Event(*values)


FORMATS: dict[FormatName, Callable[[Event], dict[str, Any]]] = {
    "raw": lambda event: redacted(event).to_json(),
    "ocsf": lambda event: to_ocsf(redacted(event)),
    "ecs": lambda event: to_ecs(redacted(event)),
}


def _encoded(item: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(item)
    except TypeError:  # a number of over 64 bits is JSON all the same
        return json.dumps(item, ensure_ascii=False, allow_nan=False).encode()


# The same as JSON in UTF-8; a number that JSON does not have is null. Raises TypeError or ValueError for what is none, such as
# a text that is no Unicode.
ENCODED: dict[FormatName, Callable[[Event], bytes]] = {
    "raw": lambda event: _encoded(FORMATS["raw"](event)),
    "ocsf": lambda event: _encoded(FORMATS["ocsf"](event)),
    "ecs": lambda event: _encoded(FORMATS["ecs"](event)),
}
