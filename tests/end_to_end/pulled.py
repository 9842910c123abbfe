"""A receiver in this process whose pull feed is asked, over a log that the test fills."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from sqlalchemy import text
from starlette.applications import Starlette

from service.app import create_app
from service.runtime import Runtime
from service.settings import load_settings
from service.siem_feed import Feed
from service.store import log, tokens
from service.store.session import begin
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import until
from tests.make import make_receipt

FEED = "/v1/siem/events"
NDJSON = {"Accept": "application/x-ndjson"}
LONG = "20s"  # no test waits for its end


@dataclass
class Pulled:
    app: Starlette
    client: httpx.AsyncClient

    @property
    def runtime(self) -> Runtime:
        runtime: Runtime = self.app.state.runtime
        return runtime

    @property
    def feed(self) -> Feed:
        feed: Feed = self.app.state.siem_feed
        return feed

    async def happened(self, count: int = 1, **receipt: Any) -> list[str]:
        """The ids of so many new events."""
        receipts = [make_receipt(**receipt) for _ in range(count)]
        async with begin(self.runtime.engine) as conn:
            await log.accept(conn, receipts)
        return [one.id for one in receipts]

    async def token(self, *scopes: str) -> tuple[str, dict[str, str]]:
        async with begin(self.runtime.engine) as conn:
            token, made = await tokens.create(conn, "poller", frozenset(scopes))
        return token.id, {"Authorization": f"Bearer {made}"}

    async def page(self, **params: Any) -> Any:
        answer = await self.client.get(FEED, params={"format": "raw", **params})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def waiting(self, count: int = 1) -> None:
        async def they_do() -> bool:
            return len(self.feed._waiters) == count

        await until(they_do, 10)


@asynccontextmanager
async def emptied(database_url: str) -> AsyncIterator[Pulled]:
    """An empty log, in the database that the tests of a file share."""
    async with opened(database_url) as made:
        async with begin(made.runtime.engine) as conn:
            for table in ("events", "receipts", "tokens", "siem_pollers"):
                await conn.execute(text(f"DELETE FROM {table}"))
        yield made


@asynccontextmanager
async def opened(database_url: str) -> AsyncIterator[Pulled]:
    settings = load_settings(
        {"DATABASE_URL": database_url, "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN, "SCALEKIT_WEBHOOK_SECRET": SECRET}
    )
    app = create_app(settings)
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept-Encoding": "identity"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://authwatch.test", headers=headers, timeout=60
        ) as client,
    ):
        yield Pulled(app, client)


def problem(answer: httpx.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return str(answer.json()["detail"])
