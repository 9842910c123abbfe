"""An error in answer to a pause, and a person who pauses by hand before it is tried again: what is theirs is never started,
and what cannot be told is left as it is, and said.
"""

from __future__ import annotations

import pytest

from service.errors import DeliveryFailed
from service.orchestrators.base import Answer
from service.store import asks
from tests.fakes.asked_first import FakeAskedFirst
from tests.workers.house import House
from tests.workers.test_asked_first import (
    ATTEMPTS,
    AWAY,
    LOST,
    MAY_NOT,
    PAUSES,
    answers,
    broke,
    healed,
    message,
    stands,
)
from tests.workers.test_pauses import acted
from workers.act import act
from workers.ask import is_error

BROKEN = DeliveryFailed("flows answered 500", code="http_500", status=500)
PROXY = DeliveryFailed("flows answered 502", code="http_502", status=502)


def by_hand(flows: FakeAskedFirst) -> None:
    flows.flows["f1"].paused, flows.flows["f1"].version = True, 3


def silent_after_the_pause(flows: FakeAskedFirst) -> None:
    """It says nothing any more of how the workflow stands."""

    async def look(verb: str) -> None:
        if verb == "pause":
            flows.before = None
            flows.fail_next("state", AWAY)

    flows.before = look


async def codes(house: House) -> list[str]:
    return [row["code"] for row in await house.rows(ATTEMPTS.format("orchestrator.pause"))]


async def test_a_pause_without_effect_is_not_ours_when_a_person_has_paused_since(
    house: House, flows: FakeAskedFirst
) -> None:
    flows.fail_next("pause", BROKEN)
    await broke(house)
    assert [verb for verb, _ in flows.calls] == ["state", "pause", "state"], (
        "it is looked at while nobody else can be it"
    )
    assert await codes(house) == ["unheeded_http_500"]
    by_hand(flows)
    await acted(house)
    assert "paused there already, by a person" in await message(house)
    await healed(house)
    assert stands(flows) == (True, 3)
    assert await answers(house) == [("done", asks.ALREADY), ("done", asks.LEFT)]


async def test_a_pause_that_was_done_and_answered_with_an_error_is_ours(house: House, flows: FakeAskedFirst) -> None:
    flows.fail_next("pause", BROKEN, after_the_work=True)
    await broke(house)
    assert await codes(house) == ["http_500"]
    await acted(house)
    await healed(house)
    assert stands(flows) == (False, 1)
    assert await answers(house) == [("done", "paused"), ("done", "resumed")]


@pytest.mark.parametrize("late", [True, False])
async def test_what_cannot_be_told_is_left_as_it_is_and_said(house: House, flows: FakeAskedFirst, late: bool) -> None:
    """What a proxy passed on may still come; and who does not answer says nothing."""
    if not late:
        silent_after_the_pause(flows)
    flows.fail_next("pause", PROXY if late else BROKEN)
    await broke(house)
    by_hand(flows)
    await acted(house)
    assert "a person or we paused it there" in await message(house)
    await healed(house)
    assert stands(flows) == (True, 3)
    assert (flows.made("pause"), flows.made("resume")) == (1, 0)
    assert await answers(house) == [("done", asks.DOUBTFUL), ("done", asks.DOUBTFUL)]
    assert "start it there by hand" in await message(house)


async def test_what_is_found_running_is_paused_and_then_it_is_ours(house: House, flows: FakeAskedFirst) -> None:
    flows.fail_next("pause", PROXY)
    await broke(house)
    flows.flows["f1"].version = 4
    await acted(house)
    assert stands(flows) == (True, 0)
    await healed(house)
    assert stands(flows) == (False, 4)


async def test_given_up_in_doubt_it_is_left(house: House, flows: FakeAskedFirst) -> None:
    flows.fail_next("pause", PROXY)
    await broke(house)
    await house.run("UPDATE actions SET state = 'failed', finished_at = now() WHERE state = 'pending'")
    by_hand(flows)
    await healed(house)
    assert stands(flows) == (True, 3)
    assert await answers(house) == [("failed", None), ("done", asks.DOUBTFUL)]


async def test_the_next_pause_is_in_the_same_doubt(house: House, flows: FakeAskedFirst) -> None:
    flows.fail_next("pause", PROXY)
    await broke(house)
    await house.run("UPDATE actions SET state = 'failed', finished_at = now() WHERE state = 'pending'")
    by_hand(flows)
    await house.resume()
    await house.run("UPDATE actions SET state = 'superseded', finished_at = now() WHERE state = 'pending'")
    await house.pause()
    await act(house.runtime)
    await house.resume()
    await act(house.runtime)
    assert stands(flows) == (True, 3)
    assert [status for _, status in await answers(house)][-2:] == [asks.DOUBTFUL, asks.DOUBTFUL]


async def test_a_lost_answer_is_no_doubt(house: House, flows: FakeAskedFirst) -> None:
    """It was on its way when the connection broke, and then an error: the pause that is there is ours."""
    flows.fail_next("pause", LOST, after_the_work=True)
    flows.fail_next("pause", PROXY)
    await broke(house)
    await acted(house)
    await acted(house)
    await healed(house)
    assert stands(flows) == (False, 1)


# Where the orchestrator can tell


class Noted(FakeAskedFirst):
    """Its notes say who paused: a person, after we had looked. It leaves that as it is."""

    async def pause(self, *, ref: str, **given: object) -> Answer:
        await self._reach("pause", ref)
        self.flows[ref].paused = True
        return Answer(
            status="paused", detail="a person has paused it since", prior_state={"version": 9}, was_paused=True
        )


async def test_what_the_orchestrator_says_is_a_persons_is_recorded_so(house: House, flows: FakeAskedFirst) -> None:
    noted = Noted("flows", "f1")
    house.runtime.orchestrators["flows"] = noted
    await broke(house)
    [row] = await house.rows(PAUSES)
    assert (row["result"]["was_paused"], row["result"]["sent"]) == (True, False)
    assert row["result"]["prior_state"] == {"version": 9}
    await healed(house)
    assert stands(noted)[0] is True
    assert noted.made("resume") == 0
    assert await answers(house) == [("done", asks.ALREADY), ("done", asks.LEFT)]


# Pure


@pytest.mark.parametrize(
    ("failed", "looked_at"),
    [
        (BROKEN, True),
        (PROXY, True),
        (DeliveryFailed("n8n: wrong inside", code="failed_inside", status=400), True),
        (DeliveryFailed("too many", code="http_429", status=429), False),
        (DeliveryFailed("what runs could not be suspended", code="http_500", ambiguous=True, status=500), False),
        (LOST, False),
        (AWAY, False),
        (MAY_NOT, False),
    ],
)
def test_after_which_failure_it_is_looked_at(failed: DeliveryFailed, looked_at: bool) -> None:
    assert is_error(failed) is looked_at
