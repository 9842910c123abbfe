"""Somebody's webhook receiver by the Standard Webhooks scheme, checked by that scheme's own package.

It refuses a wrong signature, a wrong shape and keys that differ, and does the work of one `webhook-id` once.
"""

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

SECRET = "whsec_" + "b3JjaGVzdHJhdG9yLXNlY3JldC1vZi10aGUtdGVzdHM="
PATH = "/hooks/authwatch"


class FakeOrchestrator:
    """`requests` is every genuine message's headers and body; `pauses` and `resumes` are what was really done."""

    def __init__(self, *, secret: str = SECRET) -> None:
        self._webhook = Webhook(secret)
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.refused: list[str] = []
        self.pauses: list[dict[str, Any]] = []
        self.resumes: list[dict[str, Any]] = []
        self.paused: set[str] = set()
        self.slow_seconds = 0.0
        self._seen: dict[str, dict[str, Any]] = {}
        self._weather: list[tuple[Response, bool]] = []
        self.app = Starlette(routes=[Route(PATH, self._take, methods=["POST"])])

    def answer_next(self, response: Response, *, after_the_work: bool = False, times: int = 1) -> None:
        """The next answer is this one; with `after_the_work` the effect happened all the same."""
        self._weather += [(response, after_the_work)] * times

    async def _take(self, request: Request) -> Response:
        body, headers = await request.body(), dict(request.headers)
        try:
            message = self._webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError) as exc:
            return self._refuse(401, str(exc))
        key = headers["webhook-id"]
        match message:
            case {
                "type": "workflow.pause" | "workflow.resume",
                "timestamp": str(),
                "data": {"workflow_id": str(), "ref": str(), "reason": str(), "idempotency_key": str() as inside},
            } if inside == key == headers.get("idempotency-key"):
                self.requests.append((headers, message))
            case _:
                return self._refuse(400, f"not a message of ours: {json.dumps(message)[:200]}")
        response, after = self._weather.pop(0) if self._weather else (None, True)
        if not after:
            assert response is not None
            return response
        if key not in self._seen:
            self._seen[key] = self._work(message["type"], message["data"])
        if self.slow_seconds:
            await asyncio.sleep(self.slow_seconds)
        return response or JSONResponse(self._seen[key])

    def _work(self, type_: str, data: dict[str, Any]) -> dict[str, Any]:
        before = {"paused": data["ref"] in self.paused}
        if type_ == "workflow.pause":
            self.pauses.append(data)
            self.paused.add(data["ref"])
            return {"detail": f"{data['ref']} takes no new runs", "state": before}
        self.resumes.append(data)
        self.paused.discard(data["ref"])
        return {"detail": f"{data['ref']} runs again", "state": before}

    def _refuse(self, status: int, why: str) -> Response:
        self.refused.append(why)
        return JSONResponse({"detail": why}, status)
