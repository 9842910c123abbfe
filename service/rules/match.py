"""Matchers: field conditions compiled to closures at load, and the kinds they can meet. No expression language, no
regex: an admin's pattern must never hold up the evaluator. Pure."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.event import KINDS
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
DETAIL = re.compile(r"details\.([a-z][a-z0-9_]{0,59})")
OPERATORS = ("ne", "gt", "gte", "lt", "lte", "exists", "glob")


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean "within"?`, or what there is."""
    found = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f'did you mean "{found[0]}"?' if found else f"known: {', '.join(known)}"


@dataclass(frozen=True, slots=True)
class Matcher:
    """Matches joined by OR. `kinds`: the event kinds it can meet, None when it may be any; `fields`: what it reads."""

    kinds: frozenset[str] | None
    fields: frozenset[str]
    test: Predicate


def compile_matches(matches: Sequence[Mapping[str, Any]]) -> Matcher:
    """Raises ValueError with the offending word."""
    tests = [compile_match(match) for match in matches]
    kinds: frozenset[str] | None = frozenset()
    for match in matches:
        mine = kinds_of(match)
        kinds = None if kinds is None or mine is None else kinds | mine
    fields = frozenset(name for match in matches for name in match)
    if len(tests) == 1:
        return Matcher(kinds, fields, tests[0])
    return Matcher(kinds, fields, lambda step: any(test(step) for test in tests))


def compile_match(match: Mapping[str, Any]) -> Predicate:
    """Fields are joined by AND."""
    if not match:
        raise ValueError("an empty match would match everything; name a field")
    wanted = match.get("kind")
    for kind in wanted if isinstance(wanted, list) else [wanted] if isinstance(wanted, str) else []:
        if kind not in KINDS:
            raise ValueError(f'unknown kind "{kind}"; {nearest(str(kind), KINDS)}')
    tests = [compile_field(name, condition) for name, condition in match.items()]
    if len(tests) == 1:
        return tests[0]
    return lambda step: all(test(step) for test in tests)


def compile_field(name: str, condition: Any) -> Predicate:
    read = reader(name)
    if isinstance(condition, dict):
        tests = [compile_operator(operator, value) for operator, value in condition.items()]
        if not tests:
            raise ValueError(f"{name}: no operator given; known: {', '.join(OPERATORS)}")
        return lambda step: all(test(read(step)) for test in tests)
    if isinstance(condition, list):
        if not condition or not all(isinstance(value, str | int | float | bool) for value in condition):
            raise ValueError(f"{name}: a list holds plain values, at least one")
        allowed = frozenset(condition)
        return lambda step: read(step) in allowed
    if condition is None:
        raise ValueError(f"{name}: has no value; write {{exists: false}} for a field that is not there")
    return lambda step: bool(read(step) == condition)


def check_field(name: str) -> None:
    if name not in FIELDS and not DETAIL.fullmatch(name):
        raise ValueError(f'unknown field "{name}"; {nearest(name, (*FIELDS, "details.NAME"))}')


def reader(name: str) -> Callable[[Step], Any]:
    """Raises ValueError for a field no event has."""
    check_field(name)
    if name == "became":
        return lambda step: step.became
    if name == "lag_seconds":
        return lambda step: step.event.delivery_lag_seconds
    if detail := DETAIL.fullmatch(name):
        key = detail[1]
        return lambda step: plain((step.event.details or {}).get(key))
    return lambda step: getattr(step.event, name)


def plain(value: Any) -> Any:
    """Details come from outside: only plain values can be compared."""
    return value if isinstance(value, str | int | float | bool) else None


def compile_operator(operator: str, wanted: Any) -> Callable[[Any], bool]:
    if operator == "exists":
        if not isinstance(wanted, bool):
            raise ValueError("exists: takes true or false")
        return lambda value: (value is not None) == wanted
    if operator == "ne":
        if isinstance(wanted, list):
            unwanted = frozenset(wanted)
            return lambda value: value is not None and value not in unwanted
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
