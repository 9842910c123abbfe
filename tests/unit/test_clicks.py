"""Clicks, read and verified: slack-sdk's own verifier is the referee, and whatever the bytes, the refusal is one error."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from slack_sdk.signature import Clock, SignatureVerifier
from starlette.testclient import TestClient

from service.app import create_app
from service.clicks import PATH
from service.clicks.payload import ACTIONS, Click, read_click
from service.clicks.people import People
from service.clicks.reply import Said, is_slacks, message
from service.clicks.signature import WINDOW_SECONDS, sign, verify
from service.errors import ConfigError, Forbidden, SignatureInvalid
from service.interactions import DEEDS, Interactions
from service.notify.slack import SlackConfig
from service.runtime import Runtime
from service.settings import load_settings
from service.slack_settings import SECRETS_MAX
from tests.conftest import SECRET
from tests.fakes.slack import CHANNEL, TOKEN
from tests.fakes.slack_clicks import CLARK, DIANA, SIGNING_SECRET, FakeClicks, form, signed

NOW = datetime(2026, 11, 26, 2, 0, tzinfo=UTC)
AT = int(NOW.timestamp())
ALERT = "01900000-0000-7000-8000-000000000001"
HEADERS = ("x-slack-request-timestamp", "x-slack-signature")
FUZZ = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


class At(Clock):
    def now(self) -> float:
        return AT


# Signatures.


@FUZZ
@given(st.text(max_size=200), st.integers(AT - WINDOW_SECONDS, AT + WINDOW_SECONDS))
def test_what_slacks_own_library_signs_is_taken_and_what_we_sign_it_takes(body: str, at: int) -> None:
    headers, sent = signed(body.encode(), at=at)
    assert verify(raw(headers), sent, {"slack": [SIGNING_SECRET]}, NOW).at.timestamp() == at
    ours = sign(SIGNING_SECRET, at, sent)
    assert SignatureVerifier(SIGNING_SECRET, At()).is_valid(sent, str(at), ours)


@FUZZ
@given(st.binary(max_size=300), st.binary(max_size=80), st.binary(max_size=20), st.integers(-400, 400))
def test_whatever_the_bytes_the_refusal_is_one_error(body: bytes, signature: bytes, timestamp: bytes, off: int) -> None:
    for at in (timestamp, str(AT + off).encode()):
        for offered in (signature, b"v0=" + signature, sign("another-secret-here", AT + off, body).encode()):
            headers = [(b"X-Slack-Request-Timestamp", at), (b"X-Slack-Signature", offered)]
            with pytest.raises(SignatureInvalid):
                verify(headers, body, {"slack": [SIGNING_SECRET]}, NOW)


@pytest.mark.parametrize(("off", "taken"), [(-301, False), (-300, True), (300, True), (301, False)])
def test_the_window_is_five_minutes_either_way(off: int, taken: bool) -> None:
    headers, body = signed(b"x", at=AT + off)
    if taken:
        assert verify(raw(headers), body, {"slack": [SIGNING_SECRET]}, NOW).by == ("slack",)
    else:
        with pytest.raises(SignatureInvalid):
            verify(raw(headers), body, {"slack": [SIGNING_SECRET]}, NOW)
    assert SignatureVerifier(SIGNING_SECRET, At()).is_valid_request(body, headers) is taken


def test_every_notifier_whose_secret_matches_is_named() -> None:
    headers, body = signed(b"x", at=AT)
    secrets = {"a": ["another-secret-1", SIGNING_SECRET], "b": ["another-secret-2"], "c": [SIGNING_SECRET]}
    assert verify(raw(headers), body, secrets, NOW).by == ("a", "c")
    with pytest.raises(SignatureInvalid):
        verify(raw(headers), body, {}, NOW)


@pytest.fixture(scope="module")
def door() -> TestClient:
    """The app without its database: nothing that is not a click gets that far."""
    given = {"DATABASE_URL": "postgresql://u@127.0.0.1:9/none", "SCALEKIT_WEBHOOK_SECRET": SECRET}
    app = create_app(load_settings(given), {})
    app.state.interactions = Interactions(cast(Runtime, SimpleNamespace(http=None)), [config()])
    return TestClient(app, raise_server_exceptions=True)


def config(**more: Any) -> SlackConfig:
    return SlackConfig.model_validate(
        {"token": TOKEN, "channel": CHANNEL, "signing_secret": SIGNING_SECRET, "may_act": {"users": [DIANA]}} | more
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {"type": st.just("block_actions")},
    optional={
        "user": JSON | st.fixed_dictionaries({"id": JSON | st.just(DIANA)}, optional={"username": JSON, "name": JSON}),
        "team": JSON,
        "api_app_id": JSON,
        "channel": JSON,
        "response_url": JSON,
        "actions": JSON | st.lists(st.fixed_dictionaries({"action_id": JSON}, optional={"value": JSON}), max_size=3),
    },
)


@FUZZ
@given(
    st.binary(max_size=400)
    | NEARLY.map(form)
    | JSON.map(form)
    | st.builds(lambda depth: form_of("[" * depth), st.integers(1, 200_000 // 3)),
    st.booleans(),
    st.sampled_from(["application/x-www-form-urlencoded", "application/json", "multipart/form-data; boundary=x", ""]),
)
def test_whatever_arrives_the_answer_is_401_or_nothing_to_do(
    door: TestClient, body: bytes, genuine: bool, content_type: str
) -> None:
    headers = {"x-slack-request-timestamp": str(int(time.time()))}
    headers["x-slack-signature"] = sign(SIGNING_SECRET if genuine else "x" * 32, int(time.time()), body)
    headers["x-slack-request-timestamp"] = str(int(time.time()))
    answer = door.post(PATH, content=body, headers={**headers, "content-type": content_type})
    assert answer.status_code in ({200, 401} if genuine else {401}), answer.text
    assert answer.status_code != 401 or answer.json()["code"].startswith(("payload_", "signature_"))


def form_of(text: str) -> bytes:
    return b"payload=" + text.encode()


# What a click says.


def test_every_button_has_its_deed() -> None:
    assert set(ACTIONS.values()) == set(DEEDS)


def test_a_click_is_read_and_does_not_show_where_it_may_be_answered() -> None:
    fake = FakeClicks()
    payload = fake.payload("resume", ALERT)
    click = read_click(form(payload), NOW)
    assert click is not None
    assert (click.action, click.alert_id, click.user_id, click.at) == ("resume", ALERT, DIANA, NOW)
    assert (click.team_id, click.app_id, click.channel_id) == (
        payload["team"]["id"],
        payload["api_app_id"],
        payload["channel"]["id"],
    )
    assert click.actor == f"slack:{DIANA} (diana)"
    assert click.response_url == payload["response_url"]
    assert "secret-of-the-response-url" not in repr(click)
    nameless = read_click(form(payload | {"user": {"id": DIANA}}), NOW)
    assert nameless is not None
    assert nameless.actor == f"slack:{DIANA}"


@FUZZ
@given(st.text(max_size=100))
def test_an_actor_is_one_short_printable_line(name: str) -> None:
    payload = FakeClicks().payload("resume", ALERT, name=name)
    try:
        click = read_click(form(payload), NOW)
    except SignatureInvalid:
        assert any("\ud800" <= char <= "\udfff" for char in name)
        return
    assert isinstance(click, Click)
    assert len(click.actor) < 120
    assert click.actor.isprintable()
    assert click.actor.split(" ")[0] == f"slack:{DIANA}"


# Where its words may go.


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("https://hooks.slack.com/actions/T1/2/abc", True),
        ("https://HOOKS.slack.com:443/actions/T1/2/abc", True),
        ("https://slack.com/actions/T1", True),  # the configured API's own host
        ("http://hooks.slack.com/actions/T1/2/abc", False),
        ("https://hooks.slack.com:8443/actions", False),
        ("https://hooks.slack.com.evil.com/actions", False),
        ("https://evil.com/hooks.slack.com", False),
        ("https://evil.com#@hooks.slack.com/", False),
        ("https://evil.com\\@hooks.slack.com/", False),
        ("https://hooks.slack.com\\.evil.com/", False),
        ("https://hooks.slack.com\t.evil.com/", False),
        ("https://me:you@hooks.slack.com/", False),
        ("https://me@hooks.slack.com/", False),
        ("https://hooks.slack.com@evil.com/", False),
        ("https://hooks.slack.com./actions", False),
        ("https://hooks.slack.\u0441om/actions", False),
        ("https://169.254.169.254/latest/meta-data", False),
        ("//hooks.slack.com/actions", False),
        ("file:///etc/passwd", False),
        ("https://[::1/", False),
        ("https://hooks.slack.com:x/", False),
        ("", False),
        ("https://hooks.slack.com/" + "a" * 2_000, False),
    ],
)
def test_words_go_to_slack_and_nowhere_else(url: str, taken: bool) -> None:
    assert is_slacks(url, [config()]) is taken


def test_a_configured_api_elsewhere_is_that_place_alone() -> None:
    own = config(api_url="http://127.0.0.1:8123/api/")
    assert is_slacks("http://127.0.0.1:8123/actions/1", [own])
    for url in (
        "http://127.0.0.1:8124/actions/1",
        "https://127.0.0.1:8123/a",
        "http://localhost:8123/a",
        "https://slack.com/a",
    ):
        assert not is_slacks(url, [own])


@FUZZ
@given(st.text(max_size=3000))
def test_words_are_no_markup_and_never_too_long(text: str) -> None:
    said = message(Said("code", text, "https://acme.scalekit.dev/magicLink/1"))
    assert said["response_type"] == "ephemeral"
    assert said["replace_original"] is False
    assert len(said["text"]) <= 1500
    assert not {"<", ">"} & set(said["text"])
    assert said["blocks"][0]["text"]["text"] == said["text"]
    assert "magicLink" not in json.dumps(said["blocks"][0]) + repr(Said("code", "t", "https://x/magicLink"))


# The settings.


def load(**given: str) -> Any:
    base = {"DATABASE_URL": "postgresql://h/d", "SLACK_BOT_TOKEN": TOKEN, "SLACK_CHANNEL": CHANNEL}
    return load_settings(base | given).notifiers["slack"]


def test_the_environment_says_who_may_click() -> None:
    section = load(
        SLACK_SIGNING_SECRET=f"{SIGNING_SECRET}, {'a' * 32}", SLACK_MAY_ACT="U012AB3CDE, S0GROUP001,T0TEAM001,A0APP001"
    )
    made = SlackConfig.model_validate(section)
    assert made.may_act is not None
    assert (made.may_act.users, made.may_act.groups) == (("U012AB3CDE",), ("S0GROUP001",))
    assert (made.may_act.team, made.may_act.app) == ("T0TEAM001", "A0APP001")
    assert made.may_act.nobody is False
    assert SIGNING_SECRET not in repr(made)
    assert "signing_secret" not in load()


HIDDEN = "hidden-secret-0123456789"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"SLACK_SIGNING_SECRET": "short"}, "SLACK_SIGNING_SECRET: not a Slack signing secret"),
        ({"SLACK_SIGNING_SECRET": f"{HIDDEN},"}, "SLACK_SIGNING_SECRET: an empty secret between its commas"),
        ({"SLACK_SIGNING_SECRET": f"{HIDDEN} {HIDDEN}"}, "SLACK_SIGNING_SECRET: not a Slack signing secret"),
        (
            {"SLACK_SIGNING_SECRET": ",".join([HIDDEN] * (SECRETS_MAX + 1))},
            f"SLACK_SIGNING_SECRET: {SECRETS_MAX + 1} secrets; at most {SECRETS_MAX} may be live at a time",
        ),
        ({"SLACK_MAY_ACT": "diana"}, "SLACK_MAY_ACT: one of its parts is no id of Slack"),
        ({"SLACK_MAY_ACT": "U012AB3CDE,"}, "SLACK_MAY_ACT: one of its parts is no id of Slack"),
        ({"SLACK_MAY_ACT": "C012AB3CDE"}, "SLACK_MAY_ACT: one of its parts is no id of Slack"),
        ({"SLACK_MAY_ACT": "T012AB3CDE,T012AB3CDF"}, "SLACK_MAY_ACT: it names a workspace twice"),
    ],
)
def test_what_cannot_be_right_stops_the_start(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**given)
    assert str(caught.value).startswith(said)
    assert HIDDEN not in str(caught.value)


def test_clicks_without_a_bot_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match="SLACK_BOT_TOKEN"):
        load_settings({"DATABASE_URL": "postgresql://h/d", "SLACK_SIGNING_SECRET": SIGNING_SECRET})


@pytest.mark.parametrize(
    "may_act",
    [
        {"users": ["S012AB3CDE"]},
        {"groups": ["U012AB3CDE"]},
        {"users": ["u012ab3cde"]},
        {"users": "U012AB3CDE"},
        {"users": [5]},
        {"user": ["U012AB3CDE"]},
        {"team": "A012AB3CDE"},
        ["U012AB3CDE"],
        {"groups": [f"S{number:06}" for number in range(21)]},
    ],
)
def test_people_who_cannot_be_right_are_refused(may_act: Any) -> None:
    with pytest.raises(ValidationError):
        config(may_act=may_act)


def test_a_section_of_nobody_permits_nobody() -> None:
    made = config(may_act={"team": "T012AB3CDE"})
    assert made.may_act is not None
    assert made.may_act.nobody
    for bad in ("", "  ", "short", "x" * 15):
        with pytest.raises(ValidationError):
            config(signing_secret=bad)


# Who may, where one Slack app has several channels.


@pytest.mark.parametrize(
    ("channel", "user", "code"),
    [
        ({"id": CHANNEL, "name": "on-call"}, DIANA, None),
        ({"id": CHANNEL, "name": "on-call"}, CLARK, "not_permitted"),
        ({"id": "C0PAYMENTS", "name": "payments"}, CLARK, None),
        ({"id": "C0PAYMENTS", "name": "payments"}, DIANA, "not_permitted"),
        ({"id": "C0ANYWHERE", "name": "random"}, DIANA, "not_permitted"),
        ({"id": "C0ANYWHERE", "name": "random"}, CLARK, "not_permitted"),
        ({"id": "C0ANYWHERE", "name": "random"}, "U0BOTH0001", None),
        (None, DIANA, "not_permitted"),
    ],
)
async def test_the_notifier_of_the_channel_decides_and_elsewhere_all_do(
    channel: dict[str, str] | None, user: str, code: str | None
) -> None:
    notifiers = [
        config(name="oncall", may_act={"users": [DIANA, "U0BOTH0001"]}),
        config(name="payments", channel="#payments", may_act={"users": [CLARK, "U0BOTH0001"]}),
    ]
    click = read_click(form(FakeClicks().payload("resume", ALERT, user=user) | {"channel": channel}), NOW)
    assert click is not None
    async with httpx.AsyncClient() as http:
        people = People(http)
        if code is None:
            await people.permit(click, notifiers)
        else:
            with pytest.raises(Forbidden) as caught:
                await people.permit(click, notifiers)
            assert caught.value.code == code
