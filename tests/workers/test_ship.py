"""The copy to the SIEM: everything, in commit order, and never at the alerts' cost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from service.errors import DeliveryFailed
from service.event import Event
from service.sinks.base import REFUSED_IN_A_ROW_MAX, Poison, Sent
from service.sinks.matching import read_match
from service.store import log, readers, shipping
from service.store.session import begin
from service.store.shipping import BREAKER_FAILURES
from tests.fakes.hec import Scripted
from tests.make import make_receipt
from tests.store.servers import END_OURS
from tests.workers.house import House
from workers.act import act
from workers.evaluate import evaluate
from workers.ship import PROBE_ITEMS, Shipping, refused_in_a_row, ship


async def kept(house: House) -> list[str]:
    async with begin(house.runtime.engine) as conn:
        return [event.id for event in await log.read_after(conn, 0, 1000) if event.origin != "probe"]


async def soon(house: House) -> None:
    await house.run("UPDATE readers SET next_attempt_at = NULL WHERE name LIKE 'sink:%'")
    await ship(house.runtime)


def shipped(house: House) -> list[str]:
    return [event["metadata"]["uid"] for event in house.hec.events]


async def test_a_siem_that_was_down_gets_everything_in_order_and_the_alerts_did_not_wait(house: House) -> None:
    house.hec.always = Scripted(503)
    await house.put(account_ids=["ca_1"])
    for _ in range(3):
        await house.tell("failed")
        await ship(house.runtime)
    await evaluate(house.runtime)
    await act(house.runtime)
    assert (house.posts(), house.hec.envelopes) == (1, [])
    house.hec.always = None
    await house.told("succeeded")
    await soon(house)
    assert shipped(house) == await kept(house)
    assert len(house.hec.envelopes) == 8


async def test_decisions_audit_and_quarantine_are_in_the_log_and_a_probe_never_leaves(house: House) -> None:
    await house.accept(
        make_receipt(kind="quarantine", type="quarantine", account_id=None, occurred_at=None),
        make_receipt(kind="token.refresh_failed", origin="probe", account_id="ca_probe"),
    )
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED")
    await house.told("ACTIVE")
    await soon(house)
    kinds = [
        row["kind"] for row in await house.rows("SELECT kind FROM events WHERE origin <> 'probe' ORDER BY position")
    ]
    assert kinds == [
        "quarantine",
        "audit",
        "account.disconnected",
        "workflow.paused",
        "alert.firing",
        "account.authorized",
        "alert.resolved",
    ]
    assert shipped(house) == await kept(house)
    assert await house.rows("SELECT 1 FROM accounts WHERE account_id = 'ca_probe'") == []


async def test_a_batch_whose_answer_was_lost_is_sent_again_and_none_is_missing(house: House) -> None:
    await house.told("ACTIVE")
    house.hec.script.append(Scripted(500, keep=True))
    await ship(house.runtime)
    await soon(house)
    assert list(dict.fromkeys(shipped(house))) == await kept(house)
    assert len(shipped(house)) == 2


async def lose_connections(house: House) -> None:
    url = house.runtime.settings.database_url.get_secret_value()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        ended = await (await conn.execute(END_OURS)).fetchall()
    assert ended
    assert all(one == (True,) for one in ended)


@pytest.mark.parametrize("refused", [False, True])
async def test_a_database_that_is_away_when_the_answer_comes_holds_the_sink_up_no_longer_than_that(
    house: House, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    await house.told("ACTIVE")
    sink = house.runtime.sinks["splunk"]
    send = sink.send

    async def send_and_lose(items: Sequence[Event]) -> Sent:
        try:
            return await send(items)
        finally:
            await lose_connections(house)

    if refused:
        house.hec.script.append(Scripted(503))
    monkeypatch.setattr(sink, "send", send_and_lose)
    await ship(house.runtime)
    monkeypatch.undo()
    await house.told("DISCONNECTED")
    await soon(house)
    assert shipped(house) == await kept(house)


class Recording:
    """A sink that says what it is told to say, in order, and then takes everything; `batches` is what it was sent."""

    name, kind, batch_items_max = "splunk", "recording", 50

    def __init__(self, *said: Sent | DeliveryFailed) -> None:
        self.said = list(said)
        self.batches: list[list[str]] = []

    async def send(self, items: Sequence[Event]) -> Sent:
        self.batches.append([item.id for item in items])
        said = self.said.pop(0) if self.said else Sent(len(items))
        if isinstance(said, DeliveryFailed):
            raise said
        return said

    async def check(self) -> str:
        return "here"


def stand_in(house: House, *said: Sent | DeliveryFailed) -> Recording:
    sink = Recording(*said)
    house.runtime.sinks["splunk"] = sink
    return sink


async def reader(house: House) -> dict[str, Any]:
    (row,) = await house.rows("SELECT * FROM readers WHERE name = 'sink:splunk'")
    return dict(row)


async def many(house: House, count: int) -> list[str]:
    await house.accept(*(make_receipt() for _ in range(count)))
    return await kept(house)


def unsure() -> DeliveryFailed:
    return DeliveryFailed("no answer", code="timeout", ambiguous=True)


async def test_a_batch_that_may_have_arrived_is_sent_again_as_it_was_and_counted(house: House) -> None:
    first = await many(house, 3)
    sink = stand_in(house, unsure(), unsure())
    await ship(house.runtime)
    everything = await many(house, 4)
    await soon(house)
    await soon(house)
    assert sink.batches == [first, first, first, everything[3:]]
    assert (await reader(house))["sent_again"] == 6, "once for each try after the first"
    assert (await reader(house))["in_doubt"] == 0


async def test_a_batch_that_surely_did_not_arrive_is_not_counted(house: House) -> None:
    await many(house, 3)
    sink = stand_in(house, DeliveryFailed("busy", code="http_503"))
    await ship(house.runtime)
    everything = await many(house, 1)
    await soon(house)
    assert sink.batches == [everything[:3], everything]
    assert (await reader(house))["sent_again"] == 0


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_an_answer_that_says_nothing_of_what_was_kept_leaves_the_batch_as_it_was(
    house: House, status: int
) -> None:
    """A proxy gives up while the receiver takes the batch: only the same items come under the same key again."""
    first = await many(house, 3)
    sink = stand_in(house, DeliveryFailed("no", code=f"http_{status}", status=status))
    await ship(house.runtime)
    everything = await many(house, 2)
    await soon(house)
    assert sink.batches == [first, first, everything[3:]]
    assert (await reader(house))["sent_again"] == 3


async def test_a_receiver_that_says_to_come_at_once_is_not_hammered(house: House) -> None:
    await many(house, 1)
    stand_in(house, DeliveryFailed("busy", code="http_503", status=503, retry_after_seconds=0.0))
    async with begin(house.runtime.engine) as conn:
        began = await readers.clock(conn)
    await ship(house.runtime)
    assert (await reader(house))["next_attempt_at"] - began >= timedelta(seconds=0.8)


async def test_a_doubt_of_before_outlives_a_try_that_surely_failed(house: House) -> None:
    first = await many(house, 3)
    sink = stand_in(house, unsure(), DeliveryFailed("busy", code="http_503"))
    await ship(house.runtime)
    await soon(house)
    await many(house, 1)
    await soon(house)
    assert sink.batches[:3] == [first] * 3
    assert (await reader(house))["sent_again"] == 3


async def test_who_died_in_the_middle_left_word_of_what_was_on_its_way(house: House) -> None:
    first = await many(house, 3)
    async with begin(house.runtime.engine) as conn:
        now = await readers.clock(conn)
        claimed = await shipping.claim(conn, "sink:splunk", now, timedelta(0))
        assert claimed is not None
        await shipping.sending(conn, claimed, 3)
    await many(house, 2)
    sink = stand_in(house)
    await soon(house)
    assert sink.batches[0] == first
    assert (await reader(house))["sent_again"] == 3


async def test_part_of_a_batch_taken_is_not_sent_again(house: House) -> None:
    everything = await many(house, 5)
    sink = stand_in(house, Sent(2, upto=2, in_doubt=1))
    await ship(house.runtime)
    assert sink.batches == [everything, everything[2:3], everything[3:]]
    assert (await reader(house))["sent_again"] == 1


async def test_after_many_failures_a_few_items_are_tried_until_they_go_through(house: House) -> None:
    everything = await many(house, PROBE_ITEMS * 3)
    sink = stand_in(house, *(DeliveryFailed("busy", code="http_503") for _ in range(BREAKER_FAILURES + 1)))
    for _ in range(BREAKER_FAILURES + 2):
        await soon(house)
    full, probe = everything, everything[:PROBE_ITEMS]
    assert sink.batches == [full] * BREAKER_FAILURES + [probe] * 2 + [everything[PROBE_ITEMS:]]


async def test_a_sink_is_sent_what_it_wants_and_passes_over_the_rest(house: House) -> None:
    sink = stand_in(house)
    house.runtime.wants["splunk"] = read_match([{"kind": {"glob": "alert.*"}, "severity": ["P1", "P2"]}])
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED")
    await many(house, 300)
    await ship(house.runtime)
    fired = [row["id"] for row in await house.rows("SELECT id::text FROM events WHERE kind = 'alert.firing'")]
    assert sink.batches == [fired]
    (head,) = await house.rows("SELECT max(position) AS position FROM events")
    assert (await reader(house))["position"] == head["position"]


async def test_poison_is_put_aside_and_no_longer_once_it_is_taken(house: House) -> None:
    everything = await many(house, 3)
    stand_in(house, Sent(2, (Poison(1, "a field too many"),)))
    await ship(house.runtime)
    async with begin(house.runtime.engine) as conn:
        (row,) = await shipping.put_aside(conn, sink="splunk", before=None, limit=10)
        assert (row.event_row_id, row.reason) == (everything[1], "a field too many")
        assert await shipping.replay(conn, "splunk", 0, await readers.clock(conn)) == 3
    sink = stand_in(house)
    await ship(house.runtime)
    assert sink.batches == [everything]
    async with begin(house.runtime.engine) as conn:
        assert await shipping.put_aside(conn, sink=None, before=None, limit=10) == []


async def test_a_sink_that_refuses_item_after_item_does_not_drain_the_log_into_poison(house: House) -> None:
    everything = await many(house, REFUSED_IN_A_ROW_MAX * 2)
    refusals = [Sent(0, (Poison(0, "no"),)) for _ in range(REFUSED_IN_A_ROW_MAX + 5)]
    sink = stand_in(house, *refusals)
    sink.batch_items_max = 1
    for _ in range(4):
        await soon(house)
    assert len(await house.rows("SELECT 1 FROM poison")) == REFUSED_IN_A_ROW_MAX - 1
    row = await reader(house)
    assert row["last_code"] == "all_refused"
    assert sink.batches[-1] == [everything[REFUSED_IN_A_ROW_MAX - 1]]
    sink.said.clear()
    await soon(house)
    assert (await reader(house))["refused_in_a_row"] == 0


async def test_what_is_found_here_says_nothing_of_the_sink(house: House) -> None:
    await many(house, REFUSED_IN_A_ROW_MAX + 1)
    stand_in(house, Sent(0, tuple(Poison(n, "too large", ours=True) for n in range(REFUSED_IN_A_ROW_MAX + 1))))
    await ship(house.runtime)
    assert len(await house.rows("SELECT 1 FROM poison")) == REFUSED_IN_A_ROW_MAX + 1


async def test_a_replay_beside_a_batch_on_its_way_is_not_undone_by_it(house: House) -> None:
    sink = stand_in(house)
    first = await many(house, 3)
    await ship(house.runtime)
    everything = await many(house, 2)
    send = sink.send

    async def replayed_meanwhile(items: Sequence[Event]) -> Sent:
        sent = await send(items)
        if len(sink.batches) == 2:
            async with begin(house.runtime.engine) as conn:
                await shipping.replay(conn, "splunk", 0, await readers.clock(conn))
        return sent

    sink.send = replayed_meanwhile  # type: ignore[method-assign]
    await ship(house.runtime)
    assert sink.batches == [first, everything[3:], everything]


async def test_a_sink_that_hangs_holds_up_no_other(house: House) -> None:
    everything = await many(house, 3)
    sink, other, hangs = stand_in(house), Recording(), asyncio.Event()

    async def hang(items: Sequence[Event]) -> Sent:
        await hangs.wait()
        return Sent(len(items))

    sink.send = hang  # type: ignore[method-assign]
    house.runtime.sinks["other"] = other
    house.runtime.wants["other"] = lambda event: event.origin != "probe"
    sending = Shipping(house.runtime)
    await sending.step()
    assert other.batches == [everything]
    everything = await many(house, 1)
    await sending.step()
    assert other.batches[1:] == [everything[3:]]
    await sending.close()
    assert (await reader(house))["lease_until"] is None, "whoever starts next need not wait for it"
    assert (await reader(house))["in_doubt"] == 3


async def test_a_mistake_of_ours_in_a_sink_costs_the_item_it_comes_by_and_nobody_else(house: House) -> None:
    everything = await many(house, 30)
    sink, other, bad = stand_in(house), Recording(), everything[17]
    take = sink.send

    async def crash(items: Sequence[Event]) -> Sent:
        if bad in [item.id for item in items]:
            raise RuntimeError("a mistake of ours")
        return await take(items)

    sink.send = crash  # type: ignore[method-assign]
    house.runtime.sinks["other"] = other
    house.runtime.wants["other"] = lambda event: event.origin != "probe"
    sending = Shipping(house.runtime)
    await sending.step()
    assert other.batches == [everything]
    assert (await reader(house))["last_code"] == "sink_crashed"
    for _ in range(20):
        await soon(house)
    await sending.close()
    assert [one for batch in sink.batches for one in batch] == [one for one in everything if one != bad]
    (row,) = await house.rows("SELECT event_row_id::text AS id, reason FROM poison WHERE reader = 'sink:splunk'")
    assert (row["id"], "RuntimeError" in row["reason"]) == (bad, True)


async def test_a_sink_that_crashes_on_everything_drains_nothing_into_poison(house: House) -> None:
    await many(house, REFUSED_IN_A_ROW_MAX * 2)
    sink = stand_in(house)

    async def crash(items: Sequence[Event]) -> Sent:
        raise RuntimeError("a mistake of ours")

    sink.send = crash  # type: ignore[method-assign]
    for _ in range(REFUSED_IN_A_ROW_MAX * 4):
        await soon(house)
    assert len(await house.rows("SELECT 1 FROM poison")) < REFUSED_IN_A_ROW_MAX
    assert (await reader(house))["last_code"] in ("all_refused", "sink_crashed")


def test_what_a_protocol_forbids_to_send_again_is_put_aside_however_many() -> None:
    claimed: Any = SimpleNamespace(refused_in_a_row=0, last_code=None)
    dropped = tuple(Poison(index, "dropped", dropped=True) for index in range(REFUSED_IN_A_ROW_MAX + 5))
    assert refused_in_a_row(claimed, Sent(0, dropped), "otel") == 0
    refused = tuple(replace(one, dropped=False) for one in dropped)
    with pytest.raises(DeliveryFailed, match="otel"):
        refused_in_a_row(claimed, Sent(0, refused), "otel")
