"""`GET /v1/siem/poison`: what the SIEM does not have, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from service.app import create_app
from service.settings import load_settings
from service.store import readers, shipping, tokens
from service.store.session import begin
from service.store.shipping import Bad
from tests.conftest import ADMIN_TOKEN, SECRET

POISON = "/v1/siem/poison"
IDS = [f"019357f0-0000-7000-8000-{number:012d}" for number in range(5)]


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(
        load_settings(
            {"DATABASE_URL": database_url, "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN, "SCALEKIT_WEBHOOK_SECRET": SECRET}
        )
    )
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://authwatch.test", headers=headers
        ) as made,
    ):
        yield made


async def refuse(engine: AsyncEngine, sink: str, *numbers: int) -> None:
    async with begin(engine) as conn:
        now = await readers.clock(conn)
        claimed = await shipping.claim(conn, shipping.reader_name(sink), now, timedelta(minutes=1))
        assert claimed is not None
        bad = [Bad(number, IDS[number], f"too odd {number}") for number in numbers]
        await shipping.shipped(conn, claimed, numbers[-1], now, items=len(numbers), bad=bad)


async def test_it_is_shown_page_by_page_and_by_sink(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    assert (await client.get(POISON)).json() == {"items": [], "next_cursor": None}
    await refuse(engine, "splunk", 1, 3)
    await refuse(engine, "soc", 2, 4)
    seen, cursor = list[tuple[str, int]](), None
    for _ in range(4):
        page = (await client.get(POISON, params={"limit": 1} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [(item["sink"], item["position"]) for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == [("soc", 4), ("soc", 2), ("splunk", 3), ("splunk", 1)]
    assert cursor is None
    (first, _) = (await client.get(POISON, params={"sink": "splunk"})).json()["items"]
    assert datetime.fromisoformat(first.pop("at")) <= datetime.now(UTC) + timedelta(minutes=1)
    assert first == {"sink": "splunk", "position": 3, "event_id": IDS[3], "reason": "too odd 3"}


async def test_it_needs_the_scope_and_a_cursor_of_ours(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        _, text = await tokens.create(conn, "agent", frozenset({"read"}))
    assert (await client.get(POISON, headers={"Authorization": f"Bearer {text}"})).status_code == 403
    answer = await client.get(POISON, params={"cursor": "abc"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")
