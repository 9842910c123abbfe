"""Group commit on a real Postgres: nobody waits for nobody, one is refused alone, the queue has an end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from statistics import median
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service import commit
from service.commit import Committer, Waiting
from service.errors import Unavailable
from service.event import TEXT_BYTES_MAX
from service.runtime import make_partitions
from service.store.log import LOG_LOCK, Receipt
from service.store.pipeline import open_pipeline
from service.store.session import begin
from tests.end_to_end.running import until
from tests.make import make_receipt

WAIT_SECONDS_MAX = 10
END_WAITING = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event = 'advisory'
"""


@asynccontextmanager
async def running(database_url: str, engine: AsyncEngine) -> AsyncIterator[tuple[Committer, list[int]]]:
    """A committer, and the sizes of the batches it committed."""
    batches: list[int] = []

    def landed(batch: Sequence[Waiting]) -> None:
        batches.append(len(batch))

    committer = Committer(
        connect=partial(open_pipeline, database_url),
        make_partitions=partial(make_partitions, engine),
        on_commit=landed,
    )
    task = asyncio.create_task(committer.run())
    try:
        yield committer, batches
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def start(committer: Committer, receipt: Receipt) -> asyncio.Future[Waiting]:
    future: asyncio.Future[Waiting] = asyncio.get_running_loop().create_future()
    try:
        committer.commit(receipt, time.monotonic(), future)
    except Unavailable as exc:
        future.set_exception(exc)
    return future


def codes(outcomes: list[object]) -> list[str]:
    return [outcome.code if isinstance(outcome, Unavailable) else "kept" for outcome in outcomes]


async def stored(engine: AsyncEngine, table: str = "events") -> int:
    async with begin(engine) as conn:
        return int((await conn.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())


async def test_concurrent_receipts_share_a_commit_and_each_has_its_own_outcome(
    database_url: str, engine: AsyncEngine
) -> None:
    async with running(database_url, engine) as (committer, batches):
        await start(committer, make_receipt())  # connected
        same = make_receipt(event_id="evt_same")
        receipts = [make_receipt() for _ in range(20)] + [same, make_receipt(event_id="evt_same")]
        outcomes = await asyncio.gather(*(start(committer, receipt) for receipt in receipts))
    assert [kept.accepted for kept in (one.kept for one in outcomes)] == [True] * 21 + [False]
    assert outcomes[-1].kept.id == same.id
    assert batches == [1, 22]


async def test_the_same_key_with_another_body_is_a_duplicate_and_kept_as_a_conflict(
    database_url: str, engine: AsyncEngine
) -> None:
    async with running(database_url, engine) as (committer, _):
        first = make_receipt(event_id="evt_1", body=b'{"a": 1}')
        await start(committer, first)
        for _ in range(2):  # the second time it is known already
            kept = (await start(committer, make_receipt(event_id="evt_1", body=b'{"a": 2}'))).kept
            assert (kept.id, kept.accepted, kept.same_body) == (first.id, False, False)
    async with begin(engine) as conn:
        rows = (await conn.execute(text("SELECT event_row_id::text, body FROM conflicts"))).all()
    assert [tuple(row) for row in rows] == [(first.id, b'{"a": 2}')]
    assert await stored(engine) == 1


async def test_past_its_bound_the_queue_sheds_at_once_and_what_it_took_is_committed(
    database_url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "QUEUE_RECEIPTS_MAX", 50)
    async with running(database_url, engine) as (committer, _):
        await start(committer, make_receipt())
        async with begin(engine) as holder:
            await holder.execute(text(f"SELECT pg_advisory_xact_lock({LOG_LOCK})"))
            flying = start(committer, make_receipt())
            await asyncio.sleep(0.05)
            waiting = [start(committer, make_receipt()) for _ in range(50)]
            await asyncio.sleep(0.05)  # up to three batches are under way, and the rest waits
            more, shed = [], []
            for receipt in [make_receipt() for _ in range(200)]:
                began = time.monotonic()
                more.append(start(committer, receipt))
                if more[-1].done():
                    with pytest.raises(Unavailable, match="too many receipts"):
                        await more[-1]
                    shed.append(time.monotonic() - began)
            assert len(shed) >= 100
            assert median(shed) < 0.05
        outcomes = await asyncio.gather(flying, *waiting, *more, return_exceptions=True)
    counted = codes(list(outcomes))
    assert set(counted) == {"kept", "queue_full"}
    assert counted[:51] == ["kept"] * 51
    assert await stored(engine) == 1 + counted.count("kept")


async def test_a_connection_that_breaks_under_a_batch_is_opened_again_and_nothing_doubles(
    database_url: str, engine: AsyncEngine
) -> None:
    async with running(database_url, engine) as (committer, _):
        await start(committer, make_receipt())
        async with begin(engine) as holder:
            await holder.execute(text(f"SELECT pg_advisory_xact_lock({LOG_LOCK})"))
            futures = [start(committer, make_receipt()) for _ in range(30)]

            async def ended() -> bool:
                async with begin(engine) as conn:  # one transaction sees one state of the others
                    return bool((await conn.execute(text(END_WAITING))).scalar_one() == 1)

            await until(ended, WAIT_SECONDS_MAX)
        outcomes = await asyncio.gather(*futures)
    assert all(kept.accepted for kept in (one.kept for one in outcomes))
    assert await stored(engine) == await stored(engine, "receipts") == 31


async def test_who_waits_too_long_is_told_and_the_connection_is_given_up(
    database_url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(database_url, engine) as (committer, _):
        await start(committer, make_receipt())
        async with begin(engine) as holder:
            await holder.execute(text(f"SELECT pg_advisory_xact_lock({LOG_LOCK})"))
            with monkeypatch.context() as shorter:  # around this wait only: opening a connection counts too
                shorter.setattr(commit, "COMMIT_WAIT_SECONDS", 0.5)
                late = [start(committer, make_receipt(event_id=f"evt_{n}")) for n in range(3)]
                outcomes = await asyncio.gather(*late, return_exceptions=True)
            assert codes(list(outcomes)) == ["commit_timeout"] * 3
        again = [start(committer, make_receipt(event_id=f"evt_{n}")) for n in range(3)]
        await asyncio.gather(*again)
    assert await stored(engine) == 4  # whichever of the two tries it was: once


async def test_a_connection_on_which_only_a_question_waits_is_given_up_too(
    database_url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(database_url, engine) as (committer, _):
        await committer.ping(5)
        first = committer._pipeline
        async with begin(engine) as holder:
            await holder.execute(text(f"SELECT pg_advisory_xact_lock({LOG_LOCK})"))
            with monkeypatch.context() as shorter:
                shorter.setattr(commit, "COMMIT_WAIT_SECONDS", 0.5)
                asked = await asyncio.gather(*(committer.ping(1.5) for _ in range(50)), return_exceptions=True)
            assert {type(answer) for answer in asked} == {Unavailable}
            assert first is not None
            assert first.broken
        await committer.ping(5)
        assert (await start(committer, make_receipt())).kept.accepted


async def test_a_database_that_is_away_is_an_answer_and_not_a_wait(engine: AsyncEngine) -> None:
    async def connect() -> None:
        raise psycopg.OperationalError("away")

    committer = Committer(
        connect=connect,  # type: ignore[arg-type]
        make_partitions=partial(make_partitions, engine),
        on_commit=lambda landed: None,
    )
    task = asyncio.create_task(committer.run())
    began = time.monotonic()
    with pytest.raises(Unavailable, match="cannot take this now"):
        await start(committer, make_receipt())
    assert time.monotonic() - began < 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_longest_ids_that_are_let_through_fit_the_index_of_identities(
    database_url: str, engine: AsyncEngine
) -> None:
    """Of characters that no compression makes shorter; else such an event would be answered 503 for ever."""
    chance = random.Random(1)

    def longest(size: int = TEXT_BYTES_MAX) -> str:
        return "".join(chr(chance.randrange(0x10000, 0x10FFFF)) for _ in range(size // 4))

    names = ("event_id", "type", "environment_id", "account_id", "connection_id", "status")
    async with running(database_url, engine) as (committer, _):
        long: dict[str, Any] = {name: longest() for name in names}
        receipt = make_receipt(source="s" * 64, **long)
        assert (await asyncio.wait_for(start(committer, receipt), 10)).kept.accepted
    assert len(receipt.event.type.encode()) == TEXT_BYTES_MAX
