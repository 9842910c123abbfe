"""A notifier that refuses everything: it is left alone, others are told, and once it is mended it hears what is true then."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service import health
from service.exposition import how_we_are
from service.refusing import Refusing
from service.store import readers, refusals
from service.store.refusals import Refused
from service.store.session import begin
from tests.workers.house import House
from tests.workers.refusing import mended, minutes_later
from tests.workers.test_routing import CHANNELS, acknowledge, breaks, heard, later, recovers, routed
from workers import outcomes
from workers.act import act
from workers.refusals import keep_refusals

TEAM = {"receiver": "team"}


def close(house: House, *names: str) -> None:
    """These channels are gone."""
    house.slack.channels = {channel: name for channel, name in house.slack.channels.items() if name not in names}


def reopen(house: House) -> None:
    house.slack.channels = {channel: name for name, channel in CHANNELS.items()}


def tried(house: House, name: str) -> int:
    """Posts and edits sent to that channel, taken or not."""
    calls = house.slack.calls["chat.postMessage"] + house.slack.calls["chat.update"]
    return sum(call["channel"] == CHANNELS[name] for call in calls)


async def told_of(house: House) -> list[tuple[str, str]]:
    rows = await house.rows(
        "SELECT group_key, state FROM alerts WHERE rule_id = 'notifier-refused' ORDER BY fired_at, id"
    )
    return [(row["group_key"], row["state"]) for row in rows]


async def report(house: House) -> dict[str, Any]:
    async with begin(house.runtime.engine) as conn:
        return await health.report(conn, [], list(house.runtime.notifiers))


# ---- what went wrong before


async def test_an_edit_that_was_refused_is_told_once_the_token_is_well_again(house: House) -> None:
    """The alert was over, and its message stayed red for ever."""
    await breaks(house, "ca_1")
    token, house.slack.token = house.slack.token, "xoxb-another-token-000"
    await recovers(house)
    house.slack.token = token
    await mended(house)
    [message] = house.slack.messages
    assert "Resolved" in house.slack.text_of(message)


async def test_what_breaks_while_nothing_is_taken_is_not_tried_one_by_one(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route=TEAM) as house:
        close(house, "team")
        for number in range(6):
            await breaks(house, f"ca_{number}", connection=f"conn_{number}")
        assert tried(house, "team") == 1
        states = {row["state"] for row in await house.rows("SELECT state FROM actions WHERE kind = 'notify'")}
        assert states == {"pending"}, "they wait"


# ---- who is told


async def test_others_are_told_at_once_with_the_mend_and_when_it_is_over(database_url: str, tmp_path: Path) -> None:
    """No route leads to them: `team` is the only receiver."""
    async with routed(database_url, tmp_path, route=TEAM) as house:
        close(house, "team")
        await breaks(house, "ca_1")
        await keep_refusals(house.runtime)
        await act(house.runtime)
        assert [len(heard(house, name)) for name in ("oncall", "team", "boss")] == [1, 0, 1]
        [said] = heard(house, "oncall")
        assert 'The notifier "team" takes no message' in said
        assert "channel_not_found" in said
        assert "invite the bot" in said
        reopen(house)
        await mended(house)
        assert await told_of(house) == [("team", "resolved")]
        assert "Resolved" in heard(house, "oncall")[0]
        [mine] = heard(house, "team")
        assert "notifier-refused" not in mine, "nobody is told of his own silence"
        assert "DISCONNECTED" in mine


async def test_a_route_that_leads_to_somebody_who_hears_is_followed(database_url: str, tmp_path: Path) -> None:
    routes = [{"matchers": ["alertname=notifier-refused"], "receiver": "boss"}]
    async with routed(database_url, tmp_path, route=TEAM | {"routes": routes}) as house:
        close(house, "team")
        await breaks(house, "ca_1")
        await keep_refusals(house.runtime)
        await act(house.runtime)
        assert [len(heard(house, name)) for name in ("oncall", "team", "boss")] == [0, 0, 1]


async def test_where_nobody_is_left_to_be_told_the_heartbeat_stops_and_who_hears_first_is_told(
    database_url: str, tmp_path: Path
) -> None:
    async with routed(database_url, tmp_path) as house:
        close(house, *CHANNELS)
        await breaks(house, "ca_1")
        for _ in range(3):
            await keep_refusals(house.runtime)
            await act(house.runtime)
        assert house.slack.messages == []
        assert sorted(name for name, _ in await told_of(house)) == sorted(CHANNELS)
        said = await report(house)
        assert "notifiers" in said["behind"]
        assert said["current"] is False
        house.slack.channels = {CHANNELS["boss"]: "boss"}
        await mended(house)
        assert sorted(await told_of(house)) == [("boss", "resolved"), ("oncall", "firing"), ("team", "firing")]
        texts = "\n".join(heard(house, "boss"))
        assert 'notifier "oncall" takes no message' in texts
        assert 'notifier "team" takes no message' in texts


async def test_health_and_metrics_show_it(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route=TEAM) as house:
        assert (await report(house))["notifiers"] == {}
        close(house, "team")
        await breaks(house, "ca_1", "ca_2")
        await breaks(house, "ca_3", connection="conn_2")
        said = await report(house)
        shown = said["notifiers"]["team"]
        assert (shown["state"], shown["code"], shown["waiting"]) == ("refusing", "channel_not_found", 2)
        assert "invite the bot" in shown["error"]
        assert (said["stranded"], said["actions"]["lag_items"]) == (2, 0)
        assert said["status"] == "degraded"
        assert "notifiers" not in said["behind"], "others can be told"
        async with begin(house.runtime.engine) as conn:
            [family] = [one for one in await how_we_are(conn, []) if one.name == "authwatch_notifier_refusing_messages"]
        assert [(sample.labels, sample.value) for sample in family.samples] == [({"notifier": "team"}, 2)]


async def test_what_a_person_closed_is_not_said_again_for_as_long_as_it_refuses(
    database_url: str, tmp_path: Path
) -> None:
    async with routed(database_url, tmp_path, route=TEAM) as house:
        close(house, "team")
        await breaks(house, "ca_1")
        await keep_refusals(house.runtime)
        [alert] = [one for one in await house.alerts() if one["rule_id"] == "notifier-refused"]
        await house.resolve(str(alert["id"]))
        await minutes_later(house)
        await minutes_later(house)
        assert await told_of(house) == [("team", "resolved")]
        reopen(house)
        await mended(house)
        close(house, "team")
        await breaks(house, "ca_9", connection="conn_9")
        await keep_refusals(house.runtime)
        assert await told_of(house) == [("team", "resolved"), ("team", "firing")]


# ---- mended


async def test_one_is_tried_now_and_then_and_when_it_is_taken_all_follow_as_they_stand(
    database_url: str, tmp_path: Path
) -> None:
    async with routed(database_url, tmp_path, route=TEAM) as house:
        close(house, "team")
        for number in range(4):
            await breaks(house, f"ca_{number}", connection=f"conn_{number}")
        await recovers(house, "ca_3", connection="conn_3")
        await acknowledge(house, 1)
        for _ in range(3):
            await minutes_later(house)
        assert tried(house, "team") == 1 + 3
        reopen(house)
        await mended(house)
        texts = heard(house, "team")
        assert len(texts) == 3, "what was over before anybody there heard of it is not told"
        assert sum("Acknowledged by" in text for text in texts) == 1
        assert (await report(house))["notifiers"] == {}
        before = tried(house, "team")
        await breaks(house, "ca_9", connection="conn_9")
        assert tried(house, "team") == before + 1, "and what comes next is told at once"


async def test_a_start_may_be_what_mended_it(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route=TEAM) as house:
        close(house, "team")
        await breaks(house, "ca_1")
    async with routed(database_url, tmp_path, route=TEAM) as house:
        await house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")
        await act(house.runtime)
        assert len(heard(house, "team")) == 1


async def test_another_process_leaves_it_alone_too(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route=TEAM) as house:
        close(house, "team")
        await breaks(house, "ca_1")
        (tmp_path / "other").mkdir()
        async with routed(database_url, tmp_path / "other", route=TEAM) as other:
            close(other, "team")
            await keep_refusals(other.runtime)
            await breaks(other, "ca_2", connection="conn_2")
            assert tried(other, "team") == 0


async def test_what_no_config_names_any_more_is_said_no_longer(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route=TEAM) as house:
        close(house, "team")
        await breaks(house, "ca_1")
        await keep_refusals(house.runtime)
        del house.runtime.notifiers["team"]
        await keep_refusals(house.runtime)
        assert await told_of(house) == [("team", "resolved")]
        assert (await report(house))["notifiers"] == {}
        await house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")
        await act(house.runtime)
        rows = await house.rows("SELECT state, last_code FROM actions WHERE destination = 'team'")
        assert [(row["state"], row["last_code"]) for row in rows] == [("failed", "destination_unknown")]


async def test_what_waits_longer_than_a_day_is_given_up(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with routed(database_url, tmp_path, route=TEAM) as house:
        close(house, "team")
        await breaks(house, "ca_1")
        monkeypatch.setattr(outcomes, "GIVE_UP_AFTER", timedelta(0))
        await minutes_later(house)
        states = [row["state"] for row in await house.rows("SELECT state FROM actions WHERE destination = 'team'")]
        assert "failed" in states
        [row] = await house.rows("SELECT taken_at FROM notifier_refusals")
        assert row["taken_at"] is None, "and the destination refuses all the same"


# ---- what is of one message, or of a former channel


async def test_a_message_that_is_refused_for_itself_stops_nobody(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route=TEAM) as house:
        house.slack.refuse_next("msg_too_long")
        await breaks(house, "ca_1")
        assert (await report(house))["notifiers"] == {}
        await breaks(house, "ca_2", connection="conn_2")
        assert len(heard(house, "team")) == 1


async def test_an_old_message_in_a_channel_that_was_left_stops_nobody(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route=TEAM) as house:
        await breaks(house, "ca_1")
        await house.run("UPDATE messages SET channel = 'C0FORMER001', posted_at = posted_at - interval '1 hour'")
        await breaks(house, "ca_2", connection="conn_2")
        await recovers(house, "ca_1")
        assert (await report(house))["notifiers"] == {}
        [row] = await house.rows("SELECT last_code FROM actions WHERE state = 'failed'")
        assert row["last_code"] == "channel_left"


async def test_a_success_that_was_under_way_before_the_refusal_ends_it_not(house: House) -> None:
    await breaks(house, "ca_1")
    [action] = await house.rows("SELECT id::text AS id, destination FROM actions WHERE kind = 'notify'")
    refused = Refused(destination=action["destination"], code="gone", detail="", probe_after=timedelta(hours=1))
    async with begin(house.runtime.engine) as conn:
        await refusals.refuse(conn, [refused])
        assert await refusals.take(conn, [action["id"]]) == set()
        assert len(await refusals.standing(conn)) == 1


async def test_what_waited_is_what_was_decided_before_it_ended(house: House) -> None:
    refused = Refused(destination="slack", code="gone", detail="", probe_after=timedelta(hours=1))
    async with begin(house.runtime.engine) as conn:
        await refusals.refuse(conn, [refused])
        rows, now = await refusals.look(conn, (), "r", again=timedelta(seconds=1)), await readers.clock(conn)
    memory = Refusing()
    memory.learn(rows)
    assert memory.room("slack", 7) == 0
    assert memory.room("other", 7) == 7
    assert memory.waited("slack", now)
    memory.taken("slack")
    assert memory.room("slack", 7) == 7
    assert memory.waited("slack", now)
    assert not memory.waited("slack", now + timedelta(minutes=1))


def test_a_refusal_is_not_forgotten_by_rows_that_were_read_before_it_was_written() -> None:
    memory = Refusing()
    memory.refused("slack")
    memory.learn([])
    assert memory.room("slack", 7) == 0
    for _ in range(5):
        memory.learn([])
    assert memory.room("slack", 7) == 7, "nor kept for ever where it was not written"


async def test_a_house_in_which_all_is_well_is_asked_for_little(house: House) -> None:
    await later(house, 1)
    await keep_refusals(house.runtime)
    assert house.runtime.refusing.standing == frozenset()
    assert await house.rows("SELECT * FROM alerts") == []
