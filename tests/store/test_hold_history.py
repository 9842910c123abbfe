"""Each time of a hold is kept once, and goes with its alert."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service.event import new_id
from service.store import hold_history, prune, workflows
from service.store.session import begin
from tests.store.test_place_holds import NOW, make

MINUTE = timedelta(minutes=1)


async def test_a_hold_that_comes_back_several_times_has_as_many_entries(engine: AsyncEngine) -> None:
    hold = make("w1", new_id())
    async with begin(engine) as conn:
        for number in range(3):
            again = replace(hold, id=new_id(), placed_at=NOW + 2 * number * MINUTE)
            await workflows.place_holds(conn, [again, make("w2", new_id())])
            released = NOW + (2 * number + 1) * MINUTE
            [mine] = await workflows.open_holds(conn, workflow_ids=["w1"])
            await workflows.release_holds(conn, [mine.id], released, "dependency_dropped", by="ops", note="moved")
        found = await hold_history.history(conn, "w1", 10)
        first, rest = found[:1], await hold_history.history(conn, "w1", 10, (found[0].hold.placed_at, found[0].hold.id))
    assert [one.hold.placed_at - NOW for one in found] == [4 * MINUTE, 2 * MINUTE, 0 * MINUTE]
    assert {(one.hold.released_by, one.hold.release_note, one.hold.release_reason) for one in found} == {
        ("ops", "moved", "dependency_dropped")
    }
    assert [*first, *rest] == found


async def test_who_let_go_of_it_is_forgotten_when_it_comes_back(engine: AsyncEngine) -> None:
    hold = make("w1", new_id())
    async with begin(engine) as conn:
        await workflows.place_holds(conn, [hold])
        await workflows.release_holds(conn, [hold.id], NOW, "workflow_deleted", by="ops", note="gone")
        await workflows.place_holds(conn, [replace(hold, placed_at=NOW + MINUTE)])
        [open_one] = await workflows.open_holds(conn)
    assert (open_one.released_by, open_one.release_note, open_one.release_reason) == (None, None, None)


async def test_earlier_times_go_with_their_alert(engine: AsyncEngine) -> None:
    alert_id = new_id()
    hold = make("w1", alert_id)
    async with begin(engine) as conn:
        await workflows.place_holds(conn, [hold])
        await workflows.release_holds(conn, [hold.id], NOW, "dependency_dropped")
        await workflows.place_holds(conn, [replace(hold, placed_at=NOW + MINUTE)])
        await workflows.release_holds(conn, [hold.id], NOW + 2 * MINUTE, "account_well")
        await conn.execute(
            text(
                """
                INSERT INTO alerts (id, rule_id, severity, "group", group_key, episode, dedup_key, state, summary,
                    opened_at, fired_at, condition_ended_at, resolved_at)
                VALUES (:id, 'r', 'P2', '{}', 'g', 1, 'd', 'resolved', 's', :at, :at, :at, :at)
                """
            ),
            {"id": alert_id, "at": NOW},
        )
        assert len(await hold_history.history(conn, "w1", 10)) == 2
        await prune.alerts(conn, NOW + timedelta(days=1))
        assert await hold_history.history(conn, "w1", 10) == []


async def test_the_end_of_a_persons_hold_moves_and_is_found_when_it_has_come(engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        await workflows.place_holds(conn, [replace(make("w1", None), expires_at=NOW), make("w2", None)])
        assert await hold_history.expired(conn, 10) == ["w1"]
        assert not await hold_history.set_expiry(conn, "w1", NOW)
        assert await hold_history.set_expiry(conn, "w1", None)
        assert await hold_history.expired(conn, 10) == []
        assert await hold_history.set_expiry(conn, "w2", NOW)
        assert await hold_history.expired(conn, 10) == ["w2"]
        assert not await hold_history.set_expiry(conn, "w3", NOW)
