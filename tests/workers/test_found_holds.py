"""Holds that never go, or go while the trouble lasts; alerts that close or split though nothing has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.store import groups as group_store
from tests.end_to_end.running import until
from tests.workers.editing import save
from tests.workers.house import House, open_house
from workers.evaluate import evaluate
from workers.rules import keep_rules
from workers.sweep import prune_groups

CONNECTION = """\
version: 1
rules:
- id: connection-failing
  severity: P1
  count:
    match: {kind: token.refresh_failed}
    within: 10m
    gte: 3
    distinct: account_id
  group_by: [connection_id]
  actions:
  - pause_workflows: {depends_on: connection_id, stable_for: 1s}
  annotations: {summary: "Many fail together"}
"""
BY_HAND = """\
version: 1
rules:
- id: by-hand
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 1h, gte: 2}
  resolve: {manual: true}
  actions: [{pause_workflows: {stable_for: 0s}}]
  annotations: {summary: "Somebody has to look at it"}
"""


async def of_rule(house: House, rule_id: str) -> list[tuple[str, str | None]]:
    return [(row["state"], row["resolved_reason"]) for row in await house.alerts() if row["rule_id"] == rule_id]


async def until_active(house: House, seconds: float = 4) -> None:
    async def active() -> bool:
        await evaluate(house.runtime)
        return bool((await house.workflow())["state"] == "active")

    await until(active, seconds)


@pytest.mark.parametrize("by", ["account", "connection"])
async def test_what_a_person_resolves_for_good_lets_go_with_no_event(
    database_url: str, tmp_path: Path, by: str
) -> None:
    rules = BY_HAND
    if by == "connection":
        rules = BY_HAND.replace("  resolve", "  group_by: [connection_id]\n  resolve")
        rules = rules.replace("{stable_for: 0s}", "{depends_on: connection_id, stable_for: 0s}")
    async with open_house(database_url, tmp_path / "house", rules=rules) as house:
        if by == "account":
            await house.put(account_ids=["ca_1"])
        else:
            await house.put(connection_ids=["conn_1"])
        await house.told("ACTIVE", ago=10)
        await house.tell("failed", ago=3)
        await house.told("failed", ago=2)
        [alert] = await house.alerts()
        assert (await house.workflow())["state"] == "paused"
        await house.resolve(str(alert["id"]))
        await until_active(house)


async def test_a_hold_of_a_connection_goes_once_its_workflow_resumes_by_itself_however_late(
    database_url: str, tmp_path: Path
) -> None:
    async with open_house(database_url, tmp_path / "house", rules=CONNECTION) as house:
        await house.put(connection_ids=["conn_1"], resume="manual")
        for account in ("ca_1", "ca_2", "ca_3"):
            await house.tell("failed", account=account, ago=598)
        await evaluate(house.runtime)

        async def over() -> bool:
            await evaluate(house.runtime)
            return await of_rule(house, "connection-failing") == [("resolved", "subsided")]

        await until(over, 10)
        await evaluate(house.runtime)
        # A day goes by, and the group is let go of.
        await house.run("UPDATE groups SET last_at = last_at - interval '1 day'")
        await house.run("UPDATE samples SET at = at - interval '1 day'")
        await prune_groups(house.runtime)
        assert (await house.workflow())["state"] == "paused"
        await house.put(connection_ids=["conn_1"], resume="auto")
        await until_active(house)


async def test_an_edit_in_an_outage_of_a_connection_does_not_let_go(database_url: str, tmp_path: Path) -> None:
    """The samples are of the condition as it was; under the new one nothing is known, and nothing is not recovery."""
    async with open_house(database_url, tmp_path / "house", rules=CONNECTION) as house:
        folder = house.runtime.settings.rules_folder
        save(folder, CONNECTION, ago=60)
        await keep_rules(house.runtime)
        await house.put(connection_ids=["conn_1"])
        for account in ("ca_1", "ca_2", "ca_3", "ca_4"):
            await house.told("failed", account=account, ago=5)
        assert (await house.workflow())["state"] == "paused"
        save(folder, CONNECTION.replace("  actions", "  keep_firing_for: 1m\n  actions"), ago=0.5)
        await keep_rules(house.runtime)
        with pytest.raises(AssertionError):
            await until_active(house, 3)


async def test_a_late_recovery_from_before_what_is_kept_does_not_close_what_is_open(
    database_url: str, tmp_path: Path
) -> None:
    rules = CONNECTION.replace("  actions", "  resolve: {event: {kind: account.authorized}}\n  actions").replace(
        "    distinct: account_id\n", ""
    )
    async with open_house(database_url, tmp_path / "house", rules=rules) as house:
        await house.put(connection_ids=["conn_1"])
        for account in ("ca_1", "ca_2", "ca_3"):
            await house.told("failed", account=account, ago=1)
        assert len(await house.alerts()) == 1
        # Five hours go by: nobody has recovered, and what filled the window is let go of.
        await house.run("UPDATE samples SET at = at - interval '5 hours'")
        await house.run("UPDATE groups SET last_at = last_at - interval '5 hours'")
        await house.run(
            "UPDATE alerts SET opened_at = opened_at - interval '5 hours', fired_at = fired_at - interval '5 hours'"
        )
        await prune_groups(house.runtime)
        assert await house.rows("SELECT * FROM samples") == []
        await house.told("ACTIVE", account="ca_9", ago=6 * 3600)  # from before the outage
        assert await of_rule(house, "connection-failing") == [("firing", None)]
        assert (await house.workflow())["state"] == "paused"


async def test_a_late_event_does_not_split_an_episode_of_a_group_that_has_more_than_is_read(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAMPLES_MAX is 20,000; here ten. Of accounts `judge_from` is moved to what was read, of groups it is not."""
    monkeypatch.setattr(group_store, "SAMPLES_MAX", 10)
    async with open_house(database_url, tmp_path / "house", rules=CONNECTION) as house:
        for number in range(30):
            await house.tell("failed", account=f"ca_{number}", ago=300 - 10 * number)
            if number < 5 or number % 5 == 4:
                await evaluate(house.runtime)
        await evaluate(house.runtime)
        [before] = await house.alerts()
        await house.told("failed", account="ca_0", ago=200)
        assert [(row["id"], row["state"]) for row in await house.alerts()] == [(before["id"], "firing")]


PER_PROVIDER = CONNECTION.replace("[connection_id]", "[connection_id, provider]").replace(
    "    distinct: account_id\n", ""
)


async def test_groups_of_different_values_have_different_keys(database_url: str, tmp_path: Path) -> None:
    """What a provider or an agent may write into one field must not make it another group's event."""
    async with open_house(database_url, tmp_path / "house", rules=PER_PROVIDER) as house:
        await house.told("failed")
        [row] = await house.rows("SELECT provider, connection_id FROM events WHERE origin = 'webhook'")
        await house.tell("failed", connection="c,environment_id=env_1,provider=p")
        await house.run("UPDATE events SET provider = 'q' WHERE connection_id LIKE 'c,%'")
        await house.tell("failed", connection="c")
        await house.run("UPDATE events SET provider = 'p,environment_id=env_1,provider=q' WHERE connection_id = 'c'")
        await evaluate(house.runtime)
        assert row["provider"] is not None
        assert len(await house.rows("SELECT * FROM groups")) == 3


SHADOW = CONNECTION.replace("  severity", "  enabled: shadow\n  severity")


async def test_a_shadow_rule_made_real_in_an_outage_is_heard(database_url: str, tmp_path: Path) -> None:
    async with open_house(database_url, tmp_path / "house", rules=SHADOW) as house:
        folder = house.runtime.settings.rules_folder
        save(folder, SHADOW, ago=60)
        await keep_rules(house.runtime)
        await house.put(connection_ids=["conn_1"])
        for account in ("ca_1", "ca_2", "ca_3"):
            await house.told("failed", account=account, ago=5)
        assert (await house.workflow())["state"] == "active"
        save(folder, CONNECTION, ago=0.5)
        await keep_rules(house.runtime)
        for account in ("ca_4", "ca_5"):
            await house.told("failed", account=account)
        assert "alert.firing" in await house.kinds()
        assert (await house.workflow())["state"] == "paused"


async def test_too_many_groups_is_over_once_there_is_room(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(database_url, tmp_path / "house", rules=CONNECTION) as house:
        with monkeypatch.context() as small:
            small.setattr("service.grouped.GROUP_MAX", 1)
            for number in range(3):
                await house.told("failed", connection=f"conn_{number}")
        assert await of_rule(house, "too-many-groups") == [("firing", None)]
        await house.run("UPDATE groups SET last_at = last_at - interval '1 day', due_at = NULL")
        await house.run("UPDATE samples SET at = at - interval '1 day'")
        await prune_groups(house.runtime)
        await keep_rules(house.runtime)
        await house.told("failed")
        assert [state for state, _ in await of_rule(house, "too-many-groups")] == ["resolved"]
