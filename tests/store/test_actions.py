"""Actions as rows: what is coalesced must never be told with the state of before."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from service.event import new_id
from service.store import actions, readers, refusals
from service.store.actions import NOTIFY, NewAction
from service.store.session import begin


async def test_a_notification_that_stands_for_an_uncommitted_change_is_not_claimed_before_the_commit(
    engine: AsyncEngine,
) -> None:
    notify = NewAction(kind=NOTIFY, destination="slack", lane="notify:slack:1", alert_id=new_id())
    async with begin(engine) as conn:
        await actions.add(conn, [notify], await readers.clock(conn))
    async with begin(engine) as changing:
        await actions.add(changing, [notify], await readers.clock(changing))  # one is pending: nothing is added
        async with begin(engine) as conn:
            claimed = await actions.claim(conn, await readers.clock(conn), lease=timedelta(seconds=60), limit=10)
        assert claimed == []
    async with begin(engine) as conn:
        claimed = await actions.claim(conn, await readers.clock(conn), lease=timedelta(seconds=60), limit=10)
    assert len(claimed) == 1


async def test_a_change_during_the_sending_gets_a_notification_of_its_own(engine: AsyncEngine) -> None:
    notify = NewAction(kind=NOTIFY, destination="slack", lane="notify:slack:1", alert_id=new_id())
    async with begin(engine) as conn:
        await actions.add(conn, [notify], await readers.clock(conn))

    async def change() -> None:
        async with begin(engine) as conn:
            await actions.add(conn, [notify], await readers.clock(conn))

    async with begin(engine) as conn:
        assert len(await actions.claim(conn, await readers.clock(conn), lease=timedelta(seconds=60), limit=10)) == 1
        changing = asyncio.create_task(change())
        await asyncio.sleep(0.1)
        assert not changing.done()  # it waits to see whether the one it found is still pending
    await changing
    async with begin(engine) as conn:
        open_actions, _, _ = await refusals.waiting(conn)
    assert open_actions == 2


async def test_actions_of_one_lane_go_one_after_another(engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        now = await readers.clock(conn)
        for kind in (actions.PAUSE, actions.RESUME):
            await actions.add(
                conn, [NewAction(kind=kind, destination="jobs", lane="workflow:w1", workflow_id="w1")], now
            )
            now += timedelta(milliseconds=1)
    async with begin(engine) as conn:
        now = await readers.clock(conn) + timedelta(seconds=1)
        [(first, died)] = await actions.claim(conn, now, lease=timedelta(seconds=60), limit=10)
        assert (first.kind, died) == (actions.PAUSE, False)
        assert await actions.claim(conn, now, lease=timedelta(seconds=60), limit=10) == []
        assert await actions.conclude(conn, first, now=now, outcome="done")
        [(second, _)] = await actions.claim(conn, now, lease=timedelta(seconds=60), limit=10)
        assert second.kind == actions.RESUME


async def test_an_action_whose_process_died_is_known_to_be_of_unknown_fate(engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        now = await readers.clock(conn)
        await actions.add(conn, [NewAction(kind=NOTIFY, destination="slack", lane="a", alert_id=new_id())], now)
        [(first, died)] = await actions.claim(conn, now, lease=timedelta(seconds=60), limit=10)
        assert died is False
    async with begin(engine) as conn:
        later = now + timedelta(seconds=61)
        [(second, died)] = await actions.claim(conn, later, lease=timedelta(seconds=60), limit=10)
        assert (second.id, died) == (first.id, True)
        # What the first one would still say comes too late to count.
        assert await actions.conclude(conn, first, now=later, outcome="done") is False
        attempts = (await actions.attempts_of(conn, [first.id]))[first.id]
        assert [(row.number, row.outcome, row.code) for row in attempts] == [(1, "done", None), (2, None, None)]


async def test_of_several_at_once_each_lane_is_told_once_and_keeps_its_order(engine: AsyncEngine) -> None:
    lanes = ("notify:slack:2", "notify:slack:1", "notify:slack:2")
    new = [NewAction(kind=NOTIFY, destination="slack", lane=lane, alert_id=new_id()) for lane in lanes]
    payload = {"ref": "7", "reason": 'it is "broken" \u2013 really'}
    new.append(NewAction(kind=actions.PAUSE, destination="jobs", lane="workflow:w1", workflow_id="w1", payload=payload))
    async with begin(engine) as conn:
        await actions.add(conn, new, await readers.clock(conn))
    async with begin(engine) as conn:
        await actions.add(conn, new[:1], await readers.clock(conn))
        claimed = await actions.claim(conn, await readers.clock(conn), lease=timedelta(seconds=60), limit=10)
    assert sorted(action.lane for action, _ in claimed) == ["notify:slack:1", "notify:slack:2", "workflow:w1"]
    assert [action.payload for action, _ in claimed if action.kind == actions.PAUSE] == [payload]
    assert {action.alert_id for action, _ in claimed if action.lane == lanes[0]} == {new[0].alert_id}
