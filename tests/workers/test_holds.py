"""Holds: who places them, who lets them go, and that neither order of loss and dependence misses a break."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.errors import Conflict
from tests.workers.house import House, make_event, open_house
from tests.workers.passing import let_pass
from workers.act import act
from workers.evaluate import evaluate

STABLE_SECONDS = 1.15  # a little over the rules' `stable_for`


async def settled(house: House) -> None:
    await let_pass(house, STABLE_SECONDS)
    await evaluate(house.runtime)


async def test_a_manual_workflow_waits_for_a_person(house: House) -> None:
    await house.put(account_ids=["ca_1"], resume="manual")
    await house.told("DISCONNECTED")
    await house.told("ACTIVE")
    await settled(house)
    assert (await house.workflow())["state"] == "paused"
    await house.resume()
    assert (await house.workflow())["state"] == "active"


async def test_a_workflow_changed_from_manual_to_auto_goes_on_by_itself(house: House) -> None:
    await house.put(account_ids=["ca_1"], resume="manual")
    await house.told("DISCONNECTED")
    await house.told("ACTIVE")
    await settled(house)
    assert (await house.put(account_ids=["ca_1"], resume="auto"))["state"] == "paused"  # a PUT never resumes
    await evaluate(house.runtime)
    assert (await house.workflow())["state"] == "active"


async def test_a_hold_by_several_episodes_lets_go_with_the_last(house: House) -> None:
    await house.put(account_ids=["ca_1", "ca_2"])
    await house.told("DISCONNECTED", account="ca_1")
    await house.told("DELETED", account="ca_2")
    assert len((await house.workflow())["paused_by"]) == 2
    await house.told("ACTIVE", account="ca_1")
    await settled(house)
    workflow = await house.workflow()
    assert (workflow["state"], len(workflow["paused_by"])) == ("paused", 1)
    await house.told("ACTIVE", account="ca_2")
    await settled(house)
    assert (await house.workflow())["state"] == "active"
    assert [kind for kind in await house.kinds() if kind.startswith("workflow.")] == [
        "workflow.paused",
        "workflow.resumed",
    ]


async def test_a_persons_resume_lifts_and_the_same_episode_does_not_pause_again(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED")
    await house.resume()
    assert (await house.workflow())["state"] == "active"
    await house.told("DISCONNECTED")
    await house.put(account_ids=["ca_1"])
    assert (await house.put(account_ids=["ca_1"]))["state"] == "active"
    await house.told("ACTIVE")
    await house.told("DISCONNECTED")
    assert (await house.workflow())["state"] == "paused", "another episode pauses again"


async def test_a_persons_pause_survives_the_accounts_recovery(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED")
    await house.pause()
    await house.told("ACTIVE")
    await settled(house)
    workflow = await house.workflow()
    assert (workflow["state"], workflow["paused_by"]) == ("paused", ["manual"])


@pytest.mark.parametrize("what", ["DISCONNECTED", "DELETED", "failed"])
async def test_a_put_before_and_a_put_after_the_break_both_read_paused(house: House, what: str) -> None:
    times = 3 if what == "failed" else 1
    await house.put("before", account_ids=["ca_1"])
    for _ in range(times):
        await house.told(what, account="ca_1")
        await house.told(what, account="ca_2")
    assert (await house.workflow("before"))["state"] == "paused"
    answer = await house.put("after", account_ids=["ca_2"])
    assert answer["state"] == "paused"
    assert len(answer["paused_by"]) == 1
    joined = await house.put("joins", account_ids=["ca_1"])
    assert joined["paused_by"] == (await house.workflow("before"))["paused_by"]
    assert len(await house.alerts()) == 2


@pytest.mark.parametrize("ago", [120, 3000])
async def test_a_break_found_by_a_put_has_its_evidence(house: House, ago: float) -> None:
    event = await house.told("DISCONNECTED", ago=ago)
    assert await house.alerts() == []
    await house.put(account_ids=["ca_1"])
    [alert] = await house.alerts()
    assert alert["evidence"] == [event.id]


async def test_a_break_older_than_the_log_still_holds_what_is_put_on_it(house: House) -> None:
    await house.told("DISCONNECTED", ago=3000)
    await house.run("DELETE FROM events WHERE origin = 'webhook'")
    assert (await house.put(account_ids=["ca_1"]))["state"] == "paused"
    assert (await house.put(account_ids=["ca_1"]))["state"] == "paused"
    assert [alert["state"] for alert in await house.alerts()] == ["firing"]


async def test_a_dropped_dependency_drops_its_hold_and_holds_again_when_it_comes_back(house: House) -> None:
    await house.put("other", account_ids=["ca_1"])
    await house.put(account_ids=["ca_1", "ca_2"])
    await house.told("DISCONNECTED")
    assert (await house.put(account_ids=["ca_2"]))["state"] == "active"
    assert (await house.put(account_ids=["ca_1", "ca_2"]))["state"] == "paused"
    assert len(await house.alerts()) == 1


async def test_an_alert_closes_when_nothing_depends_on_it_and_what_comes_back_is_one_new_alert(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED", ago=60)
    assert (await house.put(account_ids=[]))["state"] == "active"
    [first] = await house.alerts()
    assert (first["state"], first["resolved_reason"]) == ("resolved", "no_active_workflow")
    assert (await house.put(account_ids=["ca_1"]))["state"] == "paused"
    await house.told("DELETED", ago=30)  # an event from before the workflow dropped it
    await house.told("DELETED")
    alerts = await house.alerts()
    assert [alert["state"] for alert in alerts] == ["resolved", "firing"]
    await house.told("ACTIVE")
    assert [alert["resolved_reason"] for alert in await house.alerts()] == ["no_active_workflow", "recovered"]
    await settled(house)
    assert (await house.workflow())["state"] == "active"


async def test_a_workflow_deleted_and_put_again_while_the_alert_is_open_is_held_again(house: House) -> None:
    await house.put("other", account_ids=["ca_1"])
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED")
    await house.delete()
    assert (await house.put(account_ids=["ca_1"]))["state"] == "paused"


async def test_an_inactive_workflow_raises_no_alert_and_sends_no_resume(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.told("DISCONNECTED")
    await act(house.runtime)
    assert (await house.put(account_ids=["ca_1"], ref="f1", active=False))["state"] == "inactive"
    await act(house.runtime)
    assert (len(house.orchestrator.pauses), house.orchestrator.resumes) == (1, [])
    assert [alert["resolved_reason"] for alert in await house.alerts()] == ["no_active_workflow"]
    await house.told("DISCONNECTED")
    assert len(await house.alerts()) == 1
    assert (await house.gate(workflow_id="w1")).reason == "workflow_inactive"
    # Active again while still broken: held again, and the orchestrator, still paused by us, is not told twice.
    assert (await house.put(account_ids=["ca_1"], ref="f1"))["state"] == "paused"
    await act(house.runtime)
    assert (len(house.orchestrator.pauses), house.orchestrator.resumes) == (1, [])
    await house.told("ACTIVE")
    await settled(house)
    await act(house.runtime)
    assert (len(house.orchestrator.pauses), len(house.orchestrator.resumes)) == (1, 1)


async def test_delete_puts_back_what_was_paused_at_the_orchestrator(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.told("DISCONNECTED")
    await act(house.runtime)
    assert house.orchestrator.paused == {"f1"}
    await house.delete()
    await act(house.runtime)
    assert house.orchestrator.paused == set()
    assert [alert["state"] for alert in await house.alerts()] == ["resolved"]


async def test_one_users_break_stops_only_that_user_of_a_connection(house: House) -> None:
    await house.told("ACTIVE", account="ca_1")
    await house.told("ACTIVE", account="ca_2")
    await house.put(connection_ids=["conn_1"])
    await house.told("DISCONNECTED", account="ca_1")
    workflow = await house.workflow()
    assert (workflow["state"], workflow["paused_by"], workflow["paused_accounts"]) == ("active", [], ["ca_1"])
    denied = await house.gate(workflow_id="w1", account_id="ca_1")
    assert (denied.allow, denied.reason) == (False, "account_disconnected")
    assert (await house.gate(workflow_id="w1", account_id="ca_2")).allow
    await house.told("ACTIVE", account="ca_1")
    assert (await house.gate(workflow_id="w1", account_id="ca_1")).reason == "workflow_paused"
    await settled(house)
    assert (await house.gate(workflow_id="w1", account_id="ca_1")).allow
    assert (await house.workflow())["paused_accounts"] == []
    told = await house.rows(
        "SELECT kind, details->>'scope' AS scope FROM events WHERE kind LIKE 'workflow.%' ORDER BY position"
    )
    assert [(row["kind"], row["scope"]) for row in told] == [
        ("workflow.paused", "account"),
        ("workflow.resumed", "account"),
    ]


async def test_a_connection_with_pause_workflow_stops_all_of_it(house: House) -> None:
    await house.put(connection_ids=["conn_1"], pause="workflow")
    await house.told("DISCONNECTED", account="ca_1")
    assert (await house.workflow())["state"] == "paused"
    assert (await house.put(connection_ids=["conn_1"], pause="account"))["paused_accounts"] == ["ca_1"]
    assert (await house.workflow())["state"] == "active"


async def test_an_event_without_its_connection_does_not_take_the_account_out_of_it(house: House) -> None:
    await house.told("ACTIVE", account="ca_1")
    await house.put(connection_ids=["conn_1"])
    await house.told("DISCONNECTED", account="ca_1", connection="ca_1")  # what our adapter makes of a missing one
    assert (await house.workflow())["paused_accounts"] == ["ca_1"]


async def test_development_never_pauses_production(house: House) -> None:
    await house.told("ACTIVE", environment="env_production")
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED", environment="env_development")
    assert (await house.workflow())["state"] == "active"
    own = [alert for alert in await house.alerts() if alert["rule_id"] == "ambiguous-account-id"]
    assert len(own) == 1
    assert "scalekit:env_production:ca_1" in own[0]["what_to_do"]
    with pytest.raises(Conflict):
        await house.put("w2", account_ids=["ca_1"])
    assert (await house.put("w3", account_ids=["scalekit:env_development:ca_1"]))["state"] == "paused"
    await house.told("DISCONNECTED", environment="env_production")
    assert (await house.workflow())["state"] == "paused"


async def test_a_short_id_not_seen_yet_binds_to_the_account_seen_first(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    await house.accept(
        make_event("ACTIVE", house.began, environment="env_first"),
        make_event("DISCONNECTED", house.began, environment="env_second"),
    )
    await evaluate(house.runtime)
    assert (await house.workflow())["state"] == "active"
    assert [alert["rule_id"] for alert in await house.alerts()] == ["ambiguous-account-id"]


@pytest.mark.parametrize("together", [True, False])
async def test_of_namesakes_the_first_in_the_log_is_bound_however_they_are_batched(
    house: House, together: bool
) -> None:
    await house.put(account_ids=["ca_1"])
    now = datetime.now(UTC)
    first = make_event("failed", now, environment="env_first")
    second = make_event("ACTIVE", now, environment="env_second")
    for batch in [(first, second)] if together else [(first,), (second,)]:
        await house.accept(*batch)
        await evaluate(house.runtime)
    rows = await house.rows("SELECT environment_id FROM dependencies")
    assert [row["environment_id"] for row in rows] == ["env_first"]


async def test_resolving_by_hand_keeps_the_holds_until_the_account_is_well(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED")
    await house.resolve(str((await house.alerts())[0]["id"]))
    await house.told("DISCONNECTED")
    assert (await house.workflow())["state"] == "paused"
    assert [(alert["state"], alert["resolved_reason"]) for alert in await house.alerts()] == [("resolved", "manual")]
    await house.told("ACTIVE")
    await settled(house)
    assert (await house.workflow())["state"] == "active"
    assert (await house.kinds()).count("alert.resolved") == 1


async def test_a_put_racing_the_evaluator_never_misses_the_break(database_url: str, tmp_path: Path) -> None:
    async with open_house(database_url, tmp_path / "house") as house:
        for number in range(16):
            account, workflow = f"ca_{number}", f"w{number}"
            connections = [f"conn_{number}"] if number % 3 == 0 else []
            accounts = [] if connections else [account]
            await house.tell("DISCONNECTED", account=account, connection=f"conn_{number}")
            put = house.put(workflow, account_ids=accounts, connection_ids=connections, pause="workflow", ref=workflow)
            both = (put, evaluate(house.runtime)) if number % 2 else (evaluate(house.runtime), put)
            await asyncio.gather(*both)
            await evaluate(house.runtime)
            assert (await house.workflow(workflow))["state"] == "paused", number
            assert len(await house.alerts()) == number + 1
        await act(house.runtime)
        assert sorted(pause["ref"] for pause in house.orchestrator.pauses) == sorted(f"w{n}" for n in range(16))


async def test_puts_and_breaks_at_the_same_time_pause_the_orchestrator_once(house: House) -> None:
    """The row a PUT writes back must not be older than what the evaluator has just said of the orchestrator."""
    for number in range(8):
        account, workflow = f"ca_{number}", f"w{number}"
        await house.put(workflow, account_ids=[account], ref=workflow)
        await house.tell("DISCONNECTED", account=account)
        await asyncio.gather(
            house.put(workflow, account_ids=[account], ref=workflow),
            evaluate(house.runtime),
            house.put(workflow, account_ids=[account], ref=workflow),
        )
        await house.put(workflow, account_ids=[account], ref=workflow)
    await act(house.runtime)
    assert sorted(pause["ref"] for pause in house.orchestrator.pauses) == sorted(f"w{n}" for n in range(8))
