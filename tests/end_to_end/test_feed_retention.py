"""The pull feed and the log that gets shorter: a reader that was away too long is told so, and never skips in silence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service.app import create_app
from service.retain import retain
from service.settings import RetentionSettings, load_settings
from service.store import log, readers
from service.store.session import begin
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.make import make_receipt

FEED = "/v1/siem/events"


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = load_settings(
        {"DATABASE_URL": database_url, "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN, "SCALEKIT_WEBHOOK_SECRET": SECRET}
    )
    app = create_app(settings)
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://authwatch.test", headers=headers
        ) as made,
    ):
        yield made


async def test_a_cursor_older_than_the_log_is_410_and_a_new_start_is_not(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    nothing = (await client.get(FEED)).json()["next_cursor"]
    long_ago = datetime.now(UTC) - timedelta(days=92)
    async with begin(engine) as conn:
        await conn.execute(text("SELECT ensure_partitions(CAST(:at AS date), 1)"), {"at": long_ago})
        for origin in ("webhook", "authwatch", "webhook"):
            await conn.execute(
                text(
                    "INSERT INTO events (id, source, origin, type, kind, occurred_at, received_at)"
                    " VALUES (gen_random_uuid(), 's', :origin, 'audit', 'audit', :at, :at)"
                ),
                {"origin": origin, "at": long_ago},
            )
    first = (await client.get(f"{FEED}?limit=1")).json()["next_cursor"]
    third = (await client.get(f"{FEED}?limit=3")).json()["next_cursor"]
    async with begin(engine) as conn:
        receipt = make_receipt()
        await log.accept(conn, [receipt])
        await readers.move(conn, readers.EVALUATOR, (await log.head(conn))[0])
    assert (await client.get(FEED, params={"cursor": first})).status_code == 200
    await retain(engine, RetentionSettings(), [], [])
    for cursor in (nothing, first):
        answer = await client.get(FEED, params={"cursor": cursor})
        assert (answer.status_code, answer.json()["code"]) == (410, "cursor_expired")
    # Whoever had read all that is gone has missed nothing.
    for params in ({"cursor": third}, {}, {"since": long_ago.isoformat()}):
        page = (await client.get(FEED, params=params | {"format": "raw"})).json()
        # Beside it there is the entry of the run itself.
        assert [item["id"] for item in page["items"] if item["kind"] != "audit"] == [receipt.id]
        assert (await client.get(FEED, params={"cursor": page["next_cursor"]})).status_code == 200
    # What Authwatch decided then is still found.
    kept = (await client.get("/v1/events?kind=audit")).json()["items"]
    assert len([entry for entry in kept if entry["event_id"] != "retention"]) == 1
    health = (await client.get("/v1/health")).json()
    assert health["sweep"]["partitions_ahead_days"] >= 7
