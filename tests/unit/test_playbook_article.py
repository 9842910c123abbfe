"""Every line of the article's decision tree and FAQ, as what the playbook answers. The quotes are the article's."""

from __future__ import annotations

from typing import Any

import pytest

from service.playbook import classify
from service.playbook.classify import Answer
from service.playbook.table import ROWS

NEVER = {"allowed": False, "retries_max": 0, "circuit_open": False, "requires": ()}
SALESFORCE_OVER: Any = [{"errorCode": "INVALID_SESSION_ID", "message": "Session expired or invalid"}]


def never_retried(answer: Answer) -> bool:
    return {name: getattr(answer.retry, name) for name in NEVER} == NEVER


# "When a Salesforce tool call returns a 401, three distinct states could be true"


def test_state_1_an_expired_access_token_is_refreshed_and_retried_once() -> None:
    answer = classify("salesforce", 401, {}, SALESFORCE_OVER, operation="read")
    assert (answer.error_class, answer.action) == ("token_expired", "refresh_once")
    assert (answer.retry.allowed, answer.retry.retries_left, answer.retry.requires) == (True, 1, ("refresh",))


def test_state_1_if_the_retry_fails_the_error_is_surfaced_and_it_stops() -> None:
    answer = classify("salesforce", 401, {}, SALESFORCE_OVER, operation="read", attempt=2)
    assert (answer.error_class, answer.action) == ("token_expired", "stop_and_surface")
    assert (answer.retry.allowed, answer.retry.retries_left, answer.retry.requires) == (False, 0, ())


def test_state_2_a_revoked_refresh_token_answers_invalid_grant_and_no_retry_helps() -> None:
    answer = classify(
        "salesforce", 400, {}, {"error": "invalid_grant", "error_description": "expired access/refresh token"}
    )
    assert (answer.error_class, answer.action, answer.credential) == ("refresh_failed", "reauthorize", "refresh_token")
    assert never_retried(answer)
    # Salesforce says "expired" of revoked ones too, so its word is not taken for a reason.
    assert answer.state == "expired_or_revoked"


def test_state_3_a_401_may_also_be_a_scope_that_no_refresh_mends() -> None:
    answer = classify("Jira", 401, {}, {"code": 401, "message": "Unauthorized; scope does not match"})
    assert (answer.error_class, answer.action) == ("insufficient_scope", "request_scope")
    assert never_retried(answer)


def test_the_same_401_alone_says_none_of_the_three() -> None:
    answer = classify("salesforce", 401, {}, b"")
    assert (answer.error_class, answer.state, answer.code) == ("other", "unknown", None)
    assert answer.action == "refresh_once"  # one refresh tells which of them it is


def test_concurrent_refreshes_one_lock_for_the_account() -> None:
    answer = classify("box", 401, {"WWW-Authenticate": 'Bearer realm="Service", error="invalid_token"'}, b"")
    assert answer.action == "refresh_once"
    assert "under a lock for this account" in answer.what_to_do


def test_concurrent_refreshes_a_single_use_token_is_read_again_before_anyone_is_asked() -> None:
    body = {"error": "invalid_grant", "error_description": "Refresh token has expired"}
    answer = classify("box", 400, {}, body)
    assert (answer.error_class, answer.action, answer.state) == ("refresh_failed", "reauthorize", "expired")
    assert answer.what_to_do.startswith("Read the account's token once more")
    assert never_retried(answer)


def test_the_create_opportunity_that_nobody_consented_to_needs_a_new_consent_and_no_retry() -> None:
    for body in (b"", {"error": "insufficient_scope"}):
        answer = classify("salesforce", 403, {}, body, operation="write")
        assert (answer.error_class, answer.action) == ("insufficient_scope", "request_scope")
        assert never_retried(answer)


def test_refresh_failures_have_different_codes_and_different_recoveries() -> None:
    actions = {
        code: classify("any", 503, {}, {"error": code}, operation="read").action
        for code in (
            "invalid_grant",
            "invalid_client",
            "invalid_scope",
            "temporarily_unavailable",
            "interaction_required",
        )
    }
    assert actions == {
        "invalid_grant": "reauthorize",
        "invalid_client": "fix_client",
        "invalid_scope": "request_scope",
        "temporarily_unavailable": "retry_with_backoff",
        "interaction_required": "reauthorize",
    }


# "429 with a Retry-After header"


def test_429_parse_retry_after_when_present() -> None:
    retry = classify("slack", 429, {"Retry-After": "17"}, {"ok": False, "error": "ratelimited"}, operation="read").retry
    assert (retry.allowed, retry.wait_seconds, retry.wait_asked_by) == (True, 17.0, "retry-after")


def test_429_some_providers_say_it_in_milliseconds() -> None:
    assert classify("azure", 429, {"x-ms-retry-after-ms": "1500"}).retry.wait_seconds == 1.5
    assert classify("any", 429, {}, {"retry_after_ms": 250}).retry.wait_seconds == 0.25


def test_429_without_guidance_backs_off_with_jitter() -> None:
    waits = [classify("any", 429, operation="read", attempt=attempt).retry for attempt in (1, 2, 3)]
    assert [(wait.wait_seconds, wait.jitter_seconds_max) for wait in waits] == [(1, 1), (2, 2), (4, 4)]
    assert {wait.wait_asked_by for wait in waits} == {None}


def test_429_three_retries_at_most_then_the_circuit_breaks() -> None:
    answers = [
        classify("any", 429, {"Retry-After": "1"}, operation="read", attempt=attempt) for attempt in (1, 2, 3, 4)
    ]
    assert [answer.retry.allowed for answer in answers] == [True, True, True, False]
    assert [answer.action for answer in answers] == ["wait_and_retry"] * 3 + ["open_circuit"]
    assert answers[3].retry.circuit_open


# "400 or 422 ... The correct response is not a retry."


@pytest.mark.parametrize("status", [400, 422])
def test_malformed_parameters_are_never_retried_and_go_to_review_with_the_schema(status: int) -> None:
    answer = classify("any", status, {"Retry-After": "1"}, {"message": "name is required"})
    assert (answer.error_class, answer.action) == ("malformed_params", "fix_parameters")
    assert "raw parameters and the tool's schema" in answer.what_to_do
    assert never_retried(answer)


# "The tool call succeeded (HTTP 200) but ..."


@pytest.mark.parametrize("verification", ["missing", "pending", "mismatch"])
def test_a_200_whose_write_is_not_there_or_waits_is_a_partial_execution(verification: str) -> None:
    answer = classify("jira", 200, {}, {"id": "10001"}, operation="write", verification=verification)
    assert answer.error_class == "partial_execution"
    assert not answer.retry.allowed


def test_a_200_for_a_write_is_looked_at_before_anything_builds_on_it() -> None:
    answer = classify("jira", 201, {}, {"id": "10001"}, operation="write")
    assert answer.action == "check_state"
    assert classify("jira", 201, {}, {"id": "1"}, operation="write", verification="verified").action == "continue"


# "Three rules govern every branch of this tree."


def test_rule_1_invalid_grant_and_scope_failures_are_never_retried() -> None:
    for row in ROWS:
        if row.error_class in ("refresh_failed", "insufficient_scope"):
            assert row.policy == "never", row.id
    for provider in (
        "any",
        "google",
        "salesforce",
        "slack",
        "github",
        "box",
        "atlassian",
        "auth0",
        "microsoft",
        "stripe",
    ):
        for status in (200, 400, 401, 403, 429, 500, 503, None):
            answer = classify(provider, status, {"Retry-After": "1"}, {"error": "invalid_grant"})
            assert answer.error_class == "refresh_failed", (provider, status)
            assert never_retried(answer)


def test_rule_2_400_and_422_are_never_retried() -> None:
    for row in ROWS:
        if row.error_class == "malformed_params":
            assert row.policy == "never", row.id


def test_rule_3_a_write_is_never_repeated_before_a_look_at_the_state() -> None:
    answer = classify("stripe", 503, {}, b"", operation="write", idempotency_key="order-17")
    assert (answer.action, answer.retry.allowed) == ("check_state_then_retry", False)
    assert answer.retry.requires == ("state_check",)


def test_rule_3_with_the_state_checked_and_the_providers_own_mechanism_it_is_repeated() -> None:
    answer = classify("stripe", 503, {}, b"", operation="write", idempotency_key="order-17", verification="missing")
    assert (answer.action, answer.retry.allowed, answer.retry.requires) == ("retry_with_backoff", True, ())


def test_rule_3_a_write_that_is_there_is_not_repeated() -> None:
    answer = classify("stripe", 503, {}, b"", operation="write", idempotency_key="order-17", verification="verified")
    assert (answer.action, answer.retry.allowed) == ("continue", False)


def test_rule_3_stripes_idempotency_key_is_such_a_mechanism() -> None:
    answer = classify("stripe", 500, {}, b"", operation="write")
    assert answer.safe_write is not None
    assert answer.safe_write.mechanism == "key"
    assert "`Idempotency-Key`" in answer.safe_write.how


def test_rule_3_jiras_x_atlassian_token_is_none_although_the_article_names_it() -> None:
    answer = classify("jira", 500, {}, b"", operation="write", idempotency_key="no-check", verification="missing")
    assert (answer.action, answer.retry.allowed) == ("human_review", False)
    assert answer.safe_write is not None
    assert answer.safe_write.mechanism == "none"
    assert "XSRF" in (answer.safe_write.not_this or "")
    assert "label or property" in answer.safe_write.state_check


def test_rule_3_salesforces_reference_id_only_links_the_parts_of_one_request() -> None:
    answer = classify("salesforce", 500, {}, b"", operation="write")
    assert answer.safe_write is not None
    assert answer.safe_write.mechanism == "upsert"
    assert "referenceId" in (answer.safe_write.not_this or "")
    assert "external id" in answer.safe_write.how


def test_retries_of_refresh_failures_and_malformed_parameters_are_zero() -> None:
    """Metric 4: "Retry rate on refresh failures and malformed parameters should be zero." """
    for code in ("invalid_grant", "invalid_client", "invalid_request"):
        assert classify("any", 400, {}, {"error": code}).retry.retries_max == 0


# The FAQ


def test_faq_1_a_200_that_hides_an_auth_failure_is_no_success() -> None:
    answer = classify("google", 200, {}, {"error": {"code": 401, "status": "UNAUTHENTICATED"}, "items": []})
    assert (answer.error_class, answer.action) == ("token_expired", "refresh_once")
    swallowed = classify("any", 200, {}, {"ok": False, "error": "something nobody knows", "items": []})
    assert swallowed.action == "stop_and_surface"
    assert "Do not take it for a success" in swallowed.what_to_do


def test_faq_2_expired_and_revoked_are_told_apart_by_the_body_and_not_by_the_401() -> None:
    expired = classify("any", 401, {}, {"error": "invalid_token"})
    revoked = classify("any", 401, {}, {"error": "invalid_grant"})
    assert (expired.error_class, expired.action, expired.credential) == (
        "token_expired",
        "refresh_once",
        "access_token",
    )
    assert (revoked.error_class, revoked.action, revoked.credential) == (
        "refresh_failed",
        "reauthorize",
        "refresh_token",
    )


def test_faq_2_the_codes_alone_cover_both_and_only_a_description_says_which() -> None:
    for code in ("invalid_token", "invalid_grant"):
        for words, state in {
            "": "expired_or_revoked",
            "Token has been expired or revoked.": "expired_or_revoked",
            "The token expired": "expired",
            "The token was revoked": "revoked",
            "The token is not expired": "expired_or_revoked",
        }.items():
            assert classify("any", 401, {}, {"error": code, "error_description": words}).state == state, (code, words)


def test_faq_3_backoff_is_for_429_500_502_503() -> None:
    for status in (429, 500, 502, 503):
        retry = classify("any", status, operation="read").retry
        assert (retry.allowed, retry.wait_seconds) == (True, 1.0)


def test_faq_3_and_not_for_invalid_grant_scopes_and_parameters() -> None:
    for status, body in ((400, {"error": "invalid_grant"}), (403, {}), (400, {}), (422, {})):
        assert never_retried(classify("any", status, {}, body)), (status, body)


def test_faq_4_refreshes_are_locked_by_account() -> None:
    assert "under a lock for this account" in classify("any", 401, {}, {"error": "invalid_token"}).what_to_do


def test_faq_5_5xx_breaks_the_circuit_at_two_retries_within_60_seconds() -> None:
    answers = [classify("any", 502, operation="read", attempt=attempt) for attempt in (1, 2, 3)]
    assert [answer.retry.allowed for answer in answers] == [True, True, False]
    assert {answer.retry.within_seconds for answer in answers} == {60}
    assert (answers[2].action, answers[2].retry.circuit_open) == ("open_circuit", True)
    for word in ("halt this step", "queue the step", "provider and the account"):
        assert word in answers[2].what_to_do


def test_faq_6_a_write_that_is_missing_is_repeated_only_behind_the_providers_own_mechanism() -> None:
    def missing(provider: str, used: bool | None, attempt: int = 1) -> Answer:
        return classify(
            provider, 200, {}, {}, operation="write", verification="missing", idempotency_key=used, attempt=attempt
        )

    assert missing("stripe", True).retry.allowed
    assert missing("stripe", None).retry.requires == ("provider_idempotency",)
    assert (missing("stripe", False).action, missing("stripe", False).retry.allowed) == ("human_review", False)
    assert (missing("stripe", True, 2).action, missing("stripe", True, 2).retry.allowed) == ("human_review", False)


def test_faq_6_the_key_is_the_same_in_every_try() -> None:
    answer = classify("stripe", 200, {}, {}, operation="write", verification="missing", idempotency_key=True)
    assert answer.action == "check_state_then_retry"
    assert "with the same key" in answer.what_to_do


@pytest.mark.parametrize("provider", ["jira", "slack", "github", "gmail", "box", "auth0", "a provider nobody knows"])
def test_faq_6_without_a_mechanism_it_halts_and_a_person_looks(provider: str) -> None:
    answer = classify(provider, 200, {}, {}, operation="write", verification="missing", idempotency_key=True)
    assert (answer.error_class, answer.action) == ("partial_execution", "human_review")
    assert not answer.retry.allowed
