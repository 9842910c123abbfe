"""From the provider's word to alerts, holds and back, on a real database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.workers.house import House, make_event, open_house
from tests.workers.passing import let_pass
from workers.act import act
from workers.evaluate import evaluate

STILL_SECONDS, THEN_SECONDS = 3.0, 2.1  # of the five that are left of half a minute, and the rest of them


async def failures(house: House, count: int) -> None:
    for _ in range(count):
        await house.told("failed")


async def test_the_third_failure_opens_one_alert_and_the_fourth_opens_no_second(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    await failures(house, 2)
    assert await house.alerts() == []
    await failures(house, 1)
    [alert] = await house.alerts()
    assert (alert["rule_id"], alert["state"], alert["value"], len(alert["evidence"])) == (
        "token-refresh-failing",
        "firing",
        3,
        3,
    )
    workflow = await house.workflow()
    assert (workflow["state"], workflow["paused_by"]) == ("paused", [str(alert["id"])])
    await failures(house, 1)
    [alert] = await house.alerts()
    assert (alert["value"], len(alert["evidence"])) == (4, 4)


@pytest.fixture
async def patient(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    """Half a minute of waiting, most of which the tests let pass before they begin."""
    async with open_house(database_url, tmp_path / "house", stable_for="30s", expired_for="30s") as opened:
        yield opened


async def nothing_due(house: House) -> bool:
    return (await evaluate(house.runtime)).next_due_at is None


async def due_in_five_seconds(house: House) -> None:
    """It is waited for until then, and no longer."""
    assert not await nothing_due(house)
    await let_pass(house, STILL_SECONDS)
    assert not await nothing_due(house)
    await let_pass(house, THEN_SECONDS)
    assert await nothing_due(house)


async def test_success_resolves_and_after_stable_for_the_workflow_goes_on(patient: House) -> None:
    house = patient
    await house.put(account_ids=["ca_1"])
    for ago in (60, 50, 40):
        await house.told("failed", ago=ago)
    await house.told("succeeded", ago=25)
    [alert] = await house.alerts()
    assert (alert["state"], alert["resolved_reason"]) == ("resolved", "recovered")
    assert (await house.workflow())["state"] == "paused"
    await due_in_five_seconds(house)
    assert (await house.workflow())["state"] == "active"
    assert await house.kinds() == [
        "audit",
        "workflow.paused",
        "alert.firing",
        "alert.resolved",
        "workflow.resumed",
    ]


async def test_a_success_in_between_starts_the_count_anew(house: House) -> None:
    await failures(house, 2)
    await house.told("ACTIVE")
    await failures(house, 2)
    assert await house.alerts() == []


async def test_expired_fires_by_itself_once_its_time_has_come(patient: House) -> None:
    house = patient
    await house.put(account_ids=["ca_1"])
    expired = await house.told("EXPIRED", ago=25)
    assert await house.alerts() == []
    denied = await house.gate(workflow_id="w1", account_id="ca_1")
    assert (denied.allow, denied.reason) == (False, "account_expired")
    await due_in_five_seconds(house)
    assert (await house.workflow())["state"] == "paused"
    [alert] = await house.alerts()
    assert expired.event.occurred_at is not None
    occurred_at = expired.event.occurred_at - timedelta(seconds=STILL_SECONDS + THEN_SECONDS)
    assert alert["fired_at"] >= alert["opened_at"] == occurred_at + timedelta(seconds=30)
    assert await house.rows("SELECT * FROM deadlines") == []


async def test_expired_for_a_moment_is_a_refresh_on_its_way(patient: House) -> None:
    house = patient
    await house.put(account_ids=["ca_1"])
    await house.told("EXPIRED", ago=25)
    await house.told("ACTIVE", ago=24)
    assert await nothing_due(house)
    await let_pass(house, STILL_SECONDS + THEN_SECONDS)
    await evaluate(house.runtime)
    assert await house.alerts() == []


async def test_expired_then_pending_keeps_the_clock_and_pending_never_resolves(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    await house.told("EXPIRED", ago=20)
    await house.told("PENDING_AUTH", ago=15)
    await house.told("PENDING_VERIFICATION", ago=10)
    [alert] = await house.alerts()
    assert alert["state"] == "firing"
    assert (await house.gate(account_id="ca_1")).reason == "account_pending"


async def test_deleted_after_disconnected_is_the_same_episode(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED")
    await house.told("DELETED")
    [alert] = await house.alerts()
    assert len(alert["evidence"]) == 2
    assert (await house.gate(account_id="ca_1")).reason == "account_deleted"


async def test_an_event_that_arrives_late_says_so_in_the_alert(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED", ago=300)
    [alert] = await house.alerts()
    assert alert["late_seconds"] == pytest.approx(300, abs=5)
    await act(house.runtime)
    assert "5 min" in house.slack.text_of(house.slack.messages[0])


async def test_a_break_already_over_is_kept_and_forwarded_and_pauses_and_pages_nobody(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.tell("DISCONNECTED", ago=60)
    await house.told("ACTIVE", ago=30)
    [alert] = await house.alerts()
    assert (alert["discovered_late"], alert["state"]) == (True, "resolved")
    await house.work()
    assert (await house.workflow())["state"] == "active"
    assert (house.posts(), house.orchestrator.requests) == (0, [])
    assert await house.kinds() == ["audit", "alert.firing", "alert.resolved"]
    assert len(house.hec.envelopes) == 5


async def test_an_active_that_arrives_late_takes_the_alert_back(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    for ago in (60, 50, 40):
        await house.told("failed", ago=ago)
    assert (await house.workflow())["state"] == "paused"
    await house.told("ACTIVE", ago=45)
    [alert] = await house.alerts()
    assert (alert["state"], alert["resolved_reason"]) == ("resolved", "late_arrival")
    await evaluate(house.runtime)
    assert (await house.workflow())["state"] == "active", "well for 45 s, which is more than stable_for"


async def test_a_recovery_later_than_every_window_still_resolves(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    for ago in (3500, 3400, 3300):
        await house.told("failed", ago=ago)
    assert len(await house.alerts()) == 1
    await house.run(
        "UPDATE events SET occurred_at = occurred_at - interval '2 hours' WHERE kind = 'token.refresh_failed'"
    )
    await house.run("UPDATE alerts SET opened_at = opened_at - interval '2 hours'")
    await house.told("ACTIVE", ago=5400)
    assert [alert["state"] for alert in await house.alerts()] == ["resolved"]


async def test_failures_later_than_allowed_count_in_no_window(house: House) -> None:
    for ago in (3 * 3600, 3 * 3600 - 10, 3 * 3600 - 20):
        await house.told("failed", ago=ago)
    assert await house.alerts() == []
    [account] = await house.rows("SELECT failures_in_a_row FROM accounts")
    assert account["failures_in_a_row"] == 3


async def test_a_status_nobody_taught_us_is_kept_and_said_once(house: House) -> None:
    """Also where two accounts bring it in one batch."""
    await house.tell("HIBERNATING", account="ca_1")
    await house.told("HIBERNATING", account="ca_2")
    await house.told("HIBERNATING", account="ca_3")
    [alert] = await house.alerts()
    assert (alert["rule_id"], "HIBERNATING" in alert["summary"]) == ("unknown-account-status", True)
    assert [row["status"] for row in await house.rows("SELECT status FROM accounts")] == ["HIBERNATING"] * 3
    assert (await house.gate(account_id="ca_1")).reason == "unknown_account"
    assert (await house.gate(account_id="ca_1", on_unknown="allow")).allow


async def test_the_gate_denies_what_it_does_not_know_and_while_evaluation_is_behind(house: House) -> None:
    await house.told("ACTIVE")
    await house.put(account_ids=["ca_1"])
    await evaluate(house.runtime)
    assert (await house.gate(workflow_id="w1", account_id="ca_1")).allow
    assert (await house.gate(workflow_id="w9")).reason == "unknown_workflow"
    assert (await house.gate(account_id="ca_9")).reason == "unknown_account"
    await house.tell("ACTIVE", account="ca_2")
    await house.run("UPDATE events SET received_at = received_at - interval '11 seconds'")
    assert (await house.gate(workflow_id="w1")).reason == "evaluation_behind"
    assert (await house.gate(workflow_id="w1", on_unknown="allow")).allow
    await evaluate(house.runtime)
    assert (await house.gate(workflow_id="w1")).allow


async def test_an_account_is_active_since_it_became_so_and_not_since_its_last_event(house: House) -> None:
    began = await house.told("ACTIVE", ago=7200)
    for ago in (3600, 1200, 600, 300, 0):
        await house.told("succeeded", ago=ago)
    [account] = await house.rows("SELECT status, status_since FROM accounts")
    assert (account["status"], account["status_since"]) == ("ACTIVE", began.event.occurred_at)


async def test_two_evaluators_on_one_database_never_double(house: House, database_url: str, tmp_path: Path) -> None:
    async with open_house(database_url, tmp_path / "second") as second:
        accounts = [f"ca_{number}" for number in range(8)]
        await house.put(account_ids=accounts)
        for _ in range(3):
            await house.accept(*(make_event("failed", house.began, account=account) for account in accounts))
            await asyncio.gather(*(evaluate(one.runtime) for one in (house, second, house, second)))
        await evaluate(house.runtime)
        alerts = await house.alerts()
        assert sorted(alert["account_id"] for alert in alerts) == sorted(accounts)
        assert len((await house.workflow())["paused_by"]) == 8
        await asyncio.gather(act(house.runtime), act(second.runtime))
        assert house.posts() + second.posts() == 1, "they are of one connection: one message that counts"
        assert "8 accounts of conn_1" in house.slack.text_of((house.slack.messages + second.slack.messages)[0])


async def test_an_evaluator_cut_off_anywhere_gives_the_same_alerts(house: House) -> None:
    accounts = [f"ca_{number}" for number in range(12)]
    await house.put(account_ids=accounts, ref="f1")
    for what in ("failed", "failed", "DISCONNECTED", "failed"):
        await house.accept(*(make_event(what, house.began, account=account) for account in accounts))
        for milliseconds in (1, 4, 9, 16, 25, 36, 60):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(milliseconds / 1000):
                    await evaluate(house.runtime)
    await evaluate(house.runtime)
    alerts = await house.alerts()
    found = sorted((alert["account_id"], alert["rule_id"], alert["episode"]) for alert in alerts)
    rules = ("account-disconnected-active-workflow", "token-refresh-failing")
    assert found == sorted((account, rule, 1) for account in accounts for rule in rules)
    assert (await house.kinds()).count("workflow.paused") == 1
    assert (await house.kinds()).count("alert.firing") == len(found)
    await act(house.runtime)
    assert len(house.orchestrator.pauses) == 1


async def test_deadlines_that_have_come_are_judged_once(house: House) -> None:
    await house.put(account_ids=["ca_1"], resume="manual")
    await house.told("EXPIRED", ago=30)
    await house.run("INSERT INTO deadlines VALUES ('scalekit', 'env_1', 'ca_1', now() - interval '1 hour')")
    await house.run("INSERT INTO deadlines VALUES ('scalekit', 'env_1', 'ca_unheard_of', now() - interval '1 hour')")
    assert (await evaluate(house.runtime)).next_due_at is None
    assert await house.rows("SELECT * FROM deadlines") == []
    assert len(await house.alerts()) == 1
