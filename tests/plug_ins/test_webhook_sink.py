"""The webhook's own: the same batch under the same id, whatever happened to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from service.errors import DeliveryFailed
from service.outbound import open_client
from service.sinks.webhook import WebhookSink, WebhookSinkConfig
from tests.fakes.batches import FakeBatches
from tests.fakes.front import Front, standing
from tests.plug_ins.sink_cases.items import events, ids, sized
from tests.plug_ins.sink_cases.webhook import section


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
def fake(front: Front) -> FakeBatches:
    made = FakeBatches()
    front.app = made.app
    return made


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with open_client() as opened:
        yield opened


@pytest.fixture
def sink(front: Front, fake: FakeBatches, client: httpx.AsyncClient) -> WebhookSink:
    return opened(front, client, "siem")


def opened(front: Front, client: httpx.AsyncClient, name: str) -> WebhookSink:
    return WebhookSink(WebhookSinkConfig.model_validate(section(front.url) | {"name": name}), client)


async def test_a_batch_has_its_id_for_ever_and_another_has_another(
    front: Front, fake: FakeBatches, client: httpx.AsyncClient, sink: WebhookSink
) -> None:
    for items in (events(3), events(3), events(4), events(4)[3:]):
        await sink.send(items)
    await opened(front, client, "other").send(events(3))
    assert len(set(fake.ids)) == 4
    assert fake.ids[0] == fake.ids[1]


async def test_other_items_between_the_same_positions_are_no_repeat(fake: FakeBatches, sink: WebhookSink) -> None:
    """As after a restore from a backup, or with another `match`: a receiver that drops ids would lose them."""
    items = events(3)
    for batch in (items, [replace(item, id=f"x{item.id[1:]}") for item in items], [items[0], items[2]]):
        await sink.send(batch)
    assert len(set(fake.ids)) == 3


async def test_a_half_that_was_taken_is_not_sent_again_where_the_other_fails(
    front: Front, fake: FakeBatches, sink: WebhookSink
) -> None:
    fake.body_bytes_max, calls = 8_000, 0
    inner = fake.app

    async def third_is_busy(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        app: Any = Response(status_code=503) if calls == 3 else inner
        await app(scope, receive, send)

    front.app = third_is_busy
    items = [sized(1, 5_000), sized(2, 5_000)]
    sent = await sink.send(items)
    assert (sent.accepted, sent.upto, sent.in_doubt) == (1, 1, 0)
    await sink.send(items[1:])
    assert [item["metadata"]["uid"] for item in fake.items] == ids(items)


async def test_a_batch_of_several_parts_that_broke_off_goes_on_under_the_same_ids(
    fake: FakeBatches, sink: WebhookSink
) -> None:
    items = [sized(number, 400_000) for number in range(1, 6)]
    await sink.send(items[:2])
    fake.break_off = True
    with pytest.raises(DeliveryFailed):
        await sink.send(items[2:])
    assert (await sink.send(items[2:])).accepted == 3
    assert [item["metadata"]["uid"] for item in fake.items] == ids(items)


async def test_a_receiver_that_takes_less_is_sent_less(fake: FakeBatches, sink: WebhookSink) -> None:
    fake.body_bytes_max = 5_000
    items = [*events(4), sized(5, 10_000), *events(8)[5:]]
    sent = await sink.send(items)
    assert (sent.accepted, [poison.index for poison in sent.poison]) == (7, [4])
    assert [item["metadata"]["uid"] for item in fake.items] == [item.id for item in items if item.position != 5]


async def test_check_is_an_empty_batch_that_proves_the_signature(fake: FakeBatches, sink: WebhookSink) -> None:
    assert "took an empty batch" in await sink.check()
    assert (fake.items, fake.wire) == ([], [""])
