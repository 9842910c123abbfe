"""Whom the API's credentials serve is decided for each source; the others are neither forgotten nor believed recovered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service import intake
from service.store import recoveries
from service.store.session import begin
from tests.conftest import SECRET
from tests.fakes import serve
from tests.fakes.scalekit_api import CLIENT_ID, CLIENT_SECRET, FakeScalekit
from tests.workers.house import open_house
from tests.workers.test_recover import Ward, ago
from workers.recover import Recovering
from workers.watch import Watch, watch

SOURCES = {name: {"provider": "scalekit", "secrets": [SECRET]} for name in ("scalekit", "dev")}


@pytest.fixture
async def both(database_url: str, tmp_path: Path) -> AsyncIterator[Ward]:
    """Two sources of one provider; the credentials are of the environment that `scalekit` sends from."""
    fake = FakeScalekit()
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(fake.app))
        house = await stack.enter_async_context(
            open_house(
                database_url,
                tmp_path / "house",
                sources=SOURCES,
                variables={
                    "SCALEKIT_ENV_URL": url,
                    "SCALEKIT_CLIENT_ID": CLIENT_ID,
                    "SCALEKIT_CLIENT_SECRET": CLIENT_SECRET,
                },
            )
        )
        made = Ward(house, fake, Recovering())
        made.memory.listing_wanted |= set(SOURCES)
        yield made


async def down(ward: Ward, source: str, minutes: float) -> None:
    await intake.note(ward.house.runtime.engine, [source])
    await ward.house.run(
        f"UPDATE intake SET able_until = able_until - interval '{minutes} minutes' WHERE source = '{source}'"
    )
    await intake.note(ward.house.runtime.engine, [source])


async def told(ward: Ward) -> dict[str, Any]:
    """The open alerts: what they are about, and their rule."""
    await watch(ward.house.runtime, Watch())
    return {row["group_key"]: row for row in await ward.house.alerts() if row["state"] == "firing"}


async def look_again(ward: Ward, times: int) -> None:
    for _ in range(times):
        ward.memory.environment_look.done_at = ward.memory.listing_look.done_at = None
        await ward.recover()


async def test_a_source_that_the_credentials_do_not_serve_is_told_and_left_as_without_an_api(both: Ward) -> None:
    await both.house.told("ACTIVE")
    both.said(1, ago(minutes=30))
    both.fake.set_account("ca_1", "ACTIVE")
    for source in SOURCES:
        await down(both, source, 10)
        await down(both, source, 60)
    assert await told(both) == {}, "nothing is decided before anybody looked"
    for _ in range(2):
        await both.recover()
    alerts = await told(both)
    assert [(alert["rule_id"], about.partition(":")[0]) for about, alert in alerts.items()] == [
        ("events-may-be-lost", "dev")
    ]
    (alert,) = alerts.values()
    assert "--source dev` with its own SCALEKIT_ENV_URL" in alert["what_to_do"]
    rows = await both.house.rows("SELECT source, state FROM recoveries ORDER BY source, until - since")
    assert [(row["source"], row["state"]) for row in rows] == [
        ("dev", "left"),
        ("dev", "waiting"),
        ("scalekit", "done"),
        ("scalekit", "done"),
    ]


async def test_an_environment_that_stays_unknown_is_told(both: Ward) -> None:
    both.fake.secret = "another"
    for source in SOURCES:
        await down(both, source, 60)
    await look_again(both, 2)
    assert await told(both) == {}
    await look_again(both, 1)
    alerts = await told(both)
    assert {(about, alert["rule_id"]) for about, alert in alerts.items()} == {
        ("scalekit:environment", "recovery-failing"),
        ("dev:environment", "recovery-failing"),
    }
    assert all("refused the client id and secret" in alert["summary"] for alert in alerts.values())
    assert {row["state"] for row in await both.house.rows("SELECT state FROM recoveries")} == {"waiting"}
    both.fake.secret = CLIENT_SECRET
    both.said(1, ago(minutes=30))
    await both.house.told("ACTIVE")
    await look_again(both, 2)
    assert {about.partition(":")[0] for about in await told(both)} == {"dev"}


async def test_no_number_of_one_sources_outages_hides_anothers(both: Ward) -> None:
    async with begin(both.house.runtime.engine) as conn:
        for number in range(recoveries.WAITING_MAX + 5):
            at = ago(hours=2 + number)
            await recoveries.want(conn, "dev", "outage", at - timedelta(hours=1), at, at)
        await recoveries.want(conn, "scalekit", "outage", ago(hours=1), ago(), ago())
        found = await recoveries.waiting(conn)
    assert {row.source for row in found} == {"dev", "scalekit"}
    assert len(found) == recoveries.WAITING_MAX + 1


async def test_an_outage_of_a_source_that_is_gone_is_left_by_its_age(both: Ward) -> None:
    await both.recover()
    async with begin(both.house.runtime.engine) as conn:
        for days in (200, 1):
            await recoveries.want(conn, "gone", "outage", ago(days=days + 1), ago(days=days), ago(days=days))
    both.said(1, ago(minutes=30))
    await look_again(both, 1)
    assert await told(both) == {}
    rows = await both.house.rows("SELECT state FROM recoveries ORDER BY since")
    assert [row["state"] for row in rows] == ["left", "waiting"]
