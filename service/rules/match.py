"""Matchers: field conditions compiled to closures at load, and the kinds they can meet. No expression language, no
regex: an admin's pattern must never hold up the evaluator. Pure."""

from __future__ import annotations

import fnmatch
import operator as operators
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.event import KINDS, ORIGINS
from service.rules.mistake import Mistake, nearest, quoted
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
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operators.gt,
    "gte": operators.ge,
    "lt": operators.lt,
    "lte": operators.le,
}
OPERATORS = ("ne", *COMPARISONS, "exists", "glob")
# What other languages call it, and how it is written here.
OTHERS_OPERATORS = {
    **dict.fromkeys(("in", "any", "any_of", "one_of"), "write the list itself: any of its values matches"),
    **dict.fromkeys(("eq", "equals", "is", "=", "=="), "write the value itself"),
    **dict.fromkeys(("not", "not_in", "nin", "!=", "neq", "is_not"), 'did you mean "ne"?'),
    **dict.fromkeys(("regex", "matches", "like", "contains", "pattern", "~"), 'did you mean "glob"? It knows * and ?'),
    **dict.fromkeys((">", "above", "over"), 'did you mean "gt"?'),
    **dict.fromkeys((">=", "min"), 'did you mean "gte"?'),
    **dict.fromkeys(("<", "below", "under"), 'did you mean "lt"?'),
    **dict.fromkeys(("<=", "max"), 'did you mean "lte"?'),
    "present": 'did you mean "exists"?',
}
NUMBERS = ("lag_seconds",)
WORDS = {"kind": KINDS, "origin": ORIGINS}  # fields of which every value is known


@dataclass(frozen=True, slots=True)
class Matcher:
    """Matches joined by OR. `kinds`: the event kinds it can meet, None when it may be any; `fields`: what it reads;
    `pins`: fields that must have one of these values, whichever of the matches it is."""

    kinds: frozenset[str] | None
    fields: frozenset[str]
    test: Predicate
    pins: Mapping[str, frozenset[Any]] = field(default_factory=dict)
    told_by_kind: frozenset[str] = frozenset()  # kinds of which every event matches: nothing else need be asked


def compile_matches(matches: Sequence[Mapping[str, Any]]) -> Matcher:
    """Raises Mistake, whose path begins with the index of the match."""
    tests: list[Predicate] = []
    kinds: frozenset[str] | None = frozenset()
    for index, match in enumerate(matches):
        try:
            tests.append(compile_match(match))
        except Mistake as mistake:
            raise mistake.under(index) from None
        mine = kinds_of(match)
        kinds = None if kinds is None or mine is None else kinds | mine
    fields = frozenset(name for match in matches for name in match)
    pins = pins_of(matches)
    by_kind = frozenset[str]().union(*(kinds_of(match) or () for match in matches if set(match) == {"kind"}))
    if len(tests) == 1:
        return Matcher(kinds, fields, tests[0], pins, by_kind)
    return Matcher(kinds, fields, lambda step: any(test(step) for test in tests), pins, by_kind)


def compile_match(match: Mapping[str, Any]) -> Predicate:
    """Fields are joined by AND."""
    if not match:
        raise Mistake("an empty match would match everything", "name a field, such as {kind: token.refresh_failed}")
    tests = [compile_field(name, condition) for name, condition in match.items()]
    if len(tests) == 1:
        return tests[0]
    return lambda step: all(test(step) for test in tests)


def compile_field(name: str, condition: Any) -> Predicate:
    read = reader(name)
    if isinstance(condition, dict):
        tests = [compile_operator(name, operator, value) for operator, value in condition.items()]
        if not tests:
            raise Mistake(f"{name} has no operator", f"known: {', '.join(OPERATORS)}", path=(name,))
        return lambda step: all(test(read(step)) for test in tests)
    if condition is None:
        raise Mistake(
            f"{name} has no value", "write {exists: false} for a field that is not there", path=(name,), on_key=True
        )
    if isinstance(condition, list):
        allowed = frozenset(check_list(name, condition, (name,)))
        return lambda step: read(step) in allowed
    check_value(name, condition, (name,))
    return lambda step: bool(read(step) == condition)


def check_field(name: str, *, path: Sequence[str | int] = (), on_key: bool = False) -> None:
    if name not in FIELDS and not DETAIL.fullmatch(name):
        mend = nearest(name, (*FIELDS, "details.NAME"))
        raise Mistake(f"unknown field {quoted(name)}", mend, path=path, on_key=on_key)


def check_list(name: str, values: list[Any], path: Sequence[str | int]) -> list[Any]:
    if not values:
        raise Mistake("a list holds at least one value", path=path)
    for index, value in enumerate(values):
        if not isinstance(value, str | int | float | bool):
            raise Mistake("a list holds plain values", "take the inner list or keys out", path=(*path, index))
        check_value(name, value, (*path, index))
    return values


def check_value(name: str, value: Any, path: Sequence[str | int]) -> None:
    """A field of an event is text, save the lag, and a detail may be anything: a value that no event can have is a
    mistake, because the rule would be quiet for ever."""
    if DETAIL.fullmatch(name):
        return
    if name in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Mistake(f"{name} is a number, and {quoted(value)} is text", "write a number, no quotes", path=path)
    elif not isinstance(value, str):
        what = "true or false" if isinstance(value, bool) else "a number"
        raise Mistake(f"{name} is text, and {quoted(value)} is {what}", "put it in quotes", path=path)
    elif name in WORDS and value not in WORDS[name]:
        raise Mistake(f"unknown {name} {quoted(value)}", nearest(value, WORDS[name]), path=path)


def reader(name: str) -> Callable[[Step], Any]:
    """Raises Mistake for a field no event has."""
    check_field(name, path=(name,), on_key=True)
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


def compile_operator(name: str, operator: str, wanted: Any) -> Callable[[Any], bool]:
    path = (name, operator)
    if operator not in OPERATORS:
        mend = OTHERS_OPERATORS.get(operator.lower()) or nearest(operator, OPERATORS)
        raise Mistake(f"unknown operator {quoted(operator)}", mend, path=path, on_key=True)
    if operator == "exists":
        if not isinstance(wanted, bool):
            raise Mistake(f"exists takes true or false, and {quoted(wanted)} is neither", path=path)
        return lambda value: (value is not None) == wanted
    if operator == "ne":
        if isinstance(wanted, list):
            unwanted = frozenset(check_list(name, wanted, path))
            return lambda value: value is not None and value not in unwanted
        if not isinstance(wanted, str | int | float | bool):
            raise Mistake("ne takes a value or a list of values", path=path)
        check_value(name, wanted, path)
        return lambda value: value is not None and value != wanted
    if operator == "glob":
        if not isinstance(wanted, str) or not wanted:
            raise Mistake("glob takes text with * and ?", path=path)
        if name in NUMBERS:
            raise Mistake(f"{name} is a number", f"compare it with {', '.join(COMPARISONS)}", path=path, on_key=True)
        looks_so = re.compile(fnmatch.translate(wanted.replace("[", "[[]"))).match  # only * and ? mean something
        return lambda value: isinstance(value, str) and looks_so(value) is not None
    if isinstance(wanted, bool) or not isinstance(wanted, int | float):
        raise Mistake(
            f"{operator} takes a number, and {quoted(wanted)} is none", "write a number, no quotes", path=path
        )
    if name not in NUMBERS and not DETAIL.fullmatch(name):
        mend = "compare it with ne, exists or glob, or with a value"
        raise Mistake(f"{name} is text, which is not more or less than {wanted}", mend, path=path, on_key=True)
    compare = COMPARISONS[operator]
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and compare(value, wanted)


def kinds_of(match: Mapping[str, Any]) -> frozenset[str] | None:
    """The event kinds a match can meet, None when it may be any."""
    wanted = match.get("kind")
    if isinstance(wanted, str):
        return frozenset({wanted})
    if isinstance(wanted, list):
        return frozenset(wanted)
    return None


def pins_of(matches: Sequence[Mapping[str, Any]]) -> dict[str, frozenset[Any]]:
    """Not of `kind`, which has an index of its own, nor of `became`, which only a story knows."""
    each = [
        {
            name: frozenset(wanted if isinstance(wanted, list) else [wanted])
            for name, wanted in match.items()
            if name not in ("kind", "became") and not isinstance(wanted, dict)
        }
        for match in matches
    ]
    common = set.intersection(*(set(pins) for pins in each)) if each else set()
    return {name: frozenset().union(*(pins[name] for pins in each)) for name in common}
