"""Found by reading issue 5 against the code: answers of the playbook, values of reports, and where a group puts an alert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from service.api.reports import CALLS
from service.playbook.alerts import what_to_do
from service.playbook.classify import classify
from service.playbook.table import BY_PROVIDER, KNOWN_CODES
from service.report import ToolCall, read_tool_calls
from service.routing import grouping
from service.routing.tree import Node
from service.store.reports import MALFORMED_KEPT

NOW = datetime(2026, 11, 26, tzinfo=UTC)
VALUES: Mapping[str, Any] = {
    "route": "route",
    "receiver": "r",
    "destination": "d",
    "group_key": "k",
    "group_labels": {},
    "severity": "P4",
    "members": 1,
    "opened_at": NOW,
    "joined_at": NOW,
}


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


# ---- partial executions


@pytest.mark.parametrize("error_class", ["malformed_params", "refresh_failed", "rate_limited", "upstream_5xx"])
def test_a_write_that_failed_plainly_and_is_not_there_is_no_partial_execution(error_class: str) -> None:
    """It never said that it was done: nothing there is what one expects of it, and no P2."""
    assert not a_call(outcome="error", error_class=error_class, verification="missing").partial


def test_a_write_that_is_still_pending_is_a_partial_execution() -> None:
    """The article: "If it is not found or is in a pending state, emit a partial execution event"."""
    assert a_call(http_status=200, verification="pending").partial


# ---- groups


def test_what_is_more_severe_than_its_group_does_not_wait_with_what_is_held_back() -> None:
    told = replace(grouping.Notification(id="n1", **VALUES), first_post_at=NOW, last_post_at=NOW)
    later = NOW + timedelta(minutes=2)
    held_back = grouping.Notification(
        id="n2", **{**VALUES, "opened_at": later, "joined_at": later, "flush_at": NOW + timedelta(minutes=15)}
    )
    node = Node(path="route", receiver="r", group_interval=timedelta(minutes=15))
    assert grouping.place(node, [told], "P1", later) == later, "alone it is told at once"
    assert grouping.place(node, [told, held_back], "P1", later) == later, "and so beside a P4 that waits"


# ---- the playbook


@pytest.mark.parametrize("family", [*BY_PROVIDER, "another"])
def test_invalid_grant_is_never_retried_whatever_else_stands_beside_it(family: str) -> None:
    """docs/playbook.md: it holds for every row."""
    retried = []
    for code in sorted(KNOWN_CODES):
        answer = classify(family, 400, {"retry-after": "5"}, {"error": "invalid_grant", "suberror": code})
        if answer.retry.allowed:
            retried.append(code)
    assert retried == []


@pytest.mark.parametrize(
    "body",
    [
        {"message": "invalid_grant: Token has been revoked"},
        {"error": "invalid_grant: Token has been expired or revoked."},
        '"invalid_grant"',
        "invalid_grant",
    ],
)
@pytest.mark.parametrize("status", [400, 401])
def test_invalid_grant_in_a_sentence_is_still_invalid_grant(body: object, status: int) -> None:
    """As connectors pass it on. A 400 with it is taken for wrong parameters, and a 401 for one that a refresh may mend."""
    assert classify("another", status, {}, body).error_class == "refresh_failed"


@pytest.mark.parametrize(
    "error",
    [
        "invalid_grant: Token has been expired or revoked.",
        "('invalid_grant: Token has been expired or revoked.', {'error': 'invalid_grant'})",  # google-auth's RefreshError
    ],
)
def test_a_reason_that_a_report_passed_on_is_not_said_to_be_missing(error: str) -> None:
    said = what_to_do("token.refresh_failed", {"error": error, "http_status": 400}, "google")
    assert said is not None
    assert "gave no reason" not in said
    assert "wait for the next refresh" not in said


@pytest.mark.parametrize("error_class", ["upstream_5xx", "rate_limited", "token_expired"])
@pytest.mark.parametrize("provider", ["jira", "stripe", None])
def test_a_reported_write_is_not_repeated_because_no_status_came_with_it(
    error_class: str, provider: str | None
) -> None:
    """With `http_status` the same report is told to look first, or to let a person look."""
    details = {"operation": "write", "outcome": "error", "error_class": error_class, "verification": "none"}
    said = what_to_do("tool_call.completed", details, provider)
    assert said is not None
    assert any(word in said for word in ("person", "whether it is there", "Read the resource")), said


# ---- guards: these hold, and nothing failed where they were broken


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
