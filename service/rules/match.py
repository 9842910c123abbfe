"""Matchers: field conditions compiled to closures at load. No expression language, no regex. Pure."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from service.event import Event
from service.rules.story import Step

Predicate = Callable[[Step], bool]

# Fields of an event that a rule may ask for; `became` is the status the event moved its account to, if it moved it.
FIELDS = (
    "kind",
    "type",
    "status",
    "old_status",
    "became",
    "account_id",
    "connection_id",
    "provider",
    "identifier",
    "organization_id",
    "environment_id",
    "source",
    "origin",
    "lag_seconds",
)
OPERATORS = ("ne", "gt", "gte", "lt", "lte", "exists", "glob")


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """`; did you mean "within"?`, or what there is."""
    found = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f'did you mean "{found[0]}"?' if found else f"known: {', '.join(known)}"


def compile_match(match: Mapping[str, Any]) -> Predicate:
    """Fields are joined by AND. Raises ValueError with the offending word."""
    if not match:
        raise ValueError("an empty match would match everything; name a field")
    tests = [compile_field(name, condition) for name, condition in match.items()]
    return lambda step: all(test(step) for test in tests)


def compile_field(name: str, condition: Any) -> Predicate:
    if name not in FIELDS:
        raise ValueError(f'unknown field "{name}"; {nearest(name, FIELDS)}')
    read = reader(name)
    if isinstance(condition, dict):
        tests = [compile_operator(operator, value) for operator, value in condition.items()]
        if not tests:
            raise ValueError(f"{name}: no operator given; known: {', '.join(OPERATORS)}")
        return lambda step: all(test(read(step)) for test in tests)
    if isinstance(condition, list):
        if not all(isinstance(value, str | int | float | bool) for value in condition):
            raise ValueError(f"{name}: a list holds plain values")
        allowed = frozenset(condition)
        return lambda step: read(step) in allowed
    if condition is None:
        raise ValueError(f"{name}: has no value; write {{exists: false}} for a field that is not there")
    return lambda step: bool(read(step) == condition)


def reader(name: str) -> Callable[[Step], Any]:
    if name == "became":
        return lambda step: step.became
    if name == "lag_seconds":
        return lambda step: step.event.delivery_lag_seconds

    def read(step: Step) -> Any:
        return getattr(step.event, name)

    return read


def compile_operator(operator: str, wanted: Any) -> Callable[[Any], bool]:
    if operator == "exists":
        if not isinstance(wanted, bool):
            raise ValueError("exists: takes true or false")
        return lambda value: (value is not None) == wanted
    if operator == "ne":
        return lambda value: value is not None and value != wanted
    if operator == "glob":
        if not isinstance(wanted, str):
            raise ValueError("glob: takes text with * and ?")
        return lambda value: isinstance(value, str) and fnmatch.fnmatchcase(value, wanted)
    comparisons: dict[str, Callable[[Any], bool]] = {
        "gt": lambda value: value > wanted,
        "gte": lambda value: value >= wanted,
        "lt": lambda value: value < wanted,
        "lte": lambda value: value <= wanted,
    }
    if operator not in comparisons:
        raise ValueError(f'unknown operator "{operator}"; {nearest(operator, OPERATORS)}')
    if isinstance(wanted, bool) or not isinstance(wanted, int | float):
        raise ValueError(f"{operator}: takes a number")
    compare = comparisons[operator]
    return lambda value: isinstance(value, int | float) and compare(value)


def kinds_of(match: Mapping[str, Any]) -> frozenset[str] | None:
    """The event kinds a match can meet, None when it may be any."""
    wanted = match.get("kind")
    if isinstance(wanted, str):
        return frozenset({wanted})
    if isinstance(wanted, list):
        return frozenset(wanted)
    return None


def event_step(event: Event) -> Step:
    return Step(event, None, None)
