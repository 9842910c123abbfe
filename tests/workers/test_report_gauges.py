"""Rates of what was reported, as gauges: of each account and each provider, and only where something was reported."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service.store import readers
from service.store.session import begin
from tests.workers.house import House, open_house
from tests.workers.test_rollups import call, count_all, refresh
from workers import measure
from workers.act import act
from workers.evaluate import evaluate
from workers.gauges import look_at_gauges
from workers.measure import MEASURES, Look

RULES = """\
version: 1
rules:
- id: low
  severity: P2
  gauge: {metric: tool_call_success_rate, lt: 0.95}
  group_by: [account_id]
  annotations: {summary: "{{ account_id }} of {{ group }}: {{ value }}"}
- id: failing
  severity: P2
  count: {match: {kind: tool_call.completed}, within: 1h, gte: 3}
"""


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "rules.yml").write_text(RULES)
    async with open_house(database_url, tmp_path / "house", variables={"AUTHWATCH_RULES": str(folder)}) as opened:
        await opened.run("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 1, 3)")
        yield opened


async def read(house: House, metric: str) -> Any:
    async with begin(house.runtime.engine) as conn:
        return await MEASURES[metric](Look(conn, house.runtime, await readers.clock(conn)))


async def alerts(house: House) -> list[Any]:
    await look_at_gauges(house.runtime)
    return [alert for alert in await house.alerts() if alert["rule_id"] == "low"]


async def test_only_accounts_with_failures_are_read(house: House) -> None:
    await house.runtime.tool_calls.keep(
        [call(number, account_id="ca_well") for number in range(50)]
        + [call(100 + number, account_id="ca_bad", outcome="error" if number < 2 else "success") for number in range(8)]
        + [call(200, account_id="ca_once", outcome="error")]
        + [call(300 + number, account_id="ca_past", outcome="error", ago=600) for number in range(9)]
    )
    await count_all(house)
    assert await read(house, "tool_call_success_rate") == {("report::ca_bad",): 0.75}


async def test_a_rate_opens_an_alert_of_its_account_that_a_recovery_ends(house: House) -> None:
    await house.told("ACTIVE")
    await house.runtime.tool_calls.keep([call(number, outcome="error") for number in range(4)])
    await count_all(house)
    [alert] = await alerts(house)
    assert (alert["source"], alert["environment_id"], alert["account_id"]) == ("scalekit", "env_1", "ca_1")
    assert (alert["group"], alert["summary"]) == ({"account_id": "ca_1"}, "ca_1 of ca_1: 0")
    await house.told("failed")
    await evaluate(house.runtime)
    [alert] = await alerts(house)
    assert alert["condition_ended_at"] is None, "the account's own events are no word on its rate"
    await house.runtime.tool_calls.keep([call(100 + number) for number in range(100)])
    await count_all(house)
    [alert] = await alerts(house)
    assert (alert["state"], alert["resolved_reason"]) == ("resolved", "recovered")


async def test_such_an_alert_has_the_connection_of_its_account(house: House) -> None:
    """By which it is routed, silenced, and told together with others: 20 accounts of a connector were 20 messages."""
    for number in range(6):
        await house.told("ACTIVE", account=f"ca_{number}", connection="conn_7")
    await house.runtime.tool_calls.keep(
        [call(10 * n + m, account_id=f"ca_{n}", outcome="error") for n in range(6) for m in range(4)]
    )
    await count_all(house)
    found = await alerts(house)
    assert [alert["connection_id"] for alert in found] == ["conn_7"] * 6
    await act(house.runtime)
    assert house.posts() == 1
    said = house.slack.text_of(house.slack.messages[0])
    assert "6 accounts" in said
    assert "Fix the connector's credentials" not in said, "calls that fail say nothing against them"


async def test_silence_is_no_recovery_and_is_not_held_for_ever(house: House) -> None:
    await house.runtime.tool_calls.keep([call(number, outcome="error") for number in range(4)])
    await count_all(house)
    assert len(await alerts(house)) == 1
    await house.run("UPDATE rollup_minutes SET at = at - interval '20 minutes'")
    [alert] = await alerts(house)
    assert alert["state"] == "firing"
    await house.run("UPDATE rollup_minutes SET at = at - interval '60 minutes'")
    [alert] = await alerts(house)
    assert (alert["state"], alert["resolved_reason"]) == ("resolved", "gone")


async def test_refreshes_are_read_by_provider_once_there_are_enough(house: House) -> None:
    least = measure.REFRESHES_MIN
    await house.runtime.token_refreshes.keep(
        [refresh(number, provider="few") for number in range(least - 1)]
        + [refresh(100 + n, provider="Google", outcome="error" if n == 0 else "success") for n in range(least)]
    )
    await count_all(house)
    assert await read(house, "refresh_success_rate") == {("google",): 1 - 1 / least}
    assert await read(house, "refresh_p99_seconds") == {}
    await house.runtime.token_refreshes.keep(
        [refresh(200 + n, provider="google", duration_ms=7000 if n == 0 else 100) for n in range(measure.TIMED_MIN)]
    )
    await count_all(house)
    assert (await read(house, "refresh_p99_seconds"))["google",] == pytest.approx(0.1, rel=0.03)
    await house.runtime.token_refreshes.keep([refresh(300, provider="google", duration_ms=7000)])
    await count_all(house)
    assert (await read(house, "refresh_p99_seconds"))["google",] == pytest.approx(7, rel=0.03)


async def test_before_anything_is_reported_there_is_nothing(house: House) -> None:
    async with begin(house.runtime.engine) as conn:
        assert (await conn.execute(text("SELECT count(*) FROM rollup_minutes"))).scalar_one() == 0
    for metric in ("tool_call_success_rate", "refresh_success_rate", "refresh_p99_seconds"):
        assert await read(house, metric) == {}
