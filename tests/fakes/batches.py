"""Somebody's receiver of the log's batches by the Standard Webhooks scheme: that scheme's own package checks every request,
and an id that was seen is dropped."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.hec import Scripted
from tests.fakes.slack import BreakOff

SECRET = "whsec_" + "cmVjZWl2ZXItb2YtYmF0Y2hlcy1vZi10aGUtbG9nLW8hIQ=="
PATH = "/hooks/5d2e-not-for-everybody"
BODY_BYTES_MAX = 1_000_000


class FakeBatches:
    """`items` is what it holds, in order; `ids` the webhook-id of each request that was genuine."""

    def __init__(self, *, secret: str = SECRET) -> None:
        self._webhook = Webhook(secret)
        self.items: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.requests: list[tuple[int, int]] = []
        self.wire: list[str] = []
        self.always: Scripted | None = None
        self.body_bytes_max = BODY_BYTES_MAX
        self.refuse_items_with: str | None = None
        self.slow_seconds = 0.0
        self.break_off = False
        self._seen: set[str] = set()
        self.app = Starlette(routes=[Route(PATH, self._take, methods=["POST"])])

    async def _take(self, request: Request) -> Response:
        body, headers = await request.body(), dict(request.headers)
        if self.always is not None:
            return Response(self.always.body, status_code=self.always.status, headers=self.always.headers)
        answer = self._work(body, headers)
        if self.slow_seconds:
            seconds, self.slow_seconds = self.slow_seconds, 0.0
            await asyncio.sleep(seconds)
        if self.break_off:
            self.break_off = False
            return BreakOff()
        return answer

    def _work(self, body: bytes, headers: dict[str, str]) -> Response:
        try:
            message = self._webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError):
            return JSONResponse({"detail": "not from who it says"}, 401)
        if len(body) > self.body_bytes_max:
            return JSONResponse({"detail": "too large"}, 413)
        items = message["items"]
        if self.refuse_items_with is not None and any(self.refuse_items_with in json.dumps(item) for item in items):
            return JSONResponse({"detail": "an item is not what it should be"}, 422)
        self.wire.append(body.decode() if items else "")
        if items:
            self.ids.append(headers["webhook-id"])
        if items and headers["webhook-id"] not in self._seen:
            self._seen.add(headers["webhook-id"])
            self.requests.append((len(items), len(body)))
            self.items += items
        return JSONResponse({}, 202)
