"""Rejected requests on a real Postgres: a day of them and so many bytes, never more, whatever comes."""

from __future__ import annotations

import asyncio
import random
import socket
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from service import rejections
from service.rejections import KEPT_PER_SECOND_MAX, Rejections
from service.store import rejected
from service.store.rejected import Rejected
from service.store.session import begin, open_engine
from tests.end_to_end.running import until

WAIT_SECONDS_MAX = 10
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HEADERS = [(b"webhook-id", b"msg_1"), (b"authorization", b"Bearer secret"), (b"user-agent", b"x")]


def one(source: str, age: timedelta, size: int = 1000, reason: str = "signature_wrong") -> Rejected:
    return Rejected(source=source, reason=reason, received_at=NOW - age, headers={}, body=b"x" * size, body_bytes=size)


async def left_out(engine: AsyncEngine) -> dict[tuple[str, str], int]:
    async with begin(engine) as conn:
        return await rejected.left_out(conn, source=None, reason=None, since=None)


async def sizes(engine: AsyncEngine, source: str) -> list[int]:
    async with begin(engine) as conn:
        rows = await conn.execute(
            select(rejected.rejected.c.body_bytes)
            .where(rejected.rejected.c.source == source)
            .order_by(rejected.rejected.c.received_at)
        )
        return [row[0] for row in rows]


async def test_a_day_and_so_many_bytes_of_each_source_are_kept_the_newest(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejected, "KEPT_BYTES_MAX", 10_000)
    batch = [one("a", timedelta(hours=25), 1), *(one("a", timedelta(minutes=10 - n), 1000 + n) for n in range(6))]
    async with begin(engine) as conn:
        await rejected.keep(conn, [*batch, one("b", timedelta(minutes=1), 7)])
        gone = await rejected.prune(conn, NOW)
    assert gone == 4
    assert await sizes(engine, "a") == [1003, 1004, 1005]
    assert await sizes(engine, "b") == [7]


async def test_what_anyone_can_send_does_not_push_out_what_may_be_genuine(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejected, "KEPT_BYTES_MAX", 10_000)
    genuine = [one("a", timedelta(hours=3)), one("a", timedelta(hours=3), reason="timestamp_too_old")]
    async with begin(engine) as conn:
        await rejected.keep(conn, [*genuine, *(one("a", timedelta(0), reason="signature_missing") for _ in range(20))])
        assert await rejected.prune(conn, NOW) == 19
        kept = await rejected.summary(conn, source=None, reason=None, since=None)
    assert {row.reason: row.requests for row in kept} == {
        "signature_wrong": 1,
        "timestamp_too_old": 1,
        "signature_missing": 1,
    }
    assert await left_out(engine) == {("a", "signature_missing"): 19}


async def test_while_the_database_is_away_no_source_and_no_flood_pushes_out_another(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejections, "KEPT_PER_SECOND_MAX", 10_000)
    kept = Rejections()
    kept.note("b", "signature_missing", HEADERS, b"b", NOW)
    kept.note("a", "signature_wrong", HEADERS, b"genuine", NOW)
    for number in range(rejections.WAITING_MAX + 50):
        kept.note("a", "signature_missing", HEADERS, b"%d" % number, NOW)
    await kept.write(engine)
    async with begin(engine) as conn:
        rows = await rejected.summary(conn, source=None, reason=None, since=None)
    assert {(row.source, row.reason) for row in rows} >= {("a", "signature_wrong"), ("b", "signature_missing")}
    assert await left_out(engine) == {("a", "signature_missing"): 50}


async def test_a_flood_of_one_reason_keeps_its_share_and_hides_no_other(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Rejections()
    monkeypatch.setattr(rejections, "time", SimpleNamespace(monotonic=lambda: 1000.0))  # all within one second
    for number in range(500):
        kept.note("scalekit", "signature_missing", HEADERS, b"%d" % number, NOW)
    kept.note("scalekit", "signature_wrong", HEADERS, b"the one that matters", NOW)
    kept.note("scalekit", "signature_wrong", HEADERS, b"x" * (rejections.BODY_BYTES_KEPT_MAX + 1), NOW)
    await kept.write(engine)
    async with begin(engine) as conn:
        counts = {
            row.reason: row.requests for row in await rejected.summary(conn, source=None, reason=None, since=None)
        }
        rows = (
            await conn.execute(select(rejected.rejected).where(rejected.rejected.c.reason == "signature_wrong"))
        ).all()
    assert counts == {"signature_missing": KEPT_PER_SECOND_MAX, "signature_wrong": 2}
    assert await left_out(engine) == {("scalekit", "signature_missing"): 500 - KEPT_PER_SECOND_MAX}
    assert [row.body for row in rows] == [b"the one that matters", None]
    assert rows[1].body_bytes == rejections.BODY_BYTES_KEPT_MAX + 1
    assert rows[0].headers == {"webhook-id": "msg_1", "user-agent": "x"}


async def waits_for_lock(engine: AsyncEngine) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with begin(engine) as conn:  # one transaction sees one state of it
        return bool((await conn.execute(text(query))).scalar_one() == 1)


async def count(engine: AsyncEngine) -> int:
    async with begin(engine) as conn:
        return (await conn.execute(select(func.count()).select_from(rejected.rejected))).scalar_one()


async def test_large_headers_count_as_well_as_bodies(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejected, "KEPT_BYTES_MAX", 500_000)
    noise = random.Random(1)
    for number in range(10):
        signature = noise.randbytes(30_000).hex().encode()
        headers = rejections.signature_headers([(b"webhook-signature", signature)])
        refused = Rejected(
            source="a",
            reason="signature_malformed",
            received_at=NOW + timedelta(seconds=number),
            headers=headers,
            body=b"",
            body_bytes=0,
        )
        async with begin(engine) as conn:
            await rejected.keep(conn, [refused])
    async with begin(engine) as conn:
        assert await rejected.prune(conn, NOW) > 0
    assert 1 <= await count(engine) <= 3


async def test_a_receiver_holds_to_the_bound_while_no_worker_sweeps(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejected, "KEPT_BYTES_MAX", 10_000)
    monkeypatch.setattr(rejections, "PRUNE_AFTER_BYTES", 5_000)
    kept = Rejections()
    for _ in range(KEPT_PER_SECOND_MAX):
        kept.note("a", "signature_wrong", HEADERS, b"x" * 1000, datetime.now(UTC))
    await kept.write(engine)
    assert 1 <= await count(engine) <= 10


async def test_what_waits_survives_a_stop_and_an_absent_database(engine: AsyncEngine) -> None:
    kept = Rejections()
    kept.note("a", "signature_wrong", HEADERS, b"1", NOW)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = open_engine(f"postgresql://x:y@127.0.0.1:{nobody.getsockname()[1]}/none", connections_max=1)
        await kept.write(away)
        await away.dispose()
    async with begin(engine) as holder:
        await holder.execute(text("LOCK TABLE rejected IN ACCESS EXCLUSIVE MODE"))
        writing = asyncio.create_task(kept.write(engine))
        await until(lambda: waits_for_lock(engine), WAIT_SECONDS_MAX)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    await kept.write(engine)
    assert await count(engine) == 1


async def test_a_batch_that_cannot_be_written_does_not_end_the_task(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejections, "WRITE_SECONDS", 0.01)
    failed = asyncio.Event()

    def error(event: str, **_: object) -> None:
        assert event == "rejections.not_written"
        failed.set()

    monkeypatch.setattr(rejections, "log", SimpleNamespace(error=error))
    kept = Rejections()
    async with begin(engine) as conn:
        await conn.execute(text("ALTER TABLE rejected RENAME TO away"))
    task = asyncio.create_task(kept.run(engine))
    try:
        kept.note("a", "signature_wrong", HEADERS, b"1", NOW)
        await asyncio.wait_for(failed.wait(), WAIT_SECONDS_MAX)
        async with begin(engine) as conn:
            await conn.execute(text("ALTER TABLE away RENAME TO rejected"))
        kept.note("a", "signature_wrong", HEADERS, b"2", NOW)

        async def written() -> bool:
            return await count(engine) > 0

        await until(written, WAIT_SECONDS_MAX)
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert await count(engine) == 1
