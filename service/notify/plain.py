"""Text from outside as plain words for people: cleaned, cut, and times as they are said. Pure."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime

LINK = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
# Marks that turn the reading direction around can make a name read as another sentence.
TURNING_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
UNPRINTABLE = frozenset({"Cc", "Cs", "Cn", "Co", "Zl", "Zp"})
NAME_CHARS_MAX = 80
DETAIL_CHARS_MAX = 300


def clean(text: str, chars_max: int, *, links: bool = False) -> str:
    """Outside text as one printable line. Links go: an authorization link lets its reader act as that user."""
    text = text[: chars_max * 8]  # before any work on it: the rest would be cut away in any case
    text = "".join(" " if c in TURNING_MARKS or unicodedata.category(c) in UNPRINTABLE else c for c in text)
    text = " ".join(text.split())
    return cut(text if links else LINK.sub("[link removed]", text), chars_max)


def cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1].rstrip() + "…"


def utc(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(at: datetime, beside: datetime) -> str:
    """`12:01` where the text around it names the day, else with its own day; always UTC, which the caller says."""
    at = at.astimezone(UTC)
    return at.strftime("%H:%M" if at.date() == beside.astimezone(UTC).date() else "%Y-%m-%d %H:%M")


def ago(at: datetime, now: datetime) -> str:
    seconds = (now - at).total_seconds()
    return "as this was written" if seconds < 1 else f"{span(seconds)} before this was written"


def span(seconds: float) -> str:
    """A duration as a person says it, in its largest unit that fits, and never negative."""
    whole = max(0, round(seconds))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if whole >= 2 * size or (whole >= size and whole % size == 0):
            return f"{whole // size} {unit}"
    return f"{whole} s"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def listed(names: tuple[str, ...], names_max: int) -> str:
    """`a, b and 3 more`; at least one name."""
    shown, more = names[:names_max], len(names) - names_max
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
