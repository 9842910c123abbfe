"""What leaves the house: each pause and each message once, whatever the weather on the other side."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from starlette.responses import JSONResponse, Response

from service import views
from service.errors import DeliveryFailed
from service.store import actions, readers
from service.store.session import begin
from tests.workers.house import House
from tests.workers.passing import let_pass
from workers.act import Acting, act
from workers.decide import decide
from workers.evaluate import evaluate


async def soon(house: House) -> None:
    """What waits for its next try is tried now."""
    await house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")
    await act(house.runtime)


async def broken(house: House, *, ref: str | None = None) -> None:
    await house.put(account_ids=["ca_1"], ref=ref)
    await house.told("DISCONNECTED")
    await decide(house.runtime)


async def outcomes(house: House, kind: str = "notify") -> list[str]:
    rows = await house.rows(
        "SELECT t.outcome FROM attempts t JOIN actions a ON a.id = t.action_id "
        f"WHERE a.kind = '{kind}' ORDER BY a.created_at, a.id, t.number"
    )
    return [row["outcome"] for row in rows]


async def test_an_alert_is_one_message_and_its_changes_edit_it(house: House) -> None:
    await broken(house)
    await act(house.runtime)
    await house.told("DELETED")
    await house.told("ACTIVE")
    await act(house.runtime)
    await let_pass(house, 1.1)
    await house.work()
    assert house.posts() == 1
    [message] = house.slack.messages
    assert "resolved" in house.slack.text_of(message).lower()
    assert "active again" in house.slack.text_of(message)
    assert len(house.slack.calls["chat.update"]) == 2


async def test_without_an_orchestrator_the_message_says_that_only_the_gate_denies(house: House) -> None:
    await broken(house)
    await act(house.runtime)
    assert "nothing else was told to stop" in house.slack.text_of(house.slack.messages[0])


async def test_a_rate_limit_and_a_refusal_before_the_post_cost_one_message(house: House) -> None:
    house.slack.rate_limit_next(retry_after="3")
    await broken(house)
    await act(house.runtime)
    [row] = await house.rows("SELECT next_attempt_at - now() AS wait, state FROM actions")
    assert (row["state"], row["wait"].total_seconds() == pytest.approx(3, abs=1)) == ("pending", True)
    assert house.slack.messages == []
    await soon(house)
    assert len(house.slack.messages) == 1
    assert await outcomes(house) == ["retry", "done"]


async def test_a_post_answered_by_500_is_looked_for_before_it_is_repeated(house: House) -> None:
    house.slack.answer_next(Response(status_code=500))
    await broken(house)
    await act(house.runtime)
    await soon(house)
    assert await outcomes(house) == ["ambiguous", "done"]
    assert len(house.slack.calls["conversations.history"]) == 1
    assert len(house.slack.messages) == 1


async def test_a_post_whose_answer_was_lost_is_found_and_edited(house: House) -> None:
    house.slack.break_off_next()
    await broken(house)
    await act(house.runtime)
    assert len(house.slack.messages) == 1
    await soon(house)
    assert (house.posts(), len(house.slack.messages), len(house.slack.calls["chat.update"])) == (1, 1, 1)


async def test_while_slack_cannot_say_whether_it_has_the_message_nothing_is_posted(house: House) -> None:
    """A lost answer, then a history that is rate limited, then the truth: one message all the same."""
    house.slack.break_off_next()
    await broken(house)
    await act(house.runtime)
    house.slack.rate_limit_next()
    await soon(house)
    assert house.posts() == 1
    await soon(house)
    assert (house.posts(), len(house.slack.messages)) == (1, 1)
    assert await outcomes(house) == ["ambiguous", "retry", "done"]


async def test_a_worker_that_died_between_the_post_and_its_record_is_not_repeated(house: House) -> None:
    await broken(house)
    async with begin(house.runtime.engine) as conn:
        [(action, _)] = await actions.claim(conn, await readers.clock(conn), lease=timedelta(seconds=0), limit=1)
    house.slack.break_off_next()
    await perform_and_die(house, action)
    assert len(house.slack.messages) == 1
    await act(house.runtime)
    assert (house.posts(), len(house.slack.messages)) == (1, 1)
    assert await outcomes(house) == ["ambiguous", "done"]


async def perform_and_die(house: House, action: actions.Action) -> None:
    """The post goes out; of what came back nothing is written down."""
    notifier = house.runtime.notifiers["slack"]
    async with begin(house.runtime.engine) as conn:
        view = await views.alert_view(conn, action.alert_id or "", public_url="")
    assert view is not None
    with pytest.raises(DeliveryFailed):
        await notifier.post(view, delivery_id=f"{action.alert_id}:slack", possible_repeat=False)


async def test_without_the_history_scope_a_lost_post_is_repeated_once_and_marked(house: House) -> None:
    house.slack.scopes.discard("channels:history")
    house.slack.break_off_next()
    await broken(house)
    await act(house.runtime)
    await soon(house)
    assert house.posts() == 2
    await house.told("DELETED")
    await act(house.runtime)
    assert (house.posts(), len(house.slack.messages)) == (2, 2)
    assert "repeat" in house.slack.text_of(house.slack.messages[-1]).lower()


async def test_an_outcome_that_comes_after_its_lease_changes_nothing(house: House) -> None:
    await broken(house)
    async with begin(house.runtime.engine) as conn:
        now = await readers.clock(conn)
        [(late, _)] = await actions.claim(conn, now, lease=timedelta(seconds=0), limit=1)
        [(current, died)] = await actions.claim(conn, await readers.clock(conn), lease=timedelta(seconds=60), limit=1)
        assert (current.id, died) == (late.id, True)
        assert not await actions.conclude(conn, late, now=now, outcome="failed", code="late")
    [row] = await house.rows("SELECT state FROM actions")
    assert row["state"] == "running"
    await perform(house, current)
    [row] = await house.rows("SELECT state FROM actions")
    assert row["state"] == "done"


async def perform(house: House, action: actions.Action) -> None:
    ended = asyncio.Event()
    acting = Acting(house.runtime, ended.set)
    acting.start([action], asyncio.get_running_loop().time())
    await ended.wait()
    await acting.close()


async def test_the_orchestrator_is_told_once_under_one_key_however_often_it_is_tried(house: House) -> None:
    house.orchestrator.answer_next(JSONResponse({}, 503))
    house.orchestrator.answer_next(JSONResponse({}, 500), after_the_work=True)
    await broken(house, ref="f1")
    await act(house.runtime)
    await soon(house)
    await soon(house)
    assert len(house.orchestrator.pauses) == 1
    assert len({headers["webhook-id"] for headers, _ in house.orchestrator.requests}) == 1
    answer = (await house.workflow())["orchestrator_answer"]
    assert (answer["asked"], answer["state"], answer["answer"]["detail"]) == ("pause", "done", "f1 takes no new runs")
    assert answer["answer"]["prior_state"] == {"paused": False}
    await house.told("ACTIVE")
    await let_pass(house, 1.1)
    house.orchestrator.answer_next(JSONResponse({}, 503))
    await evaluate(house.runtime)
    await act(house.runtime)
    await soon(house)
    assert len(house.orchestrator.resumes) == 1
    assert (await house.workflow())["orchestrator_answer"]["asked"] == "resume"
    assert house.posts() == 1
    assert "f1" not in house.orchestrator.paused


async def test_a_resume_never_overtakes_the_pause_before_it(house: House) -> None:
    house.orchestrator.answer_next(JSONResponse({}, 503))
    await broken(house, ref="f1")
    await act(house.runtime)
    await house.resume()
    await act(house.runtime)
    assert house.orchestrator.resumes == []
    await soon(house)
    assert [message["type"] for _, message in house.orchestrator.requests][-2:] == ["workflow.pause", "workflow.resume"]
    assert house.orchestrator.paused == set()
