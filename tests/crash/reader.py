"""Somebody's SIEM that pulls: it reads the feed on and on from its cursor, and through every kill."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx

from tests.conftest import ADMIN_TOKEN
from tests.crash.sender import PATIENCE_SECONDS

PAGE_ITEMS = 200
IDLE_SECONDS = 0.1
EXPECTED = (200, 503)


class FeedReader:
    """`items` is everything it was given, in the order it came; it asks for nothing twice once it has an answer."""

    def __init__(self, url: str) -> None:
        self.items: list[dict[str, Any]] = []
        self.statuses: Counter[int] = Counter()  # 0: no answer came
        self._url = url
        self._cursor = ""

    async def run(self) -> None:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        async with httpx.AsyncClient(
            base_url=self._url, headers=headers, trust_env=False, timeout=PATIENCE_SECONDS
        ) as client:
            while True:
                if not await self.page(client):
                    await asyncio.sleep(IDLE_SECONDS)

    async def page(self, client: httpx.AsyncClient) -> bool:
        """Whether there is more at once."""
        parameters = {"format": "raw", "limit": str(PAGE_ITEMS)} | ({"cursor": self._cursor} if self._cursor else {})
        try:
            answer = await client.get("/v1/siem/events", params=parameters)
        except httpx.HTTPError:
            self.statuses[0] += 1
            return False
        self.statuses[answer.status_code] += 1
        if answer.status_code != 200:
            return False
        page = answer.json()
        self.items += page["items"]
        self._cursor = page["next_cursor"]
        return bool(page["has_more"])

    def unexpected(self) -> list[int]:
        return sorted(status for status in self.statuses if status not in (0, *EXPECTED))
