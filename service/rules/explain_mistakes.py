"""Pydantic's errors as sentences: what is wrong at which word, and the nearest thing that would be right. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from service.rules.descriptions import FIELD_DESCRIPTIONS
from service.rules.document import Document, Path, Problem
from service.rules.fields import DURATION, UNIT_SECONDS
from service.rules.mistake import Mistake, close, nearest, quoted

# Words that other systems use, and ours for them; the first that is a key at that place is meant.
SLIPS: Mapping[str, tuple[str, ...]] = {
    "threshold": ("gte", "lt", "gt"),
    "count": ("gte",),
    "min": ("gte", "min_total"),
    "minimum": ("min_total", "gte"),
    "above": ("gt",),
    "below": ("lt",),
    "window": ("within",),
    "period": ("within",),
    "interval": ("within",),
    "timeout": ("within", "grace"),
    "duration": ("within", "for"),
    "for_": ("for",),
    "pending": ("for",),
    "delay": ("for", "grace"),
    "name": ("id", "metric"),
    "alert": ("id",),
    "rule": ("id",),
    "title": ("summary", "annotations"),
    "message": ("summary", "annotations"),
    "description": ("reason", "annotations"),
    "text": ("summary", "annotations"),
    "summary": ("annotations",),
    "what_to_do": ("annotations",),
    "runbook": ("what_to_do", "annotations"),
    "why": ("reason", "annotations"),
    "level": ("severity",),
    "priority": ("severity",),
    "on": ("event", "match", "after"),
    "when": ("event", "match", "after"),
    "where": ("match",),
    "filter": ("match",),
    "query": ("match",),
    "expr": ("match",),
    "event": ("match", "after", "events"),
    "events": ("match", "event"),
    "kind": ("match", "event"),
    "status": ("match",),
    "success": ("good",),
    "percentile": ("q",),
    "quantile": ("q",),
    "by": ("group_by",),
    "group": ("group_by",),
    "unique": ("distinct",),
    "tags": ("labels",),
    "data": ("details",),
    "resume_delay": ("stable_for",),
    "action": ("actions",),
    "pause": ("pause_workflows", "actions"),
    "pause_workflows": ("actions",),
    "until": ("resolve", "unless"),
    "recover": ("resolve",),
    "disabled": ("enabled",),
    "active": ("enabled",),
    "test": ("tests",),
    "groups": ("rules",),
    "alerts": ("rules",),
}
MORE_THAN = ("gt", "above", "more_than", "over")
SHARES = (("quantile", "q"), ("ratio", "lt"))  # between 0 and 1
SHARE = re.compile(r"[pP]?([0-9]{1,2}(?:\.[0-9]{1,6})?)\s*%?")
# What a key that is missing could say.
EXAMPLES: Mapping[str | tuple[str, str], str] = {
    "version": "version: 1",
    "rules": "rules: [...]",
    "id": "id: refresh-failing",
    "severity": "severity: P3",
    "annotations": 'annotations: {summary: "..."}',
    "summary": 'summary: "..."',
    "within": "within: 15m",
    "match": "match: {kind: token.refresh_failed}",
    ("State", "match"): "match: {status: EXPIRED, for: 5m}",
    "gte": "gte: 3",
    ("Comparison", "gte"): "gte: 1",
    "min_total": "min_total: 20",
    "lt": "lt: 0.95",
    "gt": "gt: 30",
    "q": "q: 0.95",
    "field": "field: lag_seconds",
    "metric": "metric: delivery_lag_seconds",
    "good": "good: {kind: token.refresh_succeeded}",
    "total": "total: {kind: [token.refresh_succeeded, token.refresh_failed]}",
    "of": "of: account",
    "status": "status: EXPIRED",
    "after": "after: {kind: account.reauth_started}",
    "expect": "expect: {kind: account.authorized}",
    "at": "at: 5m",
    "kind": "kind: token.refresh_failed",
    "state": "state: firing",
    "name": 'name: "three failures fire"',
    ("TestReading", "value"): "value: 31",
}
PATTERNS = {
    "id": ("an id is made of a-z, 0-9 and -, and begins with a letter or digit", "write one such as refresh-failing"),
    "labels": ("a label's name is made of a-z, 0-9 and _", "write one such as team"),
}
Model = type[BaseModel]
PROBLEMS_MAX = 50  # of one file; nobody reads more, and each takes time


def explain(error: ValidationError, document: Document, root: Model) -> tuple[Problem, ...]:
    """Each mistake once, in the order of the text."""
    found: dict[tuple[int, int], Problem] = {}
    errors = error.errors(include_url=False)[:PROBLEMS_MAX]
    meant: set[Path] = set()
    for one in errors:
        if one["type"] == "extra_forbidden":
            problem, missed = unknown_key(document, root, one["loc"])
            meant.add((*one["loc"][:-1], missed or ""))
            found.setdefault((problem.line, problem.column), problem)
    for one in errors:
        if one["type"] == "extra_forbidden" or (one["type"] == "missing" and one["loc"] in meant):
            continue  # a key that was misspelt is not missing as well
        problem = one_problem(document, one, root)
        found.setdefault((problem.line, problem.column), problem)
    return tuple(found[where] for where in sorted(found))


def one_problem(document: Document, error: Any, root: Model) -> Problem:
    path, kind = tuple(error["loc"]), error["type"]
    mistake = error.get("ctx", {}).get("error")
    if isinstance(mistake, Mistake):
        whole = (*path, *mistake.path)
        where = document.at(whole, on_key=mistake.on_key, word=mistake.word)
        whole_of_it = not mistake.path and mistake.word is None and bool(path) and isinstance(path[-1], str)
        if whole_of_it and is_collection(document, path):
            where = document.key_of(path)
        return document.problem(where, mistake.message, mistake.mend)
    if kind == "missing":
        return document.problem(
            document.key_of(path[:-1]), f'"{path[-1]}" is missing here', what_to_add(root, path[:-1], str(path[-1]))
        )
    on_key = bool(path) and path[-1] == "[key]"
    path = path[:-1] if on_key else path
    message, mend = sentence(kind, error, path)
    on_key = on_key or (kind in ("too_short", "too_long") and is_collection(document, path))
    return document.problem(document.at(path, on_key=on_key), message, mend)


def is_collection(document: Document, path: Path) -> bool:
    """Whether the value is written over more than its own word, so that its key says better where it is."""
    start, end = document.at(path)
    return document.text[start : start + 1] not in ("{", "[") and "\n" in document.text[start:end].strip()


def sentence(kind: str, error: Any, path: Path) -> tuple[str, str | None]:
    """What is wrong with a value, and what to write instead."""
    value, context = error.get("input"), error.get("ctx", {})
    name = next((str(part) for part in reversed(path) if isinstance(part, str)), "the file")
    given = what_it_is(value)
    match kind:
        case "string_type":
            plain = isinstance(value, bool | int | float)
            return f"{name} is text, and {given}", "put it in quotes" if plain else None
        case "int_type" | "float_type":
            number = as_number(value, whole=kind == "int_type")
            if isinstance(value, float):
                return f"{name} is a whole number, which {value} is not", None
            return f"{name} is a number, and {given}", f"write {number}, no quotes" if number else in_unit(value, path)
        case "bool_type":
            meant = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
            word = meant.get(str(value).lower())
            return f"{name} is true or false, and {given}", f"write {word}, no quotes" if word else None
        case "literal_error":
            known = literals(context.get("expected", ""))
            return f"{name}: {quoted(value)} is not one of {', '.join(known)}", closest(value, known)
        case "list_type" | "tuple_type":
            return f"{name} is a list, and {given}", f"write {name}: [...]"
        case "dict_type" | "model_type" | "model_attributes_type":
            if path and isinstance(path[-1], int):
                return f"an item of {name} has keys of its own, and {given}", "write it as {key: value}"
            mend = f"write {name}: {{...}}, or its keys on lines of their own"
            return f"{name} has keys of its own, and {given}", mend
        case "greater_than_equal":
            return f"{name} is at least {context['ge']}, and this is {quoted(value)}", None
        case "greater_than":
            return f"{name} is more than {context['gt']:g}, and this is {quoted(value)}", None
        case "less_than_equal":
            return f"{name} is at most {context['le']:g}, and this is {quoted(value)}", as_share(value, path)
        case "less_than":
            return f"{name} is less than {context['lt']:g}, and this is {quoted(value)}", as_share(value, path)
        case "finite_number":
            return f"{name} is a finite number", None
        case "too_long":
            return (
                f"{name} has at most {context['max_length']} entries, and here are {context['actual_length']}",
                "split it",
            )
        case "too_short":
            return f"{name} has at least {context['min_length']} entry", "add one"
        case "string_too_long":
            return f"{name} has at most {context['max_length']} characters", "write it shorter"
        case "string_too_short":
            return f"{name} is empty", "write it, or take the key out"
        case "string_pattern_mismatch":
            parent = name if name in PATTERNS else str(path[-2]) if len(path) > 1 else ""
            return PATTERNS.get(parent, (f"{name} does not look like one", None))
    text = str(error.get("msg", "it is wrong")).removeprefix("Value error, ")
    return f"{name}: {text[:1].lower()}{text[1:]}", None


def what_it_is(value: Any) -> str:
    if value is None:
        return "it has no value here"
    if isinstance(value, Mapping):
        return "this has keys of its own"
    if isinstance(value, list):
        return "this is a list"
    if isinstance(value, bool):
        return f"{quoted(value)} is a switch"
    return f"{quoted(value)} is {'text' if isinstance(value, str) else 'a number'}"


def in_unit(value: Any, path: Path) -> str | None:
    """A length of time, a share or a percentile written as people say them."""
    if not isinstance(value, str) or len(value) > 20:
        return None
    if (share := SHARE.fullmatch(value)) is not None and path[-2:] in SHARES:
        return as_share(float(share[1]), path)
    if (length := DURATION.fullmatch(value)) is not None:
        seconds = int(length[1]) * UNIT_SECONDS[length[2]]
        if "gauge" in path:
            return f"write {seconds}: a metric of time is in seconds"
        return f"write a number in the field's own unit, such as {seconds} for seconds or {seconds * 1000} for milliseconds"
    return None


def as_share(value: Any, path: Path) -> str | None:
    """99 where 0.99 is meant."""
    if path[-2:] not in SHARES or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return f"write {value / 100:g}" if 0 < value < 100 else None


def what_to_add(root: Model, path: Path, key: str) -> str:
    """An example, and what it means."""
    model = model_at(root, path) or root
    example = EXAMPLES.get((model.__name__, key), EXAMPLES.get(key))
    meaning = FIELD_DESCRIPTIONS.get(f"{model.__name__}.{key}")
    if example is None:
        return "add it"
    return f"write {example}, for instance{f' ({meaning})' if meaning else ''}"


def as_number(value: Any, *, whole: bool) -> str | None:
    """The number that a text holds, as it would be written."""
    if not isinstance(value, str) or len(value) > 20:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if abs(number) < 1e15 and number == int(number):
        return str(int(number))
    return None if whole else str(number)


def literals(expected: str) -> list[str]:
    return [word.strip("' ") for word in expected.replace(" or ", ", ").split(", ")]


def closest(value: Any, known: Sequence[str]) -> str | None:
    found = close(str(value), known)
    return f"write {found}" if found else None


def unknown_key(document: Document, root: Model, path: Path) -> tuple[Problem, str | None]:
    """The problem, and the key that was probably meant."""
    key = str(path[-1])
    model = model_at(root, path[:-1]) or root
    known = keys_of(model)
    if (other := said_otherwise(document, model, path, key)) is not None:
        return document.problem(document.at(path, on_key=True), f"unknown key {quoted(key)}", other[0]), other[1]
    meant = next((name for name in SLIPS.get(key.lower(), ()) if name in known), None) or close(key, known)
    if (place := belongs(document, root, path, key)) is not None:
        mend, meant = place, None
    elif meant is not None:
        mend = f'did you mean "{meant}"?'
    else:
        mend = nearest(key, known)
    return document.problem(document.at(path, on_key=True), f"unknown key {quoted(key)}", mend), meant


def said_otherwise(document: Document, model: Model, path: Path, key: str) -> tuple[str, str] | None:
    """Where another key with another value says the same: what to write, and the key."""
    known = keys_of(model)
    if key.startswith("details.") and "details" in known:
        return f"write details: {{{key.removeprefix('details.')}: ...}}", "details"
    if key == "shadow" and "enabled" in known:
        return "write enabled: shadow", "enabled"
    if key.lower() in MORE_THAN and model.__name__ == "Count":
        start, end = document.at(path)
        number = as_number(document.text[start:end], whole=True) or "20"
        return f"more than {number} is gte: {int(number) + 1}", "gte"
    return None


def belongs(document: Document, root: Model, path: Path, key: str) -> str | None:
    """A key that is right somewhere else nearby: the indentation is wrong."""
    here = path[:-1]
    below = [
        name
        for name, child in children(model_at(root, here))
        if key in keys_of(child) and document.at((*here, name)) != document.at(here)
    ]
    if len(below) == 1:
        return f'it belongs under "{below[0]}", further in'
    for length in range(len(here) - 1, 0, -1):
        above = model_at(root, here[:length])
        if above is not None and isinstance(here[length], str) and key in keys_of(above):
            return f'it belongs beside "{here[length]}", further out'
    return None


def keys_of(model: Model) -> tuple[str, ...]:
    return tuple(field.alias or name for name, field in model.model_fields.items())


def children(model: Model | None) -> Iterable[tuple[str, Model]]:
    for name, field in model.model_fields.items() if model is not None else ():
        inner = unwrap(field.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield field.alias or name, inner


def model_at(root: Model, path: Path) -> Model | None:
    """The model whose keys stand at the path."""
    model: Model = root
    for part in path:
        if isinstance(part, int):
            continue
        field = next((field for name, field in model.model_fields.items() if part == (field.alias or name)), None)
        inner = unwrap(field.annotation) if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        model = inner
    return model


def unwrap(annotation: Any) -> Any:
    """What is within `X | None`, `list[X]` and `Annotated[X, ...]`."""
    while True:
        origin, inner = get_origin(annotation), get_args(annotation)
        if origin is Annotated or origin is list:
            annotation = inner[0]
        elif origin in (Union, UnionType):
            annotation = next((one for one in inner if one is not type(None)), None)
        else:
            return annotation
