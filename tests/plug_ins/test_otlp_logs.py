"""OTLP logs' own traps: what was dropped is not sent again, what a record carries, and what the SDK's receiver side reads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from ruamel.yaml import YAML
from starlette.responses import Response

from service import outbound
from service.errors import DeliveryFailed
from service.sinks import SINKS
from service.sinks.base import REFUSED_IN_A_ROW_MAX, Sent, Sink
from tests.fakes.front import Front, standing
from tests.fakes.otlp_logs import FakeOtlpLogs, attributes_of
from tests.ocsf_schema import problems
from tests.plug_ins.sink_cases.items import AT, an_event, events, ids, sized
from tests.plug_ins.sink_cases.otlp_logs import CASES, KEY


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
def fake(front: Front) -> FakeOtlpLogs:
    fake = FakeOtlpLogs({"authorization": KEY})
    front.app = fake.app
    return fake


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with outbound.open_client() as http:
        yield http


def open_sink(front: Front, http: httpx.AsyncClient, **changes: Any) -> Sink:
    kind = SINKS["otlp_logs"]
    return kind.open(kind.Config.model_validate(CASES.section(front.url) | {"name": "siem"} | changes), http)


def taken(fake: FakeOtlpLogs) -> list[str]:
    return CASES.taken(fake)


async def test_a_record_carries_what_it_is_and_what_repeats_are_told_by(
    front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient
) -> None:
    event = an_event(7, kind="account.disconnected", type="connected_account.disconnected")
    await open_sink(front, http, resource={"deployment.environment.name": "eu"}).send([event])
    (record,) = fake.records
    assert record.event_name == "authwatch.account.disconnected"
    assert attributes_of(record) == {
        "log.record.uid": event.id,
        "event.name": "authwatch.account.disconnected",
        "authwatch.position": 7,
        "authwatch.format": "ocsf",
    }
    assert record.time_unix_nano == int(AT.timestamp() * 1000) * 1_000_000
    assert (record.severity_number, record.severity_text) == (14, "Medium")
    assert problems(json.loads(record.body.string_value)) == []
    assert fake.resources == [{"service.name": "authwatch", "deployment.environment.name": "eu"}]


@pytest.mark.parametrize("as_json", [False, True])
async def test_what_was_dropped_is_counted_and_not_sent_again(
    front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient, as_json: bool
) -> None:
    fake.drop_first, fake.as_json = [(3, "the tenant's stream is full")], as_json
    sent = await open_sink(front, http).send(events(10))
    assert (sent.accepted, [poison.index for poison in sent.poison]) == (7, [0, 1, 2])
    for poison in sent.poison:
        assert "3 of the 10 items at positions 1 to 10" in poison.reason
        assert "does not say which" in poison.reason
        assert "the tenant's stream is full" in poison.reason
    assert len(fake.posts) == 1


async def test_all_that_were_dropped_are_put_aside_by_name_however_many(
    front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient
) -> None:
    count = REFUSED_IN_A_ROW_MAX * 2
    fake.drop_first = [(count, "no room")]
    sent = await open_sink(front, http).send(events(count))
    assert (sent.accepted, len(sent.poison)) == (0, count)
    assert not any("does not say which" in poison.reason for poison in sent.poison)
    assert len(fake.posts) == 1


async def test_a_warning_with_nothing_dropped_is_a_yes(
    front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient
) -> None:
    fake.drop_first = [(0, "this endpoint moves next month")]
    assert await open_sink(front, http).send(events(2)) == Sent(2)


async def test_why_it_was_dropped_holds_no_token_and_is_short(
    front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient
) -> None:
    fake.drop_first = [(1, "refused Bearer LEAK-1 " + "x" * 5000)]
    (poison,) = (await open_sink(front, http).send(events(1))).poison
    assert "LEAK" not in poison.reason
    assert len(poison.reason) < 400


async def test_a_request_that_is_too_large_is_halved_and_only_the_large_item_put_aside(
    front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient
) -> None:
    fake.body_bytes_max = 40_000
    items = [*events(5), sized(6, 60_000), *[an_event(number) for number in range(7, 10)]]
    sent = await open_sink(front, http).send(items)
    assert (sent.accepted, [poison.index for poison in sent.poison]) == (8, [5])
    assert taken(fake) == [item.id for item in items if item.position != 6]


async def test_a_later_piece_that_fails_leaves_the_earlier_ones_sent(
    front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient
) -> None:
    """OTLP has no key: what was taken is not sent twice because of what was not."""
    items = [sized(number, 800_000) for number in (1, 2, 3)]
    posts = 0
    inner = fake.app

    async def second_is_lost(scope: Any, receive: Any, send: Any) -> None:
        nonlocal posts
        posts += 1
        if posts == 2:
            fake.break_off_next()
        await inner(scope, receive, send)

    front.app = second_is_lost
    sent = await open_sink(front, http).send(items)
    assert (sent.accepted, sent.upto, sent.in_doubt) == (2, 2, 1)
    assert taken(fake) == ids(items)


async def test_a_half_that_was_taken_in_part_is_not_sent_again_where_the_other_fails(
    front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient
) -> None:
    fake.body_bytes_max, calls = 80_000, 0
    fake.drop_first = [(1, "no room")]
    inner = fake.app

    async def third_is_busy(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        app: Any = Response(status_code=503) if calls == 3 else inner
        await app(scope, receive, send)

    front.app = third_is_busy
    items = [sized(number, 30_000) for number in (1, 2, 3, 4)]
    sent = await open_sink(front, http, compress=False).send(items)
    assert (sent.accepted, [poison.index for poison in sent.poison], sent.upto) == (1, [0], 2)


@pytest.mark.parametrize("path", ["", "/", "/v1/logs", "/v1/logs/"])
async def test_the_address_may_be_given_with_or_without_the_path(
    front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient, path: str
) -> None:
    await open_sink(front, http, url=front.url + path).send(events(1))
    assert len(fake.records) == 1


@pytest.mark.parametrize(("compress", "count", "gzipped"), [(True, 50, True), (True, 1, False), (False, 50, False)])
async def test_what_is_worth_it_is_compressed(
    front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient, compress: bool, count: int, gzipped: bool
) -> None:
    await open_sink(front, http, compress=compress).send(events(count))
    assert fake.gzipped == [gzipped]


async def test_a_wrong_key_says_where_to_mend_it(front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient) -> None:
    sink = open_sink(front, http, headers={"authorization": "Bearer ANOTHER-KEY"})
    for call in (sink.check(), sink.send(events(1))):
        with pytest.raises(DeliveryFailed) as caught:
            await call
        assert (caught.value.status, caught.value.permanent) == (401, True)
        assert "check the sink's headers" in str(caught.value)
        assert "ANOTHER-KEY" not in str(caught.value)


def test_the_fake_takes_what_the_sdk_itself_sends(front: Front, fake: FakeOtlpLogs) -> None:
    """The receiver is as strict as may be: a log record of OpenTelemetry's own exporter, over HTTP, passes it whole."""
    exporter = OTLPLogExporter(endpoint=f"{front.url}/v1/logs", headers={"authorization": KEY}, timeout=5)
    provider = LoggerProvider(resource=Resource.create({"service.name": "referee"}))
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    at = int(AT.timestamp()) * 10**9
    number = SeverityNumber.WARN
    provider.get_logger("referee").emit(
        timestamp=at, observed_timestamp=at, severity_number=number, severity_text="Low", body="{}", event_name="a.name"
    )
    provider.shutdown()
    assert fake.refusals == []
    (record,) = fake.records
    assert (record.event_name, record.severity_number, record.body.string_value) == ("a.name", 13, "{}")


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"", 200), (b"\x0a\x00", 400), (b"not protobuf", 400)],
)
async def test_the_fake_itself_refuses_what_a_receiver_refuses(
    front: Front, fake: FakeOtlpLogs, http: httpx.AsyncClient, content: bytes, status: int
) -> None:
    headers = {"content-type": "application/x-protobuf", "authorization": KEY}
    answer = await http.post(f"{front.url}/v1/logs", content=content, headers=headers)
    assert answer.status_code == status
    headers["content-type"] = "application/json"
    assert (await http.post(f"{front.url}/v1/logs", content=b"{}", headers=headers)).status_code == 415


def test_the_documented_section_can_be_right_and_names_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "siem-otlp.md").read_text()
    written = YAML(typ="safe").load(page.partition("```yaml\n")[2].partition("```")[0])["sinks"]["otel"]
    config = SINKS["otlp_logs"].Config.model_validate(written)
    for name in config.__class__.model_fields.keys() - {"kind", "name", "match", "timeout_seconds"}:
        assert f"`{name}`" in page
