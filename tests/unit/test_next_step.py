"""The one right next step: from the rule's kind of trouble and its evidence, and never from a reason nobody gave."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from service.notify.base import AlertView, Seen, Together, WorkflowLine
from service.notify.next_step import WORDS, next_step
from service.notify.wording import word
from service.playbook.words import ACTIONS
from service.store.showing import Heard
from service.together import provider_action, seen_of

AT = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
VIEW = AlertView(
    id="0199-alert",
    rule_id="a-rule",
    severity="P2",
    state="firing",
    summary="Something",
    opened_at=AT,
    fired_at=AT,
    account_id="ca_1",
    account_status="ACTIVE",
)


def view(**changes: object) -> AlertView:
    return dataclasses.replace(VIEW, **changes)  # type: ignore[arg-type]


def seen(kind: str, count: int = 1) -> tuple[Seen, ...]:
    return (Seen(kind=kind, count=count, first_at=AT - timedelta(minutes=8), last_at=AT),)


def heard(kind: str, **details: object) -> list[Heard]:
    return [Heard(kind, AT, "GOOGLE_ADS", details or None)]


@pytest.mark.parametrize("status", ["DISCONNECTED", "EXPIRED", "PENDING_AUTH", "PENDING_VERIFICATION"])
def test_an_account_that_is_not_well_is_authorized_again(status: str) -> None:
    assert next_step(view(account_status=status)) == "reauthorize"


def test_a_deleted_account_is_not_authorized_again_by_a_link() -> None:
    assert next_step(view(account_status="DELETED")) == "look"


def test_a_refresh_that_keeps_failing_wants_a_new_authorization_and_one_failure_a_look() -> None:
    assert next_step(view(seen=seen("token.refresh_failed", 3))) == "reauthorize"
    assert next_step(view(seen=seen("token.refresh_failed", 2))) == "look"


def test_a_failed_authorization_is_tried_again_with_a_fresh_link() -> None:
    assert next_step(view(seen=seen("auth.failed"))) == "reauthorize"


def test_a_change_of_scopes_is_looked_at() -> None:
    assert next_step(view(seen=seen("auth.scope_changed"))) == "look"


def test_many_accounts_of_one_connector_are_not_their_owners_doing() -> None:
    failing = view(account_id=None, connection_id="conn_1", account_status=None)
    assert next_step(dataclasses.replace(failing, seen=seen("token.refresh_failed", 5))) == "fix_connector"
    assert next_step(dataclasses.replace(failing, seen=seen("token.refresh_failed", 4))) == "look"


@pytest.mark.parametrize(("firing", "resolved", "step"), [(5, 15, "fix_connector"), (4, 16, "look")])
def test_a_storm_of_one_connector_counts_those_that_stand(firing: int, resolved: int, step: str) -> None:
    several = Together(total=20, firing=firing, resolved=resolved)
    assert next_step(view(together=several, connection_id="conn_1", account_id=None, account_status=None)) == step


def test_calls_that_fail_in_many_accounts_of_one_connector_are_no_word_against_its_credentials() -> None:
    """Writes that were not there, or a provider that is down: new credentials mend neither."""
    of_one = view(account_id=None, connection_id="conn_1", account_status=None)
    several = Together(total=20, firing=20, of_calls=True)
    assert next_step(dataclasses.replace(of_one, together=several)) == "look"
    assert next_step(dataclasses.replace(of_one, seen=seen("tool_call.completed", 9))) == "look"


def test_many_alerts_of_no_one_connector_blame_none() -> None:
    several = Together(total=20, firing=20)
    assert next_step(view(together=several, account_id=None, account_status=None)) == "look"


@pytest.mark.parametrize(
    ("error", "step"),
    [
        ("invalid_grant", "reauthorize"),
        ("invalid_client", "fix_connector"),
        ("temporarily_unavailable", "wait"),
        ("a word that nobody knows", "look"),
    ],
)
def test_the_providers_own_word_decides_where_it_said_one(error: str, step: str) -> None:
    events = heard("token.refresh_failed", error=error)
    assert next_step(view(seen=seen_of(events), provider_action=provider_action(events))) == step


@pytest.mark.parametrize("error_class", ["malformed_params"])
def test_a_tool_call_whose_parameters_are_refused_wants_the_schema_reviewed(error_class: str) -> None:
    events = heard("tool_call.completed", error_class=error_class, outcome="error")
    assert next_step(view(seen=seen_of(events), provider_action=provider_action(events))) == "review_schema"


def test_a_partial_write_is_looked_at_by_hand() -> None:
    events = heard("tool_call.completed", operation="write", partial=True, outcome="partial")
    assert next_step(view(seen=seen_of(events), provider_action=provider_action(events))) == "look"


def test_an_event_without_a_reason_gives_none() -> None:
    assert provider_action(heard("token.refresh_failed")) is None
    assert provider_action(heard("token.refresh_failed", lag=1)) is None


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_every_answer_of_the_playbook_has_a_step(action: str) -> None:
    assert next_step(view(provider_action=action)) in WORDS


def test_nothing_is_left_to_do_once_it_is_over_nor_in_a_drill() -> None:
    assert next_step(view(state="resolved", account_status="DISCONNECTED")) is None
    assert next_step(view(drill=True, account_status="DISCONNECTED")) is None


def test_what_is_well_again_and_waits_for_a_person_is_asked_for_by_name() -> None:
    held = WorkflowLine(workflow_id="w1", name="Payouts", state="paused", waits=True)
    said = word(view(state="resolved", identifier="clark@example.com", workflows=(held,)), AT)
    assert next_step(view(state="resolved", workflows=(held,))) == "resume"
    assert said.next_step is not None
    assert said.next_step.endswith(
        "clark@example.com is well again; Payouts (w1) stays paused until somebody resumes it."
    )
    assert said.what_to_do is None


def test_the_step_is_said_and_the_rules_advice_stays_beside_it() -> None:
    said = word(view(account_status="DISCONNECTED", what_to_do="Ask Clark."), AT)
    assert (said.next_step or "").startswith("Re-authorize.")
    assert said.what_to_do == "Ask Clark."
