"""Who hears what, and when: issue 5 part 5, a test for each of its sentences, on a real database and a strict Slack."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service import rule_sets, silencing, steer
from service.event import new_id
from service.explain import explain_alert
from service.routing import grouping
from service.routing.matchers import read_matchers
from service.routing.mute import Silence
from service.routing.tree import everybody
from service.store import log, readers
from service.store.session import begin
from service.tell import tell
from tests.workers.house import House, open_house
from workers.act import act
from workers.evaluate import evaluate

CHANNELS = {"oncall": "C0ONCALL01", "team": "C0TEAM0001", "boss": "C0BOSS0001"}
NOTIFIERS = {
    name: {"kind": "slack", "token": "${SLACK_BOT_TOKEN}", "channel": channel, "api_url": "${SLACK_API_URL}"}
    for name, channel in CHANNELS.items()
}
DOWN, FAILING = "account-disconnected-active-workflow", "token-refresh-failing"


@asynccontextmanager
async def routed(database_url: str, folder: Path, **config: Any) -> AsyncIterator[House]:
    async with open_house(database_url, folder, config={"notifiers": NOTIFIERS, **config}) as house:
        house.slack.channels = {channel: name for name, channel in CHANNELS.items()}
        yield house


def heard(house: House, notifier: str) -> list[str]:
    """What stands in that channel now, oldest first."""
    return [
        house.slack.text_of(message) for message in house.slack.messages if message["channel"] == CHANNELS[notifier]
    ]


async def later(house: House, seconds: float) -> None:
    """As if so much time had passed since all that was decided, and what is due by then is done."""
    for table, columns in (
        (
            "notifications",
            (
                "opened_at",
                "joined_at",
                "flush_at",
                "first_post_at",
                "last_post_at",
                "repeat_at",
                "escalate_at",
                "due_at",
            ),
        ),
        ("notification_alerts", ("look_at",)),
        ("silences", ("start_at", "end_at")),
        ("alerts", ("snoozed_until",)),
    ):
        moved = ", ".join(f"{column} = {column} - interval '{seconds} seconds'" for column in columns)
        await house.run(f"UPDATE {table} SET {moved} WHERE true")
    await act(house.runtime)


async def silence(house: House, *matchers: str, lasts: float = 3600, **changes: Any) -> str:
    async with begin(house.runtime.engine) as conn:
        now = await readers.clock(conn)
        made = Silence(
            id=new_id(),
            matchers=read_matchers(list(matchers)),
            start=now,
            end=now + timedelta(seconds=lasts),
            author="ops",
            comment="known",
            created_at=now,
            **changes,
        )
        await log.append(conn, await silencing.create(conn, made, house.runtime.settings.routing, "ops"))
    return made.id


async def end(house: House, silence_id: str) -> None:
    async with begin(house.runtime.engine) as conn:
        _, decisions = await silencing.end(conn, silence_id, "ops", await readers.clock(conn))
        await log.append(conn, decisions)


async def acknowledge(house: House, number: int = 0) -> None:
    alerts = await house.alerts()
    async with begin(house.runtime.engine) as conn:
        await steer.acknowledge_alert(conn, str(alerts[number]["id"]), house.context)
    await act(house.runtime)


async def breaks(house: House, *accounts: str, connection: str = "conn_1") -> None:
    """A workflow depends on each, and it is disconnected; then everything that is due is done."""
    for account in accounts:
        await house.put(f"w-{account}", account_ids=[account])
        await house.tell("DISCONNECTED", account=account, connection=connection)
    await evaluate(house.runtime)
    await act(house.runtime)


async def recovers(house: House, account: str = "ca_1", connection: str = "conn_1") -> None:
    await house.told("ACTIVE", account=account, connection=connection)
    await act(house.runtime)


async def id_of(house: House, rule: str, account: str) -> str:
    [found] = [one for one in await house.alerts() if (one["rule_id"], one["account_id"]) == (rule, account)]
    return str(found["id"])


async def explained(house: House, rule: str, account: str) -> dict[str, Any]:
    alert_id = await id_of(house, rule, account)
    async with begin(house.runtime.engine) as conn:
        ruleset = await rule_sets.in_force(conn, house.runtime)
        return await explain_alert(conn, alert_id, ruleset, house.runtime.settings.routing)


# ---- storms


async def test_twenty_accounts_of_one_connection_within_a_minute_are_one_message_that_counts(house: House) -> None:
    for start in range(0, 20, 4):
        await breaks(house, *(f"ca_{number}" for number in range(start, start + 4)))
    assert (house.posts(), len(house.slack.messages)) == (1, 1)
    text = house.slack.text_of(house.slack.messages[0])
    assert "20 accounts of conn_1: Account is DISCONNECTED" in text
    assert "First " in text
    assert "last " in text
    assert "Of 20: 20 firing." in text
    assert "and 10 more" in text
    assert "w-ca_19" in text or "more workflows" in text
    for number in range(19):
        await house.tell("ACTIVE", account=f"ca_{number}")
    await house.work()
    assert "Of 20: 1 firing, 19 resolved." in house.slack.text_of(house.slack.messages[0])
    await recovers(house, "ca_19")
    assert house.posts() == 1
    assert "Resolved: 20 accounts of conn_1" in house.slack.text_of(house.slack.messages[0])


async def test_another_connection_in_the_same_minute_has_its_own_message(house: House) -> None:
    await breaks(house, "ca_1")
    await breaks(house, "ca_2", connection="conn_2")
    assert house.posts() == 2


async def test_what_breaks_after_the_storm_is_posted_at_once_and_hidden_in_no_edit(house: House) -> None:
    await breaks(house, "ca_1")
    await later(house, 61)
    await breaks(house, "ca_2")
    assert house.posts() == 2
    assert "ca_2" in house.slack.text_of(house.slack.messages[1])
    await recovers(house, "ca_1")
    assert house.posts() == 2
    assert "Resolved" in house.slack.text_of(house.slack.messages[0])
    assert "Resolved" not in house.slack.text_of(house.slack.messages[1])


async def test_a_storm_that_never_ends_is_said_anew_after_ten_minutes(house: House) -> None:
    await breaks(house, "ca_0")
    for number in range(1, 12):
        await later(house, 55)
        await breaks(house, f"ca_{number}")
    assert house.posts() == 2


async def test_growing_over_a_step_is_a_message_of_its_own(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "GROWTH_STEPS", (3, 100))
    await breaks(house, "ca_1", "ca_2")
    assert house.posts() == 1
    await breaks(house, "ca_3")
    await breaks(house, "ca_4")
    assert house.posts() == 2
    assert "Growing: 4 accounts of conn_1" in house.slack.text_of(house.slack.messages[1])


async def test_an_alert_that_closes_and_opens_again_is_said_again(house: House) -> None:
    await breaks(house, "ca_1")
    await recovers(house)
    await breaks(house, "ca_1")
    assert house.posts() == 2


async def test_a_drill_is_never_told_with_the_real(house: House) -> None:
    labels = {"rule_id": "r", "connection_id": "conn_1"}
    node = house.runtime.settings.routing.root
    keys = [grouping.group_of(node, "slack", labels | drill, "a")[0] for drill in ({}, {"drill": "true"})]
    assert keys[0] != keys[1]


# ---- the tree


async def test_without_a_route_every_notifier_hears_every_alert_at_once(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path) as house:
        await breaks(house, "ca_1")
        assert [len(heard(house, name)) for name in CHANNELS] == [1, 1, 1]
        await later(house, 100_000)
        assert house.posts() == 3, "and nothing is repeated"


TREE = {
    "receiver": "team",
    "routes": [
        {"matchers": [f"rule_id={DOWN}"], "receiver": "oncall", "continue": True},
        {"matchers": ["severity=P2"], "receiver": "team"},
    ],
}


async def test_the_tree_says_who_hears_and_continue_goes_on(database_url: str, tmp_path: Path) -> None:
    async with routed(database_url, tmp_path, route=TREE) as house:
        await breaks(house, "ca_1")
        assert [len(heard(house, name)) for name in CHANNELS] == [1, 1, 0]
        for ago in (3, 2, 1):
            await house.told("failed", account="ca_2", ago=ago)
        await act(house.runtime)
        assert [len(heard(house, name)) for name in CHANNELS] == [1, 2, 0]


async def test_group_wait_gathers_and_what_is_over_by_then_is_not_told(database_url: str, tmp_path: Path) -> None:
    route = {"receiver": "team", "group_wait": "30s"}
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1", "ca_2")
        await breaks(house, "ca_3")
        await breaks(house, "ca_4", connection="conn_2")
        assert house.posts() == 0
        await recovers(house, "ca_4", "conn_2")
        await later(house, 30)
        assert house.posts() == 1
        assert "3 accounts of conn_1" in heard(house, "team")[0]


async def test_group_interval_holds_back_what_joins_a_group_after_its_storm(database_url: str, tmp_path: Path) -> None:
    route = {"receiver": "team", "group_by": ["rule_id"], "group_interval": "5m"}
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1")
        await later(house, 100)
        await breaks(house, "ca_2")
        await breaks(house, "ca_3", connection="conn_2")
        assert house.posts() == 1
        await later(house, 150)
        assert house.posts() == 1
        await later(house, 51)
        assert house.posts() == 2
        assert "2 accounts" in heard(house, "team")[1]


# ---- repeats and escalation


async def test_it_is_repeated_every_repeat_interval_until_acknowledged(database_url: str, tmp_path: Path) -> None:
    route = {"receiver": "team", "repeat_interval": "30m"}
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1")
        await later(house, 1799)
        assert house.posts() == 1
        await later(house, 2)
        assert house.posts() == 2
        assert "Still firing" in heard(house, "team")[1]
        await later(house, 1801)
        assert house.posts() == 3
        await acknowledge(house)
        await later(house, 10_000)
        assert house.posts() == 3
        await recovers(house)
        assert all("Resolved" in text for text in heard(house, "team")), "every message of it says that it is over"
        assert house.posts() == 3


async def test_a_snooze_quiets_repeats_and_escalation_until_it_ends(database_url: str, tmp_path: Path) -> None:
    route = {"receiver": "team", "repeat_interval": "30m", "escalate": {"after": "10m", "to": "boss"}}
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1")
        [alert] = await house.alerts()
        async with begin(house.runtime.engine) as conn:
            until = await readers.clock(conn) + timedelta(hours=2)
            await steer.snooze_alert(conn, str(alert["id"]), until, house.context)
        await later(house, 3600)
        assert house.posts() == 1
        await later(house, 3601)
        assert [len(heard(house, name)) for name in CHANNELS] == [0, 2, 1]


async def test_it_escalates_once_nobody_has_acknowledged_it(database_url: str, tmp_path: Path) -> None:
    route = {
        "receiver": "team",
        "escalate": [{"after": "10m", "to": "oncall"}, {"after": "30m", "to": "boss", "unless": "acked"}],
    }
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1")
        await later(house, 599)
        assert [len(heard(house, name)) for name in CHANNELS] == [0, 1, 0]
        await later(house, 2)
        assert [len(heard(house, name)) for name in CHANNELS] == [1, 1, 0]
        assert "Escalated: " in heard(house, "oncall")[0]
        assert "Nobody has acknowledged it since" in heard(house, "oncall")[0]
        await later(house, 1200)
        assert [len(heard(house, name)) for name in CHANNELS] == [1, 1, 1]
        await recovers(house)
        assert all("Resolved" in heard(house, name)[0] for name in CHANNELS)
        assert house.posts() == 3


async def test_acknowledged_in_time_it_does_not_escalate(database_url: str, tmp_path: Path) -> None:
    route = {"receiver": "team", "escalate": {"after": "10m", "to": "boss"}}
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1")
        await acknowledge(house)
        await later(house, 3600)
        assert heard(house, "boss") == []


async def test_a_notifier_that_was_down_for_long_gets_one_message_and_no_repeats_of_it(
    database_url: str, tmp_path: Path
) -> None:
    route = {"receiver": "team", "repeat_interval": "10m"}
    async with routed(database_url, tmp_path, route=route) as house:
        house.slack.rate_limit_next(retry_after="1")
        await breaks(house, "ca_1")
        for _ in range(3):
            await later(house, 601)
        assert heard(house, "team") == []
        await house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")
        await act(house.runtime)
        assert len(heard(house, "team")) == 1


# ---- silences


async def test_a_silence_mutes_messages_not_pauses(house: House) -> None:
    await silence(house, f"rule_id={DOWN}")
    await breaks(house, "ca_1")
    assert house.posts() == 0
    assert (await house.workflow("w-ca_1"))["state"] == "paused"
    assert (await house.gate(workflow_id="w-ca_1")).reason == "workflow_paused"
    assert await house.kinds() == ["audit", "audit", "workflow.paused", "alert.firing"], "the SIEM hears all of it"


async def test_when_a_silence_ends_what_still_fires_is_told(house: House) -> None:
    silence_id = await silence(house, "connection_id=conn_1")
    await breaks(house, "ca_1", "ca_2")
    await recovers(house, "ca_2")
    await later(house, 6)
    assert house.posts() == 0
    await end(house, silence_id)
    await later(house, 6)
    assert house.posts() == 1
    assert "ca_1" in house.slack.text_of(house.slack.messages[0])


async def test_a_silence_that_runs_out_is_over_without_a_word_of_anybody(house: House) -> None:
    await silence(house, "severity=~P1|P2", lasts=300)
    await breaks(house, "ca_1")
    await later(house, 200)
    assert house.posts() == 0
    await later(house, 101)
    assert house.posts() == 1


async def test_a_resolve_goes_to_whoever_got_the_firing_silence_or_not(house: House) -> None:
    await breaks(house, "ca_1")
    await silence(house, "account_id=ca_1")
    await recovers(house)
    assert house.posts() == 1
    assert "Resolved" in house.slack.text_of(house.slack.messages[0])


async def test_what_was_silenced_from_begin_to_end_is_told_to_nobody(house: House) -> None:
    silence_id = await silence(house, "account_id=ca_1")
    await breaks(house, "ca_1")
    await recovers(house)
    await end(house, silence_id)
    await later(house, 6)
    assert house.posts() == 0
    assert "alert.resolved" in await house.kinds()


async def test_a_silence_keeps_repeats_quiet_and_they_go_on_after_it(database_url: str, tmp_path: Path) -> None:
    route = {"receiver": "team", "repeat_interval": "10m", "escalate": {"after": "15m", "to": "boss"}}
    async with routed(database_url, tmp_path, route=route) as house:
        await breaks(house, "ca_1")
        silence_id = await silence(house, "account_id=ca_1", lasts=100_000)
        await later(house, 601)
        await later(house, 601)
        assert house.posts() == 1
        await end(house, silence_id)
        await later(house, 601)
        assert [len(heard(house, name)) for name in CHANNELS] == [0, 2, 1]


async def test_a_silence_that_says_so_mutes_pauses_too_and_they_are_placed_when_it_ends(house: House) -> None:
    silence_id = await silence(house, "account_id=ca_1", mutes_pauses=True)
    await breaks(house, "ca_1", "ca_2")
    assert [(await house.workflow(f"w-ca_{number}"))["state"] for number in (1, 2)] == ["active", "paused"]
    assert (await house.put("w-ca_1", account_ids=["ca_1"]))["state"] == "active", "nor by a PUT"
    assert (await house.gate(account_id="ca_1")).reason == "account_disconnected", "the gate goes by the account"
    await end(house, silence_id)
    await evaluate(house.runtime)
    assert (await house.workflow("w-ca_1"))["state"] == "paused"


async def test_a_silence_that_mutes_pauses_runs_out_by_itself(house: House) -> None:
    await silence(house, "account_id=ca_1", mutes_pauses=True)
    await breaks(house, "ca_1")
    assert (await house.workflow("w-ca_1"))["state"] == "active"
    [due] = await house.rows("SELECT d.due_at = s.end_at AS then FROM deadlines d, silences s")
    assert due["then"], "its end is when the account is judged again"
    await house.run("UPDATE silences SET end_at = now()")
    await house.run("UPDATE deadlines SET due_at = now()")
    await evaluate(house.runtime)
    assert (await house.workflow("w-ca_1"))["state"] == "paused"


async def test_a_silence_resumes_nothing_that_is_paused(house: House) -> None:
    await breaks(house, "ca_1")
    await silence(house, "account_id=ca_1", mutes_pauses=True)
    await house.told("DELETED")
    assert (await house.workflow("w-ca_1"))["state"] == "paused"


def all_day_but(hour: int) -> list[dict[str, str]]:
    parts = [("00:00", f"{hour:02}:00"), (f"{hour + 1:02}:00" if hour < 23 else "24:00", "24:00")]
    return [{"start_time": start, "end_time": stop} for start, stop in parts if start != stop]


@pytest.mark.parametrize("runs", [True, False])
async def test_a_recurring_silence_of_the_config_file_mutes_in_its_time_intervals_only(
    database_url: str, tmp_path: Path, runs: bool
) -> None:
    times = [{"start_time": "00:00", "end_time": "24:00"}] if runs else all_day_but(datetime.now(UTC).hour)
    config = {
        "time_intervals": [{"name": "maintenance", "time_intervals": [{"times": times}]}],
        "silences": [
            {"matchers": ["account_id=ca_1"], "author": "ops", "comment": "nightly", "time_intervals": ["maintenance"]}
        ],
    }
    async with routed(database_url, tmp_path, **config) as house:
        await breaks(house, "ca_1")
        assert house.posts() == (0 if runs else 3)
        rows = await house.rows("SELECT author, declared FROM silences")
        assert [(row["author"], row["declared"]) for row in rows] == [("ops", True)]


async def test_a_silence_taken_out_of_the_config_file_is_over(database_url: str, tmp_path: Path) -> None:
    config = {"silences": [{"matchers": ["team=x"], "author": "ops", "comment": "c", "end": "2100-01-01T00:00:00Z"}]}
    async with routed(database_url, tmp_path / "one", **config) as house:
        await act(house.runtime)
        await act(house.runtime)
        assert len(await house.rows("SELECT 1 FROM silences WHERE end_at > now()")) == 1
    async with routed(database_url, tmp_path / "two") as house:
        await act(house.runtime)
        assert await house.rows("SELECT 1 FROM silences WHERE end_at > now()") == []


@pytest.mark.parametrize(("key", "muted"), [("mute_time_intervals", True), ("active_time_intervals", False)])
async def test_a_route_is_quiet_out_of_its_hours(database_url: str, tmp_path: Path, key: str, muted: bool) -> None:
    config = {
        "time_intervals": [{"name": "always", "time_intervals": [{"years": ["2000:3000"]}]}],
        "route": {"receiver": "team", "routes": [{"receiver": "oncall", key: ["always"]}]},
    }
    async with routed(database_url, tmp_path, **config) as house:
        await breaks(house, "ca_1")
        assert len(heard(house, "oncall")) == (0 if muted else 1)


# ---- inhibition


INHIBIT = [{"source_matchers": [f"rule_id={DOWN}"], "target_matchers": [f"rule_id={FAILING}"], "equal": ["account_id"]}]


async def failing(house: House, account: str, connection: str = "conn_1") -> None:
    for ago in (3, 2, 1):
        await house.told("failed", account=account, connection=connection, ago=ago)
    await act(house.runtime)


async def test_what_follows_from_an_alert_that_stands_is_not_told_while_it_stands(
    database_url: str, tmp_path: Path
) -> None:
    async with routed(database_url, tmp_path, route={"receiver": "team"}, inhibit_rules=INHIBIT) as house:
        await breaks(house, "ca_1")
        await failing(house, "ca_1")
        assert len(heard(house, "team")) == 1
        await failing(house, "ca_2", "conn_2")
        assert len(heard(house, "team")) == 2, "an account whose labels are not equal"
        down = next(alert for alert in await house.alerts() if alert["rule_id"] == DOWN)
        await house.resolve(str(down["id"]))
        await later(house, 6)
        assert len(heard(house, "team")) == 3, "once it no longer stands, what it kept quiet is told"


# ---- explain


async def test_explain_shows_route_silences_inhibitions_and_every_attempt(database_url: str, tmp_path: Path) -> None:
    route = {
        "receiver": "team",
        "routes": [{"matchers": [f"rule_id={FAILING}"], "receiver": "oncall", "continue": True}],
    }
    async with routed(database_url, tmp_path, route=route, inhibit_rules=INHIBIT) as house:
        house.slack.rate_limit_next(retry_after="0")
        await breaks(house, "ca_1", "ca_2")
        await house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")
        await act(house.runtime)
        silence_id = await silence(house, "account_id=ca_1")
        await failing(house, "ca_1")
        [first] = await house.rows("SELECT alert_id::text FROM notification_posts")
        other = "ca_2" if first["alert_id"] == await id_of(house, DOWN, "ca_1") else "ca_1"
        told = await explained(house, DOWN, other)
        routing = told["routing"]
        assert routing["labels"]["account_id"] == other
        assert [(one["route"], one["receiver"]) for one in routing["routes"]] == [("route", "team")]
        [team] = routing["told"]
        assert (team["notifier"], team["state"], team["alerts_in_message"]) == ("team", "told", 2)
        assert [(one["kind"], one["arrived"]) for one in team["messages"]] == [("first", True)]
        [action] = told["actions"]
        assert [attempt["outcome"] for attempt in action["attempts"]] == ["retry", "done"], "of its group's message"
        assert told["timings"]["message_at"] is not None
        quiet = (await explained(house, FAILING, "ca_1"))["routing"]
        assert [one["id"] for one in quiet["silences"]] == [silence_id]
        assert quiet["silences"][0]["mutes_now"]
        down = await id_of(house, DOWN, "ca_1")
        assert quiet["inhibited_by"] == [down]
        assert quiet["told"][0]["state"] == "muted by silences and inhibited by"
        assert quiet["told"][0]["muted_by"] == {"silences": [silence_id], "inhibited_by": [down]}
        assert [one["route"] for one in quiet["routes"]] == ["route.routes.0"]


# ---- crashes and upgrades


async def test_a_message_of_before_there_were_groups_is_edited_and_not_posted_again(house: House) -> None:
    await breaks(house, "ca_1")
    await house.run("TRUNCATE notifications, notification_alerts, notification_posts, alert_news, actions, attempts")
    await recovers(house)
    assert house.posts() == 1
    assert "Resolved" in house.slack.text_of(house.slack.messages[0])


async def test_what_was_decided_and_not_done_is_done_once_by_the_next_worker(house: House) -> None:
    await house.put("w1", account_ids=["ca_1"])
    await house.told("DISCONNECTED")
    async with begin(house.runtime.engine) as conn:
        assert await tell(conn, house.runtime.settings.routing, await readers.clock(conn))
        await conn.rollback()  # killed before its commit
    assert await house.rows("SELECT 1 FROM notifications") == []
    await act(house.runtime)
    await act(house.runtime)
    assert house.posts() == 1


def test_what_is_more_severe_than_its_group_is_posted_at_once() -> None:
    now = datetime(2026, 11, 26, tzinfo=UTC)
    values: Mapping[str, Any] = {
        "id": "n",
        "route": "route",
        "receiver": "r",
        "destination": "d",
        "group_key": "k",
        "group_labels": {},
        "severity": "P2",
        "members": 1,
        "opened_at": now,
        "joined_at": now,
    }
    one = grouping.Notification(**values)
    out = replace(one, last_post_at=now, first_post_at=now)
    root = everybody(["slack"]).root
    assert grouping.place(root, [out], "P1", now) == now, "what is worse than anything told is never only an edit"
    assert grouping.place(root, [out], "P3", now) == out
