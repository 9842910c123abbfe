"""What the on-call reads: plain, true about what was stopped, and safe whatever the outside wrote."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.notify.base import AlertView, Seen, StopFacts, WorkflowLine
from service.notify.plain import clean, span
from service.notify.wording import word

OPENED = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
NOW = OPENED + timedelta(minutes=4)
VIEW = AlertView(
    id="0199-alert",
    rule_id="token-refresh-failing",
    severity="P2",
    state="firing",
    summary="Token refresh is failing",
    opened_at=OPENED,
    fired_at=OPENED + timedelta(seconds=2),
    account_id="ca_1",
    connection_id="conn_1",
    environment_id="env_1",
    source="scalekit",
    provider="GOOGLE_ADS",
    identifier="clark@example.com",
    account_status="EXPIRED",
    evidence_count=3,
)


def view(**changes: object) -> AlertView:
    return dataclasses.replace(VIEW, **changes)  # type: ignore[arg-type]


def workflow_lines(**changes: object) -> str:
    line = WorkflowLine(workflow_id="w1", name="Nightly report", state="paused")
    return "\n".join(word(view(workflows=(dataclasses.replace(line, **changes),)), NOW).workflows)  # type: ignore[arg-type]


def test_the_title_says_what_is_wrong_and_with_whose_account() -> None:
    assert word(VIEW, NOW).title.endswith("Token refresh is failing — GOOGLE_ADS account of clark@example.com")


def test_a_summary_that_names_the_account_is_not_given_the_account_again() -> None:
    title = word(view(summary="Refresh failed 3x for clark@example.com"), NOW).title
    assert title.count("clark@example.com") == 1


def test_a_long_summary_leaves_room_for_whose_account_it_is() -> None:
    title = word(view(summary="very " * 100), NOW).title
    assert len(title) <= 140
    assert title.endswith("GOOGLE_ADS account of clark@example.com")


def test_who_names_identifier_provider_account_and_environment() -> None:
    who = word(VIEW, NOW).who
    for part in ("clark@example.com", "GOOGLE_ADS", "ca_1", "conn_1", "env_1", "EXPIRED"):
        assert part in who


def test_since_is_absolute_and_relative_and_says_when_we_noticed() -> None:
    since = word(VIEW, NOW).since
    assert since == "Since 2026-11-22 10:00:00 UTC (4 min before this was written); alert raised 2 s later."


def test_since_in_another_zone_is_told_in_utc() -> None:
    elsewhere = OPENED.astimezone(datetime.strptime("+0530", "%z").tzinfo)
    assert "2026-11-22 10:00:00 UTC" in word(view(opened_at=elsewhere), NOW).since


def test_a_break_ahead_of_our_clock_is_never_a_negative_time() -> None:
    assert "as this was written" in word(view(opened_at=NOW + timedelta(minutes=1)), NOW).since


@pytest.mark.parametrize(("late_seconds", "said"), [(240.0, "4 min"), (30.0, "30 s"), (7200.0, "2 h")])
def test_an_event_that_arrived_late_says_how_late(late_seconds: float, said: str) -> None:
    assert word(view(late_seconds=late_seconds), NOW).late == (
        f"Late news: this event reached us {said} after it happened."
    )


@pytest.mark.parametrize("late_seconds", [None, 0.0, 29.9])
def test_an_event_in_good_time_says_nothing_about_lateness(late_seconds: float | None) -> None:
    assert word(view(late_seconds=late_seconds), NOW).late is None


def test_trouble_that_was_over_when_discovered_says_that_nothing_was_paused() -> None:
    assert "already over" in (word(view(discovered_late=True), NOW).late or "")


def test_without_an_orchestrator_it_is_said_that_only_the_gate_denies() -> None:
    assert workflow_lines() == "Nightly report (w1): paused; the gate denies, nothing else was told to stop."


def test_an_orchestrator_that_was_told_nothing_is_not_called_stopped() -> None:
    assert "ops was not told to stop" in workflow_lines(orchestrator="ops")


@pytest.mark.parametrize("answer", ["pause asked", "paused", "pause failed: 401 from the orchestrator"])
def test_what_the_orchestrator_answered_is_told_as_it_was(answer: str) -> None:
    assert workflow_lines(orchestrator="ops", orchestrator_state=answer).endswith(f"the gate denies, ops: {answer}.")


def test_a_pause_for_one_account_says_that_it_is_for_this_account_only() -> None:
    assert "paused for this account only; the gate denies, nothing else was told" in workflow_lines(scope="account")


def test_a_workflow_that_runs_again_is_not_called_paused() -> None:
    said = workflow_lines(state="active", orchestrator="ops", orchestrator_state="resumed")
    assert said == "Nightly report (w1): active again; ops: resumed."


def test_no_workflow_touched_is_said() -> None:
    assert word(VIEW, NOW).workflows == ("No workflow was paused.",)


def test_more_workflows_than_fit_are_counted_and_not_forgotten() -> None:
    many = tuple(WorkflowLine(workflow_id=f"w{n}", name=None, state="paused") for n in range(40))
    said = word(view(workflows=many), NOW).workflows
    assert len(said) == 16
    assert said[-1] == "… and 25 more workflows."


def test_the_rules_own_advice_is_given_with_its_runbook_link() -> None:
    advice = "Follow https://runbooks.example.com/oauth and ask Clark."
    assert word(view(what_to_do=advice), NOW).what_to_do == advice


def test_without_advice_in_the_rule_there_still_is_some() -> None:
    assert "authorize it again" in (word(VIEW, NOW).what_to_do or "")


def test_acknowledged_says_by_whom_and_that_the_pause_stays() -> None:
    said = word(view(state="acknowledged", acknowledged_by="Dana"), NOW)
    assert said.status == "Acknowledged by Dana. What is paused stays paused."


def test_resolved_says_when_after_how_long_and_why() -> None:
    said = word(
        view(state="resolved", resolved_at=OPENED + timedelta(minutes=12), resolved_reason="account is well"), NOW
    )
    assert said.status == "Resolved at 2026-11-22 10:12:00 UTC, 12 min after it began: account is well."
    assert said.what_to_do is None
    assert "Resolved: " in said.title


def test_resolved_with_a_workflow_still_held_says_to_resume_it() -> None:
    held = (WorkflowLine(workflow_id="w1", name=None, state="paused"),)
    assert "1 workflow still paused" in (word(view(state="resolved", workflows=held), NOW).what_to_do or "")


def test_the_state_shows_in_the_first_character_of_the_title() -> None:
    signs = {word(view(state=state), NOW).title[0] for state in ("firing", "acknowledged", "resolved")}
    assert len(signs) == 3


def test_an_authorization_link_in_outside_text_is_taken_out() -> None:
    link = "https://acme.scalekit.example/magicLink/2cbe56de-eec4-41d2-abed-90a5b82286c4_p"
    lines = (WorkflowLine(workflow_id="w1", name=link, state="paused", orchestrator="o", orchestrator_state=link),)
    said = word(view(summary=f"go to {link}", identifier=link, workflows=lines, acknowledged_by=link), NOW).text()
    assert "magicLink" not in said
    assert "[link removed]" in said


def test_outside_text_cannot_forge_a_line_or_turn_the_reading_direction() -> None:
    said = word(view(identifier="clark\nNo workflow was paused.\u202egnitser\x1b[2J"), NOW).text()
    assert "\nNo workflow was paused.\u202e" not in said
    assert "\u202e" not in said
    assert "\x1b" not in said
    assert said.splitlines().count("No workflow was paused.") == 1


@given(st.text(max_size=2_000), st.integers(min_value=1, max_value=200))
def test_any_outside_text_becomes_one_bounded_line(text: str, chars_max: int) -> None:
    said = clean(text, chars_max)
    assert len(said) <= chars_max
    assert len(said.splitlines()) <= 1
    said.encode("utf-8")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (90, "90 s"),
        (150, "2 min"),
        (5400, "90 min"),
        (172_800, "2 d"),
    ],
)
def test_a_span_is_said_in_the_largest_unit_that_fits(seconds: float, said: str) -> None:
    assert span(seconds) == said


FAILED = Seen(
    kind="token.refresh_failed",
    count=3,
    first_at=OPENED.replace(hour=12, minute=1),
    last_at=OPENED.replace(hour=12, minute=9),
)


def test_evidence_says_how_many_of_what_between_when_and_when() -> None:
    said = word(view(seen=(FAILED,)), NOW).evidence
    assert said == "Evidence: 3 failed token refreshes between 12:01 and 12:09 UTC from scalekit."


@pytest.mark.parametrize(
    ("outcome", "minutes", "said"),
    [
        ("failure", 0, ", none since succeeded."),
        ("success", 5, "; one succeeded at 12:14 UTC."),
        ("success", -60, "from scalekit."),
        (None, 0, "from scalekit."),
    ],
)
def test_whether_a_refresh_succeeded_since_is_said_only_where_it_is_known(
    outcome: str | None, minutes: int, said: str
) -> None:
    at = FAILED.last_at + timedelta(minutes=minutes) if outcome else None
    assert word(view(seen=(FAILED,), last_refresh_at=at, last_refresh_outcome=outcome), NOW).evidence.endswith(said)


def test_evidence_of_another_day_says_the_day_and_a_kind_nobody_taught_us_is_an_event() -> None:
    day_before = OPENED - timedelta(days=1)
    one = Seen(kind="something.new", count=1, first_at=day_before, last_at=day_before)
    assert word(view(seen=(one,)), NOW).evidence == "Evidence: 1 event at 2026-11-21 10:00 UTC from scalekit."


def test_more_kinds_than_fit_are_counted_and_not_forgotten() -> None:
    many = tuple(dataclasses.replace(FAILED, kind=f"k{n}", count=2) for n in range(6))
    assert " and 4 more events from scalekit." in word(view(seen=many), NOW).evidence


def test_what_a_pause_stops_there_is_told_as_three_facts_once_it_is_paused() -> None:
    stops = StopFacts(scheduled_starts=True, manual_starts=False, running_work=None)
    said = workflow_lines(orchestrator="ops", orchestrator_state="paused", stops=stops)
    assert said.endswith(
        "ops: paused. Scheduled starts: stopped there; starts by hand or API: not stopped there; running work: not known there."
    )
    for state in ("pause asked", "pause failed: 401"):
        assert "Scheduled" not in workflow_lines(orchestrator="ops", orchestrator_state=state, stops=stops)


def test_a_workflow_that_something_else_holds_is_not_called_active() -> None:
    said = workflow_lines(state="active", held_elsewhere=True)
    assert said == "Nightly report (w1): held by this alert no more; something else still pauses it."


def test_resolved_by_a_person_says_who() -> None:
    said = word(view(state="resolved", resolved_at=OPENED, resolved_reason="manual", resolved_by="Dana"), NOW).status
    assert said == "Resolved at 2026-11-22 10:00:00 UTC, 0 s after it began: by Dana."


def test_snoozed_is_said_while_it_lasts() -> None:
    assert "Snoozed until" in (word(view(snoozed_until=NOW + timedelta(minutes=1)), NOW).status or "")
    assert word(view(snoozed_until=NOW), NOW).status is None
