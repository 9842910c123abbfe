"""The token bucket, by a clock of the test's own."""

from __future__ import annotations

from service.limits import RateLimit


def test_a_second_s_worth_is_saved_up_and_no_more() -> None:
    limit = RateLimit(5)
    assert [limit.take(100.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [limit.take(100.2), limit.take(100.2)] == [True, False]
    assert [limit.take(1000.0) for _ in range(6)] == [True] * 5 + [False]


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    limit = RateLimit(1)
    assert [limit.take(50.0), limit.take(49.0), limit.take(50.5), limit.take(51.0)] == [True, False, False, True]
