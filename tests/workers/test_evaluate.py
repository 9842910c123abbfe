"""From the provider's word to alerts, holds and back, on a real database."""

from __future__ import annotations

import asyncio

from tests.workers.house import House
from workers.evaluate import evaluate


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


async def test_success_resolves_and_after_stable_for_the_workflow_goes_on(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    await failures(house, 3)
    await house.told("succeeded")
    [alert] = await house.alerts()
    assert (alert["state"], alert["resolved_reason"]) == ("resolved", "recovered")
    assert (await house.workflow())["state"] == "paused"
    due = (await evaluate(house.runtime)).next_due_at
    assert due is not None
    await asyncio.sleep(1.1)
    done = await evaluate(house.runtime)
    assert (await house.workflow())["state"] == "active"
    assert done.next_due_at is None
    assert await house.kinds() == [
        "audit",
        "workflow.paused",
        "alert.firing",
        "alert.resolved",
        "workflow.resumed",
    ]
