"""Rejected requests on a real Postgres: a day of them and so many bytes, never more, whatever comes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from service import rejections
from service.rejections import KEPT_PER_SECOND_MAX, Rejections
from service.store import rejected
from service.store.rejected import Rejected
from service.store.session import begin

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HEADERS = [(b"webhook-id", b"msg_1"), (b"authorization", b"Bearer secret"), (b"user-agent", b"x")]


def one(source: str, age: timedelta, size: int = 1000) -> Rejected:
    return Rejected(
        source=source, reason="signature_wrong", received_at=NOW - age, headers={}, body=b"x" * size, body_bytes=size
    )


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
    monkeypatch.setattr(rejected, "KEPT_BYTES_MAX", 6000)
    batch = [one("a", timedelta(hours=25), 1), *(one("a", timedelta(minutes=10 - n), 1000 + n) for n in range(6))]
    async with begin(engine) as conn:
        await rejected.keep(conn, [*batch, one("b", timedelta(minutes=1), 7)])
        gone = await rejected.prune(conn, NOW)
    assert gone == 4
    assert await sizes(engine, "a") == [1003, 1004, 1005]
    assert await sizes(engine, "b") == [7]


async def test_a_flood_of_one_reason_keeps_its_share_and_hides_no_other(engine: AsyncEngine) -> None:
    kept = Rejections()
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
    assert [row.body for row in rows] == [b"the one that matters", None]
    assert rows[1].body_bytes == rejections.BODY_BYTES_KEPT_MAX + 1
    assert rows[0].headers == {"webhook-id": "msg_1", "user-agent": "x"}
