"""Whose hold it is, how long it lasts, and that a resume puts back what we paused and nothing else."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.responses import JSONResponse

from service import views
from service.store import asks
from service.store.session import begin
from tests.end_to_end.running import until
from tests.workers.house import House
from workers.act import act
from workers.evaluate import evaluate
from workers.expire import let_go_expired

HOUR = timedelta(hours=1)
WAITED = "UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'"


async def acted(house: House) -> None:
    await house.run(WAITED)
    await act(house.runtime)


async def well_again(house: House) -> None:
    await house.told("ACTIVE")
    await until_state(house, "active")


async def until_state(house: House, state: str) -> None:
    async def reached() -> bool:
        await evaluate(house.runtime)
        return bool((await house.workflow())["state"] == state)

    await until(reached, 4)


async def over(house: House) -> None:
    await house.run("UPDATE holds SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL")
    await let_go_expired(house.runtime)


def asked(item: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["asked"], one["state"]) for one in item["orchestrator"]]


# A person's pause and its end


async def test_a_pause_for_a_while_ends_by_itself_and_says_so(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.pause(lasts=HOUR)
    [hold] = (await house.workflow())["holds"]
    assert (hold["person"], hold["reason"]) == ("a person", "a person's reason")
    ends = datetime.fromisoformat(hold["expires_at"])
    assert abs((ends - datetime.now(UTC) - HOUR).total_seconds()) < 20
    await let_go_expired(house.runtime)
    assert (await house.workflow())["state"] == "paused"
    await act(house.runtime)
    await over(house)
    assert (await house.workflow())["state"] == "active"
    assert (await house.gate(workflow_id="w1")).allow
    [item] = await house.history()
    assert (item["release_reason"], item["released_by"], item["released_at"] is None) == ("expired", None, False)
    await act(house.runtime)
    assert house.orchestrator.paused == set()
    assert "workflow.resumed" in await house.kinds()


async def test_the_last_word_says_when_a_pause_ends(house: House) -> None:
    await house.put()
    await house.pause(lasts=HOUR)
    [first] = (await house.workflow())["holds"]
    await house.pause(lasts=2 * HOUR)
    [later] = (await house.workflow())["holds"]
    assert later["id"] == first["id"]
    assert later["expires_at"] > first["expires_at"]
    await house.pause()
    await over(house)
    [last] = (await house.workflow())["holds"]
    assert last["expires_at"] is None
    audits = await house.rows(
        "SELECT details FROM events WHERE kind = 'audit' AND details ->> 'action' = 'workflow.pause'"
    )
    assert len(audits) == 3


async def test_an_expired_pause_leaves_an_alerts_hold(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.told("DISCONNECTED")
    await house.pause(lasts=HOUR)
    await over(house)
    assert (await house.workflow())["state"] == "paused"
    await act(house.runtime)
    assert house.orchestrator.resumes == []


async def test_a_pause_that_a_person_ended_does_not_expire_as_well(house: House) -> None:
    await house.put()
    await house.pause(lasts=HOUR)
    await house.resume()
    await house.pause()
    await over(house)
    assert [item["release_reason"] for item in await house.history()] == [None, "person"]


# History


async def test_the_history_says_whose_hold_it_was_and_what_the_orchestrator_said(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.told("DISCONNECTED")
    await act(house.runtime)
    await house.pause()
    await house.resume()
    await act(house.runtime)
    persons, alerts = await house.history()
    [alert] = await house.alerts()
    assert (alerts["alert_id"], alerts["rule"], alerts["person"]) == (
        str(alert["id"]),
        "account-disconnected-active-workflow",
        None,
    )
    assert (persons["person"], persons["alert_id"]) == ("a person", None)
    for item in (persons, alerts):
        assert (item["release_reason"], item["released_by"], item["release_note"]) == (
            "person",
            "a person",
            "a person's reason",
        )
    assert asked(alerts) == [("pause", "done"), ("resume", "done")]
    assert asked(persons) == [("resume", "done")]
    assert alerts["orchestrator"][0]["answer"]["prior_state"] == {"paused": False}
    assert alerts["orchestrator"][1]["answer"]["restored"] == {"paused": False}


async def test_each_time_of_a_hold_that_comes_back_is_kept_and_outlives_the_workflow(house: House) -> None:
    await house.put("other", account_ids=["ca_1"])
    await house.put(account_ids=["ca_1", "ca_2"])
    await house.told("DISCONNECTED")
    await house.put(account_ids=["ca_2"])
    await house.put(account_ids=["ca_1"])
    await house.delete()
    newest, oldest = await house.history()
    assert (newest["release_reason"], oldest["release_reason"]) == ("workflow_deleted", "dependency_dropped")
    assert newest["id"] == oldest["id"]
    assert newest["placed_at"] > oldest["released_at"]
    assert newest["released_by"] == oldest["released_by"] == "a person"


# What a resume puts back


async def test_what_a_person_had_disabled_before_our_pause_is_not_enabled(house: House) -> None:
    house.orchestrator.by_hand("f1", paused=True)
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.told("DISCONNECTED")
    await act(house.runtime)
    await well_again(house)
    await act(house.runtime)
    assert house.orchestrator.resumes == []
    assert house.orchestrator.paused == {"f1"}
    answer = (await house.workflow())["orchestrator_answer"]
    assert (answer["asked"], answer["state"], answer["answer"]["status"]) == ("resume", "done", "left")
    assert "left as a person had it" in answer["answer"]["detail"]
    await act(house.runtime)
    assert "left as a person had it" in house.slack.text_of(house.slack.messages[0])


async def test_a_resume_brings_back_the_state_that_was_said_before(house: House) -> None:
    house.orchestrator.says_was_paused = False
    house.orchestrator.by_hand("f1", paused=True)
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.pause()
    await act(house.runtime)
    await house.resume()
    await act(house.runtime)
    assert [one["prior_state"] for one in house.orchestrator.resumes] == [{"paused": True}]
    assert house.orchestrator.paused == {"f1"}


async def test_our_own_pause_that_could_not_be_undone_is_not_taken_for_a_persons(house: House) -> None:
    """A resume is refused for good; the next pause finds it paused, by us."""
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.pause()
    await act(house.runtime)
    house.orchestrator.always = (JSONResponse({}, 400), False)
    await house.resume()
    await act(house.runtime)
    assert house.orchestrator.paused == {"f1"}
    house.orchestrator.always = None
    await house.pause()
    await act(house.runtime)
    await house.resume()
    await act(house.runtime)
    assert house.orchestrator.paused == set()


async def test_a_pause_let_go_before_it_was_attempted_is_taken_back(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.pause()
    await house.resume()
    await act(house.runtime)
    assert house.orchestrator.requests == []
    [item] = await house.history()
    assert asked(item) == [("pause", "superseded"), ("resume", "done")]
    assert item["orchestrator"][1]["answer"]["status"] == asks.NOT_PAUSED


async def test_a_pause_that_was_refused_for_good_is_not_resumed(house: House) -> None:
    house.orchestrator.by_hand("f1", paused=True)
    house.orchestrator.always = (JSONResponse({}, 400), False)
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.pause()
    await act(house.runtime)
    assert (await house.workflow())["stops"]["null_means"] == "pause_failed"
    house.orchestrator.always = None
    await house.resume()
    await act(house.runtime)
    assert [message["type"] for _, message in house.orchestrator.requests] == ["workflow.pause"]
    assert house.orchestrator.paused == {"f1"}


async def test_a_pause_given_up_without_an_answer_is_asked_for_what_it_found(house: House) -> None:
    """It may have arrived: under its own key it tells what there was, and only then it is undone."""
    for disabled, left in ((False, set()), (True, {"f1"})):
        house.orchestrator.by_hand("f1", paused=disabled)
        house.orchestrator.always = (JSONResponse({}, 500), True)
        await house.put(account_ids=["ca_1"], ref="f1")
        await house.pause()
        await act(house.runtime)
        await house.run("UPDATE actions SET state = 'failed', finished_at = now() WHERE state = 'pending'")
        house.orchestrator.always = None
        await house.resume()
        await act(house.runtime)
        assert house.orchestrator.paused == left
    assert len(house.orchestrator.pauses) == 2
    assert len(house.orchestrator.resumes) == 1


async def test_a_resume_that_waits_is_taken_back_when_something_holds_it_again(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.pause()
    await act(house.runtime)
    house.orchestrator.always = (JSONResponse({}, 503), False)
    await house.resume()
    await act(house.runtime)
    await house.pause()
    house.orchestrator.always = None
    await acted(house)
    assert house.orchestrator.resumes == []
    assert house.orchestrator.paused == {"f1"}
    await house.resume()
    await acted(house)
    assert house.orchestrator.paused == set()


async def test_what_was_paused_is_put_back_when_an_inactive_workflow_is_deleted(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.told("DISCONNECTED")
    await act(house.runtime)
    await house.put(account_ids=["ca_1"], ref="f1", active=False)
    await house.delete()
    await act(house.runtime)
    assert house.orchestrator.paused == set()


async def test_an_attempt_under_way_is_not_taken_back(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    house.orchestrator.slow_seconds = 0.3
    await house.pause()
    acting = asyncio.create_task(act(house.runtime))

    async def under_way() -> bool:
        return bool(house.orchestrator.pauses)

    await until(under_way, 4)
    await house.resume()
    await acting
    await act(house.runtime)
    assert len(house.orchestrator.resumes) == 1
    assert house.orchestrator.paused == set()


# Three facts


async def test_what_the_orchestrator_stops_is_three_facts(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    assert (await house.workflow())["stops"] is None
    await house.told("DISCONNECTED")
    nothing = {"scheduled_starts": None, "manual_starts": None, "running_work": None}
    assert (await house.workflow())["stops"] == nothing | {"null_means": "not_answered"}
    await act(house.runtime)
    stops = {"scheduled_starts": True, "manual_starts": False, "running_work": None, "null_means": "does_not_say"}
    assert (await house.workflow())["stops"] == stops
    [item] = await house.history()
    assert item["orchestrator"][0]["stops"] == stops
    await house.put("w2", account_ids=["ca_1"])
    assert (await house.workflow("w2"))["stops"] == nothing | {"null_means": "not_told"}


async def test_a_workflow_line_of_an_alert_has_the_three_facts(house: House) -> None:
    await house.put(account_ids=["ca_1"], ref="f1")
    await house.told("DISCONNECTED")
    await act(house.runtime)
    [alert] = await house.alerts()
    async with begin(house.runtime.engine) as conn:
        view = await views.alert_view(conn, str(alert["id"]), public_url="")
    assert view is not None
    [line] = view.workflows
    assert line.stops is not None
    assert (line.stops.scheduled_starts, line.stops.manual_starts, line.stops.null_means) == (
        True,
        False,
        "does_not_say",
    )


async def test_a_change_to_the_whole_workflow_says_whose_hold_pauses_it(house: House) -> None:
    await house.told("ACTIVE")
    await house.put(connection_ids=["conn_1"], ref="f1")
    await house.told("DISCONNECTED")
    await house.put(connection_ids=["conn_1"], ref="f1", pause="workflow")
    await act(house.runtime)
    [pause] = house.orchestrator.pauses
    assert "DISCONNECTED" in pause["reason"]
