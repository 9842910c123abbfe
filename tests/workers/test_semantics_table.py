"""What rules mean, line by line, and the tests that hold each line: the table of it to read from top to bottom. Those that
stand nowhere else stand here."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service import queue
from service.store import alerts as alert_store
from service.store.session import begin
from service.views import alert_json
from tests.end_to_end.running import until
from tests.make import make_receipt
from tests.workers.editing import own
from tests.workers.house import House, open_house
from tests.workers.passing import let_pass
from workers import main
from workers.act import act
from workers.evaluate import evaluate
from workers.rules import FAILING, keep_rules

HERE, FAULTS = "workers.test_semantics_table", "workers.test_measured_faults"
PURE, CONDITIONS = "unit.test_rules_semantics", "unit.test_rules_conditions"
GROUPS, EDITS, SETS, HOLDS = (f"workers.test_{name}" for name in ("groups", "rule_edits", "rule_sets", "holds"))
# Silences are still to be built: what they do to a resolve and to pauses has its lines then. Until then a snooze is all.
TABLE = {
    "identity: an instance is a rule and its group's values, an episode is an instance and a number": [
        f"{PURE}.test_identity_one_instance_for_each_group_and_one_episode_after_the_other",
        f"{PURE}.test_identity_the_same_account_of_another_environment_is_another",
        f"{PURE}.test_identity_the_same_connection_of_another_environment_or_source_is_another",
        "workers.test_found_holds.test_groups_of_different_values_have_different_keys",
    ],
    "identity: dedup_key is the same through repeats and the resolve, for the SIEM too, and of each episode its own": [
        f"{HERE}.test_dedup_key_is_the_same_through_repeats_and_resolve_and_new_with_each_episode",
    ],
    "normal labels: every alert carries them, whatever it is grouped by": [
        f"{HERE}.test_every_alert_carries_the_normal_labels_whatever_it_is_grouped_by",
    ],
    "resolve: by default the condition is false, and then keep_firing_for": [
        f"{PURE}.test_resolve_default_the_condition_is_false_and_then_keep_firing_for",
        f"{CONDITIONS}.test_true_again_within_keep_firing_for_goes_on",
    ],
    "resolve: an event ends it and empties the window": [
        f"{PURE}.test_resolve_event_ends_at_once_and_empties_the_window",
        "workers.test_evaluate.test_a_success_in_between_starts_the_count_anew",
    ],
    "resolve: a threshold is hysteresis": [
        f"{PURE}.test_resolve_gte_is_hysteresis",
        "workers.test_gauges.test_hysteresis",
    ],
    "resolve: after is quiet time": [f"{PURE}.test_resolve_after_is_quiet_time"],
    "resolve: manual is a person's alone": [
        f"{PURE}.test_resolve_manual_waits_for_a_person",
        f"{GROUPS}.test_what_only_a_person_resolves_ends_by_a_persons_word_and_begins_anew",
    ],
    "resolve: it goes where the firing went": [
        f"{HERE}.test_a_resolve_goes_where_the_firing_went",
        "workers.test_act.test_an_alert_is_one_message_and_its_changes_edit_it",
    ],
    "no data: a ratio or quantile of too few is unknown, which neither fires nor resolves": [
        f"{PURE}.test_no_data_neither_fires_nor_resolves",
        f"{CONDITIONS}.test_ratio_of_too_few_is_unknown_and_keeps_what_was",
        f"{GROUPS}.test_a_rate_below_its_bound_fires_once_enough_is_known",
    ],
    "deadline: an instant": [
        f"{PURE}.test_deadline_is_an_instant_that_the_event_itself_may_name",
        f"{CONDITIONS}.test_absence_fires_at_the_deadline_and_not_before",
    ],
    "deadline: woken by the next one's timer": [f"{HERE}.test_a_deadline_wakes_by_its_own_timer"],
    "deadline: a wake-up that is lost is made good by the look of each second": [
        f"{HERE}.test_a_lost_wake_up_costs_no_more_than_the_look_of_each_second",
    ],
    "deadline: never gone without a verdict": [
        "workers.test_found_deadlines.test_no_deadline_is_judged_while_its_answer_lies_unread",
        "workers.test_found_deadlines.test_an_event_from_before_a_deadline_that_is_read_after_it_does_not_take_it_away",
        "workers.test_evaluate.test_deadlines_that_have_come_are_judged_once",
    ],
    "deadline: overdue after a downtime it fires at once, marked": [
        f"{PURE}.test_deadline_that_passes_while_everything_is_down_fires_at_start_and_says_since_when",
        f"{FAULTS}.test_an_absence_whose_deadline_passes_while_we_are_down_fires_at_the_start",
        f"{GROUPS}.test_a_deadline_that_passed_while_we_were_away_fires_at_once_and_says_so",
    ],
    "event time: windows and deadlines go by occurred_at, up to allowed_lateness": [
        f"{PURE}.test_event_time_a_window_counts_what_happened_in_it_whatever_the_order_of_arrival",
        f"{PURE}.test_event_time_later_than_allowed_lateness_is_not_counted",
        "workers.test_order.test_any_order_and_any_batches_give_the_same_episodes",
        "properties.test_real.test_the_evaluator_gives_the_episodes_of_the_reference",
    ],
    "event time: a late expect that was in time resolves as late_arrival": [
        f"{PURE}.test_event_time_a_late_expect_that_was_in_time_resolves_as_late_arrival",
    ],
    "event time: an expect seen before its after counts": [
        f"{PURE}.test_fault_an_expect_that_arrives_before_its_after_is_silent",
        f"{FAULTS}.test_an_expected_event_that_arrives_before_the_one_it_answers_is_no_false_alert",
    ],
    "event time: a time in the future is the time of receipt": [
        f"{PURE}.test_event_time_a_time_in_the_future_is_the_time_of_receipt",
    ],
    "duplicate: Postgres decides, and no cache": [
        f"{PURE}.test_duplicate_counts_once",
        f"{FAULTS}.test_the_same_event_again_after_each_of_two_restarts_counts_once",
    ],
    "state: an older status does not overwrite a newer": [
        f"{PURE}.test_state_an_older_status_does_not_overwrite_a_newer",
        f"{PURE}.test_state_takes_any_lateness",
    ],
    "state: read in the event's own transaction, and judged again when either side of the join changes": [
        f"{PURE}.test_state_is_judged_again_when_what_depends_on_it_changes",
        f"{HOLDS}.test_a_put_racing_the_evaluator_never_misses_the_break",
        "workers.test_evaluate.test_an_evaluator_cut_off_anywhere_gives_the_same_alerts",
    ],
    "rule edit: a new version that never changes": [f"{SETS}.test_a_version_says_who_when_and_what"],
    "rule edit: an unchanged condition keeps its state": [
        f"{EDITS}.test_an_edit_that_keeps_the_condition_keeps_the_episode",
    ],
    "rule edit: a changed one closes as rule_changed, without a false recovery": [
        f"{EDITS}.test_another_condition_closes_as_rule_changed_and_opens_anew_where_it_holds",
        f"{EDITS}.test_a_rule_that_is_gone_leaves_with_its_episodes",
    ],
    "flapping: said once, and open until it was quiet": [
        f"{PURE}.test_flapping_is_held_open_until_it_was_quiet",
        "unit.test_rules_gauging.test_one_that_flaps_is_held_open_until_it_was_quiet",
        f"{HERE}.test_what_flaps_is_one_message_that_says_so",
    ],
    "pause: a hold of an episode on a workflow, which is paused while there is any": [
        f"{HOLDS}.test_a_hold_by_several_episodes_lets_go_with_the_last",
        f"{HOLDS}.test_puts_and_breaks_at_the_same_time_pause_the_orchestrator_once",
    ],
    "pause: auto lets go stable_for after the resolve, manual waits for a person": [
        "workers.test_evaluate.test_success_resolves_and_after_stable_for_the_workflow_goes_on",
        f"{HOLDS}.test_a_manual_workflow_waits_for_a_person",
    ],
    "pause: what a person paused is never resumed": [
        f"{HOLDS}.test_a_persons_pause_survives_the_accounts_recovery",
    ],
    "pause: a word that mutes messages leaves it": [
        "end_to_end.test_api.test_acknowledge_snooze_and_resolve_by_a_person_leave_the_gate_as_it_is",
    ],
    "self-alert: groups beyond the limit are said, and those that are there are kept": [
        f"{GROUPS}.test_a_group_beyond_the_limit_is_refused_and_said_and_those_there_go_on",
        "workers.test_found_many.test_of_too_many_dependents_no_account_loses_all",
    ],
    "rule failure: that rule alone fails, its alert says so, it is tried again and never switched off": [
        f"{HERE}.test_a_rule_that_raises_harms_no_other_is_said_and_is_tried_again",
        f"{SETS}.test_a_failing_rule_is_said_and_its_alert_resolves_when_it_is_well_or_edited",
        "workers.test_found_deadlines.test_a_retry_of_a_failed_rule_is_not_lost_to_an_event_of_another_kind",
    ],
}


@pytest.mark.parametrize("line", TABLE)
def test_each_line_is_held_by_tests_that_are_there(line: str) -> None:
    for named in TABLE[line]:
        module, _, function = named.rpartition(".")
        assert callable(getattr(importlib.import_module(f"tests.{module}"), function)), named


def test_each_test_of_this_file_holds_a_line() -> None:
    mine = {name for name in globals() if name.startswith("test_") and not name.startswith("test_each_")}
    assert mine == {name.rpartition(".")[2] for tests in TABLE.values() for name in tests if name.startswith(HERE)}


RULES = """\
version: 1
rules:
- id: twice
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 2}
  resolve: {event: {kind: token.refresh_succeeded}}
  annotations: {summary: "Twice"}
  labels: {team: integrations}
"""
MORE = """\
- id: of-a-connection
  severity: P3
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 1, distinct: account_id}
  group_by: [connection_id]
  annotations: {summary: "Of a connection"}
  labels: {team: integrations}
- id: of-a-provider
  severity: P3
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 1}
  group_by: [provider, organization_id]
  annotations: {summary: "Of a provider"}
  labels: {team: integrations}
- id: down
  severity: P3
  state: {of: account, match: {status: EXPIRED}}
  annotations: {summary: "Down"}
  labels: {team: integrations}
"""
WAITS = """\
version: 1
rules:
- id: waits
  severity: P2
  absence: {after: {kind: token.refresh_failed}, expect: {kind: account.authorized}, within: 2s}
  annotations: {summary: "Nothing came"}
"""
NOISE_SECONDS = 2.0  # what a busy machine may add to any wait


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house", rules=RULES) as opened:
        yield opened


async def twice(house: House) -> list[Any]:
    return [alert for alert in await house.alerts() if alert["rule_id"] == "twice"]


async def test_dedup_key_is_the_same_through_repeats_and_resolve_and_new_with_each_episode(house: House) -> None:
    for word, ago in (
        ("failed", 60),
        ("failed", 50),
        ("failed", 40),
        ("succeeded", 30),
        ("failed", 20),
        ("failed", 10),
    ):
        await house.told(word, ago=ago)
    first, second = [alert["dedup_key"] for alert in await twice(house)]
    assert first != second
    assert max(len(first), len(second)) <= 255, "as PagerDuty takes it"
    said = await house.rows(
        "SELECT kind, details ->> 'dedup_key' AS key FROM events WHERE origin = 'authwatch' ORDER BY position"
    )
    assert [(row["kind"], row["key"]) for row in said] == [
        ("alert.firing", first),
        ("alert.resolved", first),
        ("alert.firing", second),
    ]


@pytest.mark.parametrize(
    ("rule_id", "lacks"),
    [
        ("twice", set()),
        ("down", set()),
        ("of-a-connection", {"account_id", "provider", "organization_id"}),
        ("of-a-provider", {"account_id", "connection_id", "environment_id"}),
    ],
)
async def test_every_alert_carries_the_normal_labels_whatever_it_is_grouped_by(
    database_url: str, tmp_path: Path, rule_id: str, lacks: set[str]
) -> None:
    """Those that the group itself does not say are of many accounts, and nothing."""
    said: dict[str, Any] = {"provider": "GMAIL", "organization_id": "org_1"}
    failed, expired = ({**said, "kind": kind} for kind in ("token.refresh_failed", "account.reauth_required"))
    async with open_house(database_url, tmp_path / "house", rules=RULES + MORE) as house:
        await house.accept(*(make_receipt(**failed) for _ in range(2)))
        await house.accept(make_receipt(account_status="EXPIRED", **expired))
        await evaluate(house.runtime)
        [row] = [alert for alert in await house.alerts() if alert["rule_id"] == rule_id]
        async with begin(house.runtime.engine) as conn:
            alert = await alert_store.load(conn, str(row["id"]))
        assert alert is not None
        shown = alert_json(alert)
        carried = {**shown["group"], **{name: value for name, value in shown.items() if value}, **shown["labels"]}
        normal = {
            "account_id": "ca_1",
            "connection_id": "conn_1",
            "environment_id": "env_1",
            "organization_id": "org_1",
            "provider": "GMAIL",
            "rule": rule_id,
            "severity": alert.severity,
            "team": "integrations",
        }
        assert {name: carried.get(name) for name in normal} == {**normal, **dict.fromkeys(lacks)}


async def test_a_resolve_goes_where_the_firing_went(house: House) -> None:
    for ago in (30, 20):
        await house.told("failed", ago=ago)
    await act(house.runtime)
    await house.told("succeeded", ago=10)
    await act(house.runtime)
    [message] = house.slack.messages
    assert "resolved" in house.slack.text_of(message).lower()
    told = await house.rows("SELECT kind, destination, state FROM actions ORDER BY created_at, id")
    assert {row["destination"] for row in told} == {"slack"}
    assert {row["state"] for row in told} == {"done"}


@asynccontextmanager
async def asleep(house: House) -> AsyncIterator[main.Story]:
    """The evaluating story as the worker runs it, once it has nothing more to do; nobody wakes it, as without Redis."""
    looked = asyncio.Event()
    own_step = main.stories_of(house.runtime)[queue.EVALUATE]._step

    async def step() -> datetime | None:
        due_at = await own_step()
        looked.set()
        return due_at

    story = main.Story("evaluate", step)
    task = asyncio.create_task(story.run())
    try:
        async with asyncio.timeout(10):
            await looked.wait()
        yield story
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_lost_wake_up_costs_no_more_than_the_look_of_each_second(house: House) -> None:
    async def fired() -> bool:
        return bool(await twice(house))

    async with asleep(house):
        for _ in range(2):
            await house.tell("failed")
        assert await until(fired, 10) < main.TICK_SECONDS + NOISE_SECONDS


async def test_a_deadline_wakes_by_its_own_timer(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "TICK_SECONDS", 60.0)  # the look of each second is not what does it
    async with open_house(database_url, tmp_path / "house", rules=WAITS) as house, asleep(house) as story:
        began = time.monotonic()
        await house.tell("failed")
        story.want()

        async def fired() -> bool:
            return bool(await house.alerts())

        await until(fired, 20)
        assert 1.9 < time.monotonic() - began < 2.0 + NOISE_SECONDS


async def test_what_flaps_is_one_message_that_says_so(house: House) -> None:
    for ago in (100, 90, 80):
        await house.tell("failed", ago=ago + 1)
        await house.told("failed", ago=ago)
        await act(house.runtime)
        await house.told("succeeded", ago=ago - 1)
        await act(house.runtime)
    texts = [house.slack.text_of(message) for message in house.slack.messages]
    assert ["stays open until it has been quiet" in text for text in texts] == [False, False, True]
    assert [alert["state"] for alert in await twice(house)] == ["resolved", "resolved", "firing"]
    for ago in (70, 60):
        await house.told("failed", ago=ago)
        await act(house.runtime)
    assert len(house.slack.messages) == 3, "the rest of it is the same message"


async def test_a_rule_that_raises_harms_no_other_is_said_and_is_tried_again(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(database_url, tmp_path / "house", rules=RULES + MORE) as house:
        with monkeypatch.context() as broken:

            def fail(*_: object) -> None:
                raise ZeroDivisionError

            broken.setattr("service.rules.triggers.state.State.judge", fail)
            now = datetime.now(UTC)
            for at in (now - timedelta(seconds=2), now - timedelta(seconds=1)):
                await house.accept(make_receipt(kind="token.refresh_failed", occurred_at=at))
            expired = make_receipt(kind="account.reauth_required", account_status="EXPIRED", occurred_at=now)
            await house.accept(expired)
            await evaluate(house.runtime)
            await keep_rules(house.runtime)
        assert len(await twice(house)) == 1
        assert await own(house, "down") == []
        [said] = await own(house, FAILING)
        assert said["summary"] == "Rule down cannot be judged: ZeroDivisionError"
        await let_pass(house, 61)
        await evaluate(house.runtime)
        assert [alert["state"] for alert in await own(house, "down")] == ["firing"]
