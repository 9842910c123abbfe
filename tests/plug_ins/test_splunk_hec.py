"""Splunk's own traps; what every kind of sink promises is in tests/plug_ins/test_sinks_conform.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.errors import DeliveryFailed
from service.outbound import open_client
from service.sinks import SINKS
from service.sinks.base import Sink
from service.sinks.splunk_hec import BATCH_ITEMS_MAX, BATCHES_PER_ACKNOWLEDGEMENT
from tests.fakes.front import Front, standing
from tests.fakes.hec import FakeHec, Scripted
from tests.ocsf_schema import problems
from tests.plug_ins.sink_cases.items import an_event, events, ids, sized
from tests.plug_ins.sink_cases.splunk_hec import TOKEN, section


def open_sink(section: dict[str, Any], client: httpx.AsyncClient) -> Sink:
    kind = SINKS[section["kind"]]
    return kind.open(kind.Config.model_validate({**section, "name": "siem"}), client)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
def fake() -> FakeHec:
    return FakeHec(TOKEN)


@pytest.fixture
def url(front: Front, fake: FakeHec) -> str:
    front.app = fake.app
    return front.url


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with open_client() as opened:
        yield opened


@pytest.fixture
def sink(url: str, client: httpx.AsyncClient) -> Sink:
    return open_sink(section(url), client)


async def failure(sink: Sink, count: int = 2) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as caught:
        await sink.send(events(count))
    return caught.value


def taken(fake: FakeHec) -> list[str]:
    return [event["metadata"]["uid"] for event in fake.events]


async def test_an_envelope_carries_what_splunk_indexes_by(url: str, fake: FakeHec, client: httpx.AsyncClient) -> None:
    await open_sink(section(url) | {"index": "main"}, client).send([an_event()])
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


@pytest.mark.parametrize(
    "path", ["", "/", "/services/collector", "/services/collector/event", "/services/collector/event/"]
)
async def test_the_address_may_be_given_with_or_without_the_path(
    url: str, fake: FakeHec, client: httpx.AsyncClient, path: str
) -> None:
    await open_sink(section(url + path), client).send([an_event()])
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


async def test_a_batch_is_split_by_count(url: str, fake: FakeHec, client: httpx.AsyncClient) -> None:
    sink = open_sink(section(url) | {"batch_items_max": 10}, client)
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


async def test_a_body_too_large_for_the_server_is_halved(sink: Sink, fake: FakeHec) -> None:
    fake.body_bytes_max = 4000
    batch = [replace(e, details={"note": "words " * 2000}) if n == 2 else e for n, e in enumerate(events(12))]
    sent = await sink.send(batch)
    assert (sent.accepted, [poison.index for poison in sent.poison]) == (11, [2])
    assert [e["metadata"]["uid"] for e in fake.events] == [e.id for n, e in enumerate(batch) if n != 2]


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
    client: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str], status: int, code: int
) -> None:
    answer = await client.post(f"{url}/services/collector/event", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_an_index_that_the_token_may_not_write_to_is_named(url: str, client: httpx.AsyncClient) -> None:
    raised = await failure(open_sink(section(url) | {"index": "forbidden"}, client))
    assert (raised.status, raised.permanent) == (400, True)
    assert "may not write to this index" in str(raised)


# A batch of several parts


@pytest.mark.parametrize(("broken", "in_doubt"), [(False, 0), (True, 3)])
async def test_what_was_taken_before_a_part_failed_is_not_sent_again(
    sink: Sink, fake: FakeHec, broken: bool, in_doubt: int
) -> None:
    items = [sized(number, 300_000) for number in range(1, 7)]
    fake.script = [Scripted(200, keep=True, body=b'{"text":"Success","code":0}')]
    if broken:
        fake.break_off_after(1)
    else:
        fake.script.append(Scripted(503))
    sent = await sink.send(items)
    assert (sent.accepted, sent.upto, sent.in_doubt) == (3, 3, in_doubt)
    assert (await sink.send(items[3:])).accepted == 3
    assert list(dict.fromkeys(taken(fake))) == ids(items)
    assert len(taken(fake)) == 6 + in_doubt


async def test_an_unfit_item_beside_a_part_that_failed_is_neither_lost_nor_said_twice(
    sink: Sink, fake: FakeHec
) -> None:
    items = [sized(1, 600_000), sized(2, 1_200_000), sized(3, 600_000)]
    fake.script = [Scripted(200, keep=True, body=b'{"text":"Success","code":0}'), Scripted(503)]
    sent = await sink.send(items)
    assert (sent.upto, sent.poison) == (1, ())
    again = await sink.send(items[1:])
    assert (again.accepted, [poison.index for poison in again.poison], again.upto) == (1, [0], None)


def halved_and_then(fake: FakeHec, last: Scripted) -> None:
    ok = Scripted(200, keep=True, body=b'{"text":"Success","code":0}')
    fake.script = [Scripted(413), ok, last]


@pytest.mark.parametrize("status", [503, 403])
async def test_what_was_taken_of_a_part_before_the_rest_of_it_failed_is_not_sent_again(
    sink: Sink, fake: FakeHec, status: int
) -> None:
    halved_and_then(fake, Scripted(status))
    sent = await sink.send(events(10))
    assert (sent.accepted, sent.upto, sent.in_doubt) == (5, 5, 0)
    assert (await sink.send(events(10)[5:])).accepted == 5
    assert taken(fake) == ids(events(10))


async def test_what_stood_before_a_bad_item_is_not_sent_again_where_the_rest_fails(sink: Sink, fake: FakeHec) -> None:
    fake.script = [
        Scripted(400, body=b'{"text":"Invalid data format","code":6,"invalid-event-number":3}'),
        Scripted(503),
    ]
    sent = await sink.send(events(10))
    assert (sent.accepted, [poison.index for poison in sent.poison], sent.upto) == (3, [3], 4)


async def test_refusals_alone_are_not_put_aside_where_the_rest_is_forbidden(sink: Sink, fake: FakeHec) -> None:
    fake.script = [
        Scripted(400, body=b'{"text":"Invalid data format","code":6,"invalid-event-number":0}'),
        Scripted(403),
    ]
    assert (await failure(sink, 10)).code == "http_403"


# Indexer acknowledgement


@pytest.fixture
def strict(url: str, fake: FakeHec, client: httpx.AsyncClient) -> Sink:
    fake.acknowledges = True
    return open_sink(section(url) | {"acknowledgement": True, "acknowledgement_seconds": 0.5}, client)


async def test_what_is_acknowledged_is_done(strict: Sink, fake: FakeHec) -> None:
    fake.indexed_after_asks = 1
    assert (await strict.send(events(3))).accepted == 3
    assert taken(fake) == ids(events(3))
    assert fake.asks == 2
    assert strict.batch_items_max == BATCH_ITEMS_MAX * BATCHES_PER_ACKNOWLEDGEMENT


async def test_what_is_not_acknowledged_in_time_is_sent_again(strict: Sink, fake: FakeHec) -> None:
    fake.indexed_after_asks = 1_000_000
    raised = await failure(strict)
    assert (raised.code, raised.permanent, raised.ambiguous) == ("unacknowledged", False, True)
    assert "twice" in str(raised)
    fake.indexed_after_asks = 0
    assert (await strict.send(events(2))).accepted == 2
    assert taken(fake) == ids(events(2)) * 2


async def test_what_was_accepted_before_the_rest_failed_counts_as_perhaps_there(strict: Sink, fake: FakeHec) -> None:
    number = b'{"text":"Success","code":0,"ackId":0}'
    fake.script = [Scripted(413), Scripted(200, keep=True, body=number), Scripted(503)]
    raised = await failure(strict, 10)
    assert (raised.code, raised.ambiguous) == ("http_503", True)


async def test_a_splunk_that_is_away_between_is_asked_again(strict: Sink, fake: FakeHec) -> None:
    fake.ack_script = [Scripted(503)]
    assert (await strict.send(events(2))).accepted == 2
    assert fake.asks == 1


async def test_a_part_that_stood_before_a_bad_item_is_acknowledged_as_well(strict: Sink, fake: FakeHec) -> None:
    fake.refuse_events_with = "POISON"
    items = [replace(item, identifier="POISON") if n == 2 else item for n, item in enumerate(events(5))]
    sent = await strict.send(items)
    assert (sent.accepted, [poison.index for poison in sent.poison]) == (4, [2])
    assert set(taken(fake)) == {item.id for n, item in enumerate(items) if n != 2}


async def test_a_token_without_acknowledgement_is_said(url: str, fake: FakeHec, client: httpx.AsyncClient) -> None:
    sink = open_sink(section(url) | {"acknowledgement": True}, client)
    raised = await failure(sink)
    assert (raised.code, raised.permanent) == ("acknowledgement_off", True)
    with pytest.raises(DeliveryFailed, match="switch it on in Splunk"):
        await sink.check()


async def test_a_token_that_demands_a_channel_is_said(sink: Sink, fake: FakeHec) -> None:
    fake.acknowledges = True
    assert "acknowledgement: true" in str(await failure(sink))
