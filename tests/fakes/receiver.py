"""Somebody's receiver of alerts by the Standard Webhooks scheme: that scheme's own package checks every request, and an
id that was seen is dropped."""

from __future__ import annotations

import json
from typing import Any

from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.weather import Weather

SECRET = "whsec_" + "cmVjZWl2ZXItb2YtYWxlcnRzLW9mLXRoZS10ZXN0cyE="
PATH = "/hooks/8f1c-not-for-everybody"
BODY_BYTES_MAX = 128 * 1024


class FakeReceiver:
    """`requests` is every genuine one, its headers and its message; `taken` the messages whose id was new."""

    def __init__(self, *, secret: str = SECRET) -> None:
        self._webhook = Webhook(secret)
        self.weather = Weather()
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.taken: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.calls = 0
        self._seen: set[str] = set()
        self.app = Starlette(routes=[Route(PATH, self._take, methods=["POST"])])

    def text(self) -> str:
        return "\n".join(json.dumps(message, ensure_ascii=False) for message in self.taken)

    def types(self) -> list[str]:
        return [message["type"] for message in self.taken]

    async def _take(self, request: Request) -> Response:
        self.calls += 1
        body, headers = await request.body(), dict(request.headers)

        async def work() -> Response:
            try:
                message = self._webhook.verify(body, headers)
            except (WebhookVerificationError, ValueError) as exc:
                self.refused.append(str(exc))
                return JSONResponse({"detail": "not from who it says"}, 401)
            if len(body) > BODY_BYTES_MAX:
                return JSONResponse({"detail": "too large"}, 413)
            self.requests.append((headers, message))
            if headers["webhook-id"] not in self._seen:
                self._seen.add(headers["webhook-id"])
                self.taken.append(message)
            return JSONResponse({}, 202)

        return await self.weather.over(work)
