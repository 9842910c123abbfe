"""Where in the config file a mistake of its routing sections stands: `config.yaml:12:5`, and what to write instead. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from service.redact import redact_text
from service.routing.model import RoutingKeys
from service.routing.tree import BadRouting

KEYS = tuple(RoutingKeys.model_fields)
KNOWN = {
    "route": "receiver, matchers, group_by, group_wait, group_interval, repeat_interval, mute_time_intervals,"
    " active_time_intervals, escalate, continue, routes",
    "receivers": "name, notifiers",
    "inhibit_rules": "source_matchers, target_matchers, equal",
    "time_intervals": "name, time_intervals, times, weekdays, days_of_month, months, years, location",
    "silences": "matchers, author, comment, start, end, time_intervals, mutes_pauses",
}


def of_validation(exc: ValidationError, name: str, raw: bytes) -> str | None:
    """The first mistake, where it is one of these sections; None where it is another's."""
    error = exc.errors(include_input=False, include_url=False, include_context=False)[0]
    path = [part for part in error["loc"] if not str(part).startswith("function-")]
    if not path or path[0] not in KEYS:
        return None
    if error["type"] != "extra_forbidden":
        return said(name, raw, path, error["msg"].removeprefix("Value error, "))
    known = KNOWN[str(path[0])].split(", ")
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    mend = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known)}"
    return said(name, raw, path, f"unknown key; {mend}", on_key=True)


def of_routing(exc: BadRouting, name: str, raw: bytes) -> str:
    return said(name, raw, exc.path, str(exc))


def said(name: str, raw: bytes, path: Sequence[Any], message: str, *, on_key: bool = False) -> str:
    line, column = place(raw, path)
    where = ".".join(redact_text(str(part)) for part in path)
    return f"{name}:{line}:{column}: {where}: {redact_text(message)}"


def place(raw: bytes, path: Sequence[Any]) -> tuple[int, int]:
    """Line and column, from 1, of the deepest part of the path that is written there."""
    try:
        node: Any = YAML(typ="rt", pure=True).load(raw)
    except (YAMLError, ValueError, RecursionError):
        return 1, 1
    found = (0, 0)
    for part in path:
        try:
            marks = node.lc  # of lists and mappings
            found = marks.item(part) if isinstance(part, int) else marks.key(part)
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return found[0] + 1, found[1] + 1
