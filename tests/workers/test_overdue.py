"""What waits for a person's mend, and a retention that does not come to its end, are alerts of our own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import SECRET
from tests.make import make_receipt
from tests.workers.house import House, open_house
from workers.watch import GRACE_SECONDS, Watch, watch


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house", variables={"SCALEKIT_WEBHOOK_SECRET": SECRET}) as opened:
        yield opened


async def told(house: House, *, up_for: float = 0.0) -> list[tuple[str, str]]:
    await watch(house.runtime, Watch(began_at=time.monotonic() - up_for))
    return [(row["rule_id"], row["state"]) for row in await house.alerts()]


async def unreadable(house: House, *, age: str = "0 s", origin: str = "webhook") -> None:
    receipt = make_receipt(origin=origin, kind="quarantine", type="quarantine", details={"reason": "type_missing"})
    await house.run("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 40, 41)")
    await house.accept(receipt)
    for table, key in (("events", "id"), ("receipts", "event_row_id")):
        await house.run(f"UPDATE {table} SET received_at = now() - interval '{age}' WHERE {key} = '{receipt.id}'")


async def test_the_first_that_cannot_be_read_is_told_and_its_replay_ends_it(house: House) -> None:
    await unreadable(house)
    await unreadable(house)
    assert await told(house) == [("quarantined", "firing")]
    (alert,) = await house.alerts()
    assert (alert["severity"], alert["group_key"]) == ("P2", "scalekit")
    assert "cannot be read (type_missing)" in alert["summary"]
    assert "2 in the last hour" in alert["summary"]
    await house.work()
    assert house.posts() == 1
    await house.run(
        "INSERT INTO replays SELECT id, id, now() FROM events WHERE kind = 'quarantine' ORDER BY position LIMIT 1"
    )
    assert await told(house) == [("quarantined", "firing")]
    await house.run(
        "INSERT INTO replays SELECT id, id, now() FROM events WHERE kind = 'quarantine' ON CONFLICT DO NOTHING"
    )
    assert await told(house) == [("quarantined", "resolved")]


async def test_it_ends_by_age_and_comes_again(house: House) -> None:
    await unreadable(house)
    await told(house)
    await house.run("UPDATE events SET received_at = received_at - interval '61 minutes' WHERE kind = 'quarantine'")
    assert await told(house) == [("quarantined", "resolved")]
    await unreadable(house)
    assert await told(house) == [("quarantined", "resolved"), ("quarantined", "firing")]


async def test_our_own_probe_waits_for_nobody(house: House) -> None:
    await unreadable(house, origin="probe")
    assert await told(house) == []


@pytest.mark.parametrize(("age", "expected"), [("26 days", []), ("28 days", [("quarantine-expiring", "firing")])])
async def test_before_their_receipts_go_it_is_said_once_more(
    house: House, age: str, expected: list[tuple[str, str]]
) -> None:
    await unreadable(house, age=age)
    for _ in range(2):
        assert await told(house) == expected


async def overdue(house: House, hours: float) -> None:
    await house.run(f"UPDATE retention_state SET completed_at = now() - interval '{hours} hours'")


async def test_a_retention_that_does_not_come_to_its_end_is_told(house: House) -> None:
    long = GRACE_SECONDS + 1
    await overdue(house, 2.9)
    assert await told(house, up_for=long) == []
    await overdue(house, 3.1)
    assert await told(house, up_for=1) == [], "after a start it is given its time"
    await house.run("UPDATE retention_state SET unfinished = 'events_20260101 cannot be carried over'")
    assert await told(house, up_for=long) == [("retention-stalled", "firing")]
    (alert,) = await house.alerts()
    assert "UTC: events_20260101 cannot be carried over" in alert["summary"]
    await overdue(house, 0)
    assert await told(house, up_for=long) == [("retention-stalled", "resolved")]
