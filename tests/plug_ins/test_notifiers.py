"""Slack's own traps, each against a strict server of its rules; what every notifier promises is in test_notifiers_conform.py."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from slack_sdk.models.blocks import Block
from starlette.responses import PlainTextResponse, Response

from service.errors import DeliveryFailed
from service.notify.base import AlertView, MessageRef, Seen, StopFacts, Together, WorkflowLine, has_threads
from service.notify.slack import SlackConfig, SlackNotifier
from service.notify.slack_answers import PERMANENT
from service.notify.slack_blocks import BLOCKS_CHARS_MAX, blocks, fallback, reply_blocks, reply_fallback
from service.notify.slack_buttons import buttons
from service.notify.wording import word
from tests.fakes.front import Front, standing
from tests.fakes.slack import CHANNEL, REPLY, TOKEN, FakeSlack, check_content, units
from tests.plug_ins.notifier_cases.views import OPENED, RESOLVED, VIEW

NOWHERE = "http://127.0.0.1:9/api/"  # the discard port: nothing listens


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
def fake(front: Front) -> FakeSlack:
    slack = FakeSlack()
    slack.url = f"{front.url}/api/"
    front.app = slack.app
    return slack


def notifier_of(
    fake: FakeSlack, *, channel: str = CHANNEL, token: str = TOKEN, timeout_seconds: int = 5, secret: str | None = None
) -> SlackNotifier:
    section = {"token": token, "channel": channel, "api_url": fake.url}
    config = SlackConfig.model_validate(section | ({"signing_secret": secret} if secret else {}))
    return SlackNotifier(config, timeout_seconds=timeout_seconds)


# Slack: what is sent


async def test_a_post_carries_text_blocks_and_its_delivery_id_and_unfurls_nothing(fake: FakeSlack) -> None:
    ref = await notifier_of(fake).post(VIEW, delivery_id="d1", possible_repeat=False)
    (sent,) = fake.calls["chat.postMessage"]
    assert sent["text"]
    assert sent["blocks"]
    assert sent["unfurl_links"] is False
    assert sent["metadata"] == {"event_type": "authwatch_alert", "event_payload": {"delivery_id": "d1"}}
    assert ref == MessageRef(CHANNEL, fake.messages[0]["ts"])


async def test_a_channel_given_by_name_is_remembered_by_the_id_slack_answers(fake: FakeSlack) -> None:
    notifier = notifier_of(fake, channel="#on-call")
    ref = await notifier.post(VIEW, delivery_id="d1", possible_repeat=False)
    assert ref.channel == CHANNEL
    assert await notifier.find("d1") == ref


async def test_an_update_edits_the_one_message_and_keeps_its_blocks(fake: FakeSlack) -> None:
    notifier = notifier_of(fake)
    await notifier.update(RESOLVED, await notifier.post(VIEW, delivery_id="d1", possible_repeat=False))
    (message,) = fake.messages
    assert message["blocks"]
    assert "Resolved" in message["text"]


async def test_outside_text_is_no_markup(fake: FakeSlack) -> None:
    view = dataclasses.replace(VIEW, identifier="<!channel> & co", summary="<https://evil.example|click>")
    await notifier_of(fake).post(view, delivery_id="d1", possible_repeat=False)
    said = fake.text_of(fake.messages[0])
    assert "&lt;!channel&gt; &amp; co" in said
    assert "<!" not in said
    assert "evil" not in said
    assert "<https://authwatch.example.com/#alert=1&amp;x=2|Open in Authwatch>" in said


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "https://a.example/|x>", "https://a.example/ b", "x" * 400, "https://["]
)
def test_a_link_that_cannot_be_written_safely_is_left_out(url: str) -> None:
    laid_out = json.dumps(blocks(word(dataclasses.replace(VIEW, url=url), OPENED)))
    assert "Open in Authwatch" not in laid_out


# Pieces repeated, most of them from a list: drawing long text, or much of it, costs hypothesis seconds.
HOSTILE = (
    *("<!channel>", "<@U01>", "<https://evil.example|x>", "&", '"', "\\", "\n", " ", "a", "*_~`", ":tada:", "\x00"),
    *("\u202eevil", "שלום", "\U0001f534", "\U0001f469\u200d\U0001f467", "\ud800", "e\u0301", "http://a.example/"),
)
WORDS = st.sampled_from([piece * times for piece in HOSTILE for times in (1, 7, 400)] + [""])
TEXTS = WORDS | st.text(max_size=40)
FACT = st.sampled_from([True, False, None])
LINES = st.builds(
    WorkflowLine,
    workflow_id=WORDS,
    name=WORDS | st.none(),
    state=st.just("paused") | WORDS,
    scope=st.sampled_from(["workflow", "account"]),
    orchestrator=WORDS | st.none(),
    orchestrator_state=st.just("paused") | WORDS | st.none(),
    stops=st.none() | st.builds(StopFacts, scheduled_starts=FACT, manual_starts=FACT, running_work=FACT),
    waits=st.booleans(),
    held_elsewhere=st.booleans(),
)
TIMES = st.integers(min_value=0, max_value=199 * 365 * 86_400).map(
    lambda seconds: datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
)
SEEN = st.builds(
    Seen, kind=WORDS | st.just("token.refresh_failed"), count=st.integers(0, 10**9), first_at=TIMES, last_at=TIMES
)
TOGETHER = st.builds(
    Together,
    kind=st.sampled_from(["first", "repeat", "growth", "escalation"]),
    since=TIMES | st.none(),
    total=st.integers(1, 10**9),
    firing=st.integers(0, 10**9),
    acknowledged=st.integers(0, 10**9),
    resolved=st.integers(0, 10**9),
    first_at=TIMES | st.none(),
    last_at=TIMES | st.none(),
    names=st.lists(WORDS, max_size=12).map(tuple),
    all_accounts=st.booleans(),
)
VIEWS = st.builds(
    AlertView,
    id=WORDS,
    rule_id=WORDS,
    severity=WORDS,
    state=st.sampled_from(["firing", "acknowledged", "resolved"]),
    summary=TEXTS,
    opened_at=TIMES,
    fired_at=TIMES,
    what_to_do=TEXTS | st.none(),
    account_id=WORDS | st.none(),
    connection_id=WORDS | st.none(),
    environment_id=WORDS | st.none(),
    source=WORDS | st.none(),
    provider=WORDS | st.none(),
    identifier=TEXTS | st.none(),
    account_status=WORDS | st.none(),
    resolved_at=TIMES | st.none(),
    resolved_reason=WORDS | st.none(),
    acknowledged_by=WORDS | st.none(),
    late_seconds=st.none() | st.floats(min_value=-1e9, max_value=1e9),
    evidence_count=st.integers(min_value=0, max_value=10**6),
    seen=st.lists(SEEN, max_size=7).map(tuple),
    last_refresh_at=TIMES | st.none(),
    last_refresh_outcome=st.sampled_from(["success", "failure", None]),
    provider_action=st.sampled_from(["reauthorize", "fix_client", "wait_and_retry", "fix_parameters", None]) | WORDS,
    reauthorizable=st.booleans(),
    snoozed_until=TIMES | st.none(),
    resolved_by=WORDS | st.none(),
    drill=st.booleans(),
    flapping=st.booleans(),
    late_detection=st.booleans(),
    together=st.none() | TOGETHER,
    group=st.lists(st.tuples(WORDS, WORDS), max_size=4).map(tuple),
    discovered_late=st.booleans(),
    workflows=st.builds(lambda line, times: (line,) * times, LINES, st.sampled_from([0, 1, 20])),
    url=WORDS | st.none() | st.just("https://authwatch.example.com/" + "&" * 269),
)


@settings(max_examples=15, deadline=None)
@given(VIEWS, st.booleans(), TIMES)
def test_any_alert_fits_into_slacks_limits(view: AlertView, possible_repeat: bool, now: datetime) -> None:
    wording = word(view, now)
    laid_out = blocks(wording, possible_repeat=possible_repeat, buttons=buttons(view))
    said = fallback(wording, possible_repeat=possible_repeat)
    check_content({"text": said, "blocks": laid_out})
    is_block_kit(laid_out)
    assert units(json.dumps(laid_out, ensure_ascii=False)) <= BLOCKS_CHARS_MAX == 10_000
    pages_nobody(said, laid_out)


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, max_size=30), st.booleans())
def test_any_reply_fits_into_slacks_limits(lines: list[str], possible_repeat: bool) -> None:
    laid_out, said = (lay(lines, possible_repeat=possible_repeat) for lay in (reply_blocks, reply_fallback))
    check_content({"text": said, "blocks": laid_out})
    is_block_kit(laid_out)
    pages_nobody(said, laid_out)


def shown(part: Any) -> Iterator[str]:
    """All that a reader sees; a button's value is no text."""
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        if not isinstance(inner, str):
            yield from shown(inner)
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        yield part["text"]


def is_block_kit(laid_out: Any) -> None:
    """As Slack's own models of it see it."""
    for block in laid_out:
        parsed = Block.parse(block)
        assert parsed is not None
        parsed.validate_json()


def pages_nobody(said: Any, laid_out: Any) -> None:
    """The one link in it is ours; nothing else begins what Slack reads as a mention, a link or a command."""
    written = f"{said}{' '.join(shown(laid_out))}"
    assert written.count("<") == written.count("<https://authwatch.example.com/")


def test_the_longest_alert_of_all_fits_into_slacks_limits() -> None:
    """Every field full of what grows most when it is escaped."""
    for filler in ("&" * 5_000, '"' * 5_000, "\U0001f534" * 5_000, "word " * 1_000, "\ud800" * 5_000):
        line = WorkflowLine(
            workflow_id=filler,
            name="x" + filler,
            state="paused",
            orchestrator=filler,
            orchestrator_state=filler,
            waits=True,
            stops=StopFacts(scheduled_starts=True, manual_starts=False),
        )
        view = dataclasses.replace(
            VIEW, state="firing", rule_id=filler, reauthorizable=True, snoozed_until=OPENED + timedelta(days=1), severity=filler, summary=filler, what_to_do=filler,
            account_id=filler, connection_id=filler, environment_id=filler, source=filler, provider=filler,
            identifier=filler, account_status=filler, acknowledged_by=filler, late_seconds=1e9, workflows=(line,) * 60,
            url="https://authwatch.example.com/" + "&" * 269,
        )  # fmt: skip
        wording = word(view, OPENED)
        laid_out = blocks(wording, possible_repeat=True, buttons=buttons(view))
        assert laid_out[-2]["type"] == "actions"
        is_block_kit(laid_out)
        check_content({"text": fallback(wording, possible_repeat=True), "blocks": laid_out})
        assert units(json.dumps(laid_out, ensure_ascii=False)) <= BLOCKS_CHARS_MAX


# Notifiers with threads


@pytest.fixture
def threaded(fake: FakeSlack) -> SlackNotifier:
    return notifier_of(fake)


async def test_a_reply_stands_in_the_thread_of_its_message_and_is_found_by_its_id(
    threaded: SlackNotifier, fake: FakeSlack
) -> None:
    ref = await threaded.post(VIEW, delivery_id="d1", possible_repeat=False)
    reply = await threaded.thread(VIEW, ref, ["12:00:01 UTC · Acknowledged by Dana."], delivery_id="r1")
    assert (len(fake.messages), len(fake.replies)) == (1, 1)
    assert fake.replies[0]["thread_ts"] == ref.ts
    assert "Acknowledged by Dana." in fake.text_of(fake.replies[0])
    assert await threaded.find_reply("r1", ref) == reply
    assert await threaded.find_reply("r2", ref) is None


async def test_a_reply_that_may_be_a_repeat_says_so(threaded: SlackNotifier, fake: FakeSlack) -> None:
    assert has_threads(threaded)
    ref = await threaded.post(VIEW, delivery_id="d1", possible_repeat=False)
    await threaded.thread(VIEW, ref, ["hm"], delivery_id="r1", possible_repeat=True)
    assert "(possible repeat)" in fake.text_of(fake.replies[0])


async def test_a_reply_to_what_is_gone_says_so(fake: FakeSlack) -> None:
    with pytest.raises(DeliveryFailed) as caught:
        await notifier_of(fake).thread(VIEW, MessageRef(CHANNEL, "1.000001"), ["hm"], delivery_id="r1")
    assert (caught.value.code, caught.value.permanent) == ("thread_not_found", True)
    with pytest.raises(DeliveryFailed) as caught:
        await notifier_of(fake).find_reply("r1", MessageRef(CHANNEL, "1.000001"))
    assert caught.value.code == "fate_unknown"


async def test_outside_text_in_a_reply_is_no_markup_and_unfurls_nothing(fake: FakeSlack) -> None:
    notifier = notifier_of(fake)
    ref = await notifier.post(VIEW, delivery_id="d1", possible_repeat=False)
    await notifier.thread(VIEW, ref, ["<!channel> & <@U1>"], delivery_id="r1")
    [sent] = fake.calls[REPLY]
    assert "&lt;!channel&gt; &amp; &lt;@U1&gt;" in sent["text"]
    assert sent["unfurl_links"] is False
    assert sent.get("reply_broadcast") is None


# Slack: buttons

PAUSED = dataclasses.replace(VIEW, account_status="DISCONNECTED", reauthorizable=True)


def labels(view: AlertView) -> list[str]:
    return [button["text"]["text"] for block in buttons(view) for button in block["elements"]]


def test_buttons_follow_from_how_the_alert_stands() -> None:
    everything = ["Re-authorize", "Acknowledge", "Snooze", "Resume workflows", "Resolve", "Open"]
    assert labels(PAUSED) == everything
    assert labels(dataclasses.replace(PAUSED, reauthorizable=False)) == everything[1:]
    assert labels(dataclasses.replace(PAUSED, state="acknowledged")) == [
        "Re-authorize",
        "Resume workflows",
        "Resolve",
        "Open",
    ]
    assert "Resume workflows" not in labels(dataclasses.replace(PAUSED, workflows=()))
    assert labels(dataclasses.replace(RESOLVED, workflows=())) == ["Open"]
    assert labels(RESOLVED) == ["Resume workflows", "Open"]
    assert labels(dataclasses.replace(PAUSED, drill=True)) == []


def test_re_authorize_is_offered_only_where_it_is_the_next_step() -> None:
    ours = dataclasses.replace(PAUSED, provider_action="fix_client")
    assert "Re-authorize" not in labels(ours)


def test_a_button_carries_the_alerts_id_and_nothing_else_and_dangerous_ones_ask_first() -> None:
    [block] = buttons(PAUSED)
    by_id = {button["action_id"]: button for button in block["elements"]}
    assert set(by_id) == {
        f"authwatch_{name}" for name in ("acknowledge", "snooze", "resolve", "resume", "reauthorize", "open")
    }
    assert {button["value"] for button in by_id.values()} == {VIEW.id}
    assert {name for name, button in by_id.items() if "confirm" in button} == {"authwatch_resolve", "authwatch_resume"}
    assert by_id["authwatch_open"]["url"] == VIEW.url


@pytest.mark.parametrize("secret", [None, "0123456789abcdef0123456789abcdef"])
async def test_without_a_signing_secret_there_is_nothing_to_click(fake: FakeSlack, secret: str | None) -> None:
    notifier = notifier_of(fake, secret=secret)
    ref = await notifier.post(PAUSED, delivery_id="d1", possible_repeat=False)
    assert any(block["type"] == "actions" for block in fake.messages[0]["blocks"]) is (secret is not None)
    await notifier.update(PAUSED, ref)
    assert any(block["type"] == "actions" for block in fake.messages[0]["blocks"]) is (secret is not None)
    assert "Open in Authwatch" in fake.text_of(fake.messages[0])


# Slack: what its answers mean


async def failure_of(notifier: SlackNotifier, ref: MessageRef | None = None) -> DeliveryFailed:
    tried = notifier.update(VIEW, ref) if ref else notifier.post(VIEW, delivery_id="d1", possible_repeat=False)
    with pytest.raises(DeliveryFailed) as caught:
        await tried
    return caught.value


@pytest.mark.parametrize("code", [*sorted(PERMANENT), "restricted_action", "restricted_action_read_only_channel"])
async def test_what_only_a_person_can_mend_is_permanent(fake: FakeSlack, code: str) -> None:
    fake.refuse_next(code)
    failure = await failure_of(notifier_of(fake))
    assert (failure.code, failure.permanent, failure.ambiguous) == (code, True, False)


@pytest.mark.parametrize("code", ["internal_error", "fatal_error", "service_unavailable", "request_timeout"])
async def test_what_slack_may_have_half_done_is_tried_again_after_a_look(fake: FakeSlack, code: str) -> None:
    fake.refuse_next(code)
    failure = await failure_of(notifier_of(fake))
    assert (failure.code, failure.permanent, failure.ambiguous) == (code, False, True)


@pytest.mark.parametrize("code", ["rate_limited", "message_limit_exceeded"])
async def test_a_limit_told_without_a_status_waits_and_was_not_posted(fake: FakeSlack, code: str) -> None:
    fake.refuse_next(code)
    failure = await failure_of(notifier_of(fake))
    assert (failure.code, failure.permanent, failure.ambiguous) == (code, False, False)
    assert failure.retry_after_seconds == 30


@pytest.mark.parametrize(("sent", "waits"), [("7", 7), ("0", 1), ("soon", 30), ("999999", 3600), ("nan", 30)])
async def test_429_says_how_long_to_wait_and_is_not_ambiguous(fake: FakeSlack, sent: str, waits: float) -> None:
    fake.rate_limit_next(retry_after=sent)
    failure = await failure_of(notifier_of(fake))
    assert (failure.code, failure.permanent, failure.ambiguous) == ("ratelimited", False, False)
    assert failure.retry_after_seconds == waits
    assert len(fake.calls["chat.postMessage"]) == 1


async def test_an_error_never_heard_of_is_tried_again_and_was_not_posted(fake: FakeSlack) -> None:
    fake.refuse_next("something_new")
    failure = await failure_of(notifier_of(fake))
    assert (failure.code, failure.permanent, failure.ambiguous) == ("something_new", False, False)


@pytest.mark.parametrize(
    ("status", "permanent", "ambiguous"),
    [(400, True, False), (401, True, False), (403, True, False), (404, True, False), (408, False, True),
     (500, False, True), (502, False, True), (503, False, True), (504, False, True)],
)  # fmt: skip
@pytest.mark.parametrize("media_type", ["text/plain", "text/html", "application/json"])
async def test_a_status_without_slacks_words_is_judged_by_itself(
    fake: FakeSlack, status: int, permanent: bool, ambiguous: bool, media_type: str
) -> None:
    fake.answer_next(Response("upstream says no", status, media_type=media_type))
    failure = await failure_of(notifier_of(fake))
    assert (failure.code, failure.permanent, failure.ambiguous) == (f"http_{status}", permanent, ambiguous)


@pytest.mark.parametrize(
    "body", ["[]", "null", "1", '"ok"', "{}", '{"ok": true}', '{"ok": true, "channel": "C1", "ts": 1}', "{", ""]
)
async def test_a_200_that_cannot_be_read_may_have_posted(fake: FakeSlack, body: str) -> None:
    fake.answer_next(Response(body, 200, media_type="application/json"))
    failure = await failure_of(notifier_of(fake))
    assert (failure.code, failure.permanent, failure.ambiguous) == ("unreadable_answer", False, True)


@pytest.mark.parametrize("body", [b"hello", b"\xff\xfe"])
async def test_a_200_in_plain_text_may_have_posted(fake: FakeSlack, body: bytes) -> None:
    fake.answer_next(PlainTextResponse(body))
    assert (await failure_of(notifier_of(fake))).ambiguous


async def test_no_answer_in_time_may_have_posted(fake: FakeSlack) -> None:
    fake.slow_seconds = 1.5
    failure = await failure_of(notifier_of(fake, timeout_seconds=1))
    assert (failure.code, failure.ambiguous) == ("timeout", True)
    assert len(fake.messages) == 1


async def test_an_answer_that_breaks_off_may_have_posted(fake: FakeSlack) -> None:
    fake.break_off_next()
    failure = await failure_of(notifier_of(fake))
    assert (failure.code, failure.ambiguous) == ("disconnected", True)
    assert len(fake.messages) == 1


async def test_a_connection_lost_after_sending_is_posted_once_and_not_again() -> None:
    seen: list[bytes] = []

    async def take_and_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(take_and_hang_up, "127.0.0.1", 0)
    async with server:
        api_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/"
        failure = await failure_of(
            SlackNotifier(SlackConfig.model_validate({"token": TOKEN, "channel": CHANNEL, "api_url": api_url}))
        )
        await asyncio.sleep(0.2)
    assert (failure.code, failure.ambiguous) == ("disconnected", True)
    assert len(seen) == 1


async def test_a_connection_never_made_has_posted_nothing() -> None:
    notifier = SlackNotifier(SlackConfig.model_validate({"token": TOKEN, "channel": CHANNEL, "api_url": NOWHERE}))
    failure = await failure_of(notifier)
    assert (failure.code, failure.permanent, failure.ambiguous) == ("connect_failed", False, False)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_proxy_in_the_environment_is_not_used(
    fake: FakeSlack, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    await notifier_of(fake).post(VIEW, delivery_id="d1", possible_repeat=False)
    assert len(fake.messages) == 1


@pytest.mark.parametrize("code", ["cant_update_message", "edit_window_closed", "message_not_found"])
async def test_a_message_that_can_no_longer_be_edited_keeps_its_code(fake: FakeSlack, code: str) -> None:
    fake.refuse_next(code)
    failure = await failure_of(notifier_of(fake), MessageRef(CHANNEL, "1.000001"))
    assert (failure.code, failure.permanent) == (code, True)


async def test_updating_a_message_that_is_not_there_says_so(fake: FakeSlack) -> None:
    assert (await failure_of(notifier_of(fake), MessageRef(CHANNEL, "1.000001"))).code == "message_not_found"


@pytest.mark.parametrize("state", ["archived", "not_invited"])
async def test_a_channel_we_cannot_write_to_is_told_with_its_mend(fake: FakeSlack, state: str) -> None:
    getattr(fake, state).add(CHANNEL)
    failure = await failure_of(notifier_of(fake))
    assert failure.permanent
    assert "channel" in str(failure).split(": ", 2)[2]


# Slack: looking for what an earlier try left


async def test_a_post_whose_answer_was_lost_is_found_by_its_delivery_id(fake: FakeSlack) -> None:
    notifier = notifier_of(fake)
    await notifier.post(VIEW, delivery_id="other", possible_repeat=False)
    fake.break_off_next()
    await failure_of(notifier)
    assert await notifier.find("d1") == MessageRef(CHANNEL, fake.messages[1]["ts"])


async def test_a_post_several_pages_back_is_found(fake: FakeSlack) -> None:
    notifier = notifier_of(fake)
    ref = await notifier.post(VIEW, delivery_id="d1", possible_repeat=False)
    chatter(fake, 250)
    assert await notifier.find("d1") == ref
    assert len(fake.calls["conversations.history"]) == 3


async def test_more_messages_than_we_read_leave_the_fate_unknown(fake: FakeSlack) -> None:
    chatter(fake, 700)
    with pytest.raises(DeliveryFailed, match="in the way") as caught:
        await notifier_of(fake).find("d1")
    assert caught.value.code == "fate_unknown"
    assert len(fake.calls["conversations.history"]) == 5


async def test_messages_older_than_the_first_try_are_not_in_the_way(fake: FakeSlack) -> None:
    chatter(fake, 700, ts=datetime.now(UTC) - timedelta(hours=2))
    assert await notifier_of(fake).find("d1", since=datetime.now(UTC) - timedelta(hours=1)) is None


@pytest.mark.parametrize("code", ["missing_scope", "not_in_channel", "internal_error", "ratelimited"])
async def test_when_the_history_cannot_be_read_the_fate_is_unknown(fake: FakeSlack, code: str) -> None:
    fake.refuse_next(code)
    with pytest.raises(DeliveryFailed, match=code) as caught:
        await notifier_of(fake).find("d1")
    assert caught.value.code == "fate_unknown"
    assert caught.value.permanent is (code in PERMANENT)


async def test_without_the_history_scope_the_fate_is_unknown_and_check_says_what_follows(fake: FakeSlack) -> None:
    fake.scopes.discard("channels:history")
    with pytest.raises(DeliveryFailed) as caught:
        await notifier_of(fake).find("d1")
    assert (caught.value.code, caught.value.permanent) == ("fate_unknown", True)
    assert "repeated once" in await notifier_of(fake).check()


async def test_a_channel_known_only_by_name_leaves_the_fate_unknown(fake: FakeSlack) -> None:
    with pytest.raises(DeliveryFailed, match="channel id") as caught:
        await notifier_of(fake, channel="on-call").find("d1")
    assert caught.value.code == "fate_unknown"


async def test_check_misses_the_scope_to_write(fake: FakeSlack) -> None:
    fake.scopes = {"channels:history"}
    with pytest.raises(DeliveryFailed, match="chat:write") as caught:
        await notifier_of(fake).check()
    assert caught.value.permanent


async def test_check_with_a_wrong_token_says_so(fake: FakeSlack) -> None:
    with pytest.raises(DeliveryFailed, match="token is wrong"):
        await notifier_of(fake, token="xoxb-some-other-token").check()


def chatter(fake: FakeSlack, messages: int, *, ts: datetime | None = None) -> None:
    at = int((ts or datetime.now(UTC)).timestamp())
    fake.messages += [
        {"channel": CHANNEL, "ts": f"{at}.{900_000 + n:06d}", "user": "U1", "text": "hm"} for n in range(messages)
    ]


# Slack: the token stays with us


@pytest.mark.parametrize("trouble", ["refused", "echoed", "echoed_code", "slow", "broken", "away"])
async def test_the_token_is_in_no_error_and_no_log(
    fake: FakeSlack, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    notifier = notifier_of(fake, timeout_seconds=1)
    if trouble == "refused":
        fake.refuse_next("invalid_auth")
    elif trouble == "echoed":
        fake.answer_next(PlainTextResponse(TOKEN, 500))
    elif trouble == "echoed_code":
        fake.refuse_next(TOKEN)
    elif trouble == "slow":
        fake.slow_seconds = 1.5
    elif trouble == "broken":
        fake.break_off_next()
    else:
        config = SlackConfig.model_validate({"token": TOKEN, "channel": CHANNEL, "api_url": NOWHERE})
        notifier = SlackNotifier(config, timeout_seconds=1)
    failure = await failure_of(notifier)
    # No cause and no context: a traceback of ours must not print the SDK's error, which holds the request.
    assert failure.__cause__ is None
    assert failure.__context__ is None
    assert TOKEN not in f"{failure} {failure!r} {vars(failure)} {notifier!r}"
    assert all(TOKEN not in record.getMessage() for record in caplog.records)
    assert not [record for record in caplog.records if record.name == "authwatch.slack"]


def test_the_token_is_not_in_the_configs_repr_nor_in_what_refuses_it() -> None:
    assert TOKEN not in repr(SlackConfig.model_validate({"token": TOKEN, "channel": CHANNEL}))
    with pytest.raises(ValidationError) as caught:
        SlackConfig.model_validate({"token": f"{TOKEN} {TOKEN}", "channel": CHANNEL})
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("token", ["", "xoxb", "xoxb-with space", "xoxb-\nnewline", "xoxb-umläut"])
def test_a_token_that_cannot_be_right_stops_the_start(token: str) -> None:
    with pytest.raises(ValidationError, match="bot token"):
        SlackConfig.model_validate({"token": token, "channel": CHANNEL})


@pytest.mark.parametrize(
    "url", ["slack.com/api", "ftp://slack.com/api/", "https://", "https://u:p@slack.com/", "https://s.com/?a=1"]
)
def test_an_api_url_that_cannot_be_right_stops_the_start(url: str) -> None:
    with pytest.raises(ValidationError, match="base URL"):
        SlackConfig.model_validate({"token": TOKEN, "channel": CHANNEL, "api_url": url})


async def test_an_api_url_without_its_last_slash_is_the_same_base(fake: FakeSlack) -> None:
    fake.url = fake.url.rstrip("/")
    await notifier_of(fake).post(VIEW, delivery_id="d1", possible_repeat=False)
    assert len(fake.messages) == 1
