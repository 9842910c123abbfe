"""A rule as its author wrote it, cut out of its file, and how it differs from what it was. Pure."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence

from service.rules import Rule

DIFF_CHARS_MAX = 20_000
ITEM = re.compile(r"(\s*-\s+)\S")


def texts(rules: Sequence[Rule], places: Sequence[tuple[int, int]], text: str) -> list[str]:
    """One text a rule; `places` says where each one's `id` stands, lines and columns from 1."""
    lines = [line.rstrip("\r") for line in text.split("\n")]  # as a problem's line is counted
    return [block(lines, *place) or plain(rule) for rule, place in zip(rules, places, strict=True)]


def block(lines: Sequence[str], line: int, column: int) -> str | None:
    """The lines of the list's item that holds this key, dedented; None where it is not written in lines of its own."""
    begin = next(
        (number for number in range(min(line, len(lines)) - 1, -1, -1) if is_item(lines[number], column)), None
    )
    if begin is None:
        return None
    dash = lines[begin].index("-")
    end = begin + 1
    while end < len(lines) and (not lines[end].strip() or indent(lines[end]) > dash):
        end += 1
    return "\n".join(found[dash:] for found in lines[begin:end]).rstrip() + "\n"


def is_item(line: str, column: int) -> bool:
    """Whether an item of a list begins here whose first key stands in that column."""
    match = ITEM.match(line)
    return match is not None and len(match[1]) == column - 1


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def plain(rule: Rule) -> str:
    return json.dumps(rule.model_dump(mode="json", by_alias=True, exclude_unset=True), indent=2) + "\n"


def diff(old: str | None, new: str | None, rule_id: str) -> str:
    """A unified diff; cut where it is longer than DIFF_CHARS_MAX."""
    lines = difflib.unified_diff(
        (old or "").splitlines(), (new or "").splitlines(), f"{rule_id} before", f"{rule_id} after", lineterm=""
    )
    said = "\n".join(lines)
    return said if len(said) <= DIFF_CHARS_MAX else said[:DIFF_CHARS_MAX] + "\n... cut here"
