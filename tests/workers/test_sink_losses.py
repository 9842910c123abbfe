"""A sink that was out of the configuration while the log dropped its days is told from one that has everything."""

from __future__ import annotations

from typing import Any

import pytest

from service.retain import retain
from service.settings import RetentionSettings
from service.store import log
from service.store.session import begin
from tests.make import make_receipt
from tests.workers.house import House
from workers.ship import ship

LOST = "SELECT group_key, severity, state, summary FROM alerts WHERE rule_id = 'sink-events-lost'"
ENTRIES = "SELECT event_id, details FROM events WHERE kind = 'audit' AND details->>'action' = 'sink.events_lost'"


async def away(house: House, *, stood_at: int, dropped_upto: int) -> list[str]:
    """Ids of a log of ten events whose first were dropped while the sink, which stood there, was not configured."""
    await house.accept(*(make_receipt() for _ in range(10)))
    await house.run(
        "INSERT INTO readers (name, position, moved_at, in_doubt)"
        f" VALUES ('sink:splunk', {stood_at}, '2026-08-01T00:00:00Z', 2)"
    )
    await house.run(f"DELETE FROM events WHERE position <= {dropped_upto} AND position <> 2")
    await house.run(f"UPDATE readers SET position = {dropped_upto} WHERE name = 'retention'")
    async with begin(house.runtime.engine) as conn:
        return [event.id for event in await log.read_after(conn, dropped_upto, 100)]


async def run_retention(house: House) -> None:
    assert await retain(house.runtime.engine, RetentionSettings(), ["splunk"], ["console"]) is not None


def came(house: House) -> list[str]:
    return [event["metadata"]["uid"] for event in house.hec.events]


async def the_loss(house: House) -> tuple[Any, Any]:
    [alert], [entry] = await house.rows(LOST), await house.rows(ENTRIES)
    return alert, entry


@pytest.mark.parametrize("first", [ship, "retention"])
async def test_what_it_missed_is_an_alert_and_an_audit_entry_whoever_comes_to_it_first(
    house: House, first: Any
) -> None:
    kept = await away(house, stood_at=1, dropped_upto=6)
    if first == "retention":
        await run_retention(house)
    await ship(house.runtime)
    await ship(house.runtime)
    alert, entry = await the_loss(house)
    assert (alert["group_key"], alert["severity"], alert["state"]) == ("splunk:2", "P1", "firing")
    assert "at most 5 events (positions 2 to 6) are gone for it, the exact number is not known" in alert["summary"]
    assert "2026-08-01" in alert["summary"]
    assert entry["event_id"] == "sink:splunk"
    told = {name: entry["details"][name] for name in ("events_max", "first_position", "last_position", "subject")}
    assert told == {"events_max": 5, "first_position": 2, "last_position": 6, "subject": "splunk"}
    # What is left is shipped, and the words about the loss with it; nothing counts as perhaps sent again.
    assert came(house)[: len(kept)] == kept
    assert len(came(house)) > len(kept)
    [row] = await house.rows("SELECT sent_again, in_doubt FROM readers WHERE name = 'sink:splunk'")
    assert (row["sent_again"], row["in_doubt"]) == (0, 0)


async def test_it_is_said_once_and_stays_until_a_person_has_seen_it(house: House) -> None:
    await away(house, stood_at=1, dropped_upto=6)
    for _ in range(2):
        await ship(house.runtime)
        await run_retention(house)
    alert, _ = await the_loss(house)
    assert alert["state"] == "firing"
    await house.run("UPDATE readers SET position = 3, moved_at = now() WHERE name = 'sink:splunk'")
    await ship(house.runtime)
    assert {alert["group_key"] for alert in await house.rows(LOST)} == {"splunk:2", "splunk:4"}


@pytest.mark.parametrize("stood_at", [6, 8])
async def test_who_had_taken_all_that_is_gone_has_lost_nothing(house: House, stood_at: int) -> None:
    kept = await away(house, stood_at=stood_at, dropped_upto=6)
    await run_retention(house)
    await ship(house.runtime)
    assert (await house.rows(LOST), await house.rows(ENTRIES)) == ([], [])
    assert came(house) == kept[stood_at - 6 :]


async def test_a_retention_that_is_refused_says_the_loss_all_the_same(house: House) -> None:
    await away(house, stood_at=1, dropped_upto=6)
    await house.run("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 120, 9)")
    await run_retention(house)
    assert len(await house.rows(LOST)) == 1
    assert len(await house.rows("SELECT 1 FROM alerts WHERE rule_id = 'retention-refused' AND state = 'firing'")) == 1


async def test_a_new_sink_begins_with_what_there_is_and_has_lost_nothing(house: House) -> None:
    kept = await away(house, stood_at=1, dropped_upto=6)
    await house.run("DELETE FROM readers WHERE name = 'sink:splunk'")
    await ship(house.runtime)
    assert (await house.rows(LOST), came(house)) == ([], kept)
