"""Alerts about ourselves: said once while they last, told to who is on call, and let go when they are over."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from service import own_alerts
from service.own_alerts import OwnAlert
from service.store import log
from service.store.routing_tables import alert_news
from service.store.session import begin
from service.store.tables import alerts, events

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def silent(about: str) -> OwnAlert:
    return OwnAlert(
        rule_id="source-silent", about=about, severity="P2", summary=f"{about} is silent", what_to_do="Look."
    )


async def say(engine: AsyncEngine, *wanted: OwnAlert) -> int:
    async with begin(engine) as conn:
        await own_alerts.lock(conn)
        out = await own_alerts.open_own(conn, wanted, now=NOW, notifiers=["slack"])
        await log.append(conn, out.decisions)
    return out.fired


async def unsay(engine: AsyncEngine, keep: set[str]) -> int:
    async with begin(engine) as conn:
        await own_alerts.lock(conn)
        out = await own_alerts.close_own(conn, "source-silent", keep=keep, now=NOW, notifiers=["slack"])
        await log.append(conn, out.decisions)
    return len(out.decisions)


async def test_it_is_said_once_while_it_lasts_and_again_when_it_comes_back(engine: AsyncEngine) -> None:
    assert await say(engine, silent("a"), silent("b"), silent("a")) == 2
    assert await say(engine, silent("a")) == 0
    assert await unsay(engine, {"b"}) == 1
    assert await unsay(engine, {"b"}) == 0
    assert await say(engine, silent("a"), silent("b")) == 1
    async with begin(engine) as conn:
        rows = (
            await conn.execute(
                select(alerts.c.group_key, alerts.c.episode, alerts.c.state).order_by(
                    alerts.c.group_key, alerts.c.episode
                )
            )
        ).all()
        kinds = (await conn.execute(select(events.c.kind).order_by(events.c.position))).scalars().all()
        told = (await conn.execute(select(alert_news.c.alert_id))).scalars().all()
    assert [tuple(row) for row in rows] == [("a", 1, "resolved"), ("a", 2, "firing"), ("b", 1, "firing")]
    assert kinds == ["alert.firing", "alert.firing", "alert.resolved", "alert.firing"]
    assert len(told) == 4, "each opening and each end is news for people"


async def test_what_a_person_resolved_is_not_said_again_until_it_was_over(engine: AsyncEngine) -> None:
    await say(engine, silent("a"))
    async with begin(engine) as conn:
        await conn.execute(alerts.update().values(state="resolved", resolved_at=NOW, resolved_reason="by hand"))
    assert await say(engine, silent("a")) == 0
    assert await unsay(engine, set()) == 0  # its end is recorded, and nobody is told twice
    assert await say(engine, silent("a")) == 1
