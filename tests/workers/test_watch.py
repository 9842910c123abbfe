"""A source that falls silent and events that come late are alerts of their own; probes and recoveries are neither."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service import intake
from service.store import habits
from service.store.session import begin
from tests.conftest import SECRET
from tests.make import make_receipt
from tests.workers.house import House, make_event, open_house
from workers.watch import Watch, watch


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house", variables={"SCALEKIT_WEBHOOK_SECRET": SECRET}) as opened:
        yield opened


async def look(house: House) -> list[dict[str, Any]]:
    await watch(house.runtime, Watch())
    return [dict(row) for row in await house.alerts()]


async def hourly(house: House, *, hours: int, silent_hours: float, origin: str = "webhook") -> None:
    """A source that spoke once an hour and then fell silent."""
    await house.run("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 8, 10)")
    for _ in range(hours):
        await house.accept(make_receipt(origin=origin))
    await house.run(
        f"UPDATE events SET received_at = now() - interval '{silent_hours} hours' - interval '1 hour' *"
        " ((SELECT max(position) FROM events) - position), lag_seconds = 0"
    )


async def test_a_source_that_falls_silent_is_said_once_and_its_next_event_ends_it(house: House) -> None:
    await hourly(house, hours=48, silent_hours=5)
    for _ in range(2):
        (alert,) = await look(house)
    assert (alert["rule_id"], alert["severity"], alert["group_key"]) == ("source-silent", "P2", "scalekit")
    assert "1.0 h" in alert["summary"] or "60 min" in alert["summary"]
    assert alert["state"] == "firing"
    await house.work()
    assert house.posts() == 1
    await house.tell("ACTIVE")
    (alert,) = await look(house)
    assert alert["state"] == "resolved"
    assert await house.kinds() == ["alert.firing", "alert.resolved"]


async def test_within_its_habit_it_is_not_silent(house: House) -> None:
    await hourly(house, hours=48, silent_hours=3.5)
    assert await look(house) == []


async def test_probes_and_recoveries_are_no_signs_of_life(house: House) -> None:
    await hourly(house, hours=48, silent_hours=5)
    await house.accept(make_receipt(origin="probe"), make_receipt(origin="recovery"))
    (alert,) = await look(house)
    assert alert["rule_id"] == "source-silent"


async def test_a_source_of_probes_alone_has_no_habit(house: House) -> None:
    await hourly(house, hours=48, silent_hours=5, origin="probe")
    assert await look(house) == []


async def test_a_habit_is_the_same_in_whatever_pieces_it_is_learnt(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hourly(house, hours=48, silent_hours=1)
    await look(house)
    async with begin(house.runtime.engine) as conn:
        whole = await habits.load(conn)
    await house.run("DELETE FROM habits")
    await house.run("UPDATE readers SET position = 0 WHERE name = 'habits'")
    monkeypatch.setattr(habits, "ROWS_MAX", 7)
    await look(house)
    async with begin(house.runtime.engine) as conn:
        assert await habits.load(conn) == whole
    assert whole["scalekit"].events == 48


async def test_what_cannot_be_read_is_no_sign_of_life(house: House) -> None:
    await hourly(house, hours=48, silent_hours=5)
    await house.accept(make_receipt(kind="quarantine", type="quarantine"))
    assert "source-silent" in {alert["rule_id"] for alert in await look(house)}


async def test_a_clock_that_ran_ahead_and_was_put_right_blinds_no_watch(house: House) -> None:
    await hourly(house, hours=48, silent_hours=5)
    await look(house)
    await house.run("UPDATE alerts SET state = 'resolved', condition_ended_at = now(), resolved_at = now()")
    await house.run("UPDATE habits SET last_at = now() + interval '2 days', late_at = now() + interval '2 days'")
    assert {row["state"] for row in await look(house) if row["rule_id"] == "source-silent"} == {"resolved"}
    rows = await house.rows("SELECT last_at <= now() AS heard, late_at <= now() AS late FROM habits")
    assert [dict(row) for row in rows] == [{"heard": True, "late": True}]


async def test_a_restart_of_ours_makes_nothing_late(house: House) -> None:
    """Down for twenty seconds: what was tried meanwhile comes half a minute later, and what was tried before as well."""
    await intake.note(house.runtime.engine, ["scalekit"])
    await house.run("UPDATE intake SET able_until = able_until - interval '20 seconds'")
    await intake.note(house.runtime.engine, ["scalekit"])
    for ago in (15, 45, 600):
        event = make_event("failed", datetime.now(UTC) - timedelta(seconds=ago))
        await house.accept(event)
    assert await look(house) == []
    assert await house.rows("SELECT * FROM recoveries") == []
    await house.tell("failed", ago=3600)
    assert [alert["group_key"] for alert in await look(house)] == ["scalekit:breaks"]


async def test_after_an_outage_of_ours_it_is_given_its_time(house: House) -> None:
    await hourly(house, hours=48, silent_hours=5)
    await house.run(
        "INSERT INTO intake VALUES ('scalekit', now(), now() - interval '5 hours', now() - interval '1 minute')"
    )
    assert await look(house) == []


async def test_late_events_are_said_by_source_and_end_when_they_end(house: House) -> None:
    await house.tell("ACTIVE", ago=45)
    (alert,) = await look(house)
    assert (alert["rule_id"], alert["severity"], alert["group_key"]) == ("delivery-lag", "P3", "scalekit")
    assert "45 s" in alert["summary"]
    await house.run("UPDATE habits SET late_at = late_at - interval '10 minutes'")
    (alert,) = await look(house)
    assert alert["state"] == "resolved"


@pytest.mark.parametrize("what", ["EXPIRED", "DISCONNECTED", "DELETED", "failed"])
async def test_late_breaks_are_more_urgent(house: House, what: str) -> None:
    await house.tell(what, ago=45)
    (alert,) = await look(house)
    assert (alert["rule_id"], alert["severity"], alert["group_key"]) == ("delivery-lag", "P2", "scalekit:breaks")


async def test_in_time_recovered_suspect_and_after_our_outage_is_not_late(house: House) -> None:
    await house.tell("ACTIVE", ago=20)
    old = datetime.now(UTC) - timedelta(hours=1)
    event = make_event("failed", old)
    await house.accept(make_receipt(origin="recovery", occurred_at=old), make_receipt(occurred_at=None))
    await house.run(
        "INSERT INTO intake VALUES ('scalekit', now(), now() - interval '2 hours', now() - interval '1 minute')"
    )
    await house.accept(event)
    assert await look(house) == []
