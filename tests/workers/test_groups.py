"""Rules that group by more than one account, and rules that wait for what does not come, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service import rule_sets
from service.explain import explain_alert
from service.store.session import begin
from tests.end_to_end.running import until
from tests.workers.house import House, make_event, open_house
from workers.act import act
from workers.evaluate import evaluate

RULES = """\
version: 1
rules:
- id: connection-failing
  severity: P1
  count:
    match: {kind: [token.refresh_failed, account.disconnected]}
    within: 10m
    gte: 3
    distinct: account_id
  group_by: [connection_id]
  actions:
  - pause_workflows: {depends_on: connection_id, stable_for: 1s}
  annotations: {summary: "{{ value }} accounts of {{ connection_id }} fail together"}
- id: refresh-success-rate
  severity: P2
  ratio:
    good: {kind: token.refresh_succeeded}
    total: {kind: [token.refresh_succeeded, token.refresh_failed]}
    within: 10m
    lt: 0.5
    min_total: 4
  group_by: [connection_id]
  annotations: {summary: "Only {{ value }} of refreshes succeed"}
- id: not-recovered
  severity: P2
  absence:
    after: {kind: token.refresh_failed}
    expect: {kind: [token.refresh_succeeded, account.authorized]}
    within: 2s
  annotations: {summary: "It failed and nothing came after"}
- id: by-hand
  severity: P2
  count: {match: {kind: auth.failed}, within: 1h, gte: 2}
  group_by: [provider]
  resolve: {manual: true}
  annotations: {summary: "Somebody has to look at {{ provider }}"}
- id: quiet-shadow
  enabled: shadow
  severity: P3
  count: {match: {kind: token.refresh_failed}, within: 10m, gte: 1}
  annotations: {summary: "Nobody hears of this"}
"""


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house", rules=RULES) as opened:
        yield opened


async def of_rule(house: House, rule_id: str) -> list[tuple[str, str | None]]:
    return [(row["state"], row["resolved_reason"]) for row in await house.alerts() if row["rule_id"] == rule_id]


async def test_many_accounts_of_one_connection_pause_the_whole_workflow_and_it_goes_on(house: House) -> None:
    await house.put("serves", connection_ids=["conn_1"])
    await house.put("other", connection_ids=["conn_2"])
    for account in ("ca_1", "ca_1", "ca_2"):
        await house.told("failed", ago=592.0, account=account)
    assert await of_rule(house, "connection-failing") == []
    await house.told("failed", ago=595.0, account="ca_3")
    assert await of_rule(house, "connection-failing") == [("firing", None)]
    [alert] = [row for row in await house.alerts() if row["rule_id"] == "connection-failing"]
    assert (alert["connection_id"], alert["value"], alert["summary"]) == (
        "conn_1",
        3,
        "3 accounts of conn_1 fail together",
    )
    assert ((await house.workflow("serves"))["state"], (await house.workflow("other"))["state"]) == ("paused", "active")
    assert (await house.put("late", connection_ids=["conn_1"]))["state"] == "paused", "a PUT joins the open episode"
    assert not (await house.gate(workflow_id="serves")).allow

    async def resumed() -> bool:
        await evaluate(house.runtime)
        return bool((await house.workflow("serves"))["state"] == "active")

    await until(resumed, 15)
    assert await of_rule(house, "connection-failing") == [("resolved", "subsided")]
    assert (await house.workflow("late"))["state"] == "active"


async def test_development_does_not_count_for_production(house: House) -> None:
    for number in range(4):
        await house.told("failed", account=f"ca_{number}", environment=f"env_{number % 2}")
    assert await of_rule(house, "connection-failing") == []


async def test_a_dropped_dependency_drops_the_hold_of_a_connection(house: House) -> None:
    await house.put("serves", connection_ids=["conn_1"])
    for account in ("ca_1", "ca_2", "ca_3"):
        await house.told("failed", account=account)
    assert (await house.workflow("serves"))["state"] == "paused"
    assert (await house.put("serves", connection_ids=["conn_1"]))["state"] == "paused", "PUT never resumes"
    assert (await house.put("serves", connection_ids=["conn_9"]))["state"] == "active"


async def test_a_rate_below_its_bound_fires_once_enough_is_known(house: House) -> None:
    for word, ago in (("failed", 40), ("failed", 39), ("succeeded", 38)):
        await house.told(word, ago=ago)
    assert await of_rule(house, "refresh-success-rate") == [], "three are too few to say"
    await house.told("failed", ago=5)
    assert await of_rule(house, "refresh-success-rate") == [("firing", None)]
    for ago in (4, 4, 3, 3):
        await house.told("succeeded", ago=ago)
    assert await of_rule(house, "refresh-success-rate") == [("resolved", "recovered")]


async def test_what_does_not_come_by_its_deadline_fires_by_itself_and_what_comes_resolves(house: House) -> None:
    await house.told("failed", account="ca_due")
    assert len(await house.rows("SELECT * FROM armed")) == 1

    async def fired() -> bool:
        await evaluate(house.runtime)
        return await of_rule(house, "not-recovered") == [("firing", None)]

    await until(fired, 10)
    [alert] = [row for row in await house.alerts() if row["rule_id"] == "not-recovered"]
    assert (alert["fired_at"] - alert["opened_at"]).total_seconds() < 1.5
    assert await house.rows("SELECT * FROM armed") == []
    await house.told("succeeded", account="ca_due")
    assert await of_rule(house, "not-recovered") == [("resolved", "recovered")]


async def test_what_came_in_time_disarms_whatever_the_order_of_arrival(house: House) -> None:
    await house.told("succeeded", ago=0.5)
    await house.told("failed", ago=1.5)
    await asyncio.sleep(1.0)
    await evaluate(house.runtime)
    assert await of_rule(house, "not-recovered") == []
    assert await house.rows("SELECT * FROM armed") == []


async def test_a_deadline_that_passed_while_we_were_away_fires_at_once_and_says_so(house: House) -> None:
    await house.told("failed", ago=300)
    [alert] = [row for row in await house.alerts() if row["rule_id"] == "not-recovered"]
    assert (alert["state"], alert["late_detection"]) == ("firing", True)
    await house.tell("succeeded", ago=299)
    await evaluate(house.runtime)
    assert await of_rule(house, "not-recovered") == [("resolved", "late_arrival")]


async def test_a_shadow_rule_records_and_tells_nobody(house: House) -> None:
    await house.told("failed")
    await act(house.runtime)
    [shadow] = [row for row in await house.alerts() if row["rule_id"] == "quiet-shadow"]
    assert shadow["shadow"]
    assert house.posts() == 0
    assert await house.kinds() == []


async def test_a_group_beyond_the_limit_is_refused_and_said_and_those_there_go_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.grouped.GROUP_MAX", 2)
    for number in range(4):
        await house.told("failed", account=f"ca_{number}", connection=f"conn_{number}")
    rules = {row["rule_id"] for row in await house.alerts()}
    assert "too-many-groups" in rules
    for account in ("ca_10", "ca_11"):
        await house.told("failed", account=account, connection="conn_0")
    assert await of_rule(house, "connection-failing") == [("firing", None)]


async def test_one_batch_or_many_and_any_order_give_the_same(house: House) -> None:
    now = datetime.now(UTC)
    receipts = [
        make_event("failed", now - timedelta(seconds=30 - number), account=f"ca_{number % 3}") for number in range(9)
    ]
    for receipt in reversed(receipts[4:]):
        await house.accept(receipt)
        await evaluate(house.runtime)
    await house.accept(*receipts[:4])
    await evaluate(house.runtime)
    live = [row for row in await house.alerts() if row["rule_id"] == "connection-failing"]
    standing = [row for row in live if row["resolved_reason"] != "late_arrival"]
    assert [(row["opened_at"], row["state"]) for row in standing] == [(receipts[2].event.occurred_at, "firing")]


async def test_what_only_a_person_resolves_ends_by_a_persons_word_and_begins_anew(house: House) -> None:
    for ago in (30, 29):
        await house.tell("failed", ago=ago)
        await house.run("UPDATE events SET kind = 'auth.failed', type = 'auth.failed' WHERE origin = 'webhook'")
        await evaluate(house.runtime)
    assert await of_rule(house, "by-hand") == [("firing", None)]
    [alert] = [row for row in await house.alerts() if row["rule_id"] == "by-hand"]
    await house.resolve(str(alert["id"]))
    for alerts in (1, 2):
        await house.tell("failed")
        await house.run("UPDATE events SET kind = 'auth.failed', type = 'auth.failed' WHERE origin = 'webhook'")
        await evaluate(house.runtime)
        assert len(await of_rule(house, "by-hand")) == alerts, "what was before the resolve does not count again"
    assert await of_rule(house, "by-hand") == [("resolved", "manual"), ("firing", None)]


async def test_a_group_is_explained_by_what_was_counted_of_it(house: House) -> None:
    for account in ("ca_1", "ca_2", "ca_3"):
        await house.told("failed", account=account)
    [alert] = [row for row in await house.alerts() if row["rule_id"] == "connection-failing"]
    async with begin(house.runtime.engine) as conn:
        said = await explain_alert(
            conn, str(alert["id"]), await rule_sets.in_force(conn, house.runtime), house.runtime.settings.routing
        )
    assert said["value"] == 3
    assert said["because"][-1] == "3 of 3 different account_id within 10m"
    assert len(said["events"]) == 3


async def test_groups_of_an_id_that_is_another_sort_of_rules_now_are_let_be(house: House) -> None:
    """Judged as that rule, they would fail it for ever: a gauge has no samples to judge."""
    await house.run(
        'INSERT INTO groups (rule_id, group_key, condition_version, "group", first_seen_at, last_at, due_at)'
        " VALUES ('not-recovered', 'provider=GMAIL', 'x', '{}', now(), now(), now() - interval '1 second')"
    )
    await evaluate(house.runtime)
    [group] = await house.rows("SELECT due_at, condition_version FROM groups")
    assert (group["due_at"], group["condition_version"]) == (None, "x")
