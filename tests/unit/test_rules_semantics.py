"""What rules mean, line by line: identity, resolve, no data, deadlines, event time, duplicates, state order, flapping; and
the faults that were measured in other systems. Each through the simulation, which judges as the evaluator does."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from service.event import AccountKey, Event
from service.rules import Rule, load_text
from service.rules.fired import Fired
from service.rules.inline_model import TestEvent
from service.rules.inline_tests import BEGAN, events_of
from service.rules.lateness import samples_in_time
from service.rules.simulate import Simulation
from service.rules.story import Step
from tests.unit.told import make_events

COUNT = "count: {match: {kind: token.refresh_failed}, within: 60s, gte: 3}"
SUCCESS = "{kind: [token.refresh_succeeded, account.authorized]}"
ABSENCE = f"absence: {{after: {{kind: token.refresh_failed}}, expect: {SUCCESS}, within: 60s}}"
PROMISE = f"absence: {{after: {SUCCESS}, expect: {SUCCESS}, deadline: details.token_expires_at, grace: 10s}}"
RATIO = (
    "ratio: {good: {kind: token.refresh_succeeded}, total: {kind: [token.refresh_failed, token.refresh_succeeded]}, "
    "within: 60s, lt: 0.5, min_total: 4}"
)
BROKEN = "state: {of: account, match: {status: [DISCONNECTED, EXPIRED], active_workflows: {gte: 1}}}"


def rule(condition: str, **extra: str) -> Rule:
    lines = "".join(f"  {name.rstrip('_')}: {value}\n" for name, value in extra.items())
    text = f"version: 1\nrules:\n- id: r\n  severity: P3\n  annotations: {{summary: x}}\n  {condition}\n{lines}"
    loaded = load_text(text.encode(), "r.yml")
    assert loaded.problems == ()
    return loaded.rules[0]


class Clock:
    """A simulation of one rule, told in seconds since it began."""

    def __init__(self, one: Rule, *, dependents: bool = True) -> None:
        self.simulation = Simulation([one], began=BEGAN, dependents=dependents)
        self._number = 0

    def event(self, kind: str, happened: float, now: float | None = None, **said: Any) -> Event:
        self._number += 1
        given = TestEvent.model_validate({"at": timedelta(seconds=happened), "kind": kind, **said})
        if now is not None:
            given = given.model_copy(update={"arrives": timedelta(seconds=now)})
        [event] = events_of(given, self._number)
        return event

    def arrive(self, kind: str, happened: float, now: float | None = None, **said: Any) -> None:
        event = self.event(kind, happened, now, **said)
        self.simulation.feed([event], event.received_at)

    def fail(self, *seconds: float, **said: Any) -> None:
        for second in seconds:
            self.arrive("token.refresh_failed", second, **said)

    def succeed(self, *seconds: float, **said: Any) -> None:
        for second in seconds:
            self.arrive("token.refresh_succeeded", second, **said)

    def advance(self, second: float) -> None:
        self.simulation.advance(BEGAN + timedelta(seconds=second))

    def sleep(self, second: float) -> None:
        self.simulation.sleep(BEGAN + timedelta(seconds=second))

    @property
    def alerts(self) -> list[Fired]:
        return self.simulation.episodes()

    def spans(self) -> list[tuple[float, float | None]]:
        """When each episode began and ended, by event time."""
        return [
            (since(one.episode.opened_at), None if one.episode.ended_at is None else since(one.episode.ended_at))
            for one in self.alerts
            if not one.retracted
        ]

    def told(self) -> list[tuple[float, float | None]]:
        """When people heard of it, by our clock."""
        return [
            (since(one.fired_at), None if one.resolved_at is None else since(one.resolved_at)) for one in self.alerts
        ]

    def reasons(self) -> list[str | None]:
        return [one.episode.end_reason for one in self.alerts]


def since(instant: Any) -> float:
    seconds: float = (instant - BEGAN).total_seconds()
    return seconds


# Identity


def test_identity_one_instance_for_each_group_and_one_episode_after_the_other() -> None:
    clock = Clock(rule(COUNT, resolve=f"{{event: {SUCCESS}}}"))
    for account_id in ("ca_1", "ca_2"):
        clock.fail(0, 1, 2, account_id=account_id)
    assert [one.group for one in clock.alerts] == [{"account_id": "ca_1"}, {"account_id": "ca_2"}]
    clock.succeed(10, account_id="ca_1")
    clock.fail(20, 21, 22, account_id="ca_1")
    assert clock.spans() == [(2, 10), (2, None), (22, None)]


def test_identity_the_same_account_of_another_environment_is_another() -> None:
    clock = Clock(rule(COUNT))
    clock.fail(0, 1, environment_id="env_live")
    clock.fail(2, environment_id="env_test")
    assert clock.alerts == []


def test_identity_the_same_connection_of_another_environment_or_source_is_another() -> None:
    clock = Clock(rule(COUNT, group_by="[connection_id]"))
    clock.fail(0, 1, environment_id="env_live", account_id="ca_1")
    clock.fail(2, environment_id="env_test", account_id="ca_2")
    clock.fail(3, environment_id="env_live", account_id="ca_3", source="other")
    assert clock.alerts == []
    clock.fail(4, environment_id="env_live", account_id="ca_4")
    assert [dict(one.group) for one in clock.alerts] == [
        {"source": "scalekit", "environment_id": "env_live", "connection_id": "conn_1"}
    ]


# Resolve


def test_resolve_default_the_condition_is_false_and_then_keep_firing_for() -> None:
    clock = Clock(rule(COUNT, keep_firing_for="30s"))
    clock.fail(0, 1, 2)
    clock.advance(89)
    assert clock.spans() == [(2, None)]
    clock.advance(90)
    assert (clock.spans(), clock.reasons(), clock.told()) == ([(2, 90)], ["subsided"], [(2, 90)])


def test_resolve_event_ends_at_once_and_empties_the_window() -> None:
    clock = Clock(rule(COUNT, resolve=f"{{event: {SUCCESS}}}", keep_firing_for="30s"))
    clock.fail(0, 1, 2)
    clock.succeed(3)
    assert (clock.spans(), clock.told()) == ([(2, 3)], [(2, 3)])
    clock.fail(4, 5)
    assert len(clock.alerts) == 1, "three failures with a success in between are not three in a row"
    clock.fail(6)
    assert clock.spans() == [(2, 3), (6, None)]


def test_resolve_gte_is_hysteresis() -> None:
    clock = Clock(rule(RATIO, group_by="[provider]", resolve="{gte: 0.9}"))
    clock.fail(0, 0.1, 0.2, 0.3, provider="GMAIL")
    clock.advance(1)
    assert clock.spans() == [(1, None)]
    clock.succeed(*(10 + n / 10 for n in range(9)), provider="GMAIL")
    clock.advance(30)
    assert clock.spans() == [(1, None)], "9 of 13 are not 0.9"
    clock.advance(61)
    assert (clock.spans(), clock.reasons()) == ([(1, 61)], ["recovered"])


def test_resolve_after_is_quiet_time() -> None:
    clock = Clock(rule(COUNT, resolve="{after: 5m}"))
    clock.fail(0, 1, 2, 100)
    clock.advance(399)
    assert clock.spans() == [(2, None)]
    clock.advance(400)
    assert (clock.spans(), clock.reasons(), clock.told()) == ([(2, 400)], ["quiet"], [(2, 400)])


def test_resolve_manual_waits_for_a_person() -> None:
    clock = Clock(rule(COUNT, resolve="{manual: true}"))
    clock.fail(0, 1, 2)
    clock.succeed(10)
    clock.advance(20 * 86400)
    assert clock.spans() == [(2, None)]


# No data


def test_no_data_neither_fires_nor_resolves() -> None:
    clock = Clock(rule(RATIO, group_by="[provider]"))
    clock.fail(0, 0.1, 0.2, provider="GMAIL")
    clock.advance(100)
    assert clock.alerts == [], "three are too few to say anything"
    clock.fail(200, 200.1, 200.2, 200.3, provider="GMAIL")
    clock.advance(10 * 3600)
    assert clock.spans() == [(201, None)], "silence is no recovery"
    clock.succeed(40_000, 40_000.1, 40_000.2, provider="GMAIL")
    clock.advance(40_010)
    assert clock.spans() == [(201, None)], "nor are three"
    clock.succeed(40_010, provider="GMAIL")
    clock.advance(40_011)
    assert clock.spans() == [(201, 40_011)]


# Deadline


def test_deadline_is_an_instant_that_the_event_itself_may_name() -> None:
    clock = Clock(rule(PROMISE))
    clock.arrive("account.authorized", 0, details={"token_expires_at": "10m"})
    clock.advance(609.999)
    assert clock.alerts == []
    clock.advance(610)
    assert clock.told() == [(610, None)]


def test_deadline_that_passes_while_everything_is_down_fires_at_start_and_says_since_when() -> None:
    clock = Clock(rule(ABSENCE))
    clock.fail(0)
    clock.sleep(145)  # down for 85 seconds across it
    assert clock.alerts == []
    clock.advance(145)
    assert (clock.spans(), clock.told()) == ([(60, None)], [(145, None)])


def test_deadline_and_its_answer_that_both_passed_while_down_are_one_that_nobody_is_paged_for() -> None:
    clock = Clock(rule(ABSENCE))
    clock.fail(0)
    clock.sleep(145)
    clock.arrive("token.refresh_succeeded", 100, now=145)
    assert (clock.spans(), clock.told()) == ([(60, 100)], [(145, 145)])


# Event time


def test_event_time_a_window_counts_what_happened_in_it_whatever_the_order_of_arrival() -> None:
    clock = Clock(rule(COUNT))
    clock.fail(0, 59)
    clock.arrive("token.refresh_failed", 30, now=200)
    assert clock.spans() == [(59, 60)]
    assert clock.alerts[0].discovered_late


def test_event_time_later_than_allowed_lateness_is_not_counted() -> None:
    for arrives, fired in ((610, 1), (611, 0)):
        clock = Clock(rule(COUNT, allowed_lateness="10m", resolve="{manual: true}"))
        clock.fail(0, 1)
        clock.arrive("token.refresh_failed", 10, now=arrives)
        assert len(clock.alerts) == fired, arrives


def test_event_time_a_late_expect_that_was_in_time_resolves_as_late_arrival() -> None:
    clock = Clock(rule(ABSENCE))
    clock.fail(0)
    clock.advance(70)
    assert clock.told() == [(60, None)]
    clock.arrive("token.refresh_succeeded", 59, now=80)
    assert (clock.reasons(), clock.told(), clock.spans()) == (["late_arrival"], [(60, 80)], [])


def test_event_time_a_late_success_that_was_in_between_shows_that_it_never_was() -> None:
    clock = Clock(rule(COUNT, resolve=f"{{event: {SUCCESS}}}"))
    clock.fail(0, 1, 3)
    clock.arrive("token.refresh_succeeded", 2, now=20)
    assert (clock.reasons(), clock.told()) == (["late_arrival"], [(3, 20)])


def test_event_time_a_time_in_the_future_is_the_time_of_receipt() -> None:
    clock = Clock(rule(COUNT))
    ahead = clock.event("token.refresh_failed", 86_400, now=10)
    assert (ahead.occurred_at, ahead.clock_suspect) == (ahead.received_at, True)
    clock.simulation.feed([ahead], ahead.received_at)
    clock.fail(11, 12)
    assert clock.spans() == [(12, None)]


# Duplicate


@pytest.mark.parametrize("again", ["the same row", "the same event id"])
def test_duplicate_counts_once(again: str) -> None:
    clock = Clock(rule(COUNT))
    event = clock.event("token.refresh_failed", 0)
    for second in range(5):
        copy = event if again == "the same row" else replace(event, id=f"id_{second}")
        clock.simulation.feed([copy], BEGAN + timedelta(seconds=second))
    assert clock.alerts == []
    clock.fail(5, 6)
    assert clock.alerts[0].episode.value == 3


# State


def test_state_an_older_status_does_not_overwrite_a_newer() -> None:
    clock = Clock(rule(BROKEN))
    clock.arrive("account.disconnected", 100)
    clock.arrive("account.authorized", 50, now=110)
    assert clock.spans() == [(100, None)]
    clock.arrive("account.authorized", 120)
    clock.arrive("account.disconnected", 115, now=130)
    assert clock.spans() == [(100, 120)]


def test_state_is_judged_again_when_what_depends_on_it_changes() -> None:
    clock = Clock(rule(BROKEN), dependents=False)
    clock.arrive("account.disconnected", 0)
    clock.advance(50)
    assert clock.alerts == []
    clock.simulation.depend(True)
    assert clock.told() == [(50, None)]
    clock.advance(70)
    clock.simulation.depend(lambda account, connection_id: account.account_id != "ca_1")
    assert (clock.told(), clock.reasons()) == ([(50, 70)], ["no_active_workflow"])


def test_state_names_the_account_and_its_connection_to_whoever_knows_what_depends_on_it() -> None:
    asked: list[tuple[AccountKey, str | None]] = []

    def depends(account: AccountKey, connection_id: str | None) -> bool:
        asked.append((account, connection_id))
        return True

    simulation = Simulation([rule(BROKEN)], began=BEGAN, dependents=depends)
    event = Clock(rule(BROKEN)).event("account.disconnected", 0, environment_id="env_1")
    simulation.feed([event], event.received_at)
    assert asked == [(AccountKey("scalekit", "env_1", "ca_1"), "conn_1")]


def test_state_takes_any_lateness() -> None:
    clock = Clock(rule(BROKEN))
    clock.arrive("account.disconnected", 0)
    clock.advance(5 * 86_400)
    clock.arrive("account.authorized", 60, now=5 * 86_400)
    assert clock.spans() == [(0, 60)]


# Flapping


def test_flapping_is_held_open_until_it_was_quiet() -> None:
    clock = Clock(rule(COUNT, resolve=f"{{event: {SUCCESS}}}"))
    for begin in range(0, 60, 10):
        clock.fail(begin, begin + 1, begin + 2)
        clock.succeed(begin + 5)
    assert clock.spans() == [(2, 5), (12, 15), (22, None)]
    assert [one.episode.flapping for one in clock.alerts] == [False, False, True]
    clock.advance(354)
    assert len(clock.alerts) == 3
    assert clock.alerts[-1].resolved_at is None
    clock.advance(355)
    assert clock.spans()[-1] == (22, 355)


# Faults that were measured in other systems


def test_fault_an_expect_that_arrives_before_its_after_is_silent() -> None:
    clock = Clock(rule(ABSENCE))
    clock.arrive("token.refresh_succeeded", 10.5, now=11)
    clock.arrive("token.refresh_failed", 10, now=11.5)
    clock.advance(3600)
    assert clock.alerts == []


def test_fault_an_arming_event_five_minutes_late_fires_all_the_same() -> None:
    clock = Clock(rule(ABSENCE))
    clock.arrive("token.refresh_failed", 0, now=300)
    assert (clock.spans(), clock.told()) == ([(60, None)], [(300, None)])


def test_fault_for_goes_on_counting_through_a_restart() -> None:
    clock = Clock(rule("state: {of: account, match: {status: EXPIRED}}", for_="40s"))
    clock.arrive("account.reauth_required", 0)
    clock.advance(25)
    clock.sleep(30)  # killed and started anew
    clock.advance(39.9)
    assert clock.alerts == []
    clock.advance(40)
    assert clock.told() == [(40, None)]


def test_fault_keep_firing_for_goes_on_counting_through_a_restart() -> None:
    clock = Clock(rule(COUNT, keep_firing_for="40s"))
    clock.fail(0, 1, 2)
    clock.advance(70)
    clock.sleep(90)
    clock.advance(99)
    assert clock.spans() == [(2, None)]
    clock.advance(100)
    assert clock.told() == [(2, 100)]


def test_fault_late_traffic_of_others_does_not_delay_a_deadline() -> None:
    clock = Clock(rule(ABSENCE))
    clock.fail(0)
    for second in range(1, 60):
        clock.arrive("token.refresh_succeeded", second - 600, now=second, account_id="ca_2")
    clock.advance(60)
    assert clock.told() == [(60, None)]


def test_a_deadline_that_had_long_passed_when_it_was_named_arms_nothing_and_is_counted() -> None:
    """An event of last year, sent again, must not wake anybody because nothing has followed it since."""
    waits = rule(ABSENCE.replace("60s", "15m"))
    [event] = make_events([("failed", 0)])
    for late_seconds, kept in ((60.0, 1), (4000.0, 1), (4600.0, 0)):  # 15 m and 1 h are 4500 s
        late = replace(event, received_at=event.occurred_at + timedelta(seconds=late_seconds), lag_seconds=late_seconds)
        samples, too_late = samples_in_time(waits, Step(late, None, None))
        assert (len(samples), too_late) == (kept, 1 - kept)
