"""Which metrics a PromQL expression asks for, by which labels: enough of the language for the dashboard's queries.

What it does not know is a mistake too: a function that is misspelt, a metric that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set

TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<range>\[[^\]]*\])|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)'
    r"|(?P<word>[A-Za-z_:][A-Za-z0-9_:]*)|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){},]))"
)
GROUPING = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
OPERATORS = frozenset({"and", "or", "unless", "bool"})
FUNCTIONS = frozenset({"sum", "min", "max", "avg", "count", "topk", "bottomk", "rate", "increase", "sort", "sort_desc"})
OF_THE_SCRAPE = frozenset({"job", "instance"})  # labels that Prometheus puts there itself


def mistakes(expression: str, known: Mapping[str, Set[str]]) -> list[str]:
    """What asks for something that is not in `known`: metric -> its labels. Empty: all of it is there."""
    tokens = tokens_of(expression)
    if tokens is None:
        return [f"cannot be read: {expression}"]
    found: list[str] = []
    metrics: list[tuple[int, str]] = []
    groups: list[tuple[int, int, set[str]]] = []  # (from, to, labels) of what is grouped, by places of tokens
    at = 0
    while at < len(tokens):
        kind, word = tokens[at]
        after = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if kind != "word" or word in OPERATORS:
            at += 1
        elif word in GROUPING:
            end = next(place for place in range(at, len(tokens)) if tokens[place][1] == ")")
            groups.append(
                (end, closing(tokens, end + 1), {name for what, name in tokens[at + 1 : end] if what == "word"})
            )
            at = end + 1
        elif after == "(" or (after in GROUPING and word in FUNCTIONS):
            if word not in FUNCTIONS:
                found.append(f"{word} is no function")
            at += 1
        else:
            metrics.append((at, word))
            at += 1
            if word not in known:
                found.append(f"{word} is no metric")
            end = at
            if after == "{":
                end = next(place for place in range(at, len(tokens)) if tokens[place][1] == "}")
                asked = {name for what, name in tokens[at:end] if what == "word"}
                found += [f"{word} has no label {name}" for name in asked - known.get(word, set()) - OF_THE_SCRAPE]
                at = end + 1
            ranged = at < len(tokens) and tokens[at][0] == "range"
            if ranged != word.endswith("_total"):
                found.append(f"{word}: a counter is asked for by its rate, and nothing else is")
    for begin, end, names in groups:
        within = [metric for place, metric in metrics if begin < place < end]
        for name in sorted(names - OF_THE_SCRAPE):
            found += [f"{metric} has no label {name}" for metric in within if name not in known.get(metric, set())]
    return found if metrics else [*found, "asks for no metric"]


def tokens_of(expression: str) -> list[tuple[str, str]] | None:
    found, at = [], 0
    while expression[at:].strip():
        match = TOKEN.match(expression, at)
        if match is None or match.lastgroup is None:
            return None
        found.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


def closing(tokens: list[tuple[str, str]], opening: int) -> int:
    """The place of the parenthesis that closes the one there."""
    depth = 0
    for place in range(opening, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[place][1], 0)
        if depth == 0:
            return place
    return len(tokens)
