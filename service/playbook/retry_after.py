"""How long a provider asks to wait: in seconds, as a date, in milliseconds, in a header or in the body.

RFC 9110 section 10.2.3 has `Retry-After` as seconds or a date. Azure's libraries also read `retry-after-ms` and
`x-ms-retry-after-ms` (https://learn.microsoft.com/en-us/azure/architecture/best-practices/retry-service-specific), GitHub
gives the end of the window as `x-ratelimit-reset` in epoch seconds, Jira as an ISO 8601 time, the IETF draft `RateLimit`
fields as seconds from now, and Google's RetryInfo as `"retryDelay": "3.5s"` in the body.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

WAIT_SECONDS_MAX = 30 * 86_400  # longer than this nobody asks; it is a mistake, and given back as no more than that
EPOCH_SECONDS_MIN = 1_000_000_000  # as seconds to wait this would be 31 years, so it is a time
EPOCH_MILLISECONDS_MIN = 1_000_000_000_000
VALUE_CHARS_MAX = 64
NUMBER = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(ms|s)?", re.ASCII)
MILLISECOND_HEADERS = ("retry-after-ms", "x-ms-retry-after-ms", "x-retry-after-ms")
RESET_HEADERS = ("x-ratelimit-reset", "x-rate-limit-reset", "ratelimit-reset", "rate-limit-reset")
REMAINING_HEADERS = ("x-ratelimit-remaining", "x-rate-limit-remaining", "ratelimit-remaining")
MILLISECOND_FIELDS = ("retryafterms", "retryaftermilliseconds", "retryafterinmilliseconds", "retryaftermillis")
SECOND_FIELDS = ("retryafter", "retryafterseconds", "retrydelay")


@dataclass(frozen=True, slots=True)
class Asked:
    """`seconds` to wait from now, and `by`: the header or field that asked for it."""

    seconds: float
    by: str


def asked(headers: Mapping[str, str], fields: Mapping[str, Any], now: datetime | None) -> Asked | None:
    """`headers` by their names in lower case, `fields` of the body without separators too. What cannot be read counts as not said. A date is measured
    from the response's own `Date` where there is one, so that a wrong clock of ours does not count, else from `now`."""
    sent_at = date(headers.get("date", "")) or now
    for name in MILLISECOND_HEADERS:
        if (seconds := number(headers.get(name), unit="ms")) is not None:
            return Asked(seconds, name)
    if (seconds := seconds_or_time(headers.get("retry-after"), sent_at)) is not None:
        return Asked(seconds, "retry-after")
    for name in MILLISECOND_FIELDS:
        if (seconds := number(fields.get(name), unit="ms")) is not None:
            return Asked(seconds, "the body")
    for name in SECOND_FIELDS:
        if (seconds := number(fields.get(name))) is not None:
            return Asked(seconds, "the body")
    for name in RESET_HEADERS:
        # GitHub and others send it with every answer: it is a wait only where nothing is left, or nobody says what is.
        if remaining(headers) in (None, 0) and (seconds := seconds_or_time(headers.get(name), sent_at)) is not None:
            return Asked(seconds, name)
    return None


def limited(headers: Mapping[str, str]) -> bool:
    """Do the headers say by themselves that a limit was reached?"""
    return remaining(headers) == 0 or "retry-after" in headers


def remaining(headers: Mapping[str, str]) -> int | None:
    for name in REMAINING_HEADERS:
        value = headers.get(name, "").strip()
        if value.isascii() and value.isdigit():
            return int(value[:12])
    return None


def number(value: object, *, unit: str = "s") -> float | None:
    """Seconds; a unit in the value itself (`1500ms`, `3.5s`) counts before the one its name implies."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return bounded(value, unit)
    if len(value) > VALUE_CHARS_MAX or (found := NUMBER.fullmatch(value.strip().lower())) is None:
        return None
    return bounded(float(found[1]), found[2] or unit)


def bounded(value: float, unit: str) -> float | None:
    """One that asks for more than the bound asks to wait all the same: milliseconds under the name of seconds, say."""
    if value < 0:
        return None
    value = float(min(value, WAIT_SECONDS_MAX * 1000))
    return min(value / 1000 if unit == "ms" else value, float(WAIT_SECONDS_MAX))


def seconds_or_time(value: str | None, sent_at: datetime | None) -> float | None:
    """Seconds from now, or until a time: an HTTP date, ISO 8601, or so large a number that it must be one."""
    if value is None or len(value) > VALUE_CHARS_MAX:
        return None
    found = NUMBER.fullmatch(value.strip().lower())
    if found is None or (float(found[1]) >= EPOCH_SECONDS_MIN and found[2] is None):
        at = date(value) if found is None else epoch(float(found[1]))
        if at is None or sent_at is None:
            return None
        return min(max((at - sent_at).total_seconds(), 0.0), float(WAIT_SECONDS_MAX))
    return number(value)


def epoch(value: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(value / 1000 if value >= EPOCH_MILLISECONDS_MIN else value, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def date(value: str) -> datetime | None:
    text = value.strip()
    if not text or len(text) > VALUE_CHARS_MAX:
        return None
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            at = read(text)
            return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
        except (ValueError, OverflowError, TypeError, IndexError, AttributeError):
            continue
    return None
