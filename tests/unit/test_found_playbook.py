"""Found by reading issue 5 against the playbook: what would have been retried, repeated or said wrongly."""

from __future__ import annotations

from typing import Any

import pytest

from service.playbook.alerts import what_to_do
from service.playbook.classify import UNATTENDED_WAIT_SECONDS_MAX, classify
from service.playbook.table import BY_PROVIDER, KNOWN_CODES


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


def test_a_reported_write_of_jiras_goes_to_a_person_and_one_of_stripes_is_looked_at_first() -> None:
    details = {"operation": "write", "outcome": "error", "error_class": "upstream_5xx"}
    assert what_to_do("tool_call.completed", details, "jira") == (
        "Stop, and let a person look at the resource: repeating this write may do it twice."
    )
    assert (what_to_do("tool_call.completed", details, "stripe") or "").startswith("Read the resource first.")
    reads = what_to_do("tool_call.completed", details | {"operation": "read"}, "jira")
    assert (reads or "").startswith("Back off with jitter and repeat the call.")


# ---- the words of libraries


@pytest.mark.parametrize(
    "said",
    [
        "invalid_grant: Token has been expired or revoked.",
        "(invalid_grant) Bad Request",
        "Error: invalid_grant",
        "google.auth.exceptions.RefreshError: ('invalid_grant: Bad Request', {})",
        "INVALID_GRANT",
        "invalid_grant: scope=drive is gone",
    ],
)
def test_a_code_is_known_at_the_beginning_of_what_a_library_says(said: str) -> None:
    for body in (said, said.encode(), {"error": said}, {"message": said}, {"error": {"message": said}}):
        assert classify("another", 400, {}, body).code == "invalid_grant", body


@pytest.mark.parametrize(
    "said",
    [
        "the word invalid_grant stands here",
        "invalid_grants are many",
        "not invalid_grant",
        "invalid_grant-like",
        "my_invalid_grant",
        "access denied",
    ],
)
def test_a_code_elsewhere_in_a_sentence_is_none(said: str) -> None:
    assert classify("another", 400, {}, {"message": said}).row == "status-400"
    assert classify("another", 400, {}, said).row == "status-400"


def test_what_a_text_says_of_the_token_counts_where_the_code_stood_in_the_text() -> None:
    assert classify("another", 400, {}, "invalid_grant: the token was revoked").state == "revoked"


def test_a_200_whose_text_begins_like_a_code_is_someones_data() -> None:
    assert classify("another", 200, {}, "invalid_grant: a word of OAuth's", operation="read").action == "continue"


# ---- what OAuth says counts before what is retried


@pytest.mark.parametrize("code", ["invalid_client", "invalid_scope", "insufficient_scope", "access_denied"])
def test_a_providers_own_row_that_retries_hides_no_code_of_oauths_that_never_is(code: str) -> None:
    for family, beside in (
        ("google", "rateLimitExceeded"),
        ("slack", "internal_error"),
        ("box", "rate_limit_exceeded"),
    ):
        answer = classify(family, 429, {"Retry-After": "5"}, {"error": code, "suberror": beside}, operation="read")
        assert (answer.code, answer.retry.allowed) == (code, False), (family, code)


# ---- operations


@pytest.mark.parametrize("operation", ["read", "READ", "Get", "list", "search", " query "])
def test_a_read_is_repeated(operation: str) -> None:
    answer = classify("stripe", 503, operation=operation)
    assert (answer.operation, answer.retry.allowed, answer.safe_write) == ("read", True, None)


@pytest.mark.parametrize("operation", ["write", "WRITE", "create", "Update", "delete"])
def test_a_write_is_one_in_any_case_and_by_any_name(operation: str) -> None:
    answer = classify("jira", 503, operation=operation)
    assert (answer.operation, answer.action, answer.retry.allowed) == ("write", "human_review", False)
    assert "taken for a write" not in answer.what_to_do


@pytest.mark.parametrize("operation", [None, "", "frobnicate", 7, "read" * 100])
def test_what_nobody_calls_a_read_is_taken_for_a_write_and_the_answer_says_so(operation: Any) -> None:
    for status in (429, 503, None):
        answer = classify("jira", status, operation=operation)
        assert (answer.operation, answer.action, answer.retry.allowed) == ("write", "human_review", False)
        assert answer.what_to_do.endswith("Nobody said that this call reads, so it is taken for a write.")
    assert classify("jira", 200, operation=operation).action == "check_state"
    assert "taken for a write" not in classify("jira", 400, operation=operation).what_to_do, "it changes nothing there"


# ---- 400 and 422


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    ("family", "code"),
    [
        ("another", "temporarily_unavailable"),
        ("another", "server_error"),
        ("google", "UNAVAILABLE"),
        ("google", "rateLimitExceeded"),
        ("microsoft", "TooManyRequests"),
    ],
)
def test_a_400_is_not_retried_because_of_what_its_body_says(status: int, family: str, code: str) -> None:
    answer = classify(family, status, {"Retry-After": "5"}, {"error": code}, operation="read")
    assert (answer.code, answer.action) == (code, "stop_and_surface")
    assert (answer.retry.allowed, answer.retry.retries_max) == (False, 0)
    assert classify(family, 503, {}, {"error": "temporarily_unavailable"}, operation="read").retry.allowed


# ---- waits


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, {"retry_after": 64567}),
        ({"Retry-After": str(UNATTENDED_WAIT_SECONDS_MAX + 1)}, None),
        ({"Retry-After-Ms": str((UNATTENDED_WAIT_SECONDS_MAX + 1) * 1000)}, None),
    ],
)
def test_a_wait_that_is_too_long_to_be_waited_for_unattended_goes_to_a_person(headers: Any, body: Any) -> None:
    """As seconds: a provider that means milliseconds is not known by its name."""
    for operation in ("read", "write"):
        answer = classify("another", 429, headers, body, operation=operation)
        assert (answer.action, answer.retry.allowed, answer.retry.circuit_open) == ("open_circuit", False, True)
        assert answer.retry.requires == ("human_review",)
        assert answer.retry.wait_seconds is not None
        assert answer.retry.wait_seconds > UNATTENDED_WAIT_SECONDS_MAX
        assert "let a person look" in answer.what_to_do


def test_the_longest_wait_that_nobody_need_look_at() -> None:
    retry = classify("another", 429, {"Retry-After": str(UNATTENDED_WAIT_SECONDS_MAX)}, operation="read").retry
    assert (retry.allowed, retry.wait_seconds) == (True, UNATTENDED_WAIT_SECONDS_MAX)


# ---- what an agent says of its call


@pytest.mark.parametrize(
    ("details", "says"),
    [
        # Its own refresh failed: the 401 of the call is no word against that, and no refresh mends it.
        ({"error_class": "refresh_failed", "http_status": 401}, "authorize it again"),
        ({"error_class": "rate_limited", "http_status": 403}, "Wait as long as the provider asks"),
        ({"error_class": "malformed_params", "http_status": 500}, "the same parameters fail again"),
        ({"error_class": "insufficient_scope", "http_status": 404}, "consent to what is missing"),
        # It says no more than the status does.
        ({"error_class": "other", "http_status": 404}, "Show the error to the tool's owner"),
        ({"error_class": "rate_limited", "http_status": 429, "retries": 3}, "Stop calling"),
        # The provider's own code counts before both.
        ({"error_class": "token_expired", "http_status": 401, "error": "invalid_grant"}, "said invalid_grant. Ask the"),
    ],
)
def test_the_class_that_an_agent_gives_counts_before_a_bare_status(details: dict[str, object], says: str) -> None:
    said = what_to_do("tool_call.completed", {"operation": "read", "outcome": "error", **details})
    assert said is not None
    assert says in said
