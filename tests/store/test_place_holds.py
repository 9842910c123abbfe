"""Holds of one statement: each is placed, comes back, or stays gone by itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from service.event import AccountKey, new_id
from service.store import workflows
from service.store.session import begin
from service.store.workflows import Hold

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ACCOUNT = AccountKey("scalekit", "env_1", "ca_1")


def make(workflow_id: str, alert_id: str | None) -> Hold:
    return Hold(
        id=new_id(),
        workflow_id=workflow_id,
        alert_id=alert_id,
        scope="workflow",
        account=ACCOUNT if alert_id else None,
        reason='"It" broke\nbadly: \u00fc',
        placed_at=NOW,
        released_at=None,
        release_reason=None,
    )


async def test_what_was_placed_is_read_as_it_was_written(engine: AsyncEngine) -> None:
    of_connection = replace(make("w2", new_id()), account=None, connection=AccountKey("scalekit", "env_1", "conn_1"))
    wanted = [make("w1", new_id()), of_connection, make("w3", None)]
    async with begin(engine) as conn:
        placed = await workflows.place_holds(conn, wanted)
        found = await workflows.open_holds(conn)
    assert placed == {(hold.workflow_id, hold.alert_id) for hold in wanted}
    assert sorted(found, key=lambda hold: hold.workflow_id) == wanted


async def test_a_pair_wanted_twice_is_placed_once(engine: AsyncEngine) -> None:
    hold = make("w1", new_id())
    async with begin(engine) as conn:
        assert await workflows.place_holds(conn, [hold, replace(hold, id=new_id())]) == {("w1", hold.alert_id)}
        assert await workflows.open_holds(conn) == [hold]


@pytest.mark.parametrize(
    ("released_because", "comes_back"),
    [(None, False), ("person", False), ("account_well", False), *((reason, True) for reason in workflows.REVIVABLE)],
)
async def test_of_one_workflow_each_alert_has_a_fate_of_its_own(
    engine: AsyncEngine, released_because: str | None, *, comes_back: bool
) -> None:
    """What is answered is of the pair, not of the workflow: a hold that a person lifted is not told as a new pause."""
    old, new = make("w1", new_id()), make("w1", new_id())
    async with begin(engine) as conn:
        await workflows.place_holds(conn, [old])
        if released_because:
            await workflows.release_holds(conn, [old.id], NOW + timedelta(minutes=1), released_because)
        again = replace(old, id=new_id(), scope="account", placed_at=NOW + timedelta(minutes=2))
        placed = await workflows.place_holds(conn, [again, new])
        stands = {hold.alert_id: hold for hold in await workflows.open_holds(conn)}
    assert placed == {("w1", new.alert_id)} | ({("w1", old.alert_id)} if comes_back else set())
    assert (old.alert_id in stands) == (comes_back or released_because is None)
    if comes_back:
        assert stands[old.alert_id] == replace(again, id=old.id)


async def test_a_person_holds_a_workflow_once(engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        assert await workflows.place_holds(conn, [make("w1", None)]) == {("w1", None)}
        assert await workflows.place_holds(conn, [make("w1", None)]) == set()
