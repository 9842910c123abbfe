"""The reconciliation finds what it is there to find: each kind of harm done to a world in which all is well."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.crash import weather
from tests.crash.found import AccountRow, ActionRow, AlertRow, ConflictRow, DedupRow, Found, Row
from tests.crash.history import Delivery, History, Sent, make_history
from tests.crash.model import FAILING, Episode, Expected, tell
from tests.crash.plan import first_processes, load_seconds, make_plan
from tests.crash.reconcile import reconcile
from tests.crash.sender import Answer, Ledger
from tests.crash.weather import Struck, unfelt

START = datetime(2026, 11, 1, tzinfo=UTC)
FIRST, SECOND, OTHER = b"first", b"second", b"first, in other bytes"


class World:
    """Two events, the first of them sent again and once with other bytes; one alert, which paused one workflow."""

    def __init__(self) -> None:
        self.history = History(
            ["ca_1"],
            {
                "evt_1": Sent("evt_1", "ca_1", "failed", START, [FIRST, OTHER]),
                "evt_2": Sent("evt_2", "ca_1", "failed", START, [SECOND]),
            },
            [],
        )
        self.ledger = Ledger(
            [
                Answer(Delivery(0, "evt_1", FIRST), 1, 503),
                Answer(Delivery(0, "evt_1", FIRST), 2, 202, "accepted", "row_1"),
                Answer(Delivery(0, "evt_1", OTHER), 3, 200, "duplicate", "row_1"),
                Answer(Delivery(0, "evt_2", SECOND), 3, 0),
                Answer(Delivery(0, "evt_2", SECOND), 4, 200, "duplicate", "row_2"),
                Answer(Delivery(0, "forged_evt_2", b"", "unsigned"), 4, 401),
            ]
        )
        self.expected = Expected(
            {"ca_1": ("ACTIVE", 2)}, {Episode(FAILING, "ca_1", START, None)}, {"wf_ca_1"}, {"ca_1"}
        )
        self.found = Found(
            log=[a_row(1, "evt_1", FIRST), a_row(2, "evt_2", SECOND), a_row(4, None, None)],
            dedup=[a_dedup("evt_1", "row_1"), a_dedup("evt_2", "row_2")],
            conflicts=[ConflictRow(event_row_id="row_1", body=OTHER)],
            alerts=[an_alert(), a_conflict_alert()],
            actions=[ActionRow(id="act_1", kind="orchestrator.pause", state="done", workflow_id="wf_ca_1", attempts=2)],
            accounts=[AccountRow(account_id="ca_1", status="ACTIVE", failures=2)],
            paused={"wf_ca_1"},
            paused_accounts={"ca_1"},
            feed=[{"position": n, "id": f"row_{n}"} for n in (1, 2, 4)],
            slack_posts=[("alert_1:slack", False), ("alert_1:slack", True), ("alert_c:slack", False)],
            hec_posts=[[1, 2], [1, 2, 4]],
            effects=[("pause", "ref_wf_ca_1", "act_1")],
        )

    def problems(self) -> list[str]:
        return reconcile(self.ledger, self.history, self.expected, self.found)


def a_row(position: int, event_id: str | None, body: bytes | None) -> Row:
    return Row(
        id=f"row_{position}",
        position=position,
        origin="webhook" if event_id else "authwatch",
        kind="token.refresh_failed",
        event_id=event_id,
        body=body,
        secret_name="scalekit-1" if event_id else None,
    )


def a_dedup(event_id: str, row_id: str) -> DedupRow:
    return DedupRow(event_id=event_id, event_row_id=row_id)


def an_alert() -> AlertRow:
    return AlertRow(
        id="alert_1",
        rule_id=FAILING,
        about="ca_1",
        account_id="ca_1",
        opened_at=START,
        ended_at=None,
        state="firing",
        discovered_late=False,
    )


def a_conflict_alert() -> AlertRow:
    return replace(an_alert(), id="alert_c", rule_id="body-conflict", about="scalekit:row_1", account_id=None)


def lose(world: World) -> None:
    del world.found.log[1]


def double(world: World) -> None:
    world.found.log.append(a_row(5, "evt_1", FIRST))


def change_bytes(world: World) -> None:
    world.found.log[1] = replace(world.found.log[1], body=b"secomd")


def swap_bytes(world: World) -> None:
    world.found.log[0] = replace(world.found.log[0], body=OTHER)


def accept_twice(world: World) -> None:
    world.ledger.answers.append(world.ledger.answers[1])


def answer_too_early(world: World) -> None:
    world.ledger.answers[4] = replace(world.ledger.answers[4], id="row_9")


def answer_500(world: World) -> None:
    world.ledger.answers[0] = replace(world.ledger.answers[0], status=500)


def take_forgery(world: World) -> None:
    world.ledger.answers[5] = replace(world.ledger.answers[5], status=202)


def store_forgery(world: World) -> None:
    world.found.log.append(a_row(5, "forged_evt_2", b""))


def forget_secret(world: World) -> None:
    world.found.log[0] = replace(world.found.log[0], secret_name=None)


def lose_dedup(world: World) -> None:
    del world.found.dedup[0]


def lose_conflict(world: World) -> None:
    world.found.conflicts = []


def keep_no_conflict(world: World) -> None:
    world.found.conflicts = [
        ConflictRow(event_row_id="row_1", body=OTHER),
        ConflictRow(event_row_id="row_2", body=SECOND),
    ]


def give_up(world: World) -> None:
    world.ledger.never_taken.append(Delivery(0, "evt_2", SECOND))


def skip_position(world: World) -> None:
    del world.found.feed[1]


def repeat_position(world: World) -> None:
    world.found.feed.insert(1, world.found.feed[0])


def change_read_row(world: World) -> None:
    world.found.feed[2] = {"position": 4, "id": "row_8"}


def change_account(world: World) -> None:
    world.found.accounts[0] = replace(world.found.accounts[0], failures=3)


def lose_alert(world: World) -> None:
    world.found.alerts.clear()
    world.found.slack_posts.clear()


def end_alert(world: World) -> None:
    world.found.alerts[0] = replace(world.found.alerts[0], ended_at=START + timedelta(seconds=5), state="resolved")


def alert_twice(world: World) -> None:
    world.found.alerts.append(replace(an_alert(), id="alert_2"))
    world.found.slack_posts.append(("alert_2:slack", False))


def keep_quiet_of_conflict(world: World) -> None:
    del world.found.alerts[1]


def tell_conflict_twice(world: World) -> None:
    world.found.alerts.append(replace(a_conflict_alert(), id="alert_d"))


def tell_conflict_of_none(world: World) -> None:
    world.found.alerts[1] = replace(a_conflict_alert(), about="scalekit:row_2")


def cry_wolf(world: World) -> None:
    world.found.alerts.append(replace(a_conflict_alert(), id="alert_d", rule_id="sink-events-lost"))


def say_the_same_twice(world: World) -> None:
    lag = replace(a_conflict_alert(), rule_id="delivery-lag", about="scalekit")
    world.found.alerts += [replace(lag, id="alert_d"), replace(lag, id="alert_e")]


def close_open_alert(world: World) -> None:
    world.found.alerts[0] = replace(world.found.alerts[0], state="resolved")


def post_unmarked(world: World) -> None:
    world.found.slack_posts.append(("alert_1:slack", False))


def post_nothing(world: World) -> None:
    world.found.slack_posts.clear()


def page_for_the_past(world: World) -> None:
    world.found.alerts[0] = replace(world.found.alerts[0], discovered_late=True)


def pause_twice(world: World) -> None:
    world.found.actions.append(replace(world.found.actions[0], id="act_2"))
    world.found.effects.append(("pause", "ref_wf_ca_1", "act_2"))


def pause_unasked(world: World) -> None:
    world.found.effects.append(("resume", "ref_wf_ca_1", "act_7"))


def never_pause(world: World) -> None:
    world.found.effects.clear()


def leave_action(world: World) -> None:
    world.found.actions[0] = replace(world.found.actions[0], state="running")


def ship_out_of_order(world: World) -> None:
    world.found.hec_posts = [[2, 1], [4]]


def ship_ahead(world: World) -> None:
    world.found.hec_posts = [[1], [4], [2, 4]]


def ship_less(world: World) -> None:
    world.found.hec_posts = [[1, 2]]


def resume_broken(world: World) -> None:
    world.found.paused.clear()


def hold_well(world: World) -> None:
    world.found.paused.add("wf_ca_2")


def let_account_go(world: World) -> None:
    world.found.paused_accounts.clear()


HARM: dict[Callable[[World], None], str] = {
    lose: "answered 2xx and not there",
    double: "there more than once",
    change_bytes: "bytes that were never sent",
    swap_bytes: "answered 202 for other bytes",
    accept_twice: "answered 202 more than once",
    answer_too_early: "duplicate of what is not there",
    answer_500: "answers that no contract knows",
    take_forgery: "answers that no contract knows",
    store_forgery: "never sent signed",
    forget_secret: "without the secret's name",
    lose_dedup: "without their dedup row",
    lose_conflict: "answered and not kept",
    keep_no_conflict: "conflicts that are none",
    give_up: "never taken",
    skip_position: "the feed skipped",
    repeat_position: "out of order or again",
    change_read_row: "row changed after it was read",
    change_account: "not as their events say",
    lose_alert: "episodes without an alert",
    end_alert: "alerts without an episode",
    alert_twice: "episodes with several alerts",
    keep_quiet_of_conflict: "conflicts not told",
    tell_conflict_twice: "conflicts told more than once",
    tell_conflict_of_none: "conflicts told of events that have none",
    cry_wolf: "without a cause",
    say_the_same_twice: "open twice",
    close_open_alert: "not their episode's",
    post_unmarked: "posted again without saying so",
    post_nothing: "never posted",
    page_for_the_past: "no alert that people should hear of",
    pause_twice: "paused twice",
    pause_unasked: "never decided",
    never_pause: "never done",
    leave_action: "not done",
    ship_out_of_order: "out of order",
    ship_ahead: "ran ahead",
    ship_less: "never got",
    resume_broken: "active though their account is broken",
    hold_well: "paused though their account is well",
    let_account_go: "accounts held though well",
}


def test_a_world_in_which_all_is_well_has_no_problems() -> None:
    assert World().problems() == []


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_harm_is_found(harm: Callable[[World], None]) -> None:
    world = World()
    harm(world)
    problems = world.problems()
    assert any(HARM[harm] in problem for problem in problems), problems


def test_a_hold_may_outlast_its_episode_while_the_account_is_not_well_again() -> None:
    world = World()
    world.expected.not_well.add("ca_2")
    hold_well(world)
    assert world.problems() == []


def test_the_same_seed_is_the_same_plan_and_the_same_load() -> None:
    assert make_plan(1, 30) == make_plan(1, 30) != make_plan(2, 30)
    assert make_history(1, 50, 10, START) == make_history(1, 50, 10, START)
    assert make_history(1, 50, 10, START).deliveries != make_history(2, 50, 10, START).deliveries


@pytest.mark.parametrize("kills", [1, 10, 33])
def test_a_plan_has_the_kills_that_were_asked_for(kills: int) -> None:
    plan = make_plan(3, kills)
    assert sum(blow.what == "kill" for blow in plan) == kills
    assert [blow.number for blow in plan] == list(range(len(plan)))
    assert load_seconds(plan) > plan[-1].at_seconds


def test_a_weather_that_did_not_fall_is_a_problem() -> None:
    plan = make_plan(3, 20)
    struck = [Struck(blow, 0.0) for blow in plan]
    assert unfelt(plan, struck, "") == []
    kill = next(n for n, blow in enumerate(plan) if blow.what == "kill")
    missed = [replace(one, felt=n != kill) for n, one in enumerate(struck)]
    assert unfelt(plan, missed, "") == ["20 kills were to fall, and 19 fell"]
    assert unfelt(plan, struck[:kill] + struck[kill + 1 :], "") == ["20 kills were to fall, and 19 fell"]
    no_disk = [replace(one, felt=one.blow.name != "fill disk") for one in struck]
    assert unfelt(plan, no_disk, "") == ["never felt: fill disk"]
    assert unfelt(plan, no_disk, "only root may mount a small file system") == []


def test_events_come_in_clumps_too_and_none_before_it_happened() -> None:
    history = make_history(5, 2000, 100, START)
    at_once = Counter(delivery.at_seconds for delivery in history.deliveries)
    assert sum(n for n in at_once.values() if n >= 20) > 0.3 * len(history.deliveries)
    assert all(
        START + timedelta(seconds=delivery.at_seconds + 0.02) >= history.sent[delivery.message_id].occurred_at
        for delivery in history.deliveries
        if not delivery.forged
    )


async def test_who_does_not_end_when_asked_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weather, "STOP_SECONDS_MAX", 0.2)
    for word, in_time in (("TERM", False), ("USR1", True)):
        program = f"trap '' {word}; echo ready; while :; do sleep 0.05; done"
        with subprocess.Popen(["/bin/sh", "-c", program], stdout=subprocess.PIPE) as process:  # noqa: ASYNC220 - at once
            assert process.stdout is not None
            process.stdout.readline()
            process.terminate()
            assert await weather.ended(process) is in_time


def test_where_one_process_of_several_shall_be_killed_there_are_several() -> None:
    for seed in range(20):
        plan = make_plan(seed, 40)
        processes = first_processes(plan)
        for blow in plan:
            if blow.target == "child":
                assert processes == 2
            if blow.target in ("receiver", "child") and blow.what in ("kill", "restart"):
                processes = blow.processes


def test_the_story_is_told_by_the_events_own_times() -> None:
    words = ("failed", "failed", "failed", "EXPIRED", "ACTIVE", "PENDING_AUTH", "DISCONNECTED", "failed")
    at = [START + timedelta(seconds=10 * n) for n in range(len(words))]
    sent = {str(n): Sent(str(n), "ca_0", word, at[n]) for n, word in reversed(list(enumerate(words)))}
    expected = tell(History(["ca_0"], sent, []))
    assert expected.accounts == {"ca_0": ("DISCONNECTED", 4)}
    assert {str(episode) for episode in expected.episodes} == {
        str(Episode(FAILING, "ca_0", at[2], at[4])),
        f"account-disconnected-active-workflow of ca_0 from {at[3] + timedelta(seconds=1)} to {at[4]}",
        f"account-disconnected-active-workflow of ca_0 from {at[6]} to None",
    }
    assert expected.paused == {"wf_ca_0"}
