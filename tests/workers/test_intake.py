"""An outage is when receipts could not be committed, whatever else the database could still do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service import intake
from service.errors import Unavailable
from service.store import log, recoveries
from service.store.session import begin

TODAY = "to_char(now(), 'YYYYMMDD')"


@pytest.fixture
async def waiting(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncEngine:
    """The last beat was an hour ago; a beat waits a tenth of a second for a lock."""
    monkeypatch.setattr(recoveries, "BEAT_LOCK_MS", 100)
    await intake.note(engine, ["scalekit"])
    async with begin(engine) as conn:
        await conn.execute(text("UPDATE intake SET able_until = able_until - interval '1 hour'"))
    return engine


@contextmanager
def held(database_url: str) -> Iterator[None]:
    """Somebody holds the log's lock: the database answers, and takes no receipt."""
    with psycopg.connect(database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (log.LOG_LOCK,))
        yield


async def outages(engine: AsyncEngine) -> int:
    async with begin(engine) as conn:
        found = await conn.execute(text("SELECT count(*) FROM recoveries WHERE until - since > interval '59 minutes'"))
        return int(found.scalar_one())


async def test_while_the_logs_lock_is_not_to_be_had_there_is_no_beat(waiting: AsyncEngine, database_url: str) -> None:
    with held(database_url):
        with pytest.raises(Unavailable):
            await intake.note(waiting, ["scalekit"])
        assert await outages(waiting) == 0
    await intake.note(waiting, ["scalekit"])
    assert await outages(waiting) == 1


async def test_while_todays_partition_takes_nothing_there_is_no_beat(waiting: AsyncEngine) -> None:
    async with begin(waiting) as conn:
        name = (await conn.execute(text(f"SELECT 'receipts_' || {TODAY}"))).scalar_one()
        await conn.execute(text(f"ALTER TABLE receipts DETACH PARTITION {name}"))
    with pytest.raises(Unavailable, match="no partition takes"):
        await intake.note(waiting, ["scalekit"])
    async with begin(waiting) as conn:
        await conn.execute(text(f"DROP TABLE {name}"))
    await intake.note(waiting, ["scalekit"])  # missing, it is made, as the front door makes it
    assert await outages(waiting) == 1


async def test_a_beat_leaves_no_trace_in_the_log(engine: AsyncEngine) -> None:
    given = text("SELECT last_value, is_called FROM log_position")
    async with begin(engine) as conn:
        before = (await conn.execute(given)).one()
    await intake.note(engine, ["scalekit", "other"])
    async with begin(engine) as conn:
        assert (await conn.execute(given)).one() == before
        assert (await conn.execute(text("SELECT count(*) FROM intake"))).scalar_one() == 2
