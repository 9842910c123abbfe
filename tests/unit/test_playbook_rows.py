"""Each row of the playbook's table by name: every code of it leads to it, from where its provider puts codes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from service.playbook import ACTIONS, ERROR_CLASSES, classify
from service.playbook.names import family_of, product_of
from service.playbook.safe_writes import SAFE_WRITES, safe_write
from service.playbook.table import BY_PROVIDER, ROWS
from service.playbook.words import ANY, RESPONSES, Row

CITED = re.compile(
    r"https://\S+|RFC \d+ section [\d.]+|OpenID Connect Core 1\.0 section [\d.]+|the article's decision tree"
)
HEADERS = {"x-ratelimit-remaining": "0"}
OUTCOMES: dict[str, dict[str, Any]] = {
    "missing": {"verification": "missing"},
    "mismatch": {"verification": "mismatch"},
    "pending": {"verification": "pending"},
    "parts_failed": {"body": {"responses": [{"status": 201}, {"status": 404}]}},
    "refused": {"body": {"ok": False, "error": "nobody knows this"}},
    "unverified": {},
    "fine": {"operation": "read"},
}


def said(provider: str, code: str | None, text: str) -> Any:
    """The code and the message in the shape of this provider's answers."""
    if provider == "google" and code != "invalid_grant":
        return {"error": {"code": 400, "message": text, "errors": [{"domain": "global", "reason": code}]}}
    if provider == "salesforce" and code != "invalid_grant":
        return [{"errorCode": code, "message": text}]
    if provider == "slack":
        return {"ok": False, "error": code, "message": text}
    if provider == "box" and code != "invalid_grant":
        return {"type": "error", "code": code, "message": text}
    if provider == "microsoft" and code is not None and code.startswith("AADSTS"):
        return {"error": "temporarily_unavailable", "error_description": "AADSTS0: no", "error_codes": [int(code[6:])]}
    if provider in ("microsoft", "stripe"):
        return {"error": {"code": code, "type": code, "message": text}}
    if provider == "github" and code == "RATE_LIMITED":
        return {"data": None, "errors": [{"type": code, "message": text}]}
    made = {"message": text, "error_description": text}
    return made | {"error": code} if code is not None else made


def status_of(row: Row) -> int:
    if row.provider in ("slack", "github") and row.codes:
        return 200
    if row.statuses:
        return row.statuses[-1]
    return 200 if row.outcomes else 503 if row.policy in ("rate_limit", "upstream") else 400


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row(row: Row) -> None:
    provider = "a provider nobody knows" if row.provider == ANY else row.provider
    for code in row.codes or (None,):
        asked: dict[str, Any] = {
            "operation": "read",
            "body": said(row.provider, code, row.phrases[0] if row.phrases else ""),
        }
        if not row.codes and not row.phrases:
            asked = {"operation": "read", "body": None}
        for outcome in row.outcomes:
            asked = {"operation": "write", "body": {}} | OUTCOMES[outcome]
        status = None if row.id == "no-answer" else status_of(row)
        answer = classify(provider, status, HEADERS if row.limited else {}, **asked)
        assert (answer.row, answer.code) == (row.id, code)
        assert (answer.error_class, answer.affects, answer.sources) == (row.error_class, row.affects, row.sources)
        if row.outcomes != ("missing",):  # a provider without a mechanism: a person looks
            assert (answer.action, answer.what_to_do) == (row.action, row.sentence)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row_cites_its_sources_and_says_what_to_do(row: Row) -> None:
    assert row.sources
    for source in row.sources:
        assert CITED.fullmatch(source), source
    assert row.meaning.endswith(".")
    assert row.sentence.endswith(".")
    assert "|" not in row.meaning + row.sentence  # they stand in a table


def test_rows_have_names_of_their_own() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)


def test_every_class_and_every_action_is_used() -> None:
    assert {row.error_class for row in ROWS} == set(ERROR_CLASSES) == set(RESPONSES)
    assert {row.action for row in ROWS} == set(ACTIONS)


def test_only_what_the_provider_said_is_called_expired_or_revoked() -> None:
    """No bare status, and no code that covers several reasons."""
    certain = {code for row in ROWS if row.state in ("expired", "revoked") for code in row.codes}
    assert certain == {
        "ACCESS_TOKEN_EXPIRED",
        "access_token_expired",
        "token_expired",
        "token_revoked",
        "AADSTS50173",
        "AADSTS700082",
        "AADSTS700084",
        "invalid_grant",  # of Box, where its description says so
    }
    assert not [row.id for row in ROWS if row.state in ("expired", "revoked") and not row.codes]
    assert [row.id for row in ROWS if row.state in ("expired", "revoked") and "invalid_grant" in row.codes] == [
        "box-refresh-expired"
    ]


# What the table is for, in literals: facts/providers.md section 4.2.
@pytest.mark.parametrize(
    ("provider", "status", "body", "error_class", "action", "state"),
    [
        ("google", 400, {"error": "invalid_grant"}, "refresh_failed", "reauthorize", "expired_or_revoked"),
        ("google", 403, said("google", "rateLimitExceeded", ""), "rate_limited", "wait_and_retry", "unknown"),
        (
            "google",
            403,
            {"error": {"status": "PERMISSION_DENIED", "details": [{"reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT"}]}},
            "insufficient_scope",
            "request_scope",
            "unknown",
        ),
        (
            "salesforce",
            403,
            said("salesforce", "REQUEST_LIMIT_EXCEEDED", ""),
            "rate_limited",
            "wait_and_retry",
            "unknown",
        ),
        (
            "salesforce",
            400,
            {"error": "invalid_grant", "error_description": "authentication failure"},
            "refresh_failed",
            "reauthorize",
            "unknown",
        ),
        ("slack", 200, {"ok": False, "error": "token_expired"}, "token_expired", "refresh_once", "expired"),
        ("slack", 200, {"ok": False, "error": "token_revoked"}, "refresh_failed", "reauthorize", "revoked"),
        ("slack", 200, {"ok": False, "error": "account_inactive"}, "refresh_failed", "reauthorize", "unknown"),
        ("slack", 200, {"ok": False, "error": "missing_scope"}, "insufficient_scope", "request_scope", "unknown"),
        ("slack", 200, {"ok": False, "error": "ekm_access_denied"}, "other", "ask_admin", "unknown"),
        ("slack", 200, {"ok": False, "error": "fatal_error"}, "upstream_5xx", "retry_with_backoff", "unknown"),
        ("slack", 200, {"ok": False, "error": "bad_client_secret"}, "refresh_failed", "fix_client", "unknown"),
        (
            "github",
            200,
            "error=bad_refresh_token&error_description=The+token",
            "refresh_failed",
            "reauthorize",
            "unknown",
        ),
        ("github", 200, {"error": "incorrect_client_credentials"}, "refresh_failed", "fix_client", "unknown"),
        ("atlassian", 403, {"error": "invalid_grant"}, "refresh_failed", "reauthorize", "unknown"),
        ("atlassian", 401, {"error": "access_denied"}, "refresh_failed", "fix_client", "unknown"),
        ("auth0", 403, {"error": "invalid_grant"}, "refresh_failed", "reauthorize", "unknown"),
        ("microsoft", 400, said("microsoft", "AADSTS50173", ""), "refresh_failed", "reauthorize", "revoked"),
        ("microsoft", 400, said("microsoft", "AADSTS700082", ""), "refresh_failed", "reauthorize", "expired"),
        ("microsoft", 401, said("microsoft", "AADSTS7000222", ""), "refresh_failed", "fix_client", "unknown"),
        ("microsoft", 400, said("microsoft", "AADSTS53003", ""), "refresh_failed", "ask_admin", "unknown"),
        ("microsoft", 503, said("microsoft", "AADSTS90033", ""), "upstream_5xx", "retry_with_backoff", "unknown"),
        ("microsoft", 400, {"error": "interaction_required"}, "refresh_failed", "reauthorize", "unknown"),
        ("stripe", 409, said("stripe", "idempotency_key_in_use", ""), "other", "retry_with_backoff", "unknown"),
    ],
)
def test_what_the_facts_say(provider: str, status: int, body: Any, error_class: str, action: str, state: str) -> None:
    answer = classify(provider, status, {}, body, operation="read")
    assert (answer.error_class, answer.action, answer.state) == (error_class, action, state)


def test_an_unknown_number_of_microsofts_is_treated_as_its_error_says_and_its_text_is_no_reason() -> None:
    body = {"error": "invalid_grant", "error_codes": [999999], "error_description": "The token has expired."}
    answer = classify("microsoft", 400, {}, body)
    assert (answer.row, answer.state, answer.code) == ("invalid-grant", "expired_or_revoked", "invalid_grant")


def test_a_number_in_microsofts_text_refines_where_the_list_is_missing() -> None:
    body = {"error": "invalid_grant", "error_description": "AADSTS50173: The provided grant was revoked."}
    assert classify("entra", 400, {}, body).code == "AADSTS50173"


def test_a_revoked_access_token_is_not_refreshed() -> None:
    header = {"WWW-Authenticate": 'Bearer error="invalid_token", error_description="The access token was revoked"'}
    answer = classify("any", 401, header)
    assert (answer.error_class, answer.action, answer.state) == ("refresh_failed", "reauthorize", "revoked")
    assert answer.retry.retries_max == 0


def test_githubs_403_is_a_limit_only_where_its_headers_or_words_say_so() -> None:
    limits = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1700000060", "Date": "Tue, 14 Nov 2023 22:13:20 GMT"}
    assert classify("github", 403, limits, operation="read").retry.wait_seconds == 60
    assert classify("github", 403, {"X-RateLimit-Remaining": "4999"}).error_class == "insufficient_scope"
    secondary = classify("github", 403, {}, {"message": "You have exceeded a secondary rate limit"})
    assert (secondary.error_class, secondary.retry.wait_seconds) == ("rate_limited", 60.0)


def test_a_composite_answer_of_which_parts_failed_is_a_partial_execution_and_one_that_failed_whole_is_not() -> None:
    fine, bad = {"httpStatusCode": 201}, {"httpStatusCode": 400, "body": [{"errorCode": "INVALID_FIELD"}]}
    assert classify("salesforce", 200, {}, {"compositeResponse": [fine, bad]}).error_class == "partial_execution"
    assert classify("salesforce", 200, {}, {"compositeResponse": [bad, bad]}).error_class == "malformed_params"
    assert classify("salesforce", 200, {}, {"compositeResponse": [fine, fine]}, operation="read").action == "continue"
    rows = [
        {"id": "1", "success": True, "errors": []},
        {"success": False, "errors": [{"statusCode": "DUPLICATE_VALUE"}]},
    ]
    assert classify("salesforce", 200, {}, rows).error_class == "partial_execution"
    assert classify("salesforce", 200, {}, rows[1:]).row == "salesforce-duplicate"


def test_someones_data_is_no_error_however_its_fields_are_called() -> None:
    body = {
        "type": "unavailable",
        "status": "UNAUTHENTICATED",
        "code": "invalid_grant",
        "fields": {"error": "invalid_grant"},
    }
    for provider in ("google", "jira", "any"):
        assert classify(provider, 200, {}, body, operation="read").action == "continue"


@pytest.mark.parametrize(
    ("family", "names"),
    {
        "google": [
            "GOOGLE",
            "google-calendar",
            "gmail",
            "GMAIL",
            "GOOGLE_ADS",
            "Google Drive",
            "googlesheets",
            "YouTube",
        ],
        "salesforce": ["SALESFORCE", "salesforce-sandbox", "Salesforce_CDP", "sfdc"],
        "slack": ["SLACK", "slack-user"],
        "github": ["GITHUB", "github-app", "GitHub Enterprise"],
        "box": ["BOX", "box.com", "Box"],
        "atlassian": ["JIRA", "jira-cloud", "Jira Data Center", "confluence", "ATLASSIAN"],
        "auth0": ["AUTH0", "auth0-cc"],
        "microsoft": [
            "MICROSOFT",
            "microsoft-teams",
            "OUTLOOK",
            "one-drive",
            "azure_ad",
            "entra-id",
            "SharePoint Online",
        ],
        "stripe": ["STRIPE", "stripe-app"],
        "unknown": ["dropbox", "boxer", "mailbox", "notion", "", "azure-devops", "sandbox", "ｇｏｏｇｌｅ", None, 7],
    }.items(),
)
def test_a_provider_in_any_spelling(family: str, names: list[Any]) -> None:
    assert {family_of(name) for name in names} == {family}


def test_every_provider_of_the_table_has_its_word_about_writes() -> None:
    for family in BY_PROVIDER:
        assert safe_write(family).provider == family
    for write in SAFE_WRITES.values():
        assert write.sources
        assert all(CITED.fullmatch(source) for source in write.sources)
        assert (write.covers == "Nothing.") is (write.mechanism == "none")


def test_writes_of_a_product_whose_api_differs() -> None:
    assert (product_of("GMAIL"), safe_write("gmail").mechanism) == ("gmail", "none")
    assert safe_write("GOOGLE_CALENDAR").mechanism == "own_id"
    assert safe_write("google-sheets").mechanism == "none"
    assert safe_write("outlook-calendar").mechanism == "key"
    assert safe_write("outlook").mechanism == "none"


def test_a_refresh_goes_ahead_for_a_write_and_the_write_itself_waits() -> None:
    answer = classify("jira", 401, {}, {"error": "invalid_token"}, operation="write")
    assert (answer.action, answer.retry.allowed, answer.retry.requires) == ("refresh_once", False, ("human_review",))
    answer = classify("stripe", 401, {}, {"error": "invalid_token"}, operation="write", idempotency_key=True)
    assert answer.retry.requires == ("refresh", "state_check")
    answer = classify(
        "stripe", 401, {}, {"error": "invalid_token"}, operation="write", idempotency_key=True, verification="missing"
    )
    assert (answer.retry.allowed, answer.retry.requires) == (True, ("refresh",))


def test_a_write_that_was_seen_is_not_repeated_even_where_nobody_called_it_a_write() -> None:
    answer = classify("stripe", 503, verification="verified", idempotency_key=True)
    assert (answer.action, answer.retry.allowed) == ("continue", False)
    assert classify("stripe", 503, operation="read", verification="none").retry.allowed


def test_a_status_inside_a_200_counts_where_the_body_says_that_it_failed() -> None:
    assert classify("any", 200, {}, {"error": {"code": 401, "message": "no"}}).row == "status-401"
    assert classify("any", 200, {}, {"success": False, "statusCode": 429}).row == "status-429"
    assert classify("any", 200, {}, {"statusCode": 429, "items": []}, operation="read").row == "fine"
