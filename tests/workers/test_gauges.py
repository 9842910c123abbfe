"""Gauges on a real database: said within one look, taken back by the next that is well, once for however many look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service import rule_sets
from service.store import pollers, readers, tokens
from service.store.session import begin
from tests.conftest import SECRET
from tests.end_to_end.running import until
from tests.fakes.hec import Scripted
from tests.make import make_receipt
from tests.workers.house import House, open_house
from workers import measure
from workers.act import act
from workers.evaluate import evaluate
from workers.gauges import look_at_gauges
from workers.rules import keep_rules
from workers.ship import ship
from workers.sweep import Sweep, sweep
from workers.watch import Watch, watch

SHIPPED = Path(__file__).resolve().parents[2] / "alert_rules"
Opens = Callable[..., AbstractAsyncContextManager[House]]


def shipped(*names: str) -> str:
    """These shipped files as one."""
    files = [(SHIPPED / f"{name}.yml").read_text().split("rules:\n", 1)[1] for name in names]
    return "version: 1\nrules:\n" + "".join(files)


def gauge(metric: str, bound: str, *more: str, rule_id: str = "mine", severity: str = "P3") -> str:
    lines = [f"- id: {rule_id}", f"  severity: {severity}", f"  gauge: {{metric: {metric}, {bound}}}"]
    lines += [f"  {line}" for line in more]
    lines.append('  annotations: {summary: "{{ group }} reads {{ value }}", what_to_do: "Look at {{ group }}"}')
    return "version: 1\nrules:\n" + "\n".join(lines) + "\n"


@pytest.fixture
def opens(database_url: str, tmp_path: Path) -> Opens:
    @asynccontextmanager
    async def opened(rules: str) -> AsyncIterator[House]:
        async with open_house(
            database_url, tmp_path / "house", rules=rules, variables={"SCALEKIT_WEBHOOK_SECRET": SECRET}
        ) as house:
            yield house

    return opened


async def change_rules(house: House, rules: str) -> None:
    (house.runtime.settings.rules_folder / "rules.yml").write_text(rules)
    version = house.runtime.rules.version

    async def published() -> bool:
        house.runtime.rules.reload()
        await keep_rules(house.runtime)
        async with begin(house.runtime.engine) as conn:
            return (await rule_sets.in_force(conn, house.runtime)).version != version

    await until(published, 10)


async def waits(house: House, seconds: float) -> None:
    """The log's rows were received so long ago, by the database's clock."""
    await house.run(f"UPDATE events SET received_at = clock_timestamp() - interval '{seconds} seconds'")


async def look(house: House) -> list[dict[str, Any]]:
    await look_at_gauges(house.runtime)
    return [dict(row) for row in await house.alerts()]


def states(alerts: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(alert["rule_id"], alert["group_key"], alert["state"]) for alert in alerts]


STALL = gauge("evaluator_lag_seconds", "gt: 10")


async def test_a_stalled_evaluator_is_said_by_the_sweep_and_over_once_it_has_caught_up(opens: Opens) -> None:
    async with opens(shipped("own-stalls").replace("  for: 5s", "  for: 0s")) as house:
        await house.tell("failed")
        await sweep(house.runtime, Sweep())
        assert await house.alerts() == [], "nothing waits for long yet"
        await waits(house, 12)
        await sweep(house.runtime, Sweep())
        (alert,) = await house.alerts()
        assert (alert["rule_id"], alert["severity"], alert["state"]) == ("evaluator-stalled", "P1", "firing")
        assert f"wait for {alert['value']:.0f} s" in alert["summary"]
        assert alert["what_to_do"]
        assert alert["rule_version"]
        assert alert["value"] >= 12
        assert await house.kinds() == ["alert.firing"]
        await act(house.runtime)
        assert house.posts() == 1
        await evaluate(house.runtime)
        await sweep(house.runtime, Sweep())
        (alert,) = await house.alerts()
        assert (alert["state"], alert["resolved_reason"]) == ("resolved", "recovered")
        assert alert["condition_ended_at"] is not None
        assert await house.kinds() == ["alert.firing", "alert.resolved"]
        await act(house.runtime)
        assert len(house.slack.calls["chat.update"]) == 1


async def test_hysteresis(opens: Opens) -> None:
    async with opens(gauge("evaluator_lag_seconds", "gt: 100", "resolve: {lt: 50}")) as house:
        await house.tell("failed")
        for seconds, expected in ((70, []), (101, ["firing"]), (70, ["firing"]), (40, ["resolved"])):
            await waits(house, seconds)
            assert [alert["state"] for alert in await look(house)] == expected
        await waits(house, 70)
        assert [alert["state"] for alert in await look(house)] == ["resolved"]
        await waits(house, 101)
        assert [(a["state"], a["episode"]) for a in await look(house)] == [("resolved", 1), ("firing", 2)]
        assert len({alert["dedup_key"] for alert in await house.alerts()}) == 2


async def test_for_goes_on_over_a_restart_and_begins_anew_after_a_good_reading(opens: Opens) -> None:
    rules = gauge("evaluator_lag_seconds", "gt: 10", "for: 5m")
    async with opens(rules) as house:
        await house.tell("failed")
        await waits(house, 12)
        assert await look(house) == []
        await house.run("UPDATE gauge_states SET pending_since = pending_since - interval '4 minutes'")
        assert await look(house) == []
    async with opens(rules) as house:
        await house.run("UPDATE gauge_states SET pending_since = pending_since - interval '1 minute'")
        (alert,) = await look(house)
        assert alert["state"] == "firing"
        assert alert["opened_at"] <= alert["fired_at"]
        await evaluate(house.runtime)
        await look(house)
        await house.tell("failed")
        await waits(house, 12)
        assert states(await look(house)) == [("mine", "", "resolved")]
        (row,) = await house.rows(
            "SELECT clock_timestamp() - pending_since < interval '1 minute' AS anew FROM gauge_states"
        )
        assert row["anew"]


async def test_keep_firing_for_goes_on_over_a_restart(opens: Opens) -> None:
    rules = gauge("evaluator_lag_seconds", "gt: 10", "keep_firing_for: 5m")
    async with opens(rules) as house:
        await house.tell("failed")
        await waits(house, 12)
        await look(house)
        await evaluate(house.runtime)
        assert states(await look(house)) == [("mine", "", "firing")]
    async with opens(rules) as house:
        await house.run("UPDATE gauge_states SET false_since = false_since - interval '5 minutes'")
        assert states(await look(house)) == [("mine", "", "resolved")]


async def test_two_workers_that_look_at_once_say_it_once(opens: Opens) -> None:
    async with opens(STALL) as house:
        await house.tell("failed")
        await waits(house, 12)
        await asyncio.gather(*(look_at_gauges(house.runtime) for _ in range(6)))
        assert states([dict(row) for row in await house.alerts()]) == [("mine", "", "firing")]
        await evaluate(house.runtime)
        await asyncio.gather(*(look_at_gauges(house.runtime) for _ in range(6)))
        assert await house.kinds() == ["alert.firing", "alert.resolved"]


async def test_what_a_person_resolved_is_not_said_again_before_it_was_over(opens: Opens) -> None:
    async with opens(STALL) as house:
        await house.tell("failed")
        await waits(house, 12)
        (alert,) = await look(house)
        await house.resolve(str(alert["id"]))
        for _ in range(2):
            assert [(a["state"], a["resolved_reason"]) for a in await look(house)] == [("resolved", "manual")]
        await evaluate(house.runtime)
        assert [(a["state"], a["resolved_reason"]) for a in await look(house)] == [("resolved", "manual")]
        await house.tell("failed")
        await waits(house, 12)
        assert [a["state"] for a in await look(house)] == ["resolved", "firing"]


async def test_what_only_a_person_ends_waits_for_one(opens: Opens) -> None:
    async with opens(gauge("evaluator_lag_seconds", "gt: 10", "resolve: {manual: true}")) as house:
        await house.tell("failed")
        await waits(house, 12)
        await look(house)
        await evaluate(house.runtime)
        (alert,) = await look(house)
        assert alert["state"] == "firing"
        await house.resolve(str(alert["id"]))
        await look(house)
        (row,) = await house.rows("SELECT alert_id FROM gauge_states")
        assert row["alert_id"] is None


async def test_a_sink_that_takes_nothing_is_said_and_gone_with_its_configuration(opens: Opens) -> None:
    async with opens(shipped("own-stalls").replace("  for: 1m", "  for: 0s")) as house:
        (name,) = house.runtime.sinks
        house.hec.always = Scripted(503, b"")
        await house.told("ACTIVE")
        await ship(house.runtime)
        await waits(house, 61)
        assert [(*state, a["severity"]) for a in await look(house) for state in states([a])] == [
            ("sink-stalled", name, "firing", "P3")
        ]
        house.hec.always = None
        await house.run("UPDATE readers SET next_attempt_at = now()")
        await ship(house.runtime)
        assert states(await look(house)) == [("sink-stalled", name, "resolved")]

        await house.told("EXPIRED")
        await waits(house, 61)
        assert [a["state"] for a in await look(house)] == ["resolved", "firing"]
        del house.runtime.sinks[name]
        assert [a["resolved_reason"] for a in await look(house)] == ["recovered", "gone"]
        left = await house.rows("SELECT rule_id FROM gauge_states WHERE rule_id = 'sink-stalled'")
        assert left == []


async def test_a_notifier_that_is_down_is_seen_although_it_hears_of_nothing(opens: Opens) -> None:
    rules = gauge("evaluator_lag_seconds", "gt: 10") + shipped("own-stalls").split("rules:\n")[1]
    async with opens(rules.replace("  for: 5s", "  for: 1h")) as house:
        await house.tell("failed")
        await waits(house, 12)
        (first,) = await look(house)
        await evaluate(house.runtime)
        house.slack.refuse_next("internal_error")
        await act(house.runtime)
        await look(house)
        assert house.slack.messages == []
        await house.run("UPDATE actions SET created_at = created_at - interval '61 seconds'")
        # Between two attempts it is not due, and stalled all the same.
        (pending,) = await house.rows(
            "SELECT bool_and(next_attempt_at > now()) AS waits FROM actions WHERE attempts > 0 AND state = 'pending'"
        )
        assert pending["waits"]
        alerts = await look(house)
        assert ("notifier-stalled", "slack", "firing") in states(alerts)
        (stalled,) = [alert for alert in alerts if alert["rule_id"] == "notifier-stalled"]
        assert stalled["severity"] == "P2"
        told = await house.rows(f"SELECT kind FROM events WHERE event_id = '{stalled['id']}'")
        assert [row["kind"] for row in told] == ["alert.firing"]
        assert not any(alert["rule_id"] == "actions-stalled" for alert in alerts), "that is of orchestrators"

        await house.run("UPDATE actions SET next_attempt_at = now()")
        await act(house.runtime)
        assert {str(first["id"]), str(stalled["id"])} <= {
            str(row["alert_id"]) for row in await house.rows("SELECT alert_id FROM messages")
        }
        assert ("notifier-stalled", "slack", "resolved") in states(await look(house))


async def test_an_orchestrator_that_does_not_do_it_is_said(opens: Opens) -> None:
    async with opens(shipped("own-stalls", "account-disconnected-active-workflow")) as house:
        await house.put(account_ids=["ca_1"], ref="flow-1")
        await house.told("DISCONNECTED")
        await look(house)
        assert not any(a["rule_id"] == "actions-stalled" for a in await look(house))
        await house.run("UPDATE actions SET created_at = created_at - interval '61 seconds' WHERE kind <> 'notify'")
        assert ("actions-stalled", "flows", "firing") in states(await look(house))
        await act(house.runtime)
        assert ("actions-stalled", "flows", "resolved") in states(await look(house))


async def hourly(house: House, *, silent_hours: float) -> None:
    """A source that spoke once an hour for two days and then fell silent."""
    await house.run("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 8, 10)")
    for _ in range(48):
        await house.tell("ACTIVE")
    await house.run(
        f"UPDATE events SET received_at = now() - interval '{silent_hours} hours' - interval '1 hour' *"
        " ((SELECT max(position) FROM events) - position), lag_seconds = 0"
    )


async def test_a_silent_source_is_said_by_its_rule_and_not_by_the_built_in_as_well(opens: Opens) -> None:
    async with opens(shipped("source-silent")) as house:
        await hourly(house, silent_hours=5)
        for _ in range(2):
            await sweep(house.runtime, Sweep())
        (alert,) = await house.alerts()
        assert (alert["rule_id"], alert["severity"], alert["group_key"]) == ("source-silent", "P2", "scalekit")
        assert alert["group"] == {"source": "scalekit"}
        assert alert["rule_version"] is not None
        assert alert["value"] == pytest.approx(4 * 3600, abs=60), "an hour is usual"
        assert await house.kinds() == ["alert.firing"]
        await house.tell("ACTIVE")
        await sweep(house.runtime, Sweep())
        (alert,) = await house.alerts()
        assert (alert["state"], alert["resolved_reason"]) == ("resolved", "recovered")


async def test_within_its_habit_a_source_is_not_silent(opens: Opens) -> None:
    async with opens(shipped("source-silent")) as house:
        await hourly(house, silent_hours=3.5)
        assert await look(house) == []


async def test_while_the_watch_is_behind_nothing_is_called_silent_nor_well(
    opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def learns_nothing(_runtime: object) -> bool:
        return False

    async with opens(shipped("source-silent")) as house:
        await hourly(house, silent_hours=5)
        monkeypatch.setattr("workers.gauges.learn", learns_nothing)
        assert await look(house) == []
        assert await house.rows("SELECT * FROM gauge_states") == []
        monkeypatch.undo()
        assert states(await look(house)) == [("source-silent", "scalekit", "firing")]
        monkeypatch.setattr("workers.gauges.learn", learns_nothing)
        monkeypatch.setattr(measure, "HABITS_BEHIND_MAX", -measure.HABITS_BEHIND_MAX)
        await house.tell("ACTIVE")
        assert states(await look(house)) == [("source-silent", "scalekit", "firing")]


@pytest.mark.parametrize("what", ["EXPIRED", "DISCONNECTED", "DELETED", "failed"])
async def test_late_breaks_are_said_within_one_look_and_by_the_rule_alone(opens: Opens, what: str) -> None:
    async with opens(shipped("delivery-lag")) as house:
        await house.tell(what, ago=45)
        await sweep(house.runtime, Sweep())
        (alert,) = await house.alerts()
        assert (alert["rule_id"], alert["severity"], alert["group_key"]) == ("delivery-lag", "P2", "scalekit")
        assert "45 s" in alert["summary"]
        await house.run("UPDATE habits SET late_break_at = late_break_at - interval '10 minutes'")
        await sweep(house.runtime, Sweep())
        assert [row["state"] for row in await house.alerts()] == ["resolved"]


async def test_other_late_events_are_less_urgent_and_those_in_time_are_nothing(opens: Opens) -> None:
    async with opens(shipped("delivery-lag")) as house:
        await house.tell("failed", ago=20)
        assert await look(house) == []
        await house.tell("ACTIVE", ago=45)
        (alert,) = await look(house)
        assert (alert["rule_id"], alert["severity"]) == ("delivery-lag-of-other-events", "P3")


async def test_a_disabled_rule_silences_the_built_in_of_its_id(opens: Opens) -> None:
    rules = shipped("source-silent")
    async with opens(rules.replace("  severity: P2", "  severity: P2\n  enabled: false")) as house:
        await hourly(house, silent_hours=5)
        await sweep(house.runtime, Sweep())
        assert await house.alerts() == []


async def test_a_rule_takes_over_from_the_built_in_and_gives_it_back(opens: Opens) -> None:
    async with opens(STALL) as house:
        await hourly(house, silent_hours=5)
        await evaluate(house.runtime)
        await watch(house.runtime, Watch())
        assert states(await look(house)) == [("source-silent", "scalekit", "firing")]
        await change_rules(house, shipped("source-silent"))
        for _ in range(2):
            await watch(house.runtime, Watch())
            alerts = await look(house)
            assert [(a["state"], a["resolved_reason"]) for a in alerts] == [
                ("resolved", "rule_changed"),
                ("firing", None),
            ]
        assert alerts[1]["rule_version"] is not None
        # Whoever changes the set closes the rule's own, and calls nothing recovered.
        await change_rules(house, STALL)
        assert [(a["state"], a["resolved_reason"]) for a in await look(house)] == [("resolved", "rule_changed")] * 2
        assert await house.rows("SELECT 1 FROM gauge_states WHERE rule_id = 'source-silent'") == []
        await watch(house.runtime, Watch())
        last = (await look(house))[-1]
        assert (last["state"], last["rule_version"]) == ("firing", None)


async def test_a_changed_condition_ends_its_alert_as_that_and_an_edit_of_its_words_does_not(opens: Opens) -> None:
    async with opens(STALL) as house:
        await house.tell("failed")
        await waits(house, 12)
        await look(house)
        await change_rules(house, STALL.replace("reads", "stands at"))
        assert [a["state"] for a in await look(house)] == ["firing"]
        await change_rules(house, STALL.replace("gt: 10", "gt: 600"))
        assert [a["resolved_reason"] for a in await look(house)] == ["rule_changed"]
        await change_rules(house, STALL.replace("gt: 10", "gt: 11"))
        assert [a["state"] for a in await look(house)] == ["resolved", "firing"]


async def test_a_shadow_rule_tells_nobody(opens: Opens) -> None:
    async with opens(gauge("evaluator_lag_seconds", "gt: 10", "enabled: shadow")) as house:
        await house.tell("failed")
        await waits(house, 12)
        assert len(await look(house)) == 1
        await evaluate(house.runtime)
        await look(house)
        assert await house.kinds() == []
        assert await house.rows("SELECT * FROM actions") == []


async def test_a_word_written_over_our_end_of_it_is_mended(opens: Opens) -> None:
    """A person acknowledged it while we resolved it: their row came last, and would stay open for good."""
    async with opens(STALL) as house:
        await house.tell("failed")
        await waits(house, 12)
        await look(house)
        await evaluate(house.runtime)
        await look(house)
        await house.run("UPDATE alerts SET state = 'acknowledged', condition_ended_at = NULL, resolved_at = NULL")
        assert [(a["state"], a["resolved_reason"]) for a in await look(house)] == [("resolved", "recovered")]


async def test_a_look_that_finds_nothing_new_writes_nothing(opens: Opens) -> None:
    async with opens(shipped("own-stalls", "source-silent", "delivery-lag")) as house:
        await look(house)
        before = await house.rows("SELECT rule_id, group_key, xmin::text, read_at FROM gauge_states ORDER BY 1, 2")
        assert {row["rule_id"] for row in before} == {rule.id for rule in house.runtime.rules.ruleset.gauges}
        await look(house)
        assert (
            await house.rows("SELECT rule_id, group_key, xmin::text, read_at FROM gauge_states ORDER BY 1, 2") == before
        )


async def test_what_a_sink_refused_for_good_and_a_poller_that_stopped_are_said(opens: Opens) -> None:
    async with opens(shipped("siem-copy")) as house:
        (name,) = house.runtime.sinks
        house.hec.refuse_events_with = "ca_bad"
        await house.accept(make_receipt(account_id="ca_bad"), make_receipt())
        await ship(house.runtime)
        async with begin(house.runtime.engine) as conn:
            token, _ = await tokens.create(conn, "elastic", frozenset({"siem"}))
            now = await readers.clock(conn)
            for minutes in range(60, 11, -1):
                await pollers.asked(conn, token.id, now - timedelta(minutes=minutes, seconds=minutes))
        who = f"elastic ({token.id})"
        alerts = await look(house)
        assert sorted(states(alerts)) == [("siem-poller-silent", who, "firing"), ("sink-poison", name, "firing")]
        async with begin(house.runtime.engine) as conn:
            await pollers.asked(conn, token.id, await readers.clock(conn))
        await house.run("UPDATE poison SET at = at - interval '1 hour'")
        assert sorted(states(await look(house))) == [
            ("siem-poller-silent", who, "resolved"),
            ("sink-poison", name, "resolved"),
        ]


async def test_a_backlog_of_a_sink_is_measured_in_items(opens: Opens) -> None:
    async with opens(gauge("sink_lag_items", "gte: 3", "group_by: [sink]")) as house:
        (name,) = house.runtime.sinks
        await house.accept(make_receipt(), make_receipt())
        assert states(await look(house)) == []
        await house.accept(make_receipt())
        assert states(await look(house)) == [("mine", name, "firing")]
        await ship(house.runtime)
        assert states(await look(house)) == [("mine", name, "resolved")]
