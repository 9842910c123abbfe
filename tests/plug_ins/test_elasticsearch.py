"""Elasticsearch's own traps: each item's outcome, what is there already, what the mapping refuses, and whose key it is."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from service import outbound
from service.errors import DeliveryFailed
from service.event import KINDS
from service.sinks import SINKS
from service.sinks.base import Sent, Sink
from service.sinks.elasticsearch import ROUNDS_MAX
from tests.fakes.elasticsearch import FLATTENED, FakeElasticsearch
from tests.fakes.front import Front, standing
from tests.fakes.hec import Scripted
from tests.ocsf_schema import problems
from tests.plug_ins.sink_cases.elasticsearch import API_KEY, CASES
from tests.plug_ins.sink_cases.items import WORD, an_event, events, ids, sized
from tests.unit import test_formats

STREAM = "logs-authwatch.events-default"
NDJSON = {"content-type": "application/x-ndjson", "authorization": f"ApiKey {API_KEY}"}


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
def fake(front: Front) -> FakeElasticsearch:
    fake = FakeElasticsearch(f"ApiKey {API_KEY}")
    front.app = fake.app
    return fake


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with outbound.open_client() as http:
        yield http


def open_sink(front: Front, http: httpx.AsyncClient, **changes: Any) -> Sink:
    kind = SINKS["elasticsearch"]
    return kind.open(kind.Config.model_validate(CASES.section(front.url) | {"name": "siem"} | changes), http)


def taken(fake: FakeElasticsearch) -> list[str]:
    return [id_ for _, id_ in fake.docs]


@pytest.mark.parametrize("format_name", ["ocsf", "ecs", "raw"])
async def test_a_document_has_the_time_that_a_data_stream_wants(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient, format_name: str
) -> None:
    await open_sink(front, http, format=format_name).send([an_event(1)])
    ((stream, id_), doc) = next(iter(fake.docs.items()))
    assert (stream, id_) == (STREAM, an_event(1).id)
    assert doc.pop("@timestamp") == "2026-11-20T10:00:00.123000Z"
    if format_name == "ocsf":
        assert problems(doc) == []
    assert ("ecs" in doc) == (format_name == "ecs")


@pytest.mark.parametrize("format_name", ["ocsf", "ecs", "raw"])
async def test_every_kind_fits_one_mapping(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient, format_name: str
) -> None:
    """A field that is a number in one event and an object in the next is a mapping error for ever after."""
    made = [make(kind) for make in (test_formats.an_event, test_formats.bare) for kind in KINDS]
    items = [replace(event, id=an_event(number).id) for number, event in enumerate(made, 1)]
    assert await open_sink(front, http, format=format_name).send(items) == Sent(len(items))


async def test_what_is_there_already_is_done(front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient) -> None:
    sink = open_sink(front, http)
    await sink.send(events(3))
    assert await sink.send(events(5)) == Sent(5)
    assert taken(fake) == ids(events(5))


async def test_items_that_found_no_room_alone_are_sent_again(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient
) -> None:
    fake.busy_for = [6, 2]
    assert await open_sink(front, http).send(events(10)) == Sent(10)
    assert [count for count, _ in fake.posts] == [10, 6, 2]
    assert taken(fake) == ids(events(10))


async def test_who_takes_none_of_them_is_left_alone_for_now(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient
) -> None:
    fake.busy_for = [4, 4]
    with pytest.raises(DeliveryFailed) as caught:
        await open_sink(front, http).send(events(10))
    assert (caught.value.code, caught.value.permanent) == ("items_not_now", False)
    assert "4 of 4 items" in str(caught.value)
    assert [count for count, _ in fake.posts] == [10, 4]
    fake.busy_for = []
    assert await open_sink(front, http).send(events(10)) == Sent(10)
    assert taken(fake) == ids(events(10))


async def test_resending_within_a_send_is_bounded(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient
) -> None:
    fake.busy_for = [19 - number for number in range(20)]
    with pytest.raises(DeliveryFailed):
        await open_sink(front, http).send(events(20))
    assert len(fake.posts) == ROUNDS_MAX


async def test_bad_items_busy_ones_and_known_ones_in_one_answer(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient
) -> None:
    sink = open_sink(front, http)
    await sink.send(events(2))
    fake.refuse_docs_with, fake.busy_for = WORD, [3]
    items = [replace(item, identifier=WORD) if n in (3, 8) else item for n, item in enumerate(events(10))]
    sent = await sink.send(items)
    assert (sent.accepted, [poison.index for poison in sent.poison]) == (8, [3, 8])
    assert all("document_parsing_exception" in poison.reason for poison in sent.poison)
    assert taken(fake) == [item.id for n, item in enumerate(items) if n not in (3, 8)]


async def test_a_reason_holds_no_token_and_is_short(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient
) -> None:
    item = {"create": {"status": 400, "error": {"type": "t", "reason": "near Bearer LEAK-1\n" + "y" * 5000}}}
    fake.always = Scripted(200, json.dumps({"errors": True, "items": [item]}).encode())
    (poison,) = (await open_sink(front, http).send(events(1))).poison
    assert "LEAK" not in poison.reason
    assert poison.reason.isprintable()
    assert len(poison.reason) < 250


async def test_a_body_too_large_for_the_server_is_halved(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient
) -> None:
    fake.body_bytes_max = 30_000
    items = [*events(5), sized(6, 60_000), *[an_event(number) for number in range(7, 13)]]
    sent = await open_sink(front, http, compress=False).send(items)
    assert (sent.accepted, [poison.index for poison in sent.poison]) == (11, [5])
    assert taken(fake) == [item.id for item in items if item.position != 6]


async def test_an_answer_longer_than_others_allow_is_read_whole(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient
) -> None:
    """500 refusals with a reason each are more than the 64 KiB that other answers are cut at."""
    first = events(500)[0]
    fake.refuse_docs_with = "ca_"
    reason = "z" * 300
    said = [{"create": {"status": 400, "error": {"type": "t", "reason": reason}}} for _ in range(499)]
    fake.always = Scripted(200, json.dumps({"errors": True, "items": [{"create": {"status": 201}}, *said]}).encode())
    sent = await open_sink(front, http).send(events(500))
    assert (sent.accepted, len(sent.poison)) == (1, 499)
    assert first.id not in taken(fake)


@pytest.mark.parametrize(("compress", "count", "gzipped"), [(True, 50, True), (True, 1, False), (False, 50, False)])
async def test_what_is_worth_it_is_compressed(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient, compress: bool, count: int, gzipped: bool
) -> None:
    await open_sink(front, http, compress=compress).send(events(count))
    assert fake.gzipped == [gzipped]


@pytest.mark.parametrize(
    ("given", "header"),
    [
        ({"api_key": API_KEY}, f"ApiKey {API_KEY}"),
        ({"api_key": "The-Key-Id:The-Key-Secret"}, f"ApiKey {API_KEY}"),
        ({"username": "siem", "password": "pass word"}, f"Basic {base64.b64encode(b'siem:pass word').decode()}"),
        ({}, None),
    ],
)
async def test_every_way_in(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient, given: dict[str, Any], header: str | None
) -> None:
    fake.authorization = header
    sink = open_sink(front, http, **({"api_key": None} | given))
    said = await sink.check()
    assert ("asks for no credentials" in said) == (header is None)
    assert await sink.send(events(1)) == Sent(1)


@pytest.mark.parametrize(
    "given",
    [
        {"username": "siem"},
        {"password": "pw-1234"},
        {"username": "siem", "password": "pw-1234", "api_key": API_KEY},
        {"username": "si:em", "password": "pw-1234"},
    ],
)
def test_half_a_way_in_or_two_of_them_stop_the_start(given: dict[str, Any]) -> None:
    section = {"kind": "elasticsearch", "url": "https://siem.example", **given}
    with pytest.raises(ValidationError) as caught:
        SINKS["elasticsearch"].Config.model_validate(section)
    assert "pw-1234" not in str(caught.value)
    assert API_KEY not in str(caught.value)


@pytest.mark.parametrize("path", ["", "/", "/_bulk"])
async def test_the_address_is_the_base(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient, path: str
) -> None:
    assert await open_sink(front, http, url=front.url + path).send(events(1)) == Sent(1)


async def test_a_stream_of_another_name(front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient) -> None:
    fake.templates = ("authwatch-*",)
    await open_sink(front, http, stream="authwatch-ünd+1").send(events(1))
    assert [stream for stream, _ in fake.docs] == ["authwatch-ünd+1"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", NDJSON, 400),
        (b'{"create":{"_id":"1"}}\n{"@timestamp":"2026-01-01"}', NDJSON, 400),  # no newline at the end
        (b'{"create":{"_id":"1"}}\n', NDJSON, 400),
        (b'{"create":{},"index":{}}\n{}\n', NDJSON, 400),
        (b'{"create":{"_id":"1"}}\n{"@timestamp":"2026-01-01"}\n', NDJSON | {"authorization": "ApiKey x"}, 401),
        (b'{"create":{"_id":"1"}}\n{"@timestamp":"2026-01-01"}\n', NDJSON | {"content-type": "text/plain"}, 406),
        (b'{"create":{"_id":"1"}}\n{"@timestamp":"2026-01-01"}\n', NDJSON, 201),
        (b'{"index":{"_id":"1"}}\n{"@timestamp":"2026-01-01"}\n', NDJSON, 400),
        (b'{"create":{"_id":"1"}}\n{"a":1}\n', NDJSON, 400),
        (b'{"create":{"_id":"1"}}\n{"@timestamp":"2026-01-01","a":NaN}\n', NDJSON, 400),
    ],
)
async def test_the_fake_itself_refuses_what_elasticsearch_refuses(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = await http.post(f"{front.url}/{STREAM}/_bulk", content=body, headers=headers)
    if answer.status_code == 200:
        ((said,),) = (item.values() for item in answer.json()["items"])
        assert said["status"] == status
    else:
        assert answer.status_code == status


async def test_the_fake_itself_keeps_one_type_a_field(
    front: Front, fake: FakeElasticsearch, http: httpx.AsyncClient
) -> None:
    docs = ['"a":1', '"a":{"b":1}', '"a":"words"', '"a":2.5', '"c":"2026-01-01"', '"c":"words"', '"c":"2026-01-02"']
    lines = [f'{{"create":{{"_id":"{n}"}}}}\n{{"@timestamp":"2026-01-01",{doc}}}\n' for n, doc in enumerate(docs)]
    answer = await http.post(f"{front.url}/{STREAM}/_bulk", content="".join(lines), headers=NDJSON)
    assert [item["create"]["status"] for item in answer.json()["items"]] == [201, 400, 400, 201, 201, 400, 201]


def test_the_documented_template_and_section_are_what_the_sink_and_the_fake_go_by() -> None:
    page = (Path(__file__).parents[2] / "docs" / "siem-elasticsearch.md").read_text()
    template = json.loads(page.partition("```json\n")[2].partition("```")[0])
    flattened = {
        f"{name}.{inner}"
        for name, field in template["template"]["mappings"]["properties"].items()
        for inner, kind in field.get("properties", {}).items()
        if kind["type"] == "flattened"
    }
    assert flattened == set(FLATTENED)
    written = YAML(typ="safe").load(page.partition("```yaml\n")[2].partition("```")[0])["sinks"]["elastic"]
    config: Any = SINKS["elasticsearch"].Config.model_validate(written)
    assert any(fnmatchcase(config.stream, pattern) for pattern in template["index_patterns"])
    for name in config.__class__.model_fields.keys() - {"kind", "name", "match", "timeout_seconds"}:
        assert f"`{name}`" in page
