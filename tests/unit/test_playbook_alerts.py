"""What an alert says as "what to do now": from the provider's reason where there is one, and honest where there is none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from service.episodes import make_alert
from service.event import PROVIDER_KINDS, AccountKey, Event
from service.playbook import what_to_do, with_playbook
from service.rules import load_text
from service.rules.given import Episode

NOW = datetime(2026, 11, 26, tzinfo=UTC)
RULE = """\
version: 1
rules:
- id: refresh-fails
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 1}
  annotations: {summary: "It fails"%s}
"""


def test_scalekits_webhooks_carry_no_reason_and_none_is_made_up() -> None:
    for details in (None, {}, {"authorization_type": "OAUTH", "token_expires_at": "2026-11-26T01:00:00Z"}):
        said = what_to_do("token.refresh_failed", details, "GMAIL")
        assert said is not None
        assert said.startswith("The provider gave no reason. Look at the account's status first")
        assert "revoked" not in said


@pytest.mark.parametrize(
    ("details", "begins"),
    [
        ({"error": "invalid_grant"}, "The provider said invalid_grant. Ask the account's owner to authorize it again"),
        ({"error_code": "invalid_client"}, "The provider said invalid_client. Check the connector's own client id"),
        (
            {"error": "temporarily_unavailable"},
            "The provider said temporarily_unavailable. It says nothing against the token",
        ),
        ({"error": "invalid_token"}, "The provider said invalid_token. Look at the account's status first"),
        ({"error_code": "x", "provider_error": "invalid_grant"}, "The provider said invalid_grant."),
        (
            {"error": "refresh_token_external_error"},
            "The provider gave no reason.",
        ),  # Nango's word for outages and all else
        ({"http_status": 401}, "The provider gave no reason."),
        ({"http_status": 503}, "It says nothing against the token."),
        ({"error": "my_secret_9"}, "The provider gave no reason."),
    ],
)
def test_a_refresh_that_failed(details: dict[str, Any], begins: str) -> None:
    said = what_to_do("token.refresh_failed", details, "google")
    assert said is not None
    assert said.startswith(begins)


def test_the_providers_own_row_counts() -> None:
    said = what_to_do("token.refresh_failed", {"error": "access_denied"}, "JIRA")
    assert said is not None
    assert "client id" in said


@pytest.mark.parametrize(
    ("details", "says"),
    [
        ({"http_status": 429, "operation": "read"}, "Three retries at most"),
        ({"http_status": 429, "operation": "write"}, "let a person look"),
        ({"http_status": 503, "retries": 2}, "queue the step"),
        ({"http_status": 400}, "raw parameters and the tool's schema"),
        ({"http_status": 200, "operation": "write", "verification": "missing"}, "let a person look"),
        ({"error_class": "insufficient_scope"}, "consent to what is missing"),
        ({"error_class": "partial_execution"}, "Read the resource by the id"),
    ],
)
def test_a_tool_call_that_an_agent_reported(details: dict[str, Any], says: str) -> None:
    said = what_to_do("tool_call.completed", details, "jira")
    assert said is not None
    assert says in said


def test_kinds_that_break_an_account_have_words_and_the_others_none() -> None:
    silent = {kind for kind in PROVIDER_KINDS if what_to_do(kind) is None}
    assert silent == {
        "account.created",
        "account.updated",
        "account.authorized",
        "account.reauth_started",
        "token.refresh_succeeded",
        "tool_call.completed",
        "other",
    }


def test_the_rules_author_is_heard_and_the_providers_reason_comes_first() -> None:
    known = {"error": "invalid_client"}
    assert with_playbook("Call Ann.", "token.refresh_failed", None, "google") == "Call Ann."
    assert with_playbook("Call Ann.", "token.refresh_failed", {"http_status": 503}, "google") == "Call Ann."
    both = with_playbook("Call Ann.", "token.refresh_failed", known, "google")
    assert both == f"{what_to_do('token.refresh_failed', known, 'google')} Call Ann."
    assert with_playbook(None, "token.refresh_failed", known, "google") == what_to_do(
        "token.refresh_failed", known, "google"
    )


def alert_says(written: str, details: dict[str, Any] | None) -> str | None:
    event = Event(
        id="e1",
        position=1,
        source="scalekit",
        origin="webhook",
        event_id="evt_1",
        type="token_refresh_failed",
        kind="token.refresh_failed",
        account_id="ca_1",
        connection_id="conn_1",
        provider="SLACK",
        identifier=None,
        organization_id=None,
        environment_id=None,
        status=None,
        old_status=None,
        occurred_at=NOW,
        received_at=NOW,
        lag_seconds=0.0,
        clock_suspect=False,
        details=details,
    )
    loaded = load_text((RULE % (f', what_to_do: "{written}"' if written else "")).encode(), "rules.yml")
    (rule,) = loaded.rules
    return make_alert(
        rule,
        Episode(opened_at=NOW, value=1.0, evidence=("e1",), trigger_event_id="e1"),
        number=1,
        now=NOW,
        values={"account_id": "ca_1"},
        group={"account_id": "ca_1"},
        group_key="scalekit::ca_1",
        account=AccountKey("scalekit", "", "ca_1"),
        connection_id="conn_1",
        late_seconds=None,
        trigger=event,
    ).what_to_do


def test_an_alert_says_it() -> None:
    assert (alert_says("", {"error": "token_revoked"}) or "").startswith(
        "The provider said token_revoked. Ask the account's owner"
    )
    assert (alert_says("", None) or "").startswith("The provider gave no reason.")
    assert alert_says("Call {{ account_id }}.", None) == "Call ca_1."
    assert (alert_says("Call {{ account_id }}.", {"error": "token_revoked"}) or "").endswith(" Call ca_1.")
