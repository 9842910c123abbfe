"""A rule edit: what is open goes on, or ends as changed and never as recovered."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workers.editing import (
    ANOTHER,
    HOUR,
    THREE_FAILURES,
    TWO_FAILURES,
    age,
    ids,
    in_set,
    save,
)
from tests.workers.house import RULES, House, open_house
from workers.act import act
from workers.evaluate import evaluate
from workers.rules import keep_rules


@pytest.fixture
def house(settled: House) -> House:
    return settled


async def test_an_edit_that_keeps_the_condition_keeps_the_episode(house: House, folder: Path) -> None:
    await keep_rules(house.runtime)
    await house.tell("failed", ago=2)
    await house.told("failed", ago=1)
    await act(house.runtime)
    (before,) = await house.alerts()
    save(folder, TWO_FAILURES.replace("It fails", "It fails again and again").replace("P2", "P1"))
    await keep_rules(house.runtime)
    await house.work()
    await house.told("failed")
    await house.work()
    (after,) = await house.alerts()
    assert (after["id"], after["state"], after["condition_ended_at"]) == (before["id"], "firing", None)
    assert house.posts() == 1
    assert await house.kinds() == ["alert.firing", "audit"]


async def test_another_condition_closes_as_rule_changed_and_opens_anew_where_it_holds(
    house: House, folder: Path
) -> None:
    await keep_rules(house.runtime)
    for ago in (3, 2, 1):
        await house.told("failed", ago=ago)
    await house.told("failed", ago=2, account="ca_2", connection="conn_2")
    await house.told("failed", ago=1, account="ca_2", connection="conn_2")
    await act(house.runtime)
    assert house.posts() == 2
    save(folder, THREE_FAILURES)
    await keep_rules(house.runtime)
    assert {alert["resolved_reason"] for alert in await house.alerts()} == {"rule_changed"}
    await house.work()
    alerts = await house.alerts()
    open_now = [alert for alert in alerts if alert["state"] == "firing"]
    closed = [alert for alert in alerts if alert["state"] == "resolved"]
    assert [(alert["account_id"], alert["episode"]) for alert in open_now] == [("ca_1", 2)]
    assert open_now[0]["rule_version"] == (await in_set(house.runtime, "two-failures")).version
    assert sorted(alert["account_id"] for alert in closed) == ["ca_1", "ca_2"]
    assert (await house.kinds()).count("alert.resolved") == 2
    # Each closed one is edited where it was posted, and only what opened anew is posted.
    assert house.posts() == 3
    assert len(house.slack.calls["chat.update"]) == 2


@pytest.mark.parametrize(
    "edited",
    [None, TWO_FAILURES.replace("severity", "enabled: false\n  severity"), "version: 1\nrules: []\n"],
    ids=["file-deleted", "disabled", "rule-taken-out"],
)
async def test_a_rule_that_is_gone_leaves_with_its_episodes(house: House, folder: Path, edited: str | None) -> None:
    await keep_rules(house.runtime)
    await house.tell("failed", ago=2)
    await house.told("failed", ago=1)
    save(folder, "version: 1\nrules: []\n", "another.yml")  # a folder that is empty takes no rule away
    save(folder, edited)
    await keep_rules(house.runtime)
    assert await ids(house.runtime) == []
    assert [(alert["state"], alert["resolved_reason"]) for alert in await house.alerts()] == [
        ("resolved", "rule_changed")
    ]
    await house.told("failed")
    assert len(await house.alerts()) == 1


async def test_the_holds_of_a_rule_that_changed_stay_until_the_account_is_well(
    database_url: str, tmp_path: Path
) -> None:
    async with open_house(database_url, tmp_path / "house", stable_for="0s", expired_for="0s") as house:
        folder = house.runtime.settings.rules_folder
        age(folder, HOUR)
        await keep_rules(house.runtime)
        await house.put(account_ids=["ca_1"])
        await house.told("DISCONNECTED", ago=5)
        assert (await house.workflow())["state"] == "paused"
        rules = RULES.format(stable_for="0s", expired_for="0s")
        only_failures = rules[: rules.index("- id: account-disconnected")]
        save(folder, only_failures)
        await keep_rules(house.runtime)
        await evaluate(house.runtime)
        assert [alert["resolved_reason"] for alert in await house.alerts()] == ["rule_changed"]
        assert (await house.workflow())["state"] == "paused"
        await house.told("ACTIVE")
        await evaluate(house.runtime)
        assert (await house.workflow())["state"] == "active"


async def test_the_hold_of_a_rule_that_is_gone_is_let_go_with_no_event_where_the_account_is_well(
    house: House, folder: Path
) -> None:
    pausing = TWO_FAILURES + "  actions: [{pause_workflows: {stable_for: 0s}}]\n"
    save(folder, pausing)
    await keep_rules(house.runtime)
    await house.put(account_ids=["ca_1"])
    await house.told("ACTIVE", ago=10)
    await house.tell("failed", ago=2)
    await house.told("failed", ago=1)
    assert (await house.workflow())["state"] == "paused"
    save(folder, "version: 1\nrules: []\n", ago=0.5)
    await keep_rules(house.runtime)
    assert (await house.workflow())["state"] == "paused"
    await evaluate(house.runtime)
    assert (await house.workflow())["state"] == "active"


async def test_what_an_account_already_fulfils_fires_with_the_new_rule(house: House, folder: Path) -> None:
    await keep_rules(house.runtime)
    await house.told("failed")
    assert await house.alerts() == []
    save(folder, ANOTHER.replace("gte: 2", "gte: 1"), "another.yml")
    await keep_rules(house.runtime)
    await evaluate(house.runtime)  # no event has come
    assert [alert["rule_id"] for alert in await house.alerts()] == ["another"]
