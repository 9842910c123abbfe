"""Evaluators beside each other: the shards of accounts, and what only one of them may do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from service.store import accounts, readers, shards
from service.store.session import begin
from tests.workers.house import House, make_event, open_house
from workers import evaluate as evaluating
from workers.evaluate import evaluate

COUNT = 40


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house") as opened:
        yield opened


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were very much to read: the shards come apart, and are read on side by side."""
    monkeypatch.setattr(evaluating, "BATCH_EVENTS_MAX", 3)


def names() -> list[str]:
    return [f"ca_{number}" for number in range(COUNT)]


async def positions(house: House) -> dict[str, int]:
    rows = await house.rows("SELECT name, position FROM readers WHERE name LIKE 'evaluator%'")
    return {row["name"]: row["position"] for row in rows}


async def test_one_workflow_of_many_broken_accounts_is_paused_once(house: House) -> None:
    """All of them break at once and are judged by two workers in six lanes: one pause, one decision, a hold of each."""
    await house.put("w1", account_ids=names(), ref="f1")
    now = datetime.now(UTC)
    await house.accept(*(make_event("ACTIVE", now - timedelta(minutes=1), account=name) for name in names()))
    await house.accept(*(make_event("DISCONNECTED", now, account=name) for name in names()))
    await asyncio.gather(evaluate(house.runtime), evaluate(house.runtime))
    await evaluate(house.runtime)
    assert len(await house.alerts()) == COUNT
    said = await house.rows("SELECT kind FROM events WHERE origin = 'authwatch' AND kind LIKE 'workflow%'")
    assert [row["kind"] for row in said] == ["workflow.paused"]
    asked = await house.rows("SELECT kind FROM actions WHERE workflow_id = 'w1'")
    assert [row["kind"] for row in asked] == ["orchestrator.pause"]
    assert len(await house.rows("SELECT id FROM holds WHERE workflow_id = 'w1' AND released_at IS NULL")) == COUNT


async def test_every_event_of_an_account_is_read_in_its_order_and_once(house: House) -> None:
    """Of each account a failure, a success and two failures: read out of order they would be three in a row."""
    now = datetime.now(UTC) - timedelta(minutes=5)
    for step, what in enumerate(("failed", "succeeded", "failed", "failed")):
        await house.accept(*(make_event(what, now + timedelta(seconds=step), account=name) for name in names()))
    await asyncio.gather(evaluate(house.runtime), evaluate(house.runtime))
    await evaluate(house.runtime)
    rows = await house.rows("SELECT failures_in_a_row, last_event_at FROM accounts")
    assert {row["failures_in_a_row"] for row in rows} == {2}
    assert len(rows) == COUNT
    assert {row["last_event_at"] for row in rows} == {now + timedelta(seconds=3)}
    assert await house.alerts() == []


async def test_all_have_come_to_the_end_and_others_can_read_so(house: House) -> None:
    now = datetime.now(UTC)
    await house.accept(*(make_event("ACTIVE", now, account=name) for name in names()))
    done = await evaluate(house.runtime)
    assert done.read == COUNT
    head = await house.rows("SELECT max(position) AS head FROM events")
    assert set((await positions(house)).values()) == {head[0]["head"]}
    assert len(await positions(house)) == shards.SHARDS + 2


async def test_who_locks_the_evaluators_row_stops_all_evaluation(house: House) -> None:
    await evaluate(house.runtime)
    await house.accept(make_event("ACTIVE", datetime.now(UTC), account="ca_1"))
    async with begin(house.runtime.engine) as conn:
        await conn.execute(text("SELECT position FROM readers WHERE name = 'evaluator' FOR UPDATE"))
        assert (await evaluate(house.runtime)).read == 0
    assert (await evaluate(house.runtime)).read == 1


async def test_a_shard_that_somebody_holds_is_left_out_and_the_others_go_on(house: House) -> None:
    await evaluate(house.runtime)
    async with begin(house.runtime.engine) as conn:
        held = await shards.take(conn, [shards.OF_ACCOUNTS[0]], 1)
        assert held is not None
        assert list(held.positions) == [shards.OF_ACCOUNTS[0]]
        await house.accept(*(make_event("ACTIVE", datetime.now(UTC), account=name) for name in names()))
        read = (await evaluate(house.runtime)).read
        assert 0 < read < COUNT
        published = await readers.position(conn, readers.EVALUATOR)
        assert published < min(row["position"] for row in await house.rows("SELECT position FROM events"))
    assert (await evaluate(house.runtime)).read == COUNT - read


async def test_a_position_of_the_version_before_is_gone_on_from(house: House) -> None:
    """A worker that knows the one row alone may have read on meanwhile; nothing is judged a second time."""
    await evaluate(house.runtime)
    await house.accept(make_event("ACTIVE", datetime.now(UTC), account="ca_1"))
    async with begin(house.runtime.engine) as conn:
        await readers.move(conn, readers.EVALUATOR, 1_000)
    assert (await evaluate(house.runtime)).read == 0


async def test_a_put_judges_by_what_the_accounts_own_shard_has_read(house: House) -> None:
    """While the shards stand apart, a PUT neither overlooks what the evaluator saw nor runs ahead of it."""
    await evaluate(house.runtime)
    now = datetime.now(UTC)
    await house.accept(*(make_event("DISCONNECTED", now, account=name) for name in names()))
    async with begin(house.runtime.engine) as conn:
        held = await shards.take(conn, [shards.OF_ACCOUNTS[0], shards.GROUPS], 2)
        assert held is not None
        await evaluate(house.runtime)
        read = {row["account_id"] for row in await house.rows("SELECT account_id FROM accounts")}
        assert 0 < len(read) < COUNT
        await house.put("w1", account_ids=names())
        assert {row["account_id"] for row in await house.alerts()} == read
    await evaluate(house.runtime)
    assert {row["account_id"] for row in await house.alerts()} == set(names())


async def test_accounts_of_two_shards_never_share_a_lock(house: House) -> None:
    """Or workers beside each other would wait for each other: a stripe belongs to one shard."""
    some = ", ".join(f"('{name}')" for name in names())
    rows = await house.rows(
        f"SELECT account_id, {shards.SHARD_OF} AS shard, (hashtextextended(account_id, 0) & {accounts.STRIPES - 1})::int"
        f" AS stripe FROM (VALUES {some}) AS named (account_id)"
    )
    assert {row["shard"] for row in rows} == set(range(shards.SHARDS))
    assert all(row["stripe"] % shards.SHARDS == row["shard"] for row in rows)
