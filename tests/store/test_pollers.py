"""Who asks for the copy, and when that has stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service.store import pollers, tokens
from service.store.pollers import GAP_FADES_BY, REGULAR_ASKS_MIN, SILENT_AFTER_MIN, Poller
from service.store.session import begin, open_engine

AT = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    opened = open_engine(database_url, connections_max=2)
    yield opened
    await opened.dispose()


async def a_token(engine: AsyncEngine, *scopes: str) -> str:
    async with begin(engine) as conn:
        row, _ = await tokens.create(conn, "elastic", frozenset(scopes or ("siem",)))
        return row.id


async def asks(engine: AsyncEngine, token_id: str, *after: timedelta) -> None:
    for span in after:
        async with begin(engine) as conn:
            await pollers.asked(conn, token_id, AT + span)


async def only(engine: AsyncEngine) -> Poller:
    async with begin(engine) as conn:
        (poller,) = await pollers.live(conn)
        return poller


async def test_a_poller_that_asks_all_the_time_is_written_once_a_minute(engine: AsyncEngine) -> None:
    token = await a_token(engine)
    await asks(engine, token, *(timedelta(seconds=n) for n in range(0, 180, 10)))
    poller = await only(engine)
    assert (poller.asks, poller.asked_at, poller.first_asked_at) == (3, AT + 2 * MINUTE, AT)
    async with begin(engine) as conn:
        before = (await conn.execute(text("SELECT xmin::text, xmax::text FROM siem_pollers"))).one()
    await asks(engine, token, timedelta(seconds=170))
    async with begin(engine) as conn:
        assert (await conn.execute(text("SELECT xmin::text, xmax::text FROM siem_pollers"))).one() == before


async def test_the_gap_that_is_usual_is_learnt_and_an_outage_is_not(engine: AsyncEngine) -> None:
    token = await a_token(engine)
    await asks(engine, token, *(MINUTE * 5 * n for n in range(12)))
    usual = (await only(engine)).gap_seconds
    assert usual == 300
    await asks(engine, token, MINUTE * 55 + timedelta(hours=8))
    assert (await only(engine)).gap_seconds == 2 * usual
    await asks(engine, token, *(MINUTE * 55 + timedelta(hours=8) + MINUTE * 5 * n for n in range(1, 12)))
    assert (await only(engine)).gap_seconds == pytest.approx(max(300, 600 * GAP_FADES_BY**11))


async def test_a_revoked_token_and_one_that_may_no_longer_ask_are_not_waited_for(engine: AsyncEngine) -> None:
    gone, other = await a_token(engine), await a_token(engine, "read")
    await asks(engine, gone, timedelta(0))
    await asks(engine, other, timedelta(0))
    async with begin(engine) as conn:
        assert [one.token_id for one in await pollers.live(conn)] == [gone]
        await tokens.revoke(conn, gone)
        assert await pollers.live(conn) == []


def poller(*, asks: int = REGULAR_ASKS_MIN, over: timedelta = MINUTE * 60, gap_seconds: float = 60) -> Poller:
    return Poller(
        token_id="tok_1", name="elastic", first_asked_at=AT - over, asked_at=AT, asks=asks, gap_seconds=gap_seconds
    )


def test_silence_is_that_of_who_asked_regularly_and_far_longer_than_usual() -> None:
    nothing, late = timedelta(0), SILENT_AFTER_MIN + MINUTE
    assert poller().silence(AT + SILENT_AFTER_MIN) == nothing
    assert poller().silence(AT + late) == late
    assert poller(asks=REGULAR_ASKS_MIN - 1).silence(AT + late) == nothing
    assert poller(over=MINUTE * 20).silence(AT + late) == nothing
    hourly = poller(gap_seconds=3600)
    assert hourly.silence(AT + MINUTE * 170) == nothing
    assert hourly.silence(AT + MINUTE * 190) == MINUTE * 190
