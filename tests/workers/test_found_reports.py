"""Found by reading what is told of reports against the code: whose they are, and what is counted of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.report import TokenRefresh
from service.store import readers, rollups
from service.store.session import begin
from tests.workers.house import House, open_house
from tests.workers.passing import let_pass
from tests.workers.test_rollups import call, count_all, counted, refresh
from workers.act import act
from workers.evaluate import evaluate
from workers.measure import MEASURES, Look
from workers.rollups import count_once

STABLE_SECONDS = 2.0  # more than the rules' `stable_for`
ABSENCE = """\
version: 1
rules:
- id: not-recovered
  severity: P2
  absence:
    after: {kind: token.refresh_failed}
    expect: {kind: token.refresh_succeeded}
    within: 15m
  annotations: {summary: "It failed, and nothing has said that it works again"}
"""


@pytest.fixture
async def partitioned(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "rare") as opened:
        await opened.run("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 1, 3)")
        yield opened


# ---- an account that only reports told of, and then its provider


async def paused_by_reports(house: House, account_id: str = "ca_1", **changes: Any) -> None:
    await house.put("w1", account_ids=[account_id], **changes)
    reports = [refresh(n, account_id=account_id, ago=60.0 + n, outcome="error") for n in range(3)]
    await house.runtime.token_refreshes.keep(reports)
    await evaluate(house.runtime)


async def settled(house: House) -> None:
    """The reports' account follows, what is due by that is judged, and time passes."""
    await count_all(house)
    await evaluate(house.runtime)
    await let_pass(house, STABLE_SECONDS)
    await evaluate(house.runtime)


async def test_what_was_reported_before_the_account_was_known_is_over_when_it_is_known(house: House) -> None:
    await paused_by_reports(house)
    assert [(alert["state"], alert["source"]) for alert in await house.alerts()] == [("firing", "report")]
    await house.told("ACTIVE")
    await count_all(house)
    assert [(alert["state"], alert["resolved_reason"]) for alert in await house.alerts()] == [
        ("resolved", "account_known")
    ]
    assert (await house.kinds()).count("alert.resolved") == 1
    await settled(house)
    assert len(await house.alerts()) == 1, "and nothing fires again"
    assert await house.rows("SELECT * FROM accounts WHERE source = 'report'") == []


async def test_a_workflow_that_reports_paused_before_the_account_was_known_is_resumed(house: House) -> None:
    await paused_by_reports(house)
    assert (await house.workflow())["state"] == "paused"
    await house.told("ACTIVE", ago=20)
    await house.runtime.token_refreshes.keep([refresh(9, ago=10)])
    await evaluate(house.runtime)
    await settled(house)
    assert (await house.workflow())["state"] == "active"


async def test_what_reports_paused_stays_so_while_the_account_turns_out_to_be_broken(house: House) -> None:
    await paused_by_reports(house)
    await house.told("DISCONNECTED", ago=20)
    await settled(house)
    assert (await house.workflow())["state"] == "paused"
    standing = [alert for alert in await house.alerts() if alert["state"] == "firing"]
    assert [(alert["rule_id"], alert["source"]) for alert in standing] == [
        ("account-disconnected-active-workflow", "scalekit")
    ], "its workflow depends on the provider's account now"
    await house.told("ACTIVE")
    await settled(house)
    assert (await house.workflow())["state"] == "active"


async def test_a_manual_workflow_that_reports_paused_waits_for_a_person_all_the_same(house: House) -> None:
    await paused_by_reports(house, resume="manual")
    await house.told("ACTIVE", ago=20)
    await settled(house)
    assert (await house.workflow())["state"] == "paused"
    await house.resume()
    assert (await house.workflow())["state"] == "active"


async def test_what_was_reported_in_the_full_form_follows_too(house: House) -> None:
    await paused_by_reports(house, "scalekit:env_1:ca_1")
    await house.told("ACTIVE", ago=20)
    await settled(house)
    assert [alert["state"] for alert in await house.alerts()] == ["resolved"]
    assert (await house.workflow())["state"] == "active"


async def test_a_short_id_that_two_accounts_have_stays_the_reports_own(house: House) -> None:
    await paused_by_reports(house)
    await house.tell("ACTIVE", environment="env_1")
    await house.told("ACTIVE", environment="env_2")
    await count_all(house)
    assert [alert["state"] for alert in await house.alerts() if alert["source"] == "report"] == ["firing"]


async def test_nothing_waits_any_more_under_the_reports_name(database_url: str, tmp_path: Path) -> None:
    """A deadline of an account that is gone would be due for ever."""
    async with open_house(database_url, tmp_path / "waits", rules=ABSENCE) as house:
        await house.runtime.token_refreshes.keep([refresh(1, ago=60, outcome="error")])
        await evaluate(house.runtime)
        assert [row["source"] for row in await house.rows("SELECT source FROM armed")] == ["report"]
        await house.told("ACTIVE", ago=20)
        await count_all(house)
        for table in ("armed", "deadlines", "accounts"):
            assert await house.rows(f"SELECT * FROM {table} WHERE source = 'report'") == []


# ---- an account that nobody but reports tells of


async def test_what_its_reports_paused_goes_on_once_they_tell_of_a_refresh_that_succeeded(house: House) -> None:
    """Nobody ever says its status: it stayed paused until a person came, however well its vault was again."""
    await paused_by_reports(house)
    await settled(house)
    assert (await house.workflow())["state"] == "paused", "nothing has said that it works"
    await house.runtime.token_refreshes.keep([refresh(9, ago=1)])
    await evaluate(house.runtime)
    assert [(alert["state"], alert["resolved_reason"]) for alert in await house.alerts()] == [("resolved", "recovered")]
    await settled(house)
    assert (await house.workflow())["state"] == "active"
    assert (await house.kinds()).count("workflow.resumed") == 1


async def test_a_refresh_that_failed_since_keeps_it_paused(house: House) -> None:
    await paused_by_reports(house)
    await house.runtime.token_refreshes.keep([refresh(9, ago=10), refresh(10, ago=9, outcome="error")])
    await evaluate(house.runtime)
    await settled(house)
    assert [alert["state"] for alert in await house.alerts()] == ["resolved"]
    assert (await house.workflow())["state"] == "paused"


async def test_what_only_a_person_resumes_waits_for_one_there_too(house: House) -> None:
    await paused_by_reports(house, resume="manual")
    await house.runtime.token_refreshes.keep([refresh(9, ago=1)])
    await evaluate(house.runtime)
    await settled(house)
    assert (await house.workflow())["state"] == "paused"
    await act(house.runtime)
    assert "stays paused until somebody resumes it" in house.slack.text_of(house.slack.messages[0])


async def test_a_refresh_is_no_word_of_an_account_whose_provider_says_its_status(house: House) -> None:
    await house.put("w1", account_ids=["ca_1"])
    await house.told("DISCONNECTED", ago=90)
    await house.runtime.token_refreshes.keep([refresh(9, ago=5)])
    await evaluate(house.runtime)
    await settled(house)
    assert (await house.workflow())["state"] == "paused"


# ---- what is counted


async def test_a_refresh_that_the_report_told_first_and_the_provider_after_counts_once(house: House) -> None:
    await house.told("ACTIVE", ago=300)
    await house.runtime.token_refreshes.keep(
        [refresh(1, ago=95, outcome="error", provider=None), refresh(2, ago=200, provider=None)]
    )
    await count_all(house)
    await house.told("succeeded", ago=90)
    await count_all(house)
    for table in ("rollup_minutes", "rollup_hours"):
        rows = await counted(house, "ARRAY[sum(refreshes), sum(refreshes_succeeded)]", table)
        told = [value for (written, _), value in rows.items() if written and value != [None, None]]
        assert [sum(column) for column in zip(*told, strict=True)] == [2, 2], "the provider's word counts alone"
        sums = [value for (written, _), value in rows.items() if not written and value != [None, None]]
        assert [sum(column) for column in zip(*sums, strict=True)] == [2, 2]


async def test_a_report_that_was_not_counted_yet_when_the_provider_told_of_it_is_not_counted(house: House) -> None:
    await house.told("ACTIVE", ago=300)
    await house.runtime.token_refreshes.keep([refresh(1, ago=95, account_id="scalekit:env_1:ca_1", provider=None)])
    await house.told("succeeded", ago=90)
    await count_once(house.runtime, rollups.LOG)
    await count_all(house)
    rows = await counted(house, "sum(refreshes)")
    assert sum(value or 0 for (written, _), value in rows.items() if written) == 1


async def test_a_report_and_the_providers_word_that_were_committed_at_once_count_once(partitioned: House) -> None:
    """Neither saw the other: the report looked before the event was there, and the counting of the log before the report
    was."""
    house = partitioned
    await house.told("ACTIVE", ago=300)
    await house.told("succeeded", ago=90)
    await count_once(house.runtime, rollups.LOG)
    await house.runtime.token_refreshes.keep([refresh(1, ago=95, provider=None), refresh(2, ago=200, provider=None)])
    await house.run("UPDATE token_refreshes SET outweighed = false")  # as it looked to the report
    await count_all(house)
    rows = await counted(house, "sum(refreshes)")
    assert sum(value or 0 for (written, _), value in rows.items() if written) == 2
    assert sum(value or 0 for (written, _), value in rows.items() if not written) == 2
    kept = await house.rows("SELECT id, outweighed FROM token_refreshes ORDER BY id")
    assert [(row["id"], row["outweighed"]) for row in kept] == [("refresh_1", True), ("refresh_2", False)]


async def test_of_namesakes_a_report_that_could_mean_both_is_taken_back_by_neither(house: House) -> None:
    await house.tell("ACTIVE", ago=300, environment="env_1")
    await house.told("ACTIVE", ago=300, environment="env_2")
    await house.runtime.token_refreshes.keep([refresh(1, ago=95, provider=None)])
    await count_all(house)
    await house.told("succeeded", ago=90)
    await count_all(house)
    rows = await counted(house, "sum(refreshes)")
    assert sum(value or 0 for (written, _), value in rows.items() if written) == 2


async def test_a_write_that_is_pending_is_counted_as_partial(house: House) -> None:
    await house.runtime.tool_calls.keep(
        [
            call(1, operation="write", verification="pending"),
            call(2, operation="write", verification="pending", outcome="error", error_class="upstream_5xx"),
            call(3, operation="write", outcome="error", error_class="partial_execution"),
            call(4, operation="write"),
        ]
    )
    await count_all(house)
    assert (await counted(house, "ARRAY[sum(writes), sum(partials)]"))["ca_1", "jira"] == [4, 2]


# ---- times


async def test_a_time_before_all_others_is_not_believed_and_refuses_nothing(house: House) -> None:
    long_ago = TokenRefresh(
        id="r1", occurred_at=datetime(1, 1, 1, tzinfo=UTC), account_id="ca_1", outcome="success", duration_ms=5.0
    )
    counted_now = await house.runtime.token_refreshes.keep([long_ago])
    assert counted_now.accepted == 1


@pytest.mark.parametrize("outcome", ["success", "error"])
async def test_a_time_whose_offset_leads_out_of_the_calendar_is_not_believed_and_refuses_nothing(
    house: House, outcome: str
) -> None:
    first, last = timezone(timedelta(hours=23)), timezone(timedelta(hours=-23))
    for number, written in enumerate((datetime(1, 1, 1, tzinfo=first), datetime(9999, 12, 31, 23, tzinfo=last))):
        one = msgspec.structs.replace(call(number, outcome=outcome), occurred_at=written)
        assert (await house.runtime.tool_calls.keep([one])).accepted == 1
        other = msgspec.structs.replace(refresh(number, outcome=outcome), occurred_at=written)
        assert (await house.runtime.token_refreshes.keep([other])).accepted == 1
    for table in ("tool_calls", "token_refreshes"):
        rows = await house.rows(f"SELECT occurred_at = received_at AS moved, clock_suspect FROM {table}")
        assert [row["moved"] and row["clock_suspect"] for row in rows] == [True, True]


# ---- who calls seldom


async def rate(house: House) -> Any:
    await count_all(house)
    async with begin(house.runtime.engine) as conn:
        return await MEASURES["tool_call_success_rate"](Look(conn, house.runtime, await readers.clock(conn)))


async def test_an_account_that_calls_seldom_and_always_fails_has_a_rate(partitioned: House) -> None:
    """One call in ten minutes, each of them failed, for an hour: its rate is 0 and stays 0."""
    house = partitioned
    await house.runtime.tool_calls.keep(
        [call(n, account_id="ca_two", outcome="error", ago=60 + 600 * n) for n in (0, 1)]
    )
    assert await rate(house) == {}, "two calls are no rate"
    calls = [call(100 + n, account_id="ca_rare", outcome="error", ago=60.0 + 600 * n) for n in range(6)]
    await house.runtime.tool_calls.keep(calls)
    assert await rate(house) == {("report::ca_rare",): 0.0}


async def test_an_account_that_calls_seldom_and_whose_last_call_succeeded_has_none(partitioned: House) -> None:
    house = partitioned
    calls = [call(n, outcome="error", ago=660.0 + 600 * n) for n in range(5)]
    await house.runtime.tool_calls.keep([*calls, call(9, ago=400)])
    assert await rate(house) == {}


async def test_successes_before_the_last_calls_of_who_calls_seldom_hide_nothing(partitioned: House) -> None:
    house = partitioned
    before = [call(n, ago=2400.0 + 600 * n) for n in range(2)]
    await house.runtime.tool_calls.keep(
        [*before, *(call(9 + n, outcome="error", ago=60.0 + 600 * n) for n in range(3))]
    )
    assert await rate(house) == {("report::ca_1",): 0.0}


# ---- whose numbers they are


async def keys_of_series(house: House) -> set[tuple[str, str, str]]:
    rows = await house.rows(
        "SELECT DISTINCT source, environment_id, account_id FROM metric_series WHERE written LIKE '%ca_1'"
    )
    return {(row["source"], row["environment_id"], row["account_id"]) for row in rows}


async def test_what_was_counted_before_it_was_judged_belongs_to_its_account(partitioned: House) -> None:
    """The evaluator makes the account's row; where it is a few seconds behind, the log was counted first."""
    house = partitioned
    await house.tell("failed", ago=30)
    await count_all(house)
    assert await keys_of_series(house) == {("scalekit", "env_1", "ca_1")}
    await evaluate(house.runtime)
    await count_all(house)
    assert await keys_of_series(house) == {("scalekit", "env_1", "ca_1")}


async def test_what_was_reported_in_the_full_form_before_the_account_was_known_becomes_its_own(house: House) -> None:
    await house.runtime.tool_calls.keep([call(1, account_id="scalekit:env_1:ca_1")])
    await count_all(house)
    await house.told("ACTIVE")
    await count_all(house)
    assert await keys_of_series(house) == {("scalekit", "env_1", "ca_1")}
