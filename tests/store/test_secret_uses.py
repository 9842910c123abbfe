"""Times of use: by the database's clock, only ever further apart, whoever writes in whatever order."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service.store import readers, secrets
from service.store.secrets import Use
from service.store.session import begin

OFF = timedelta(days=400)  # how wrong the receiver's clock is
NEAR = timedelta(seconds=30)


def use(key: str, now: datetime, first: float, last: float, count: int = 1, name: str = "a name") -> Use:
    return Use("scalekit", key, name, now - timedelta(minutes=first), now - timedelta(minutes=last), count)


async def write(engine: AsyncEngine, uses: list[Use], now: datetime) -> None:
    async with begin(engine) as conn:
        await secrets.save(conn, uses, now)


async def test_times_only_widen_and_a_wrong_clock_does_not_matter(engine: AsyncEngine) -> None:
    now = datetime.now(UTC) + OFF
    await write(engine, [use("one", now, 20, 10, 3)], now)
    await write(engine, [use("one", now, 60, 40, 4), use("two", now, 5, 5)], now)
    await write(engine, [], now)
    async with begin(engine) as conn:
        clock = await readers.clock(conn)
        two, one = await secrets.everyone(conn)
    assert (one.fingerprint, one.count, two.fingerprint) == ("one", 7, "two")
    assert abs(clock - one.first_at - timedelta(minutes=60)) < NEAR
    assert abs(clock - one.last_at - timedelta(minutes=10)) < NEAR


async def test_a_clock_that_went_back_writes_nothing_from_the_future(engine: AsyncEngine) -> None:
    now = datetime.now(UTC)
    await write(engine, [use("one", now, -60, -60)], now)
    async with begin(engine) as conn:
        [one] = await secrets.everyone(conn)
        assert one.last_at <= await readers.clock(conn)


async def test_several_receivers_write_at_once(engine: AsyncEngine) -> None:
    now = datetime.now(UTC)
    names = [f"secret-{number}" for number in range(10)]
    await asyncio.gather(*(write(engine, [use(name, now, 2, 1) for name in names], now) for _ in range(8)))
    async with begin(engine) as conn:
        found = await secrets.everyone(conn)
    assert {each.fingerprint: each.count for each in found} == dict.fromkeys(names, 8)


async def test_a_key_keeps_its_history_under_another_name_and_old_code_may_write_beside_us(engine: AsyncEngine) -> None:
    now = datetime.now(UTC)
    async with begin(engine) as conn:
        old = "INSERT INTO secret_uses (source, secret_name, first_used_at, last_used_at, uses) VALUES"
        await conn.execute(text(f"{old} ('scalekit', '0123abcd', now() - interval '9 days', now(), 5)"))
        await conn.execute(text(f"{old} ('scalekit', 'current', now() - interval '9 days', now(), 5)"))
        [unnamed] = await secrets.everyone(conn)
    assert (unnamed.fingerprint, unnamed.name, unnamed.count) == ("0123abcd", "0123abcd", 5)
    await write(engine, [use("0123abcd", now, 2, 1, name="2026-11")], now)
    async with begin(engine) as conn:
        [named] = await secrets.everyone(conn)
        assert now - named.first_at > timedelta(days=8)
    assert (named.fingerprint, named.name, named.count) == ("0123abcd", "2026-11", 6)
