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
# What a pause stops here; of running work it says nothing.
STOPS = {"scheduled_starts": True, "manual_starts": False}


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
        self.says_was_paused = True  # else it is one of those that only tell their state
        self.always: tuple[Response, bool] | None = None  # as by `answer_next`, until it is None again
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
        response, after = self._weather.pop(0) if self._weather else self.always or (None, True)
        if not after:
            assert response is not None
            return response
        if key not in self._seen:
            self._seen[key] = self._work(message["type"], message["data"])
        if self.slow_seconds:
            await asyncio.sleep(self.slow_seconds)
        return response or JSONResponse(self._seen[key])

    def by_hand(self, ref: str, *, paused: bool) -> None:
        """Somebody there disables it, or enables it."""
        (self.paused.add if paused else self.paused.discard)(ref)

    def _work(self, type_: str, data: dict[str, Any]) -> dict[str, Any]:
        ref, before = data["ref"], {"paused": data["ref"] in self.paused}
        if type_ == "workflow.pause":
            self.pauses.append(data)
            self.paused.add(ref)
            said = {"detail": f"{ref} takes no new runs", "state": before, "stops": STOPS}
            return said | ({"was_paused": before["paused"]} if self.says_was_paused else {})
        self.resumes.append(data)
        # One that says whether it was paused leaves it to us to start nothing else; the others put back what they said.
        if self.says_was_paused or not (data.get("prior_state") or {}).get("paused"):
            self.paused.discard(ref)
        return {"detail": f"{ref} runs again", "state": before}

    def _refuse(self, status: int, why: str) -> Response:
        self.refused.append(why)
        return JSONResponse({"detail": why}, status)
