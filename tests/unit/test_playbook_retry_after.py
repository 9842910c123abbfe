"""How long a provider asks to wait: seconds, dates, milliseconds, ends of windows, and what cannot be read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from service.playbook import classify
from service.playbook.retry_after import WAIT_SECONDS_MAX

NOW = datetime(2026, 11, 26, 2, 0, tzinfo=UTC)
EPOCH = int(NOW.timestamp())


def wait(headers: dict[str, Any], body: Any = None, now: datetime | None = NOW) -> tuple[float | None, str | None]:
    retry = classify("any", 429, headers, body, operation="read", now=now).retry
    return retry.wait_seconds, retry.wait_asked_by


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120),
        ({"retry-after": " 0 "}, 0),
        ({"RETRY-AFTER": "1.5"}, 1.5),
        ({"Retry-After": "1500ms"}, 1.5),
        ({"Retry-After": 30}, 30),
        ({"Retry-After": "Thu, 26 Nov 2026 02:00:45 GMT"}, 45),
        ({"Retry-After": "Thu, 26 Nov 2026 01:00:00 GMT"}, 0),
        ({"Retry-After": "2026-11-26T02:01:00Z"}, 60),
        ({"Retry-After": str(EPOCH + 9)}, 9),
        ({"Retry-After-Ms": "250"}, 0.25),
        ({"x-ms-retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"X-RateLimit-Reset": str(EPOCH + 30)}, 30),
        ({"X-RateLimit-Reset": str((EPOCH + 30) * 1000)}, 30),
        ({"X-RateLimit-Reset": "2026-11-26T02:02Z"}, 120),
        ({"RateLimit-Reset": "12", "RateLimit-Remaining": "0"}, 12),
    ],
)
def test_headers(headers: dict[str, Any], seconds: float) -> None:
    found, by = wait(headers)
    assert found == seconds
    assert by is not None


def test_a_date_counts_from_the_answers_own_clock() -> None:
    headers = {"Retry-After": "Thu, 26 Nov 2026 05:00:30 GMT", "Date": "Thu, 26 Nov 2026 05:00:00 GMT"}
    assert wait(headers)[0] == 30
    assert wait(headers, now=None)[0] == 30


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"retry_after_ms": 1500}, 1.5),
        ({"retryAfterMs": "1500"}, 1.5),
        ({"retry_after": 3}, 3),
        ({"ok": False, "error": "ratelimited", "retry_after": 4}, 4),
        ({"error": {"code": 429, "details": [{"@type": "RetryInfo", "retryDelay": "3.5s"}]}}, 3.5),
    ],
)
def test_bodies(body: Any, seconds: float) -> None:
    assert wait({}, body) == (seconds, "the body")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "-5",
        "nan",
        "inf",
        "1e9",
        "9" * 400,
        "Thu, 99 Nov 2026 99:00:00 GMT",
        "٣",
        "1,5",
    ],
)
def test_what_cannot_be_read_is_our_own_backoff(value: str) -> None:
    assert wait({"Retry-After": value}) == (1.0, None)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Retry-After": str(WAIT_SECONDS_MAX + 1)}, None),
        ({"Retry-After": "3600000"}, None),  # an hour in milliseconds, under the name of seconds
        ({"Retry-After-Ms": str(WAIT_SECONDS_MAX * 1000 + 1)}, None),
        ({"Retry-After": "Fri, 26 Nov 2027 02:00:00 GMT"}, None),
        ({"X-RateLimit-Reset": str(EPOCH + 2 * WAIT_SECONDS_MAX)}, None),
        ({}, {"retry_after": 10**20}),
    ],
)
def test_who_asks_for_more_than_anybody_waits_is_not_called_again_at_once(headers: dict[str, Any], body: Any) -> None:
    retry = classify("any", 429, headers, body, operation="read", now=NOW).retry
    assert (retry.allowed, retry.circuit_open, retry.requires) == (False, True, ("human_review",))
    assert retry.wait_seconds == WAIT_SECONDS_MAX
    assert retry.wait_asked_by is not None


def test_a_date_without_any_clock_is_our_own_backoff() -> None:
    assert wait({"Retry-After": "Thu, 26 Nov 2026 02:00:45 GMT"}, now=None) == (1.0, None)


def test_a_window_of_which_something_is_left_is_no_wait() -> None:
    assert wait({"X-RateLimit-Reset": str(EPOCH + 3000), "X-RateLimit-Remaining": "41"}) == (1.0, None)


def test_those_told_the_same_do_not_come_back_together_and_none_comes_early() -> None:
    for seconds, jitter in ((1, 1.0), (60, 6.0), (3600, 30.0)):
        retry = classify("any", 429, {"Retry-After": str(seconds)}, operation="read").retry
        assert (retry.wait_seconds, retry.jitter_seconds_max) == (seconds, jitter)


def test_backoff_grows_to_its_bound() -> None:
    retries = [classify("any", 503, operation="read", attempt=attempt).retry for attempt in (1, 2)]
    assert [(retry.wait_seconds, retry.jitter_seconds_max) for retry in retries] == [(1, 1), (2, 2)]


def test_a_5xx_may_ask_for_a_wait_too() -> None:
    assert classify("any", 503, {"Retry-After": "20"}).retry.wait_seconds == 20
