"""The numbers of an account's row are never too low."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from service.heard import HOUR, UNKNOWN, Heard, hear

START = datetime(2026, 11, 26, 8, tzinfo=UTC)
MINUTES = st.integers(0, 5 * 60)


@given(st.lists(st.lists(MINUTES, min_size=1, max_size=8), max_size=8), st.integers(1, 60))
def test_no_window_that_ends_with_a_newest_event_holds_more(batches: list[list[int]], within: int) -> None:
    heard, seen = None, list[datetime]()
    for batch in batches:
        new = [START + timedelta(minutes=minute) for minute in batch]
        newest = max(seen, default=None)
        seen += new
        heard, most = hear(heard, newest, new)
        if newest is not None and min(new) <= newest:
            continue  # such an account is told by its history
        for at in new:
            assert sum(at - timedelta(minutes=within) < other <= at for other in seen) <= most


def test_a_row_from_before_the_numbers_is_unknown_until_two_hours_are_over() -> None:
    heard, most = hear(None, START, [START + timedelta(minutes=1)])
    assert most > UNKNOWN
    heard, most = hear(heard, START, [START + HOUR])
    assert most > UNKNOWN
    heard, most = hear(heard, START, [START + 3 * HOUR])
    assert most == 1
    assert heard == Heard(int(START.timestamp()) // 3600 + 3, 1, 0)


def test_an_event_of_long_ago_adds_nothing() -> None:
    heard, _ = hear(None, None, [START])
    assert hear(heard, START, [START - 3 * HOUR]) == (heard, 1)
    assert hear(None, None, []) == (None, 0)
