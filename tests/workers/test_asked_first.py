"""An orchestrator without idempotency keys: what it said before our first pause is what a resume puts back, whatever was
lost, killed, deleted or done by hand meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from service.errors import DeliveryFailed
from service.store import asks
from service.store.actions import RESUME, Action
from service.store.asks import Asked
from tests.end_to_end.running import until
from tests.fakes.asked_first import FakeAskedFirst
from tests.workers.house import House
from tests.workers.test_pauses import acted, well_again
from workers.act import act
from workers.ask import STATE_SECONDS_MAX

LOST = DeliveryFailed("closed the connection", code="disconnected", ambiguous=True)
AWAY = DeliveryFailed("cannot connect", code="connect_failed")
SILENT = DeliveryFailed("no answer in time", code="timeout", ambiguous=True)
MAY_NOT = DeliveryFailed("403: this key may not pause", code="http_403", permanent=True)
NEVER = DeliveryFailed("400: what was sent is wrong", code="http_400", permanent=True)
PAUSES = "SELECT * FROM actions WHERE kind = 'orchestrator.pause' ORDER BY created_at, id"
RESUMES = "SELECT * FROM actions WHERE kind = 'orchestrator.resume' ORDER BY created_at, id"
ATTEMPTS = (
    "SELECT outcome, code FROM attempts t JOIN actions a ON a.id = t.action_id WHERE a.kind = '{}' ORDER BY number"
)


def stands(fake: FakeAskedFirst) -> tuple[bool, int]:
    return fake.flows["f1"].paused, fake.flows["f1"].version


async def answers(house: House) -> list[tuple[str, str | None]]:
    """(state, status of the answer) of every ask, oldest first."""
    rows = await house.rows(
        "SELECT state, result ->> 'status' AS status FROM actions WHERE kind LIKE 'orch%' ORDER BY id"
    )
    return [(row["state"], row["status"]) for row in rows]


async def broke(house: House) -> None:
    await house.told("DISCONNECTED")
    await act(house.runtime)


async def healed(house: House) -> None:
    await well_again(house)
    await act(house.runtime)


async def message(house: House) -> str:
    await acted(house)
    return house.slack.text_of(house.slack.messages[0])


# What is recorded, and when


async def test_what_is_found_is_committed_before_the_pause_is_sent(house: House, flows: FakeAskedFirst) -> None:
    seen: list[Any] = []

    async def look(verb: str) -> None:
        if verb == "pause":
            seen.extend(row["payload"].get("found") for row in await house.rows(PAUSES))

    flows.before = look
    flows.flows["f1"].version = 7
    await broke(house)
    assert seen == [{"as_found": {"version": 7}, "was_paused": False, "ran": True}]
    assert stands(flows) == (True, 0)
    answer = (await house.workflow())["orchestrator_answer"]["answer"]
    assert (answer["status"], answer["prior_state"], answer["was_paused"]) == ("paused", {"version": 7}, False)
    await healed(house)
    assert stands(flows) == (False, 7)
    assert await answers(house) == [("done", "paused"), ("done", "resumed")]
    assert (await house.workflow())["orchestrator_answer"]["answer"]["restored"] == {"version": 7}


async def test_the_three_facts_are_as_ever(house: House, flows: FakeAskedFirst) -> None:
    await broke(house)
    stops = {"scheduled_starts": True, "manual_starts": False, "running_work": None, "null_means": "does_not_say"}
    assert (await house.workflow())["stops"] == stops


async def test_a_pause_repeated_after_a_lost_answer_is_not_taken_for_a_persons(
    house: House, flows: FakeAskedFirst
) -> None:
    flows.fail_next("pause", LOST, after_the_work=True)
    await broke(house)
    assert stands(flows) == (True, 0)
    await acted(house)
    assert [verb for verb, _ in flows.calls] == ["state", "pause", "pause"], "it is asked once"
    await healed(house)
    assert stands(flows) == (False, 1)


async def test_a_pause_given_up_without_an_answer_is_undone_with_what_was_found(
    house: House, flows: FakeAskedFirst
) -> None:
    flows.fail_next("pause", LOST, after_the_work=True)
    await broke(house)
    await house.run("UPDATE actions SET state = 'failed', finished_at = now() WHERE state = 'pending'")
    await healed(house)
    assert stands(flows) == (False, 1)
    assert flows.made("pause") == 1


async def test_what_cannot_be_kept_is_not_paused(house: House, flows: FakeAskedFirst) -> None:
    flows.flows["f1"].version = "v" * 5_000  # type: ignore[assignment]
    await broke(house)
    assert [row["state"] for row in await house.rows(PAUSES)] == ["failed"]
    assert flows.made("pause") == 0


# Killed between the call and its record


async def killed(house: House, flows: FakeAskedFirst, verb: str) -> None:
    """The worker dies while the answer is on its way; its lease ends, and another takes over."""
    flows.never_answers = {verb}
    acting = asyncio.create_task(act(house.runtime))

    async def done_there() -> bool:
        return flows.made(verb) == 1

    await until(done_there, 4)
    acting.cancel()
    await asyncio.gather(acting, return_exceptions=True)
    flows.never_answers = set()
    await house.run("UPDATE actions SET lease_until = now(), next_attempt_at = now() WHERE state = 'running'")
    await act(house.runtime)


async def test_a_worker_killed_after_its_pause_leaves_it_ours(house: House, flows: FakeAskedFirst) -> None:
    await house.told("DISCONNECTED")
    await killed(house, flows, "pause")
    assert await answers(house) == [("done", "paused")]
    assert flows.made("state") == 1
    await healed(house)
    assert stands(flows) == (False, 1)


async def test_a_worker_killed_while_it_asks_has_paused_nothing(house: House, flows: FakeAskedFirst) -> None:
    await house.told("DISCONNECTED")
    await killed(house, flows, "state")
    assert (flows.made("state"), flows.made("pause")) == (2, 1)
    await healed(house)
    assert stands(flows) == (False, 1)


async def test_a_worker_killed_after_its_resume_does_not_blame_a_person(house: House, flows: FakeAskedFirst) -> None:
    await broke(house)
    await well_again(house)
    await killed(house, flows, "resume")
    assert stands(flows) == (False, 1)
    assert await answers(house) == [("done", "paused"), ("done", "resumed")]


# By hand


async def test_what_a_person_had_paused_is_left_alone_both_ways(house: House, flows: FakeAskedFirst) -> None:
    flows.flows["f1"].paused = True
    await broke(house)
    assert "paused there already, by a person" in await message(house)
    assert (await house.workflow())["stops"]["scheduled_starts"] is True
    await healed(house)
    assert [verb for verb, _ in flows.calls] == ["state"]
    assert stands(flows) == (True, 1)
    assert await answers(house) == [("done", asks.ALREADY), ("done", asks.LEFT)]
    assert "left as a person had it" in await message(house)


async def test_what_a_person_resumed_during_our_hold_is_left_running(house: House, flows: FakeAskedFirst) -> None:
    await broke(house)
    flows.flows["f1"].paused, flows.flows["f1"].version = False, 9
    await healed(house)
    assert stands(flows) == (False, 9)
    assert await answers(house) == [("done", "paused"), ("done", asks.LEFT)]
    assert (await house.workflow())["orchestrator_answer"]["answer"]["restored"] is None
    assert "left as a person had it" in await message(house)


async def test_what_a_person_resumed_and_paused_again_cannot_be_told_from_our_pause(
    house: House, flows: FakeAskedFirst
) -> None:
    """docs/orchestrators.md says so, and what to do who wants it to stay."""
    await broke(house)
    flows.flows["f1"].paused = False
    flows.flows["f1"].paused = True
    await healed(house)
    assert stands(flows) == (False, 1)


@pytest.mark.parametrize("by_hand", [True, False])
async def test_what_a_person_pauses_while_ours_is_refused_is_theirs(
    house: House, flows: FakeAskedFirst, by_hand: bool
) -> None:
    """A key that may look and not pause: told that the pause waits, a person pauses by hand, and then mends the key."""
    flows.fail_next("pause", MAY_NOT)
    await broke(house)
    flows.flows["f1"].paused, flows.flows["f1"].version = by_hand, 3
    await acted(house)
    assert flows.made("pause") == (1 if by_hand else 2)
    [row] = await house.rows(PAUSES)
    assert row["payload"]["found"] == {"as_found": {"version": 3}, "was_paused": by_hand, "ran": True}
    await healed(house)
    assert stands(flows) == (by_hand, 3)


async def test_a_refusal_after_a_lost_answer_does_not_make_our_pause_a_persons(
    house: House, flows: FakeAskedFirst
) -> None:
    flows.fail_next("pause", LOST, after_the_work=True)
    flows.fail_next("pause", MAY_NOT)
    await broke(house)
    await acted(house)
    await acted(house)
    assert [verb for verb, _ in flows.calls] == ["state", "pause", "pause", "pause"]
    await healed(house)
    assert stands(flows) == (False, 1)


# A pause that could not be undone, and the next


async def test_our_own_pause_that_could_not_be_undone_is_not_taken_for_a_persons(
    house: House, flows: FakeAskedFirst
) -> None:
    await house.pause()
    await act(house.runtime)
    flows.fail_next("resume", NEVER)
    await house.resume()
    await act(house.runtime)
    assert stands(flows) == (True, 0)
    await house.pause()
    await act(house.runtime)
    await house.resume()
    await act(house.runtime)
    assert stands(flows) == (False, 1)


async def test_what_was_started_by_hand_after_that_is_the_state_before_the_next(
    house: House, flows: FakeAskedFirst
) -> None:
    await house.pause()
    await act(house.runtime)
    flows.fail_next("resume", NEVER)
    await house.resume()
    await act(house.runtime)
    flows.flows["f1"].paused, flows.flows["f1"].version = False, 2
    await house.pause()
    await act(house.runtime)
    await house.resume()
    await act(house.runtime)
    assert stands(flows) == (False, 2)


async def test_what_was_started_and_paused_by_hand_after_that_is_theirs(house: House, flows: FakeAskedFirst) -> None:
    """Seen running by the next pause, which was refused: what is paused by its second try is not our old pause."""
    await house.pause()
    await act(house.runtime)
    flows.fail_next("resume", NEVER)
    await house.resume()
    await act(house.runtime)
    flows.flows["f1"].paused, flows.flows["f1"].version = False, 2
    flows.fail_next("pause", MAY_NOT)
    await house.pause()
    await act(house.runtime)
    flows.flows["f1"].paused = True
    await acted(house)
    await house.resume()
    await act(house.runtime)
    assert stands(flows) == (True, 2)
    assert await answers(house) == [
        *(("done", "paused"), ("failed", None)),
        *(("done", asks.ALREADY), ("done", asks.LEFT)),
    ]


# Gone


async def test_a_workflow_deleted_there_before_the_pause_is_said_with_its_mend(
    house: House, flows: FakeAskedFirst
) -> None:
    del flows.flows["f1"]
    await broke(house)
    assert "pause failed: flows has no f1 any more; register its new ref" in await message(house)
    await healed(house)
    assert [verb for verb, _ in flows.calls] == ["state"]
    assert await answers(house) == [("failed", None), ("done", asks.NOT_PAUSED)]


async def test_a_workflow_deleted_there_during_our_hold_is_nothing_to_resume(
    house: House, flows: FakeAskedFirst
) -> None:
    await broke(house)
    del flows.flows["f1"]
    await healed(house)
    assert await answers(house) == [("done", "paused"), ("done", asks.GONE)]
    assert "nothing to resume, it is gone there" in await message(house)


# The server is down


@pytest.mark.parametrize("failure", [AWAY, SILENT, LOST])
async def test_a_server_down_for_the_whole_incident_is_asked_nothing_afterwards(
    house: House, flows: FakeAskedFirst, failure: DeliveryFailed
) -> None:
    flows.fail_next("state", failure, times=3)
    await broke(house)
    await acted(house)
    await well_again(house)
    await acted(house)
    assert {verb for verb, _ in flows.calls} == {"state"}
    assert await answers(house) == [("superseded", None), ("done", asks.NOT_PAUSED)]
    assert stands(flows) == (False, 1)


async def test_a_pause_that_only_asked_and_was_given_up_is_not_resumed(house: House, flows: FakeAskedFirst) -> None:
    flows.fail_next("state", SILENT)
    await broke(house)
    await house.run("UPDATE actions SET state = 'failed', finished_at = now() WHERE state = 'pending'")
    flows.flows["f1"].paused = True
    await healed(house)
    assert flows.made("resume") == 0
    assert stands(flows) == (True, 1)


async def test_asking_has_a_time_of_its_own(
    house: House, flows: FakeAskedFirst, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert STATE_SECONDS_MAX < 25
    monkeypatch.setattr("workers.ask.STATE_SECONDS_MAX", 0.05)
    flows.never_answers = {"state"}
    await broke(house)
    rows = await house.rows(ATTEMPTS.format("orchestrator.pause"))
    assert [(row["outcome"], row["code"]) for row in rows] == [("retry", "state_timeout")]


# Pure


def asked(kind: str, state: str, *, found: bool | None = None, arrived: bool = False) -> Asked:
    payload = {"ref": "f1", "reason": "r"} | ({} if found is None else {"found": {"as_found": {}, "was_paused": found}})
    return Asked(make_action(kind, state, payload), arrived)


def make_action(kind: str, state: str, payload: dict[str, Any]) -> Action:
    names = dict.fromkeys(Action.__slots__)
    return Action(**names | {"kind": kind, "state": state, "payload": payload})  # type: ignore[arg-type]


PAUSE = "orchestrator.pause"


@pytest.mark.parametrize(
    ("newest_first", "which"),
    [
        ([], None),
        ([asked(PAUSE, "failed", arrived=True)], None),
        ([asked(PAUSE, "failed", found=False, arrived=True)], 0),
        ([asked(PAUSE, "failed", found=False)], None),
        ([asked(PAUSE, "done", found=True)], 0),
        ([asked(PAUSE, "done", found=False), asked(PAUSE, "done", found=False)], 0),
        ([asked(PAUSE, "done", found=True), asked(PAUSE, "done", found=False)], 1),
        ([asked(PAUSE, "done", found=False), asked(RESUME, "done"), asked(PAUSE, "done", found=False)], 0),
        ([asked(PAUSE, "failed"), asked(RESUME, "failed"), asked(PAUSE, "done", found=False)], 2),
    ],
)
def test_which_pause_stands(newest_first: Sequence[Asked], which: int | None) -> None:
    stood = asks.standing(newest_first, asks_first=True).pause
    assert stood is (None if which is None else newest_first[which])
