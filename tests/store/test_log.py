"""The log on a real Postgres: what is accepted once is there once, in commit order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from service.commit import Committer, Waiting
from service.runtime import make_partitions
from service.store import log
from service.store.log import Decision, Receipt
from service.store.pipeline import open_pipeline
from service.store.session import begin, open_engine
from tests.make import make_receipt


async def accept(engine: AsyncEngine, *receipts: Receipt) -> list[log.Kept]:
    async with begin(engine) as conn:
        return await log.accept(conn, receipts)


async def test_a_batch_is_kept_in_order_with_its_raw_bytes(engine: AsyncEngine) -> None:
    receipts = [make_receipt(body=f'{{"n": {n}}}'.encode()) for n in range(20)]
    kept = await accept(engine, *receipts)
    assert [outcome.id for outcome in kept] == [receipt.id for receipt in receipts]
    assert all(outcome.accepted for outcome in kept)
    async with begin(engine) as conn:
        events = await log.read_after(conn, 0, 100)
        stored = await log.receipt_of(conn, receipts[7].id)
    assert [event.id for event in events] == [receipt.id for receipt in receipts]
    assert sorted(event.position for event in events) == [event.position for event in events]
    assert stored is not None
    assert stored.body == b'{"n": 7}'


async def test_the_same_event_again_is_a_duplicate_of_the_first(engine: AsyncEngine) -> None:
    first = make_receipt(event_id="evt_same", body=b"one")
    again = make_receipt(event_id="evt_same", body=b"one")
    other_body = make_receipt(event_id="evt_same", body=b"two")
    await accept(engine, first)
    assert await accept(engine, again, other_body) == [
        log.Kept(id=first.id, accepted=False, same_body=True),
        log.Kept(id=first.id, accepted=False, same_body=False),
    ]


async def test_the_same_event_twice_in_one_batch_is_kept_once(engine: AsyncEngine) -> None:
    first, second = make_receipt(event_id="evt_same"), make_receipt(event_id="evt_same")
    kept = await accept(engine, first, second)
    assert [(outcome.id, outcome.accepted) for outcome in kept] == [(first.id, True), (first.id, False)]
    async with begin(engine) as conn:
        assert len(await log.read_after(conn, 0, 10)) == 1


@asynccontextmanager
async def started_committer(database_url: str, engine: AsyncEngine) -> AsyncIterator[Committer]:
    committer = Committer(
        connect=partial(open_pipeline, database_url),
        make_partitions=partial(make_partitions, engine),
        on_commit=lambda landed: None,
    )
    running = asyncio.create_task(committer.run())
    try:
        yield committer
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def commit(committer: Committer, receipt: Receipt) -> log.Kept:
    future: asyncio.Future[Waiting] = asyncio.get_running_loop().create_future()
    committer.commit(receipt, time.monotonic(), future)
    return (await future).kept


@pytest.mark.parametrize(
    "other", [{"environment_id": "env_2"}, {"type": "connected_account.created"}, {"environment_id": None}]
)
async def test_source_environment_id_and_type_make_the_key(engine: AsyncEngine, other: dict[str, Any]) -> None:
    kept = await accept(engine, make_receipt(event_id="evt_same"), make_receipt(event_id="evt_same", **other))
    assert [outcome.accepted for outcome in kept] == [True, True]


async def test_a_batch_sent_again_after_a_lost_answer_adds_nothing_and_is_still_accepted(engine: AsyncEngine) -> None:
    receipts = [make_receipt() for _ in range(3)]
    await accept(engine, *receipts)
    kept = await accept(engine, *receipts)
    assert [(outcome.id, outcome.accepted) for outcome in kept] == [(receipt.id, True) for receipt in receipts]
    async with begin(engine) as conn:
        assert len(await log.read_after(conn, 0, 10)) == 3


async def test_a_day_without_its_partition_is_made_and_the_insert_tried_again(
    database_url: str, engine: AsyncEngine
) -> None:
    today = datetime.now(UTC).strftime("%Y%m%d")
    async with begin(engine) as conn:
        await conn.execute(text(f"DROP TABLE events_{today}"))
        await conn.execute(text(f"DROP TABLE receipts_{today}"))
    with pytest.raises(DBAPIError) as caught:
        await accept(engine, make_receipt())
    assert log.partition_is_missing(caught.value)

    async with started_committer(database_url, engine) as committer:
        kept = await commit(committer, make_receipt())
    assert kept.accepted


async def test_there_is_no_default_partition(engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        defaults = await conn.execute(text("SELECT partrelid::regclass FROM pg_partitioned_table WHERE partdefid <> 0"))
        partitioned = await conn.execute(text("SELECT count(*) FROM pg_partitioned_table WHERE partstrat = 'r'"))
        assert defaults.all() == []
        assert partitioned.scalar_one() == 5


async def test_lag_is_kept_whole_and_by_share(engine: AsyncEngine) -> None:
    now = datetime.now(UTC)
    receipt = make_receipt(occurred_at=now - timedelta(seconds=40))
    await accept(engine, receipt)
    async with begin(engine) as conn:
        row = (
            await conn.execute(text("SELECT lag_seconds, provider_lag_seconds, network_lag_seconds FROM events"))
        ).one()
    assert 40 <= row.lag_seconds < 45
    assert row.provider_lag_seconds == pytest.approx(40, abs=1)
    assert row.lag_seconds == pytest.approx(row.provider_lag_seconds + row.network_lag_seconds, abs=0.001)


async def test_one_bad_row_never_fails_its_neighbours(database_url: str, engine: AsyncEngine) -> None:
    good = [make_receipt() for _ in range(5)]
    bad = make_receipt(identifier="a\x00b")
    async with started_committer(database_url, engine) as committer:
        outcomes = await asyncio.gather(
            *(commit(committer, one) for one in [*good[:2], bad, *good[2:]]), return_exceptions=True
        )
    assert [type(outcome).__name__ for outcome in outcomes] == ["Kept", "Kept", "Unavailable", "Kept", "Kept", "Kept"]


async def test_position_order_is_commit_order_with_eight_writers(
    database_url: str, make_database: Callable[[], str]
) -> None:
    """A reader that remembers a position and asks for what comes after it sees every row, once, while others write."""
    writers, batches, size = 8, 25, 4
    engine = open_engine(database_url, connections_max=writers + 1)
    seen: list[int] = []
    done = asyncio.Event()

    async def read() -> None:
        position = 0
        while True:
            finished = done.is_set()
            async with begin(engine) as conn:
                events = await log.read_after(conn, position, 1000)
            seen.extend(event.position for event in events)
            position = seen[-1] if seen else 0
            if finished and not events:
                return

    async def write(writer: int) -> None:
        for n in range(batches):
            async with begin(engine) as conn:
                if (writer + n) % 3 == 0:
                    now = datetime.now(UTC)
                    await log.append(
                        conn, [Decision(kind="audit", subject_id="x", occurred_at=now) for _ in range(size)]
                    )
                else:
                    await log.accept(conn, [make_receipt() for _ in range(size)])
                await asyncio.sleep(0.001 * ((writer * 7 + n) % 5))  # hold the transaction open after the append

    reader = asyncio.create_task(read())
    try:
        await asyncio.gather(*(write(writer) for writer in range(writers)))
        done.set()
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await engine.dispose()
    assert seen == sorted(seen)
    assert len(seen) == len(set(seen)) == writers * batches * size
