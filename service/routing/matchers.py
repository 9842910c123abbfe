"""Matchers in Alertmanager's syntax: `name=value`, `!=`, `=~`, `!~`, quoted or not, several in `{ }`. Pure.

A label that is not there has the value "", as in Alertmanager. Regular expressions are anchored at both ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from service.routing.pattern import BadPattern, Pattern

MATCHERS_MAX = 50  # of one route, rule or silence
MATCHER_CHARS_MAX = 2_000
MATCHER = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(=~|!~|!=|=)\s*(.*?)\s*", re.DOTALL)
LABEL = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # Postgres text takes neither NUL nor lone surrogates
ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}

Labels = Mapping[str, str]


class BadMatcher(ValueError):
    """A matcher that cannot be read; a sentence for its author."""


@dataclass(frozen=True, slots=True)
class Matcher:
    name: str
    op: str  # = != =~ !~
    value: str
    pattern: Pattern | None = None

    def matches(self, labels: Labels) -> bool:
        value = labels.get(self.name, "")
        same = value == self.value if self.pattern is None else self.pattern.matches(value)
        return same != self.op.startswith("!")

    def __str__(self) -> str:
        return f"{self.name}{self.op}{quote(self.value)}"


def make_matcher(name: str, op: str, value: str) -> Matcher:
    """Raises BadMatcher."""
    if LABEL.fullmatch(name) is None:
        raise BadMatcher(f'"{name[:60]}" is no name of a label')
    if UNSTORABLE.search(value):
        raise BadMatcher(f"{name}{op}: has a character that cannot be stored")
    try:
        made = Matcher(name, op, value, Pattern(value) if op.endswith("~") else None)
    except BadPattern as exc:
        raise BadMatcher(f"{name}{op}: {exc}") from None
    if len(str(made)) > MATCHER_CHARS_MAX:  # as it is stored and read again: with a backslash before some characters
        raise BadMatcher(f"{name}{op}: longer than {MATCHER_CHARS_MAX} characters when it is quoted")
    return made


def parse_matcher(text: str) -> Matcher:
    """One matcher. Raises BadMatcher."""
    found = MATCHER.fullmatch(text)
    if found is None:
        raise BadMatcher(f'"{text[:60]}" is no matcher; write name=value, name!=value, name=~regex or name!~regex')
    return make_matcher(found[1], found[2], unquote(found[3]))


def parse_matchers(text: str) -> tuple[Matcher, ...]:
    """One or several, with commas between them and maybe braces around them. Raises BadMatcher."""
    if len(text) > MATCHER_CHARS_MAX:
        raise BadMatcher(f"longer than {MATCHER_CHARS_MAX} characters")
    inner = text.strip()
    if inner.startswith("{") != inner.endswith("}"):
        # A value may end in a brace of its own: only the one in front tells.
        if inner.startswith("{"):
            raise BadMatcher(f'"{text[:60]}" opens a brace and does not close it')
    elif inner.startswith("{"):
        inner = inner[1:-1]
    return tuple(parse_matcher(part) for part in split(inner))


def read_matchers(given: Any) -> tuple[Matcher, ...]:
    """A list as YAML or JSON has it: texts, or Alertmanager's objects `{name, value, isRegex, isEqual}`."""
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, list | tuple):
        raise BadMatcher('write a list of matchers, such as ["severity=P1"]')
    found: list[Matcher] = []
    for item in items:
        if isinstance(item, Matcher):
            found.append(item)
        elif isinstance(item, str):
            found += parse_matchers(item)
        elif isinstance(item, dict):
            found.append(of_object(item))
        else:
            raise BadMatcher('a matcher is text, such as "severity=P1"')
    if len(found) > MATCHERS_MAX:
        raise BadMatcher(f"more than {MATCHERS_MAX} matchers")
    return tuple(found)


def of_object(item: Mapping[str, Any]) -> Matcher:
    unknown = set(item) - {"name", "value", "isRegex", "isEqual"}
    name, value = item.get("name"), item.get("value")
    flags = (item.get("isRegex", False), item.get("isEqual", True))
    if unknown or not isinstance(name, str) or not isinstance(value, str) or not all(type(x) is bool for x in flags):
        raise BadMatcher('a matcher as an object is {"name", "value", "isRegex", "isEqual"}')
    if len(name) + len(value) > MATCHER_CHARS_MAX:
        raise BadMatcher(f"longer than {MATCHER_CHARS_MAX} characters")
    regex, equal = flags
    return make_matcher(name, {(0, 1): "=", (0, 0): "!=", (1, 1): "=~", (1, 0): "!~"}[regex, equal], value)


def all_match(matchers: Iterable[Matcher], labels: Labels) -> bool:
    return all(matcher.matches(labels) for matcher in matchers)


def split(text: str) -> list[str]:
    """At commas that stand in no quotes; one at the very end is let be."""
    parts, part, quoted, escaped = list[str](), "", False, False
    for char in text:
        if char == "," and not quoted:
            parts.append(part)
            part = ""
            continue
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        part += char
    if quoted:
        raise BadMatcher(f'"{text[:60]}" opens a quote and does not close it')
    return [*parts, part] if part.strip() else parts


def unquote(text: str) -> str:
    quoted = text.startswith('"')
    rest, value, at = text[1:] if quoted else text, "", 0
    closed = False
    while at < len(rest):
        char = rest[at]
        after = rest[at + 1 : at + 2]
        if char == "\\" and after:
            value += ESCAPES.get(after, char + after)
            at += 2
            continue
        if char == '"':
            if not quoted or after:
                raise BadMatcher(f'a quote in the middle of {text[:60]}; write it \\"')
            closed = True
        else:
            value += char
        at += 1
    if quoted and not closed:
        raise BadMatcher(f"{text[:60]} opens a quote and does not close it")
    return value


def quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
