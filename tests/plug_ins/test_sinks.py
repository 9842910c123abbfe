"""Every kind of sink keeps the same promises: what it takes, what it puts aside, what it raises, and what it never says."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.errors import DeliveryFailed
from service.event import Event
from service.outbound import RESPONSE_BYTES_MAX, RETRY_AFTER_SECONDS_MAX, open_client, post, retry_after_seconds
from service.sinks import SINKS
from service.sinks.base import Sink
from tests.fakes import serve
from tests.fakes.hec import FakeHec, Scripted
from tests.ocsf_schema import problems

TOKEN = "b5ca1d7e-THE-HEC-TOKEN-9f3a"
AT = datetime(2026, 11, 20, 10, 0, 0, 123_000, tzinfo=UTC)


def an_event(number: int = 1, **changes: Any) -> Event:
    event = Event(
        id=f"019357f0-0000-7000-8000-{number:012d}",
        position=number,
        source="scalekit",
        origin="webhook",
        event_id=f"evt_{number}",
        type="connected_account.token_refresh_failed",
        kind="token.refresh_failed",
        account_id=f"ca_{number}",
        connection_id="conn_1",
        provider="GMAIL",
        identifier="john@acmecorp.com",
        organization_id=None,
        environment_id="env_1",
        status="ACTIVE",
        old_status=None,
        occurred_at=AT,
        received_at=AT,
        lag_seconds=0.5,
        clock_suspect=False,
    )
    return replace(event, **changes)


def events(count: int) -> list[Event]:
    return [an_event(number) for number in range(1, count + 1)]


@dataclass(frozen=True)
class Harness:
    """A fake of the other side and how to configure a sink for it: what a new kind brings along."""

    fake: Callable[[], FakeHec]
    section: Callable[[str], dict[str, Any]]
    secret: str


HARNESSES = {
    "splunk_hec": Harness(
        fake=lambda: FakeHec(TOKEN),
        section=lambda url: {"kind": "splunk_hec", "url": url, "token": TOKEN, "timeout_seconds": 2.0},
        secret=TOKEN,
    )
}


def open_sink(section: dict[str, Any], client: httpx.AsyncClient) -> Sink:
    kind = SINKS[section["kind"]]
    return kind.open(kind.Config.model_validate({**section, "name": "siem"}), client)


def test_every_kind_in_the_registry_is_proven_here() -> None:
    assert set(HARNESSES) == set(SINKS)


@pytest.fixture(params=sorted(SINKS))
def harness(request: pytest.FixtureRequest) -> Harness:
    return HARNESSES[request.param]


@pytest.fixture
def fake(harness: Harness) -> FakeHec:
    return harness.fake()


@pytest.fixture
async def url(fake: FakeHec) -> AsyncIterator[str]:
    async with serve(fake.app) as base:
        yield base


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with open_client() as opened:
        yield opened


@pytest.fixture
def sink(harness: Harness, url: str, client: httpx.AsyncClient) -> Sink:
    return open_sink(harness.section(url), client)


async def failure(sink: Sink, count: int = 2) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as caught:
        await sink.send(events(count))
    return caught.value


# What every kind promises


async def test_a_batch_arrives_once_each_in_order(sink: Sink, fake: FakeHec) -> None:
    sent = await sink.send(events(7))
    assert (sent.accepted, sent.poison) == (7, ())
    assert [event["metadata"]["uid"] for event in fake.events] == [event.id for event in events(7)]


async def test_an_empty_batch_sends_nothing(sink: Sink, fake: FakeHec) -> None:
    assert (await sink.send([])).accepted == 0
    assert fake.posts == []


@pytest.mark.parametrize(
    ("status", "permanent"),
    [
        (301, True),
        (302, True),
        (307, True),
        (308, True),
        (400, True),
        (401, True),
        (403, True),
        (404, True),
        (408, False),
        (410, True),
        (425, False),
        (429, False),
        (500, False),
        (502, False),
        (503, False),
        (504, False),
    ],
)
async def test_every_status_says_whether_to_try_again(
    sink: Sink, fake: FakeHec, harness: Harness, status: int, permanent: bool
) -> None:
    elsewhere = f"https://elsewhere.example/?token={harness.secret}"
    fake.always = Scripted(status, f"no: Splunk {harness.secret} {elsewhere}".encode(), {"location": elsewhere})
    raised = await failure(sink)
    assert raised.permanent is permanent
    assert raised.status == status
    assert raised.code == ("redirected" if status < 400 else f"http_{status}")
    assert raised.ambiguous is False
    assert harness.secret not in str(raised) + repr(raised)
    assert fake.envelopes == []


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_heard_in_seconds_and_as_a_date(sink: Sink, fake: FakeHec, status: int) -> None:
    fake.always = Scripted(status, headers={"retry-after": "17"})
    assert (await failure(sink)).retry_after_seconds == 17
    fake.always = Scripted(status, headers={"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=90))})
    assert 80 <= ((await failure(sink)).retry_after_seconds or 0) <= 90
    fake.always = Scripted(status, headers={"retry-after": "999999"})
    assert (await failure(sink)).retry_after_seconds == RETRY_AFTER_SECONDS_MAX
    fake.always = Scripted(status, headers={"retry-after": "soon"})
    assert (await failure(sink)).retry_after_seconds is None


async def test_a_server_that_hangs_is_an_ambiguous_time_out(sink: Sink, fake: FakeHec) -> None:
    fake.hang = True
    start = asyncio.get_running_loop().time()
    raised = await failure(sink)
    assert (raised.code, raised.permanent, raised.ambiguous) == ("timeout", False, True)
    assert asyncio.get_running_loop().time() - start < 3


async def test_a_refused_connection_is_certain_not_to_have_arrived(harness: Harness, client: httpx.AsyncClient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it
        sink = open_sink(harness.section(f"http://127.0.0.1:{taken.getsockname()[1]}"), client)
        raised = await failure(sink)
    assert (raised.code, raised.permanent, raised.ambiguous) == ("connect_failed", False, False)


async def _answering(raw: bytes, *, drip_seconds: float = 0.0) -> asyncio.Server:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for part in [raw[n : n + 1] for n in range(len(raw))] if drip_seconds else [raw]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(drip_seconds)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as it may
        finally:
            writer.close()

    return await asyncio.start_server(talk, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("raw", "drip_seconds", "code"),
    [
        (b"", 0.0, "disconnected"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", 0.0, "disconnected"),
        (b"not HTTP at all\r\n\r\n", 0.0, "disconnected"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n" + b"x" * 500, 0.05, "timeout"),
    ],
)
async def test_an_answer_that_never_completes_is_ambiguous(
    harness: Harness, client: httpx.AsyncClient, raw: bytes, drip_seconds: float, code: str
) -> None:
    server = await _answering(raw, drip_seconds=drip_seconds)
    async with server:
        sink = open_sink(harness.section(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), client)
        raised = await failure(sink)
    assert (raised.code, raised.permanent, raised.ambiguous) == (code, False, True)


async def test_a_sink_that_was_down_takes_the_same_batch_later(sink: Sink, fake: FakeHec) -> None:
    fake.always = Scripted(503)
    await failure(sink, 3)
    fake.always = None
    assert (await sink.send(events(3))).accepted == 3
    assert len(fake.events) == 3


async def test_neither_sink_nor_config_prints_its_secret(harness: Harness, sink: Sink) -> None:
    config = SINKS[sink.kind].Config.model_validate(harness.section("https://siem.example"))
    assert harness.secret not in repr(sink) + str(sink) + repr(config) + str(config) + config.model_dump_json()


def test_a_section_that_cannot_be_right_is_refused_without_quoting_it(harness: Harness) -> None:
    section = harness.section("https://siem.example")
    config = SINKS[section["kind"]].Config
    for wrong in (
        {"ur1": harness.secret},
        {"token": f"Splunk {harness.secret}"},
        {"token": "abc"},
        {"format": "cef"},
    ):
        with pytest.raises(ValidationError) as caught:
            config.model_validate({**section, **wrong})
        (error,) = caught.value.errors(include_input=False, include_url=False)
        assert error["loc"] == tuple(wrong)
        assert harness.secret not in str(caught.value) + error["msg"]


# Splunk HEC


async def test_an_envelope_carries_what_splunk_indexes_by(
    harness: Harness, url: str, fake: FakeHec, client: httpx.AsyncClient
) -> None:
    section = harness.section(url) | {"index": "main"}
    await open_sink(section, client).send([an_event()])
    (envelope,) = fake.envelopes
    event = envelope.pop("event")
    assert envelope == {
        "time": 1_795_168_800.123,
        "host": "authwatch",
        "source": "authwatch",
        "sourcetype": "authwatch:ocsf",
        "index": "main",
    }
    assert problems(event) == []


@pytest.mark.parametrize(("format_name", "key"), [("ocsf", "class_uid"), ("ecs", "ecs"), ("raw", "position")])
async def test_the_format_is_a_choice(
    harness: Harness, url: str, fake: FakeHec, client: httpx.AsyncClient, format_name: str, key: str
) -> None:
    await open_sink(harness.section(url) | {"format": format_name}, client).send([an_event()])
    assert fake.envelopes[0]["sourcetype"] == f"authwatch:{format_name}"
    assert key in fake.events[0]


@pytest.mark.parametrize(
    "path", ["", "/", "/services/collector", "/services/collector/event", "/services/collector/event/"]
)
async def test_the_address_may_be_given_with_or_without_the_path(
    harness: Harness, url: str, fake: FakeHec, client: httpx.AsyncClient, path: str
) -> None:
    await open_sink(harness.section(url + path), client).send([an_event()])
    assert len(fake.events) == 1


@pytest.mark.parametrize(
    "bad",
    [
        "splunk:8088",
        "ftp://h",
        "https://",
        "https://u:p@h",
        "https://h?token=x",
        "https://h/services/collector/raw",
        "https://u:pw",
        "",
    ],
)
def test_an_address_that_cannot_be_right_stops_the_start(bad: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SINKS["splunk_hec"].Config.model_validate({"kind": "splunk_hec", "url": bad, "token": TOKEN})
    assert caught.value.errors()[0]["loc"] == ("url",)
    assert "pw" not in str(caught.value)


async def test_a_batch_is_split_by_count(harness: Harness, url: str, fake: FakeHec, client: httpx.AsyncClient) -> None:
    sink = open_sink(harness.section(url) | {"batch_items_max": 10}, client)
    assert sink.batch_items_max == 10
    assert (await sink.send(events(25))).accepted == 25
    assert fake.posts == [10, 10, 5]


async def test_a_batch_is_split_by_bytes_and_sent_compressed(sink: Sink, fake: FakeHec) -> None:
    large = [replace(event, details={"note": "some words " * 5000}) for event in events(40)]  # about 55 kB each
    assert (await sink.send(large)).accepted == 40
    assert len(fake.posts) >= 3
    assert max(fake.sizes) <= 1_000_000
    assert all(fake.gzipped)
    assert [event["metadata"]["uid"] for event in fake.events] == [event.id for event in large]


async def test_a_small_batch_is_not_compressed(sink: Sink, fake: FakeHec) -> None:
    await sink.send(events(1))
    assert fake.gzipped == [False]


@pytest.mark.parametrize("say_which", [True, False])
@pytest.mark.parametrize("bad", [(0,), (4,), (9,), (0, 1), (3, 4, 8), (0, 9)])
async def test_a_poison_item_is_put_aside_and_its_neighbours_go_through(
    sink: Sink, fake: FakeHec, say_which: bool, bad: tuple[int, ...]
) -> None:
    fake.say_which = say_which
    fake.refuse_events_with = "POISON"
    batch = [replace(e, identifier="POISON") if n in bad else e for n, e in enumerate(events(10))]
    sent = await sink.send(batch)
    assert sent.accepted == 10 - len(bad)
    assert [poison.index for poison in sent.poison] == list(bad)
    assert all("Invalid data format" in poison.reason for poison in sent.poison)
    assert [e["metadata"]["uid"] for e in fake.events] == [e.id for n, e in enumerate(batch) if n not in bad]


async def test_when_everything_is_refused_nothing_is_put_aside(sink: Sink, fake: FakeHec) -> None:
    fake.refuse_events_with = "ca_"
    raised = await failure(sink, 100)
    assert (raised.code, raised.permanent) == ("all_refused", True)


@pytest.mark.parametrize("details", [{"note": float("nan")}, {"notes": ["some words " * 5000] * 40}])
async def test_an_item_that_can_never_be_sent_is_poison_before_it_is_sent(
    sink: Sink, fake: FakeHec, details: dict[str, Any]
) -> None:
    sent = await sink.send([an_event(1), replace(an_event(2), details=details), an_event(3)])
    assert (sent.accepted, [poison.index for poison in sent.poison]) == (2, [1])
    assert len(fake.events) == 2


async def test_a_body_too_large_for_the_server_is_halved(sink: Sink, fake: FakeHec) -> None:
    fake.body_bytes_max = 4000
    batch = [replace(e, details={"note": "words " * 2000}) if n == 2 else e for n, e in enumerate(events(12))]
    sent = await sink.send(batch)
    assert (sent.accepted, [poison.index for poison in sent.poison]) == (11, [2])
    assert [e["metadata"]["uid"] for e in fake.events] == [e.id for n, e in enumerate(batch) if n != 2]


@pytest.mark.parametrize(
    ("change", "status", "hint"),
    [
        ({"token": "another-token-1234"}, 403, "does not know this HEC token"),
        ({"index": "forbidden"}, 400, "may not write to this index"),
        ({"url": "{}/wrong"}, 404, "is this its address"),
    ],
)
async def test_a_wrong_configuration_says_how_to_mend_it(
    harness: Harness,
    url: str,
    fake: FakeHec,
    client: httpx.AsyncClient,
    change: dict[str, str],
    status: int,
    hint: str,
) -> None:
    section = harness.section(url) | {key: value.format(url) for key, value in change.items()}
    raised = await failure(open_sink(section, client))
    assert (raised.status, raised.permanent) == (status, True)
    assert hint in str(raised)
    assert section["token"] not in str(raised)


async def test_a_disabled_token_is_permanent_and_says_so(sink: Sink, fake: FakeHec) -> None:
    fake.enabled = False
    raised = await failure(sink)
    assert (raised.status, raised.permanent) == (403, True)
    assert "disabled" in str(raised)


@pytest.mark.parametrize(
    ("body", "code", "permanent"),
    [
        (b"<html>Please log in</html>", "answer_unexpected", False),
        (b"", "answer_unexpected", False),
        (b'{"text":"Server is busy","code":9}', "hec_9", False),
        (b'{"text":"Invalid token","code":4}', "hec_4", True),
        (b"[" * 50_000, "answer_unexpected", False),
    ],
)
async def test_a_200_that_is_not_splunks_yes_is_no_yes(
    sink: Sink, fake: FakeHec, body: bytes, code: str, permanent: bool
) -> None:
    fake.always = Scripted(200, body)
    raised = await failure(sink)
    assert (raised.code, raised.permanent) == (code, permanent)


async def test_a_nonsense_invalid_event_number_neither_loops_nor_loses(sink: Sink, fake: FakeHec) -> None:
    for number in ("-1", "99", "true", '"2"', "null"):
        fake.envelopes.clear()
        fake.script = [
            Scripted(400, b'{"text":"Invalid data format","code":6,"invalid-event-number":%s}' % number.encode())
        ]
        sent = await sink.send(events(4))
        assert (sent.accepted, sent.poison) == (4, ())
        assert len(fake.events) == 4


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b'{"event":"x"}', {}, 401, 2),
        (b'{"event":"x"}', {"authorization": f"Bearer {TOKEN}"}, 401, 3),
        (b'{"event":"x"}', {"authorization": "Splunk wrong"}, 403, 4),
        (b"", {"authorization": f"Splunk {TOKEN}"}, 400, 5),
        (b'[{"event":"x"}]', {"authorization": f"Splunk {TOKEN}"}, 400, 6),
        (b'{"event":"x"},{"event":"y"}', {"authorization": f"Splunk {TOKEN}"}, 400, 6),
        (b'{"event":"x"', {"authorization": f"Splunk {TOKEN}"}, 400, 6),
        (b'{"host":"x"}', {"authorization": f"Splunk {TOKEN}"}, 400, 12),
        (b'{"event":""}', {"authorization": f"Splunk {TOKEN}"}, 400, 13),
        (b'{"event":"x","index":"other"}', {"authorization": f"Splunk {TOKEN}"}, 400, 7),
        (b'{"event":"x"}{"event":"y"}\n{"event":"z"}', {"authorization": f"Splunk {TOKEN}"}, 200, 0),
    ],
)
async def test_the_fake_itself_refuses_what_splunk_refuses(
    client: httpx.AsyncClient, body: bytes, headers: dict[str, str], status: int, code: int
) -> None:
    async with serve(FakeHec(TOKEN).app) as url:
        answer = await client.post(f"{url}/services/collector/event", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


# The way out that every plug-in uses


async def test_a_huge_answer_is_read_no_further_than_its_bound(client: httpx.AsyncClient) -> None:
    server = await _answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5000000\r\n\r\n" + b"x" * 5_000_000)
    async with server:
        port = server.sockets[0].getsockname()[1]
        response = await post(client, f"http://127.0.0.1:{port}", content=b"", headers={}, timeout_seconds=5)
    assert len(response.body) == RESPONSE_BYTES_MAX


async def test_an_excerpt_holds_nothing_that_was_sent_in_confidence(
    fake: FakeHec, url: str, client: httpx.AsyncClient
) -> None:
    target = f"{url}/services/collector/event?sig=QUERY-SECRET".replace("//", "//user:PASS-SECRET@")
    fake.always = Scripted(200, f"you sent {target} with opaque-value-123 and eyJhbGciOiJIUzI1NiJ9.e30.x".encode())
    response = await post(client, target, content=b"x", headers={"x-custom": "opaque-value-123"})
    assert "you sent" in response.excerpt
    for secret in ("QUERY-SECRET", "PASS-SECRET", "opaque-value-123", "eyJhbGci"):
        assert secret not in response.excerpt
        assert secret not in repr(response)


@pytest.mark.parametrize("bad", ["nothing", "ftp://h/x", "http://", "http://[::1"])
async def test_an_address_that_is_none_is_a_permanent_failure(client: httpx.AsyncClient, bad: str) -> None:
    with pytest.raises(DeliveryFailed) as caught:
        await post(client, bad, content=b"", headers={})
    assert (caught.value.code, caught.value.permanent) == ("request_invalid", True)


async def test_a_header_that_is_none_is_a_permanent_failure_and_is_not_quoted(
    client: httpx.AsyncClient, url: str
) -> None:
    for value in ("to\nken-SECRET", "tökenß\u2603-SECRET"):
        with pytest.raises(DeliveryFailed) as caught:
            await post(client, url, content=b"", headers={"authorization": value})
        assert (caught.value.code, caught.value.permanent) == ("request_invalid", True)
        assert "SECRET" not in str(caught.value)


def test_retry_after_is_never_negative_and_never_a_surprise() -> None:
    now = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
    cases: dict[str, float | None] = {
        "0": 0,
        "120": 120,
        "Fri, 20 Nov 2026 10:01:00 GMT": 60,
        "Fri, 20 Nov 2026 09:00:00 GMT": 0,
        "Fri, 20 Nov 2099 09:00:00 GMT": RETRY_AFTER_SECONDS_MAX,
        "-5": None,
        "1.5": None,
        "٣": None,
        "": None,
        "9" * 400: RETRY_AFTER_SECONDS_MAX,
    }
    assert {value: retry_after_seconds({"retry-after": value}, now) for value in cases} == cases
    assert retry_after_seconds({}, now) is None


async def test_the_environment_does_not_decide_where_our_tokens_go(
    monkeypatch: pytest.MonkeyPatch, harness: Harness, url: str, fake: FakeHec
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with open_client() as client:
        await open_sink(harness.section(url), client).send(events(1))
    assert len(fake.events) == 1


def test_no_envelope_holds_a_token_however_it_got_into_the_event(harness: Harness) -> None:
    config = SINKS["splunk_hec"].Config.model_validate(harness.section("https://siem.example"))
    sink: Any = SINKS["splunk_hec"].open(config, open_client())
    leaky = replace(an_event(), details={"access_token": "LEAK", "why": "Bearer LEAK"}, identifier="x?token=LEAK")
    assert "LEAK" not in json.dumps(json.loads(sink._encode(leaky)))
