"""Clicks in Slack, over HTTP, on a real database: done once, by who may, and heard of by nobody but the clicker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from service.api.slack import BODY_BYTES_MAX
from service.clicks import PATH
from service.store import accounts
from service.store.session import begin
from tests.end_to_end.slack_desk import Desk, open_desk
from tests.end_to_end.test_api import FAILED, NOWHERE, STATUS, problem
from tests.fakes import serve
from tests.fakes.slack_clicks import CLARK, DIANA, GROUP, SIGNING_SECRET, FakeClicks, form, signed
from tests.make_requests import event_body
from workers.evaluate import evaluate

ACTOR = f"slack:{DIANA} (diana)"
FAILING = "Token refresh is failing"


@pytest.fixture
async def desk(database_url: str, tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(database_url, tmp_path) as made:
        yield made


# What each button does.


async def test_acknowledge_says_who_and_is_written_down_once_however_often_it_is_clicked(desk: Desk) -> None:
    alert_id = await desk.failed_three_times()
    click = desk.slack.click("acknowledge", alert_id)
    said = await desk.send_click(*click)
    assert said.startswith(f"Acknowledged by {ACTOR}: ")
    assert await desk.send_click(*click) == said, "the same request again"
    assert await desk.click("acknowledge", alert_id) == said, "a double click"
    alert = await desk.alert(alert_id)
    assert (alert["state"], alert["acknowledged_by"]) == ("acknowledged", ACTOR)
    [entry] = await desk.audit("alert.acknowledged")
    assert (entry["actor"], entry["subject"]) == (ACTOR, alert_id)


async def test_clicks_at_the_same_moment_are_one(desk: Desk) -> None:
    alert_id = await desk.failed_three_times()
    clicks = [desk.slack.click("snooze", alert_id) for _ in range(5)]
    answers = await asyncio.gather(*(desk.client.post(PATH, content=body, headers=head) for head, body in clicks))
    assert {answer.status_code for answer in answers} == {200}
    assert len({reply["text"] for reply in await desk.slack.told(5)}) == 1
    assert len(await desk.audit("alert.snooze")) == 1


async def test_snooze_is_for_an_hour_from_the_click_and_a_later_one_is_longer(desk: Desk) -> None:
    alert_id = await desk.failed_three_times()
    said = await desk.click("snooze", alert_id)
    until = datetime.fromisoformat((await desk.alert(alert_id))["snoozed_until"])
    assert timedelta(minutes=59) < until - datetime.now(UTC) <= timedelta(hours=1)
    assert said.startswith(f"Snoozed until {until:%H:%M} UTC")
    earlier = signed(form(desk.slack.payload("snooze", alert_id)), at=int(time.time()) - 200)
    await desk.send_click(*earlier)
    later = signed(form(desk.slack.payload("snooze", alert_id)), at=int(time.time()) + 200)
    assert await desk.send_click(*later) != said
    assert [entry["actor"] for entry in await desk.audit("alert.snooze")] == [ACTOR] * 2
    assert (await desk.alert(alert_id))["state"] == "firing"


async def test_resolve_closes_and_leaves_what_is_paused(desk: Desk) -> None:
    await desk.put("w1", account_ids=["ca_1"])
    alert_id = await desk.failed_three_times()
    said = await desk.click("resolve", alert_id)
    assert said.startswith("Resolved. What it paused stays so")
    assert await desk.click("resolve", alert_id) == said
    assert (await desk.alert(alert_id))["state"] == "resolved"
    assert (await desk.get("/v1/workflows/w1"))["state"] == "paused"
    assert len(await desk.audit("alert.resolved")) == 1
    # The hold stays, and so may be lifted still.
    assert await desk.click("resume", alert_id) == "Resumed: w1."
    assert (await desk.get("/v1/workflows/w1"))["state"] == "active"


async def test_resume_lifts_this_alerts_holds_and_no_other(desk: Desk) -> None:
    failing, disconnected = await desk.broken_twice()
    first = desk.slack.click("resume", failing)
    said = await desk.send_click(*first)
    assert said == "Still paused, by something else: w1."
    assert (await desk.get("/v1/workflows/w1"))["paused_by"] == [disconnected]
    assert await desk.send_click(*first) == said
    assert await desk.click("resume", disconnected) == "Resumed: w1."
    assert await desk.click("resume", disconnected) == "Resumed: w1."
    assert (await desk.get("/v1/workflows/w1"))["state"] == "active"
    entries = await desk.audit("workflow.resume")
    assert [(entry["actor"], entry["subject"], entry["reason"]) for entry in entries] == [
        (ACTOR, "w1", f"resumed from Slack, on alert {alert_id}") for alert_id in (failing, disconnected)
    ]


async def test_a_click_lifts_no_hold_that_was_not_there_when_it_was_made(desk: Desk) -> None:
    await desk.put("w1", account_ids=["ca_1"])
    alert_id = await desk.failed_three_times()
    old = signed(form(desk.slack.payload("resume", alert_id)), at=int(time.time()) - 60)
    assert (await desk.send_click(*old)).startswith("Paused anew since that click")
    assert (await desk.get("/v1/workflows/w1"))["state"] == "paused"


async def test_a_button_that_only_opens_a_link_does_nothing(desk: Desk) -> None:
    for head, body in (desk.slack.click("open", None), signed(form({"type": "view_submission"}))):
        answer = await desk.client.post(PATH, content=body, headers=head)
        assert (answer.status_code, answer.content) == (200, b"")
    assert (desk.slack.replies, desk.slack.tried) == ([], 0)


# The link.


async def test_a_fresh_link_is_for_the_clicker_alone(desk: Desk) -> None:
    desk.provider.set_account("ca_1", "EXPIRED")
    alert_id = await desk.failed_three_times()
    click = desk.slack.click("reauthorize", alert_id)
    said = await desk.send_click(*click)
    [link] = desk.provider.links
    assert "bruce@example.com" in said
    assert "good until 2026-12-01 10:00:00 UTC" in said
    [reply] = desk.slack.replies
    [button] = reply["blocks"][1]["elements"]
    assert (button["url"], link in reply["text"]) == (link, False)
    # The same request again, and a double click: no second link.
    for again in (click, desk.slack.click("reauthorize", alert_id)):
        assert (await desk.send_click(*again)).startswith("You asked for a link a moment ago.")
    assert desk.provider.links == [link]
    [entry] = await desk.audit("alert.reauthorize")
    assert (entry["actor"], entry["subject"], entry["reason"]) == (
        ACTOR,
        alert_id,
        "a link for scalekit:env_1:ca_1",
    )
    # And nowhere else.
    assert desk.slack.messages == []
    feed = str(await desk.get("/v1/siem/events?format=raw&limit=1000"))
    shown = feed + str(await desk.alert(alert_id)) + desk.log_file.read_text() + str(entry)
    for secret in (link, "magicLink", "secret-of-the-response-url", SIGNING_SECRET):
        assert secret not in shown


async def test_two_people_and_a_later_click_get_links_of_their_own(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_desk(database_url, tmp_path, SLACK_MAY_ACT=f"{DIANA},{CLARK}") as desk:
        desk.provider.set_account("ca_1", "EXPIRED")
        alert_id = await desk.failed_three_times()
        await desk.click("reauthorize", alert_id)
        assert "A fresh link" in await desk.click("reauthorize", alert_id, user=CLARK, name="clark")
        later = signed(form(desk.slack.payload("reauthorize", alert_id)), at=int(time.time()) + 40)
        monkeypatch.setattr("service.clicks.links.AGAIN_AFTER", timedelta(0))  # instead of waiting that long
        assert "A fresh link" in await desk.send_click(*later)
        assert len(set(desk.provider.links)) == 3


async def test_another_process_knows_of_the_first_click(desk: Desk, database_url: str, tmp_path: Path) -> None:
    desk.provider.set_account("ca_1", "EXPIRED")
    alert_id = await desk.failed_three_times()
    await desk.click("reauthorize", alert_id)
    async with open_desk(database_url, tmp_path) as other:
        other.provider.set_account("ca_1", "EXPIRED")
        assert (await other.click("reauthorize", alert_id)).startswith("You asked for a link a moment ago.")
        assert other.provider.links == []
    assert len(await desk.audit("alert.reauthorize")) == 1


async def test_why_there_is_no_link_is_said(desk: Desk) -> None:
    alert_id = await desk.failed_three_times()
    said = await desk.click("reauthorize", alert_id)
    assert said.startswith("The provider knows no account ca_1")
    desk.provider.set_account("ca_2", "EXPIRED")
    of_two = await desk.failed_three_times("ca_2")
    desk.provider.weather = [None]
    said = await desk.click("reauthorize", of_two)
    assert said.startswith("The provider gave no link: ")
    assert "Click again in 30 s" in said
    assert desk.provider.links == []


async def test_an_account_that_is_well_again_needs_no_link(desk: Desk) -> None:
    desk.provider.set_account("ca_1", "ACTIVE")
    alert_id = await desk.failed_three_times()
    await desk.click("resolve", alert_id)
    assert (await desk.click("reauthorize", alert_id)).startswith("This alert is resolved and its account is well")
    assert (desk.provider.links, await desk.audit("alert.reauthorize")) == ([], [])


async def test_without_the_providers_credentials_the_mend_is_said(database_url: str, tmp_path: Path) -> None:
    names = ("SCALEKIT_ENV_URL", "SCALEKIT_CLIENT_ID", "SCALEKIT_CLIENT_SECRET")
    async with open_desk(database_url, tmp_path, **dict.fromkeys(names)) as desk:
        said = await desk.click("reauthorize", await desk.failed_three_times())
    assert all(name in said for name in names)


# Buttons that are out of date, and clicks from elsewhere.


async def test_a_stale_button_is_answered_with_a_sentence(desk: Desk) -> None:
    alert_id = await desk.failed_three_times()
    await desk.click("resolve", alert_id)
    for action in ("acknowledge", "snooze"):
        assert await desk.click(action, alert_id) == "This alert is already resolved; nothing is left to do here."
    assert await desk.click("resume", alert_id) == "Nothing is paused because of this alert any more."
    for action in ("acknowledge", "snooze", "resolve", "resume", "reauthorize"):
        for gone in (NOWHERE, "no-id", "\x00", None, "x" * 4000):
            assert (await desk.click(action, gone)).startswith("Authwatch knows no such alert"), (action, gone)
    assert len(await desk.audit("alert.resolved")) == 1


@pytest.mark.parametrize(
    "elsewhere", [{"team": {"id": "T0OTHER001"}}, {"team": None}, {"api_app_id": "A0OTHER001"}, {"api_app_id": None}]
)
async def test_another_workspaces_click_does_nothing(desk: Desk, elsewhere: dict[str, Any]) -> None:
    alert_id = await desk.failed_three_times()
    said = await desk.send_click(*signed(form(desk.slack.payload("acknowledge", alert_id) | elsewhere)))
    assert said.startswith("This click is from another workspace or Slack app")
    assert (await desk.alert(alert_id))["state"] == "firing"


# Who may.


async def test_without_permitted_people_every_click_is_refused_with_the_mend(database_url: str, tmp_path: Path) -> None:
    async with open_desk(database_url, tmp_path, SLACK_MAY_ACT=None) as desk:
        alert_id = await desk.failed_three_times()
        for action in ("acknowledge", "snooze", "resolve", "resume", "reauthorize"):
            said = await desk.click(action, alert_id)
            assert f"SLACK_MAY_ACT={DIANA}" in said
        assert (await desk.alert(alert_id))["state"] == "firing"
        assert (await desk.alert(alert_id))["snoozed_until"] is None


async def test_who_is_not_permitted_is_told_and_nothing_is_done(desk: Desk) -> None:
    alert_id = await desk.failed_three_times()
    said = await desk.click("acknowledge", alert_id, user=CLARK, name="clark")
    assert said.startswith(f"You ({CLARK}) are not among those whose clicks count here.")
    assert (await desk.alert(alert_id))["state"] == "firing"


async def test_members_of_a_group_may_and_slack_is_asked_once_a_minute(database_url: str, tmp_path: Path) -> None:
    async with open_desk(database_url, tmp_path, SLACK_MAY_ACT=f"{CLARK},{GROUP}") as desk:
        alert_id = await desk.failed_three_times()
        desk.slack.refuse_next("fatal_error")
        said = await desk.click("acknowledge", alert_id)
        assert said.startswith(
            "Slack could not be asked who is in the permitted groups, so nothing was done: Slack: fatal"
        )
        assert (await desk.alert(alert_id))["state"] == "firing"
        desk.slack.refuse_next("fatal_error")
        assert "Acknowledged by" in await desk.click("acknowledge", alert_id, user=CLARK, name="clark"), "is named"
        desk.slack._weather.clear()
        assert "Acknowledged by" in await desk.click("acknowledge", alert_id)
        asked = len(desk.slack.calls["usergroups.users.list"])
        await asyncio.gather(*(desk.client.post(PATH, content=b, headers=h) for h, b in clicks_of(desk, alert_id, 5)))
        await desk.slack.told(3 + 5)
        assert len(desk.slack.calls["usergroups.users.list"]) == asked
        said = await desk.click("acknowledge", alert_id, user="U0NOBODY01", name="nobody")
        assert "are not among those" in said


def clicks_of(desk: Desk, alert_id: str, count: int) -> list[tuple[dict[str, str], bytes]]:
    return [desk.slack.click("acknowledge", alert_id) for _ in range(count)]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "missing_scope: give the Slack app the scope usergroups:read"),
        (PlainTextResponse("<html>", 200), "cannot be read"),
        (JSONResponse({"ok": True}, 200), "cannot be read"),
        (JSONResponse({"ok": True, "users": [1]}, 200), "cannot be read"),
        (JSONResponse([], 200), "cannot be read"),
        (PlainTextResponse("", 503), "http_503"),
        (JSONResponse({"ok": False, "error": "no_such_subteam"}), "no_such_subteam"),
    ],
)
async def test_a_group_that_slack_does_not_tell_lets_nobody_through(
    database_url: str, tmp_path: Path, answer: Any, said: str
) -> None:
    async with open_desk(database_url, tmp_path, SLACK_MAY_ACT=GROUP) as desk:
        if answer is None:
            desk.slack.scopes.discard("usergroups:read")
        else:
            desk.slack.answer_next(answer)
        told = await desk.click("acknowledge", await desk.failed_three_times())
    assert told.startswith("Slack could not be asked who is in the permitted groups")
    assert said in told


# What is not from Slack.


async def test_without_a_signing_secret_there_is_nothing_there(database_url: str, tmp_path: Path) -> None:
    async with open_desk(database_url, tmp_path, SLACK_SIGNING_SECRET=None) as desk:
        head, body = desk.slack.click("acknowledge", NOWHERE)
        problem(await desk.client.post(PATH, content=body, headers=head), 404, "clicks_off")


async def test_every_live_secret_is_accepted_and_no_other(database_url: str, tmp_path: Path) -> None:
    new = "0123456789abcdef0123456789abcdef"
    async with open_desk(database_url, tmp_path, SLACK_SIGNING_SECRET=f"{new}, {SIGNING_SECRET}") as desk:
        payload = form(desk.slack.payload("open", None))
        for secret, status in ((new, 200), (SIGNING_SECRET, 200), (new[:-1] + "0", 401), (f"{new}, x", 401)):
            head, body = signed(payload, secret=secret)
            assert (await desk.client.post(PATH, content=body, headers=head)).status_code == status


async def test_what_is_not_signed_now_and_whole_is_401(desk: Desk) -> None:
    alert_id = await desk.failed_three_times()
    good, body = desk.slack.click("acknowledge", alert_id)
    now = int(time.time())
    for headers, sent in (
        ({}, body),
        ({**good, "x-slack-signature": ""}, body),
        ({**good, "x-slack-signature": good["x-slack-signature"].upper()}, body),
        ({**good, "x-slack-signature": good["x-slack-signature"][3:]}, body),
        ({**good, "x-slack-request-timestamp": "now"}, body),
        ({**good, "x-slack-request-timestamp": f"+{now}"}, body),
        (good, body + b" "),
        (good, b""),
        signed(body, at=now - 310),
        signed(body, at=now + 310),
        signed(body, secret="another-secret-altogether"),
    ):
        answer = await desk.client.post(PATH, content=sent, headers=headers)
        said = problem(answer, 401)
        assert said["code"] in {"signature_missing", "signature_malformed", "signature_wrong", "timestamp_off"}
    twice = [*good.items(), ("x-slack-signature", "v0=" + "0" * 64)]
    problem(await desk.client.post(PATH, content=body, headers=twice), 401, "signature_missing")
    for bad in (b"", b"payload", b"payload=", b"payload=%ff", b"payload={}&payload={}", form([1]), form("x"), b"p=1"):
        head, sent = signed(bad)
        problem(await desk.client.post(PATH, content=sent, headers=head), 401, "payload_malformed")
    wrong: tuple[dict[str, Any], ...] = (
        {"actions": 1},
        {"user": {"id": 5}},
        {"user": None},
        {"user": {"id": "U 1"}},
        {"actions": [{}]},
    )
    for payload in wrong:
        head, sent = signed(form(desk.slack.payload("acknowledge", alert_id) | payload))
        problem(await desk.client.post(PATH, content=sent, headers=head), 401, "payload_malformed")
    assert (await desk.alert(alert_id))["state"] == "firing"
    assert desk.slack.tried == 0


async def test_the_body_is_bounded_and_the_method_is_post(desk: Desk) -> None:
    head, body = signed(b"payload=" + b"x" * BODY_BYTES_MAX)
    problem(await desk.client.post(PATH, content=body, headers=head), 413, "body_too_large")
    problem(await desk.client.get(PATH), 405, "method_not_allowed")


# In time, and to Slack alone.


async def test_a_database_that_cannot_now_is_said_in_time_and_nothing_was_done(desk: Desk) -> None:
    alert_id = await desk.failed_three_times()
    async with begin(desk.runtime.engine) as conn:
        await accounts.lock(conn, ["ca_1"])  # as an evaluator that takes long
        began = time.monotonic()
        said = await desk.click("acknowledge", alert_id)
        assert time.monotonic() - began < 3
        assert said.startswith("Authwatch cannot do it now")
    assert (await desk.alert(alert_id))["state"] == "firing"
    assert "Acknowledged by" in await desk.click("acknowledge", alert_id)


async def test_a_provider_that_takes_long_is_not_waited_for_and_its_link_comes_all_the_same(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.provider.set_account("ca_1", "EXPIRED")
    alert_id = await desk.failed_three_times()
    goes_on = asyncio.Event()
    make = desk.provider._magic_link

    async def slowly(request: Any) -> Any:
        await goes_on.wait()
        return await make(request)

    [route] = [route for route in desk.provider.app.routes if "magic_link" in route.path]  # type: ignore[attr-defined]
    monkeypatch.setattr(route, "app", slowly_app(slowly))
    monkeypatch.setattr("service.interactions.ANSWER_SECONDS_MAX", 0.2)
    head, body = desk.slack.click("reauthorize", alert_id)
    answer = await desk.client.post(PATH, content=body, headers=head)
    assert (answer.status_code, desk.slack.replies) == (200, [])
    goes_on.set()
    [reply] = await desk.slack.told(1)
    assert reply["blocks"][1]["elements"][0]["url"] == desk.provider.links[0]


def slowly_app(handler: Any) -> Any:
    from starlette.requests import Request

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (await handler(Request(scope, receive)))(scope, receive, send)

    return app


async def test_words_are_sent_once_and_a_click_whose_words_were_refused_is_done(desk: Desk) -> None:
    alert_id = await desk.failed_three_times()
    desk.slack.refuse_replies = PlainTextResponse("", 500)
    head, body = desk.slack.click("acknowledge", alert_id)
    assert (await desk.client.post(PATH, content=body, headers=head)).status_code == 200
    await desk.app.state.interactions.stop()
    assert desk.slack.tried == 1
    assert (await desk.alert(alert_id))["state"] == "acknowledged"


async def test_nobody_but_slack_is_told(desk: Desk) -> None:
    alert_id = await desk.failed_three_times()
    trap = FakeClicks()
    async with serve(trap.app) as elsewhere:
        port = elsewhere.rsplit(":", 1)[1]
        path = desk.slack.response_url().removeprefix("http://")
        for url in (
            f"{elsewhere}/actions/T1/1/x",
            f"http://localhost:{port}/actions/T1/1/x",
            f"http://{path.split('/')[0]}@127.0.0.1:{port}/actions/T1/1/x",
            f"http://hooks.slack.com@127.0.0.1:{port}/actions/T1/1/x",
            "http://hooks.slack.com/actions/T1/1/x",
            "file:///etc/passwd",
            "",
            None,
            "x" * 3999,
        ):
            payload = desk.slack.payload("acknowledge", alert_id) | {"response_url": url}
            head, body = signed(form(payload))
            assert (await desk.client.post(PATH, content=body, headers=head)).status_code == 200
        await desk.app.state.interactions.stop()
        assert (trap.tried, desk.slack.tried) == (0, 0)
    assert (await desk.alert(alert_id))["state"] == "acknowledged"


async def test_too_many_clicks_at_once_are_shed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    alert_id = await desk.failed_three_times()
    monkeypatch.setattr("service.interactions.CLICKS_MAX", 0)
    head, body = desk.slack.click("acknowledge", alert_id)
    problem(await desk.client.post(PATH, content=body, headers=head), 503, "too_many_clicks")


async def test_what_a_name_holds_is_no_markup_and_no_secret(desk: Desk) -> None:
    alert_id = await desk.failed_three_times()
    name = "<!channel> <https://evil.example.com|x> \u202e xoxb-123456789012-abcdefABCDEF"
    said = await desk.click("acknowledge", alert_id, name=name)
    assert "&lt;!channel&gt;" in said
    who = (await desk.alert(alert_id))["acknowledged_by"]
    for part in ("https://evil", "\u202e", "abcdefABCDEF"):
        assert part not in who
        assert part not in said


async def test_an_episode_that_comes_after_is_not_the_one_clicked_on(desk: Desk) -> None:
    """The same account breaks again: an old message's button does nothing to the new alert."""
    await desk.put("w1", account_ids=["ca_1"])
    old = await desk.failed_three_times()
    await desk.send(event_body(STATUS, data={"id": "ca_1", "status": "ACTIVE"}))
    await desk.send(event_body("connected_account.token_refresh_succeeded", data={"id": "ca_1"}))
    await evaluate(desk.runtime)
    for _ in range(3):
        await desk.send(event_body(FAILED, data={"id": "ca_1"}))
    await evaluate(desk.runtime)
    [new] = await desk.items("/v1/alerts?account_id=ca_1&state=firing")
    assert new["id"] != old
    await desk.click("resume", old)
    assert new["id"] in (await desk.get("/v1/workflows/w1"))["paused_by"]
