"""Time intervals in Alertmanager's words: times of day, weekdays, days of month, months, years, in a location. Pure."""

from __future__ import annotations

import calendar
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from service.strict import Strict

INTERVALS_MAX = 100
RANGES_MAX = 50
WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
MONTHS = tuple(name.lower() for name in calendar.month_name[1:])
TIME = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)")
DAY_MINUTES = 24 * 60


def minutes(given: Any) -> int:
    """`HH:MM` as minutes of the day; 24:00 is its end. YAML 1.1 would make a number of it, which is told."""
    found = TIME.fullmatch(given) if isinstance(given, str) else None
    if found is None or (at := int(found[1]) * 60 + int(found[2])) > DAY_MINUTES:
        raise ValueError('write a time of day such as "09:30", in quotes')
    return at


def ranges(names: Sequence[str], low: int, high: int, what: str, *, first: int = 0) -> Any:
    """A reader of lists such as `['monday:friday']` or `['1:5']`: pairs of numbers, both ends included."""

    def number(word: str) -> int:
        word = word.strip().lower()
        if word in names:
            return names.index(word) + first
        if not re.fullmatch(r"-?\d{1,4}", word) or not low <= int(word) <= high or int(word) == 0 < abs(low):
            raise ValueError(f'"{word[:20]}" is no {what}')
        return int(word)

    def read(given: Any) -> tuple[tuple[int, int], ...] | None:
        if given is None:
            return None
        items = given if isinstance(given, list | tuple) else [given]
        if len(items) > RANGES_MAX:
            raise ValueError(f"more than {RANGES_MAX} ranges")
        found = []
        for item in items:
            if isinstance(item, list | tuple) and len(item) == 2 and all(type(end) is int for end in item):
                found.append((item[0], item[1]))  # as we store it
                continue
            if isinstance(item, bool) or not isinstance(item, str | int):
                raise ValueError(f"write a {what}, or two with a colon between them")
            begin, _, end = str(item).partition(":")
            pair = number(begin), number(end or begin)
            if backwards(*pair):
                raise ValueError(f'"{str(item)[:40]}" runs backwards')
            found.append(pair)
        return tuple(found)

    return BeforeValidator(read)


def backwards(begin: int, end: int) -> bool:
    """As Alertmanager: from a day that counts from the month's end to one that counts from its begin nothing leads, and
    where one does the other way, it must be forward in a month of 31 days."""
    if begin < 0 <= end:
        return True
    return begin > (31 + end + 1 if end < 0 <= begin else end)


Minutes = Annotated[
    int, BeforeValidator(minutes), PlainSerializer(lambda at: f"{at // 60:02}:{at % 60:02}", return_type=str)
]
Pairs = tuple[tuple[int, int], ...] | None


def known_zone(name: str) -> str:
    zone(name)
    return name


def zone(name: str) -> tzinfo:
    try:
        # A path is no name, and zoneinfo would look it up in the file system.
        if not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", name):
            raise ValueError
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f'"{name[:40]}" is no time zone of the IANA list, such as Europe/Paris') from None


class TimeRange(Strict):
    """From `start_time`, included, to `end_time`, excluded, of one day; over midnight takes two."""

    start_time: Minutes
    end_time: Minutes

    @model_validator(mode="after")
    def _forward(self) -> TimeRange:
        if self.start_time >= self.end_time:
            raise ValueError("a time range ends after it starts; over midnight write two, until 24:00 and from 00:00")
        return self


class Interval(Strict):
    """All that is given must hold; what is not given always does."""

    times: tuple[TimeRange, ...] | None = Field(None, max_length=RANGES_MAX)
    weekdays: Annotated[Pairs, ranges(WEEKDAYS, 1, 0, "day of the week")] = None
    days_of_month: Annotated[Pairs, ranges((), -31, 31, "day of the month")] = None
    months: Annotated[Pairs, ranges(MONTHS, 1, 12, "month", first=1)] = None
    years: Annotated[Pairs, ranges((), 1970, 9999, "year")] = None
    location: Annotated[str, AfterValidator(known_zone)] = "UTC"

    def contains(self, at: datetime) -> bool:
        """`at` is aware."""
        here = at.astimezone(zone(self.location))
        minute = here.hour * 60 + here.minute
        if self.times is not None and not any(one.start_time <= minute < one.end_time for one in self.times):
            return False
        return (
            inside(self.weekdays, here.isoweekday() % 7)
            and in_month(self.days_of_month, here)
            and inside(self.months, here.month)
            and inside(self.years, here.year)
        )


class TimeInterval(Strict):
    """A named set of intervals: it holds while any of them does."""

    name: str = Field(min_length=1, max_length=100)
    time_intervals: tuple[Interval, ...] = Field(min_length=1, max_length=INTERVALS_MAX)


@dataclass(frozen=True, slots=True)
class Clock:
    """Whether any of these intervals holds at an instant."""

    intervals: tuple[Interval, ...]

    def runs(self, at: datetime) -> bool:
        return any(interval.contains(at) for interval in self.intervals)


def inside(pairs: Pairs, number: int) -> bool:
    return pairs is None or any(low <= number <= high for low, high in pairs)


def in_month(pairs: Pairs, here: datetime) -> bool:
    """-1 is the month's last day; a day that this month does not have is its last, or its first."""
    if pairs is None:
        return True
    days = calendar.monthrange(here.year, here.month)[1]

    def day(number: int) -> int:
        return days + number + 1 if number < 0 else number

    for first, last in pairs:
        begin, end = day(first), day(last)
        if begin > days or end < 1:
            continue
        if max(begin, 1) <= here.day <= min(end, days):
            return True
    return False
