"""Found by reading issue 5 against the code: who was not told, who was told of nothing, and what was counted wrongly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest

from service import steer
from service import tell as telling
from service.report import TokenRefresh
from service.store import notifications, readers
from service.store.session import begin
from tests.workers.house import House, open_house
from tests.workers.test_rollups import call, count_all, counted, refresh
from tests.workers.test_routing import acknowledge, breaks, heard, later, recovers, routed, silence
from workers.act import act
from workers.evaluate import evaluate
from workers.measure import MEASURES, Look

MUTED_AT_TEAM = {
    "receiver": "team",
    "routes": [
        {
            "matchers": ["alertname=~.+"],
            "receiver": "oncall",
            "mute_time_intervals": ["always"],
            "continue": True,
        },
        {"matchers": ["alertname=~.+"], "receiver": "team"},
    ],
}
ALWAYS = [{"name": "always", "time_intervals": [{"times": [{"start_time": "00:00", "end_time": "24:00"}]}]}]


def edits(house: House) -> int:
    return len(house.slack.calls["chat.update"])


# ---- a break that nobody hears of


async def test_a_group_whose_first_alerts_are_over_still_escalates(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 201 alerts, where the bound is as shipped: the first 200 are over, and the rest is never escalated or repeated."""
    monkeypatch.setattr(telling, "HEARD_MAX", 2)
    route = {"receiver": "team", "repeat_interval": "30m", "escalate": {"after": "10m", "to": "boss"}}
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1")
        await breaks(house, "ca_2")
        await breaks(house, "ca_3")
        await recovers(house, "ca_1")
        await recovers(house, "ca_2")
        await later(house, 601)
        await later(house, 6)
        assert len(heard(house, "boss")) == 1, "ca_3 still fires, and nobody has acknowledged it"
        await later(house, 1801)
        assert len(heard(house, "team")) == 2, "and it is repeated"


async def test_a_new_group_is_told_beside_one_with_more_alerts_than_are_read(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At MEMBERS_MAX as shipped: a group of 20,000 changes, and in the same look another connection breaks."""
    monkeypatch.setattr(telling, "MEMBERS_MAX", 2)
    async with routed(database_url, tmp_path, route={"receiver": "team"}) as house:
        await breaks(house, "ca_1", "ca_2", "ca_3")
        await house.put("w-other", account_ids=["ca_other"])
        await house.tell("ACTIVE", account="ca_1")
        await house.tell("DISCONNECTED", account="ca_other", connection="conn_2")
        await evaluate(house.runtime)
        await act(house.runtime)
        assert any("ca_other" in text for text in heard(house, "team"))


async def test_what_breaks_after_everybody_acknowledged_is_hidden_in_no_edit(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route={"receiver": "team"}) as house:
        await breaks(house, "ca_1")
        await acknowledge(house)
        await breaks(house, "ca_2")
        assert house.posts() == 2, "an edit of what somebody has taken in hand wakes nobody"


async def test_what_joins_an_acknowledged_message_still_escalates(database_url: str, tmp_path: Path) -> None:
    route = {"receiver": "team", "escalate": {"after": "40s", "to": "boss"}}
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1")
        await acknowledge(house)
        await later(house, 41)  # the step is due, all is acknowledged: no more escalation
        await breaks(house, "ca_2")  # within a minute of the first
        await later(house, 600)
        assert len(heard(house, "boss")) == 1, "nobody has acknowledged ca_2"


async def test_a_first_message_that_was_refused_is_said_again_once_the_channel_is_mended(
    database_url: str, tmp_path: Path
) -> None:
    async with routed(database_url, tmp_path, route={"receiver": "team", "repeat_interval": "30m"}) as house:
        channels = house.slack.channels
        house.slack.channels = {}
        await breaks(house, "ca_1")
        assert house.slack.messages == []
        house.slack.channels = channels
        for _ in range(5):
            await later(house, 1801)
        assert len(heard(house, "team")) == 1, "it still fires, and the repeat would have been the first to arrive"


async def test_what_still_stands_is_told_to_a_receiver_that_a_new_config_names(
    database_url: str, tmp_path: Path
) -> None:
    """Alertmanager tells it at its next flush. Here the notifier that had been told is gone, and no repeat goes out either."""
    async with routed(database_url, tmp_path, route={"receiver": "team", "repeat_interval": "30m"}) as house:
        await breaks(house, "ca_1")
    async with routed(database_url, tmp_path, route={"receiver": "oncall", "repeat_interval": "30m"}) as house:
        for _ in range(3):
            await later(house, 1801)
        assert len(heard(house, "oncall")) >= 1, "nobody is told of it any more"


# ---- messages of nothing


async def test_a_receiver_that_never_heard_of_it_is_not_told_that_it_is_over(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route={"receiver": "team"}) as house:
        await breaks(house, "ca_1")
    async with routed(database_url, tmp_path, route={"receiver": "oncall"}) as house:
        await recovers(house, "ca_1")
        assert heard(house, "oncall") == []


async def test_what_is_muted_for_one_is_not_edited_over_and_over_for_another(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route=MUTED_AT_TEAM, time_intervals=ALWAYS) as house:
        await breaks(house, "ca_1")
        before = edits(house)
        for _ in range(4):
            await later(house, 6)  # four looks at what is muted; nothing has changed
        assert edits(house) == before


# ---- a resolve that does not arrive


async def test_whoever_was_escalated_to_hears_the_resolve_after_many_repeats(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As shipped after 50 repeats: with 30 m that is a weekend."""
    monkeypatch.setattr(notifications, "POSTS_MAX", 3)
    route = {"receiver": "team", "repeat_interval": "30m", "escalate": {"after": "10m", "to": "boss"}}
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1")
        await later(house, 601)
        for _ in range(4):
            await later(house, 1801)
        await recovers(house, "ca_1")
        assert "Resolved" in heard(house, "boss")[0]


async def test_a_silence_that_is_over_hides_no_alert_that_somebody_resolved_meanwhile(
    database_url: str, tmp_path: Path
) -> None:
    """A guard: told to nobody, over for everybody."""
    async with routed(database_url, tmp_path, route={"receiver": "team"}) as house:
        await silence(house, "alertname=~.+", lasts=60)
        await breaks(house, "ca_1")
        await recovers(house, "ca_1")
        await later(house, 61)
        assert heard(house, "team") == []


# ---- counts


async def test_a_refresh_that_the_report_told_first_and_the_provider_after_counts_once(house: House) -> None:
    await house.told("ACTIVE", ago=300)
    await house.runtime.token_refreshes.keep([refresh(1, ago=95, outcome="error", provider=None)])
    await count_all(house)
    await house.told("succeeded", ago=90)
    await count_all(house)
    rows = await counted(house, "sum(refreshes)")
    assert sum(value or 0 for (written, _), value in rows.items() if written) == 1, "the provider's word counts alone"


async def test_what_was_reported_before_the_account_was_known_is_over_when_it_is_well(house: House) -> None:
    await house.put("w1", account_ids=["ca_1"])
    await house.runtime.token_refreshes.keep([refresh(n, ago=60.0 + n, outcome="error") for n in range(3)])
    await evaluate(house.runtime)
    assert [alert["state"] for alert in await house.alerts()] == ["firing"]
    await house.told("ACTIVE")
    await house.runtime.token_refreshes.keep([refresh(9)])
    await evaluate(house.runtime)
    assert [alert["state"] for alert in await house.alerts()] == ["resolved"]


async def test_a_time_before_all_others_is_not_believed_and_refuses_nothing(house: House) -> None:
    long_ago = TokenRefresh(
        id="r1", occurred_at=datetime(1, 1, 1, tzinfo=UTC), account_id="ca_1", outcome="success", duration_ms=5.0
    )
    counted_now = await house.runtime.token_refreshes.keep([long_ago])
    assert counted_now.accepted == 1


@pytest.fixture
async def partitioned(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "rare") as opened:
        await opened.run("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 1, 3)")
        yield opened


async def test_an_account_that_calls_seldom_and_always_fails_has_a_rate(partitioned: House) -> None:
    """One call in ten minutes, each of them failed, for an hour: its rate is 0 and stays 0, and no rule ever sees it."""
    house = partitioned
    calls = [call(n, account_id="ca_rare", outcome="error", ago=60.0 + 600 * n) for n in range(6)]
    await house.runtime.tool_calls.keep(calls)
    await count_all(house)
    async with begin(house.runtime.engine) as conn:
        read = await MEASURES["tool_call_success_rate"](Look(conn, house.runtime, await readers.clock(conn)))
    assert read, "an account whose every call fails"


# ---- routes that lead to the same notifier


async def test_a_route_that_is_muted_keeps_no_other_route_from_telling_the_same_notifier(
    database_url: str, tmp_path: Path
) -> None:
    """As in Alertmanager, where each route tells by itself: nights are quiet, and what is severe is told all the same."""
    route = {
        "receiver": "boss",
        "routes": [
            {
                "matchers": ["severity=~P1|P2|P3|P4"],
                "receiver": "team",
                "mute_time_intervals": ["always"],
                "continue": True,
            },
            {"matchers": ["severity=~P1|P2"], "receiver": "team"},
        ],
    }
    async with routed(database_url, tmp_path, route=route, time_intervals=ALWAYS) as house:
        await breaks(house, "ca_1")
        assert len(heard(house, "team")) == 1


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
    await evaluate(house.runtime)
    await count_all(house)
    assert await keys_of_series(house) == {("scalekit", "env_1", "ca_1")}


async def test_what_was_reported_in_the_full_form_before_the_account_was_known_becomes_its_own(house: House) -> None:
    await house.runtime.tool_calls.keep([call(1, account_id="scalekit:env_1:ca_1")])
    await count_all(house)
    await house.told("ACTIVE")
    await count_all(house)
    assert await keys_of_series(house) == {("scalekit", "env_1", "ca_1")}


async def test_a_workflow_that_reports_paused_before_the_account_was_known_is_resumed(house: House) -> None:
    await house.put("w1", account_ids=["ca_1"])
    await house.runtime.token_refreshes.keep([refresh(n, ago=60.0 + n, outcome="error") for n in range(3)])
    await evaluate(house.runtime)
    assert (await house.workflow())["state"] == "paused"
    await house.told("ACTIVE", ago=20)
    await house.runtime.token_refreshes.keep([refresh(9, ago=10)])
    await evaluate(house.runtime)
    await evaluate(house.runtime)
    assert (await house.workflow())["state"] == "active"


async def test_a_time_whose_offset_leads_out_of_the_calendar_is_not_believed_and_refuses_nothing(house: House) -> None:
    """It is answered 503 `store_refused` now, and so an agent sends it for ever."""
    first, last = timezone(timedelta(hours=23)), timezone(timedelta(hours=-23))
    for number, written in enumerate((datetime(1, 1, 1, tzinfo=first), datetime(9999, 12, 31, 23, tzinfo=last))):
        one = msgspec.structs.replace(call(number), occurred_at=written)
        assert (await house.runtime.tool_calls.keep([one])).accepted == 1


# ---- what is in hand


async def test_what_was_snoozed_while_it_was_muted_is_not_posted_before_the_snooze_ends(
    database_url: str, tmp_path: Path
) -> None:
    async with routed(database_url, tmp_path, route={"receiver": "team"}) as house:
        await silence(house, "alertname=~.+", lasts=60)
        await breaks(house, "ca_1")
        [alert] = await house.alerts()
        async with begin(house.runtime.engine) as conn:
            until = await readers.clock(conn) + timedelta(hours=2)
            await steer.snooze_alert(conn, str(alert["id"]), until, house.context)
        await later(house, 66)
        assert heard(house, "team") == []
        await later(house, 7200)
        assert len(heard(house, "team")) == 1


async def test_what_joins_a_message_of_alerts_that_are_all_silenced_by_now_is_hidden_in_no_edit(
    database_url: str, tmp_path: Path
) -> None:
    async with routed(database_url, tmp_path, route={"receiver": "team"}) as house:
        await breaks(house, "ca_1")
        await silence(house, "account_id=ca_1")
        await breaks(house, "ca_2")
        assert house.posts() == 2
