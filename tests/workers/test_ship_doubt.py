"""Each try of what may have arrived is counted, whoever dies in between; and it is seen where we are watched."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from service.errors import DeliveryFailed
from service.exposition import how_we_are
from service.sinks.base import Poison, Sent
from service.store import readers, shipping
from service.store.session import begin
from service.store.shipping import BREAKER_FAILURES
from tests.workers.house import House
from tests.workers.test_ship import many, reader, soon, stand_in, unsure
from workers.ship import ship

DOCS = (Path(__file__).parents[2] / "docs" / "sinks.md").read_text()


async def test_each_death_in_the_middle_of_a_try_counts_for_one(house: House) -> None:
    await many(house, 3)
    for died_before in range(3):
        async with begin(house.runtime.engine) as conn:
            claimed = await shipping.claim(conn, "sink:splunk", await readers.clock(conn), timedelta(0))
            assert claimed is not None
            await shipping.sending(conn, claimed, 3)
        assert (await reader(house))["sent_again"] == 3 * max(0, died_before - 1)
    stand_in(house)
    await soon(house)
    assert (await reader(house))["sent_again"] == 9


async def test_a_part_that_failed_again_in_doubt_is_counted_too(house: House) -> None:
    """Five may have arrived; then two are taken, and of the other three one more may have."""
    everything = await many(house, 5)
    sink = stand_in(house, unsure(), Sent(2, upto=2, in_doubt=1))
    await ship(house.runtime)
    await soon(house)
    assert sink.batches == [everything, everything, everything[2:]]
    assert (await reader(house))["sent_again"] == 3 + 3


async def test_who_lost_the_lease_says_nothing_of_what_the_next_one_found(house: House) -> None:
    everything = await many(house, 3)
    async with begin(house.runtime.engine) as conn:
        now = await readers.clock(conn)
        late = await shipping.claim(conn, "sink:splunk", now, timedelta(0))
        assert late is not None
        await shipping.sending(conn, late, 3)
    stand_in(house, Sent(2, (Poison(1, "a field too many"),)))
    await soon(house)
    stood = await reader(house)
    async with begin(house.runtime.engine) as conn:
        bad = [shipping.Bad(3, everything[2], "another")]
        await shipping.shipped(conn, late, 3, await readers.clock(conn), items=3, bad=bad)
        (row,) = await shipping.put_aside(conn, sink="splunk", before=None, limit=10)
    assert (row.event_row_id, row.reason) == (everything[1], "a field too many")
    assert await reader(house) == stood


async def test_what_was_sent_again_and_an_open_breaker_are_metrics(house: House) -> None:
    async def seen() -> dict[str, float]:
        async with begin(house.runtime.engine) as conn:
            families = await how_we_are(conn, ["splunk"])
        return {
            sample.name: sample.value
            for family in families
            for sample in family.samples
            if sample.labels == {"sink": "splunk"}
        }

    again, is_open = "authwatch_sink_sent_again_items", "authwatch_sink_breaker_open"
    assert await seen() == {again: 0, is_open: 0}
    assert all(f"`{name}`" in DOCS for name in (again, is_open))
    await many(house, 3)
    busy = [DeliveryFailed("busy", code="http_503") for _ in range(BREAKER_FAILURES - 1)]
    stand_in(house, unsure(), *busy)
    for failures in range(1, BREAKER_FAILURES + 1):
        await soon(house)
        assert await seen() == {again: 0, is_open: failures == BREAKER_FAILURES}
    await soon(house)
    assert await seen() == {again: 3, is_open: 0}
