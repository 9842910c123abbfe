"""Found by reading what is told of reports against the code: what is a partial write, and what a report must never be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from service.api.reports import CALLS
from service.report import ToolCall, in_calendar, read_tool_calls
from service.store.reports import MALFORMED_KEPT


def a_call(**changes: Any) -> ToolCall:
    item = {
        "id": "a",
        "occurred_at": "2026-11-26T00:00:00Z",
        "account_id": "ca_1",
        "tool": "create_issue",
        "operation": "write",
        "outcome": "success",
        **changes,
    }
    return read_tool_calls(orjson.dumps({"items": [item]}))[0]


@pytest.mark.parametrize("error_class", ["malformed_params", "refresh_failed", "rate_limited", "upstream_5xx"])
@pytest.mark.parametrize("verification", ["missing", "mismatch", "pending"])
def test_a_write_that_failed_plainly_and_is_not_there_is_no_partial_execution(
    error_class: str, verification: str
) -> None:
    """It never said that it was done: nothing there is what one expects of it, and no P2."""
    assert not a_call(outcome="error", error_class=error_class, verification=verification).partial


def test_a_write_that_failed_half_way_is_one_by_its_class() -> None:
    assert a_call(outcome="error", error_class="partial_execution", verification="none").partial


def test_a_write_that_is_still_pending_is_a_partial_execution() -> None:
    """The article: "If it is not found or is in a pending state, emit a partial execution event"."""
    assert a_call(http_status=200, verification="pending").partial
    assert not a_call(http_status=200, verification="pending", operation="read").partial


@pytest.mark.parametrize("written", ["0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00", "1999-12-31T23:59:59Z"])
def test_a_time_that_is_not_believed_can_be_stored(written: str) -> None:
    at = in_calendar(a_call(occurred_at=written).occurred_at)
    assert at.astimezone(UTC).year < 2000


def test_a_time_that_can_be_believed_stays() -> None:
    at = datetime(2026, 11, 26, tzinfo=UTC)
    assert in_calendar(at) == at


@pytest.mark.parametrize(
    "error_class", ["refresh_failed", "insufficient_scope", "malformed_params", "partial_execution"]
)
def test_a_retry_of_each_class_that_must_never_be_retried_is_against_the_rules(error_class: str) -> None:
    assert a_call(outcome="error", error_class=error_class, retries=1).retried_against_rules


def test_reports_want_the_scope_telemetry_and_no_other() -> None:
    scopes = {call.path: call.scope for call in CALLS if call.method == "POST"}
    assert scopes == {"/v1/tool-calls": "telemetry", "/v1/token-refreshes": "telemetry"}


def test_malformed_calls_are_kept_for_thirty_days() -> None:
    assert timedelta(days=30) == MALFORMED_KEPT
