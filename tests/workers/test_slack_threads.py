"""What happened since is told in the message's thread: each thing once, in order, whatever breaks in between; and a burst
of changes is one edit."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.responses import Response

from service import steer, tell, thread
from service.event import new_id
from service.notify.base import AlertView, MessageRef, has_threads
from service.store import actions, log, readers
from service.store import messages as message_store
from service.store.actions import NOTIFY, THREAD, Action
from service.store.session import begin
from tests.fakes.slack import CHANNEL, REPLY
from tests.workers.house import EVENTS, House
from workers.act import act

EVERY = timedelta(seconds=3)


def told(house: House) -> list[str]:
    """The lines of all threads, in order, without their times."""
    text = "\n".join(reply["text"] for reply in house.slack.replies)
    return [line.partition(" · ")[2] for line in text.splitlines()]


async def alert_id(house: House) -> str:
    [row] = await house.rows("SELECT id::text AS id FROM alerts")
    return str(row["id"])


async def broken(house: House, **workflow: Any) -> str:
    """An account breaks and people are told. The alert's id."""
    await house.put(account_ids=["ca_1"], **workflow)
    await house.told("DISCONNECTED")
    await act(house.runtime)
    assert house.posts() == 1
    return await alert_id(house)


async def acknowledge(house: House, alert: str) -> None:
    async with begin(house.runtime.engine) as conn:
        await steer.acknowledge_alert(conn, alert, house.context)


async def soon(house: House) -> None:
    await house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")
    await act(house.runtime)


async def test_a_first_message_has_no_thread(house: House) -> None:
    await broken(house)
    await act(house.runtime)
    assert house.slack.replies == []


async def test_each_change_is_one_line_in_order_and_told_once(house: House) -> None:
    alert = await broken(house)
    await acknowledge(house, alert)
    await act(house.runtime)
    assert told(house) == ["Acknowledged by a person."]
    async with begin(house.runtime.engine) as conn:
        await steer.snooze_alert(conn, alert, datetime.now(UTC) + timedelta(hours=1), house.context)
    await act(house.runtime)
    await house.resume()
    await act(house.runtime)
    await house.resolve(alert)
    await act(house.runtime)
    [acknowledged, snoozed, resumed, resolved] = told(house)
    assert acknowledged == "Acknowledged by a person."
    assert snoozed.startswith("Snoozed until ")
    assert snoozed.endswith(" by a person.")
    assert resumed == "Resumed by a person: w1."
    assert resolved == "Resolved: by a person."
    assert "by a person" in house.slack.text_of(house.slack.messages[0])
    await act(house.runtime)
    assert len(house.slack.replies) == 4
    assert {reply["thread_ts"] for reply in house.slack.replies} == {house.slack.messages[0]["ts"]}


async def test_an_alert_that_paused_nothing_has_a_thread_too(house: House) -> None:
    for ago in (120, 60, 1):
        await house.told("failed", ago=ago)
    await act(house.runtime)
    await acknowledge(house, await alert_id(house))
    await act(house.runtime)
    assert told(house) == ["Acknowledged by a person."]


async def test_what_happened_together_is_one_reply(house: House) -> None:
    alert = await broken(house)
    await acknowledge(house, alert)
    await house.resume()
    await act(house.runtime)
    assert len(house.slack.replies) == 1
    assert told(house) == ["Acknowledged by a person.", "Resumed by a person: w1."]


async def test_what_the_orchestrator_answered_is_told(house: House) -> None:
    await broken(house, ref="flow-1")
    await act(house.runtime)
    assert told(house) == ["flows paused: w1."]


async def test_a_reply_whose_answer_was_lost_is_found_and_not_repeated(house: House) -> None:
    alert = await broken(house)
    await acknowledge(house, alert)
    await only(house, NOTIFY)
    house.slack.break_off_next()
    await act(house.runtime)
    assert len(house.slack.replies) == 1
    await soon(house)
    assert len(house.slack.replies) == 1
    assert len(house.slack.calls["conversations.replies"]) == 1
    assert await states(house, THREAD) == ["done"]


async def test_a_reply_that_never_arrived_is_sent_again_and_not_marked(house: House) -> None:
    alert = await broken(house)
    await acknowledge(house, alert)
    await only(house, NOTIFY)
    house.slack.answer_next(Response(status_code=500))
    await act(house.runtime)
    assert house.slack.replies == []
    await soon(house)
    assert told(house) == ["Acknowledged by a person."]
    assert "possible repeat" not in house.slack.replies[0]["text"]


async def test_where_the_history_may_not_be_read_a_reply_is_repeated_once_and_marked(house: House) -> None:
    house.slack.scopes.discard("channels:history")
    alert = await broken(house)
    await acknowledge(house, alert)
    await only(house, NOTIFY)
    house.slack.break_off_next()
    await act(house.runtime)
    await soon(house)
    assert ["possible repeat" in reply["text"] for reply in house.slack.replies] == [False, True]
    assert await states(house, THREAD) == ["done"]


async def test_a_worker_that_died_after_its_reply_does_not_repeat_it(house: House) -> None:
    alert = await broken(house)
    await acknowledge(house, alert)
    await only(house, NOTIFY)
    async with begin(house.runtime.engine) as conn:
        [(action, _)] = await actions.claim(conn, await readers.clock(conn), lease=timedelta(seconds=0), limit=1)
    assert action.kind == THREAD
    await reply_and_die(house, action)
    await act(house.runtime)
    assert len(house.slack.replies) == 1
    assert await states(house, THREAD) == ["done"]


async def test_a_worker_that_died_after_its_edit_loses_no_line(house: House) -> None:
    """The edit went out and was not recorded: the line is a row only with the record, so it is told by the next."""
    alert = await broken(house)
    await acknowledge(house, alert)
    await decide_only(house)
    async with begin(house.runtime.engine) as conn:
        [(action, _)] = await actions.claim(conn, await readers.clock(conn), lease=timedelta(seconds=0), limit=1)
    assert action.kind == NOTIFY
    await act(house.runtime)
    assert told(house) == ["Acknowledged by a person."]


async def test_a_thread_whose_message_was_deleted_ends_and_disturbs_nothing(house: House) -> None:
    alert = await broken(house)
    await acknowledge(house, alert)
    await only(house, NOTIFY)
    house.slack.messages.clear()
    await act(house.runtime)
    assert (house.slack.replies, await states(house, THREAD)) == ([], ["done"])


async def test_a_change_that_was_committed_late_is_told_late_and_not_skipped(house: House) -> None:
    """Its time is before that of what was told already: what was told is known by key, not by time."""
    alert = await broken(house)
    await acknowledge(house, alert)
    await act(house.runtime)
    async with begin(house.runtime.engine) as conn:
        now = await readers.clock(conn)
        early = steer.audit("dana", "alert.reauthorize", alert, now - timedelta(hours=1))
        await log.append(conn, [early])
        await tell.announce(conn, [alert], now)
    await act(house.runtime)
    assert told(house) == ["Acknowledged by a person.", "dana asked for a link to authorize it again."]


async def test_a_message_from_before_there_were_threads_tells_what_came_after_it(house: House) -> None:
    alert = await broken(house)
    await house.run("UPDATE messages SET told = NULL, edited_at = NULL, posted_at = clock_timestamp()")
    await acknowledge(house, alert)
    await act(house.runtime)
    assert told(house) == ["Acknowledged by a person."]
    await house.resume()
    await act(house.runtime)
    assert told(house) == ["Acknowledged by a person.", "Resumed by a person: w1."]


async def test_a_burst_of_changes_is_one_edit_and_the_last_state_arrives(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "EDIT_EVERY", EVERY)
    alert = await broken(house)
    await acknowledge(house, alert)
    await act(house.runtime)
    await house.resume()
    await act(house.runtime)
    assert house.slack.calls["chat.update"] == []
    [wait] = await waits(house)
    assert 0 < wait <= EVERY.total_seconds()
    await house.resolve(alert)
    await act(house.runtime)
    assert house.slack.calls["chat.update"] == []
    [wait] = await waits(house)
    assert 0 < wait <= EVERY.total_seconds(), "a resolve is held back no longer"
    await soon(house)
    assert len(house.slack.calls["chat.update"]) == 1
    assert "Resolved" in house.slack.text_of(house.slack.messages[0])
    assert len(house.slack.replies) == 1
    assert len(told(house)) == 3


async def test_an_edit_asked_for_while_one_is_under_way_waits_after_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    alert = await broken(house)
    await acknowledge(house, alert)
    monkeypatch.setattr(actions, "EDIT_EVERY", EVERY)
    await house.run("UPDATE messages SET edited_at = now() - interval '1 h'")
    await decide_only(house)
    house.slack.slow_seconds = 0.5
    acting = asyncio.create_task(act(house.runtime))
    for _ in range(1_000):
        if house.slack.calls["chat.update"]:
            break
        await asyncio.sleep(0.01)
    await house.resolve(alert)
    await decide_only(house)
    await acting
    assert len(house.slack.calls["chat.update"]) == 1
    [wait] = await waits(house)
    assert 2 < wait <= EVERY.total_seconds()


async def test_the_first_message_waits_for_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "EDIT_EVERY", EVERY)
    await broken(house)


async def test_a_manual_resume_is_asked_for_with_its_button(house: House) -> None:
    await broken(house, resume="manual")
    await house.told("ACTIVE")
    await act(house.runtime)
    text = house.slack.text_of(house.slack.messages[0])
    assert "is well again; w1 stays paused until somebody resumes it" in text


async def test_a_manual_resume_is_asked_for_though_a_person_resolved_the_alert_before(house: House) -> None:
    alert = await broken(house, resume="manual")
    await house.resolve(alert)
    await act(house.runtime)
    assert "stays paused until somebody resumes it" not in house.slack.text_of(house.slack.messages[0])
    await house.told("ACTIVE")
    await act(house.runtime)
    text = house.slack.text_of(house.slack.messages[0])
    assert "is well again; w1 stays paused until somebody resumes it" in text
    assert told(house)[-1] == "Well again, and paused until somebody resumes it: w1."
    await house.told("ACTIVE")
    await act(house.runtime)
    assert len(house.slack.replies) == 2, "it is asked for once"
    assert len(house.slack.calls["chat.update"]) == 2


async def test_a_manual_resume_is_asked_for_once_the_account_is_well_though_the_trouble_ended_before(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EVENTS, "refreshed all the same", ("token.refresh_succeeded", "EXPIRED"))
    await house.put(account_ids=["ca_1"], resume="manual")
    await house.told("EXPIRED", ago=30)
    for ago in (20, 15, 10):
        await house.told("failed", ago=ago)
    await act(house.runtime)
    await house.told("refreshed all the same", ago=5)
    await act(house.runtime)
    assert not any("until somebody resumes it" in line for line in told(house))
    await house.told("ACTIVE")
    await act(house.runtime)
    rows = await house.rows("SELECT count(*) AS n FROM holds WHERE released_at IS NULL")
    asked = [line for line in told(house) if "until somebody resumes it" in line]
    assert len(asked) == rows[0]["n"] == 2


async def test_a_token_in_a_name_is_in_no_message(house: House) -> None:
    token = "xoxb-123456789012-1234567890123-abcdefghijklmnop"
    await house.put(account_ids=["ca_1"])
    await house.told("ACTIVE", ago=5)
    await house.run(f"UPDATE workflows SET name = 'with {token}'")
    await house.run(f"UPDATE accounts SET identifier = 'Clark {token}'")
    await house.told("DISCONNECTED")
    await house.run(f"UPDATE accounts SET identifier = 'Clark {token}'")
    await act(house.runtime)
    await acknowledge(house, await alert_id(house))
    await house.resume()
    await act(house.runtime)
    said = [house.slack.text_of(house.slack.messages[0]), *told(house)]
    assert "Clark ***" in said[0]
    assert "with ***" in "\n".join(said[1:])
    assert token not in "\n".join(said)


async def test_the_evidence_is_told_in_plain_words(house: House) -> None:
    for ago in (120, 60, 1):
        await house.told("failed", ago=ago)
    await act(house.runtime)
    text = house.slack.text_of(house.slack.messages[0])
    assert "3 failed token refreshes between " in text
    assert "none since succeeded" in text
    assert "Re-authorize" in text


async def test_a_thread_that_is_full_says_so_once_and_the_message_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    alert = await broken(house)
    monkeypatch.setattr(thread, "TOLD_MAX", 2)  # the pause that the message tells, and one more
    await acknowledge(house, alert)
    await act(house.runtime)
    await house.resolve(alert)
    await act(house.runtime)
    assert len(house.slack.replies) == 1
    assert thread.FULL in house.slack.replies[0]["text"]
    assert "Resolved" in house.slack.text_of(house.slack.messages[0])


async def test_orchestrators_answers_and_replies_ask_for_no_further_edit(house: House) -> None:
    alert = await broken(house)
    await acknowledge(house, alert)
    await act(house.runtime)
    edits = len(house.slack.calls["chat.update"])
    await act(house.runtime)
    assert len(house.slack.calls["chat.update"]) == edits == 1
    assert len(house.slack.calls[REPLY]) == 1


async def states(house: House, kind: str) -> list[str]:
    return [row["state"] for row in await house.rows(f"SELECT state FROM actions WHERE kind = '{kind}'")]


async def waits(house: House) -> list[float]:
    """For how many seconds each pending message waits."""
    rows = await house.rows(
        "SELECT next_attempt_at - clock_timestamp() AS wait FROM actions WHERE state = 'pending' AND kind = 'notify'"
    )
    return [row["wait"].total_seconds() for row in rows]


async def decide_only(house: House) -> None:
    """What is to be told is decided, and not done."""
    async with begin(house.runtime.engine) as conn:
        await tell.decide(conn, house.runtime.settings.routing)


async def only(house: House, kind: str) -> None:
    """All that is due of this kind is done, and what follows from it waits."""
    await decide_only(house)
    await house.run(
        "CREATE FUNCTION hold_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.next_attempt_at := now() + interval '1 h';"
        " RETURN NEW; END $$"
    )
    await house.run(
        f"CREATE TRIGGER hold_back BEFORE INSERT ON actions FOR EACH ROW WHEN (NEW.kind <> '{kind}') EXECUTE FUNCTION hold_back()"
    )
    await act(house.runtime)
    await house.run("DROP TRIGGER hold_back ON actions")
    await house.run("DROP FUNCTION hold_back")
    await house.run("UPDATE actions SET next_attempt_at = now() WHERE state = 'pending'")


async def reply_and_die(house: House, action: Action) -> None:
    """The reply goes out; of what came back nothing is written down."""
    notifier = house.runtime.notifiers["slack"]
    assert has_threads(notifier)
    view = AlertView(
        id=new_id(),
        rule_id="r",
        severity="P2",
        state="firing",
        summary="s",
        opened_at=datetime.now(UTC),
        fired_at=datetime.now(UTC),
    )
    ref = MessageRef(CHANNEL, house.slack.messages[0]["ts"])
    await notifier.thread(view, ref, action.payload["lines"], delivery_id=action.id)


def test_of_two_messages_about_one_alert_the_later_counts() -> None:
    both = [
        message_store.Message("a", "slack", "C1", "1"),
        message_store.Message("a", "slack", "C1", "2", None, ("k",)),
    ]
    assert '"ts":"2"' in message_store.as_json(both)
    assert '"ts":"1"' not in message_store.as_json(both)
