"""Found by reading issue 5 against the code: who was not told of what stands, and who was told of nothing."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from service import own_alerts, steer
from service import tell as telling
from service.own_alerts import OwnAlert
from service.routing.elsewhere import NOTIFIER_STALLED
from service.store import decisions, readers
from service.store.session import begin
from tests.workers.house import House
from tests.workers.refusing import mended
from tests.workers.test_drill import FAILING
from tests.workers.test_drill import start as start_drill
from tests.workers.test_routing import DOWN, acknowledge, breaks, explained, heard, later, recovers, routed, silence
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
        await mended(house)
        assert len(heard(house, "team")) == 1, "it still fires, and nobody waits for the repeat to hear of it"
        await later(house, 1801)
        assert len(heard(house, "team")) == 2, "and from then on it is repeated"


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
    monkeypatch.setattr(decisions, "POSTS_MAX", 3)
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


async def test_what_was_acknowledged_while_its_group_waited_is_told_to_nobody(
    database_url: str, tmp_path: Path
) -> None:
    async with routed(database_url, tmp_path, route={"receiver": "team", "group_wait": "30s"}) as house:
        await breaks(house, "ca_1")
        await acknowledge(house)
        await later(house, 30)
        assert heard(house, "team") == []
        await recovers(house, "ca_1")
        assert heard(house, "team") == []


# ---- large groups


async def test_a_group_of_more_than_are_read_is_told_whole_and_so_is_the_one_behind_it(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "MEMBERS_MAX", 2)
    async with routed(database_url, tmp_path, route={"receiver": "team", "group_wait": "30s"}) as house:
        await breaks(house, "ca_1", "ca_2", "ca_3")
        await breaks(house, "ca_4", connection="conn_2")
        await later(house, 30)
        told = heard(house, "team")
        assert len(told) == 2
        assert any("3 accounts of conn_1" in text for text in told)
        [members] = await house.rows("SELECT max(members) AS most FROM notifications")
        assert members["most"] == 3


async def test_muted_alerts_before_it_hide_none_that_is_to_be_escalated(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "HEARD_MAX", 1)
    route = {"receiver": "team", "escalate": {"after": "10m", "to": "boss"}}
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1", "ca_2", "ca_3")
        await silence(house, "account_id=~ca_1|ca_2")
        await later(house, 601)
        assert len(heard(house, "boss")) == 1


# ---- a notifier that refuses


async def lags(house: House) -> dict[tuple[str, ...], float]:
    async with begin(house.runtime.engine) as conn:
        read = await MEASURES["notifier_lag_seconds"](Look(conn, house.runtime, await readers.clock(conn)))
    return dict(read or {})


async def test_of_a_notifier_that_takes_nothing_another_alert_tells_and_not_its_lag(
    database_url: str, tmp_path: Path
) -> None:
    """Two alerts about one broken channel are one too many at night: tests/workers/test_refusals.py has the other."""
    async with routed(database_url, tmp_path) as house:
        channels = house.slack.channels
        house.slack.channels = {channel: name for channel, name in channels.items() if name != "team"}
        await breaks(house, "ca_1")
        assert [len(heard(house, name)) for name in ("oncall", "team", "boss")] == [1, 0, 1]
        await house.run("UPDATE notification_posts SET at = at - interval '61 seconds'")
        await house.run("UPDATE actions SET created_at = created_at - interval '61 seconds'")
        assert (await lags(house))["team",] == 0
        house.slack.channels = channels
        await mended(house)
        await later(house, 10_000)
        told = [sum("DISCONNECTED" in said for said in heard(house, name)) for name in ("oncall", "team", "boss")]
        assert told == [1, 1, 1]
        assert (await lags(house))["team",] == 0


async def test_a_message_refused_for_itself_counts_as_waiting_and_is_tried_again_though_nothing_is_repeated(
    database_url: str, tmp_path: Path
) -> None:
    async with routed(database_url, tmp_path, route={"receiver": "team"}) as house:
        house.slack.refuse_next("msg_too_long")
        await breaks(house, "ca_1")
        await house.run("UPDATE notification_posts SET at = at - interval '61 seconds'")
        assert (await lags(house))["team",] > 60
        await later(house, 601)
        assert len(heard(house, "team")) == 1
        assert (await lags(house))["team",] == 0


async def test_who_never_heard_of_it_because_the_message_was_refused_is_not_told_that_it_is_over(
    database_url: str, tmp_path: Path
) -> None:
    async with routed(database_url, tmp_path, route={"receiver": "team"}) as house:
        channels = house.slack.channels
        house.slack.channels = {}
        await breaks(house, "ca_1")
        house.slack.channels = channels
        await recovers(house, "ca_1")
        await mended(house)
        assert heard(house, "team") == []


# ---- storms that heal


async def test_a_storm_that_heals_between_its_breaks_is_one_message_that_counts(house: House) -> None:
    for number in range(6):
        await breaks(house, f"ca_{number}")
        await recovers(house, f"ca_{number}")
    assert house.posts() == 1
    assert "Resolved: 6 accounts of conn_1" in house.slack.text_of(house.slack.messages[0])
    await later(house, 61)
    await breaks(house, "ca_9")
    assert house.posts() == 2, "a storm that is over takes in nothing more"


async def test_what_still_fires_after_a_storm_that_healed_is_said_within_thirty_seconds(
    database_url: str, tmp_path: Path
) -> None:
    route = {"receiver": "team", "escalate": {"after": "10m", "to": "boss"}}
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1")
        await recovers(house, "ca_1")
        await breaks(house, "ca_2")
        assert house.posts() == 1
        await later(house, 26)
        assert house.posts() == 2
        await later(house, 601)
        assert len(heard(house, "boss")) == 1


# ---- routes that change


async def test_a_start_that_names_nobody_new_tells_nobody_anything(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route={"receiver": "team"}) as house:
        await breaks(house, "ca_1")
    async with routed(database_url, tmp_path, route={"receiver": "team"}) as house:
        await act(house.runtime)
        assert (house.posts(), edits(house)) == (0, 0)


async def test_a_drill_keeps_nothing_real_quiet_and_explain_does_not_say_that_it_does(
    database_url: str, tmp_path: Path
) -> None:
    rule = {"source_matchers": [f"rule_id={FAILING}"], "target_matchers": [f"rule_id={DOWN}"]}
    async with routed(database_url, tmp_path, route={"receiver": "team"}, inhibit_rules=[rule]) as house:
        await house.told("ACTIVE", ago=60)
        await start_drill(house, account="ca_1")
        await act(house.runtime)
        await breaks(house, "ca_1")
        assert len(heard(house, "team")) == 2
        assert (await explained(house, DOWN, "ca_1"))["routing"]["inhibited_by"] == []


async def test_a_notifier_that_is_stuck_is_told_of_elsewhere(database_url: str, tmp_path: Path) -> None:
    """The routes lead only to the one that takes nothing: it was the only one to be told of it."""
    async with routed(database_url, tmp_path, route={"receiver": "team"}) as house:
        async with begin(house.runtime.engine) as conn:
            now = await readers.clock(conn)
            own = OwnAlert(rule_id=NOTIFIER_STALLED, about="team", summary="Messages to team wait", what_to_do="Look")
            await own_alerts.open_own(conn, [own], now=now, notifiers=[])
        await house.run('UPDATE alerts SET "group" = \'{"notifier": "team"}\'')  # as the gauge names it
        await act(house.runtime)
        assert [len(heard(house, name)) for name in ("oncall", "team", "boss")] == [1, 1, 1]
