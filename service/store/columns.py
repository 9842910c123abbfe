"""Whole columns as parameters: Postgres array literals, written by the JSON serialiser.

The text form of an array of text is that of JSON but for the brackets and for escapes other than of quotes and
backslashes (PostgreSQL manual, "Array Input and Output Syntax"). The driver's own arrays are built value by value in
Python, which would be most of the time a report takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson


def literal(values: Sequence[Any]) -> str:
    """Of text, numbers, booleans, times and None; no value holds a NUL."""
    written = orjson.dumps(values)
    if b"\\" in written:
        return "{" + ",".join(map(element, values)) + "}"
    return "{" + written[1:-1].decode() + "}"


def element(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return orjson.dumps(value).decode()
