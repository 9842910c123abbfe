"""Which steps a question about a metric has: never more than are promised, and an error that says what can be asked."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta

import pytest

from service.api.http import duration
from service.api.metrics_series import POINTS_MAX, span
from service.errors import BadRequest

NOW = datetime(2026, 11, 26, 22, 30, 17, tzinfo=UTC)


def points(since: datetime, step: timedelta) -> int:
    begin, step, _ = span(since, step, NOW)
    return (NOW - begin) // step + 1


def test_an_answer_never_has_more_points_than_are_promised() -> None:
    given: set[int] = set()
    for minutes in range(POINTS_MAX - 3, POINTS_MAX + 3):
        for odd in (timedelta(), timedelta(seconds=29), timedelta(seconds=59)):
            with contextlib.suppress(BadRequest):
                given.add(points(NOW - timedelta(minutes=minutes) + odd, timedelta(minutes=1)))
    assert max(given) == POINTS_MAX


@pytest.mark.parametrize(("since", "step"), [(timedelta(hours=46), "1m"), (timedelta(days=90), "1h")])
def test_what_an_error_asks_for_is_then_answered(since: timedelta, step: str) -> None:
    with pytest.raises(BadRequest, match="write a step of") as refused:
        span(NOW - since, duration(step), NOW)
    [asked] = re.findall(r"write a step of (\w+) or more", str(refused.value))
    assert points(NOW - since, duration(asked)) <= POINTS_MAX
