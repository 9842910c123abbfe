"""The other side of a click: Slack that signs it (by slack-sdk's own verifier), knows its user groups, and takes what a
response_url may be told. It refuses what Slack refuses: a URL used up, over its time or never given, a body that is no
message, a group nobody knows, a token without the scope.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import Any
from urllib.parse import urlencode

from slack_sdk.signature import SignatureVerifier
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.fakes.slack import CHANNEL, FakeSlack, Refused

SIGNING_SECRET = "8f742231b10e8888abcd99baabac85a5"
TEAM, APP = "T0ACME0001", "A0AUTHWTCH"
DIANA, CLARK = "U0DIANA001", "U0CLARK001"
GROUP = "S0ONCALL01"
USES_MAX = 5
USABLE_SECONDS = 1800
REPLY_FIELDS = frozenset(
    {"text", "blocks", "attachments", "response_type", "replace_original", "delete_original", "thread_ts", "metadata"}
)


class FakeClicks(FakeSlack):
    """`replies` is what clickers were told, in order; `click` makes the request that Slack would send."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"scopes": ("chat:write", "channels:history", "usergroups:read")} | more)
        self.groups: dict[str, list[str]] = {GROUP: [DIANA]}
        self.replies: list[dict[str, Any]] = []
        self.tried = 0  # posts to response URLs, refused ones too
        self.refuse_replies: Response | None = None
        self.response_urls: dict[str, list[float]] = {}  # path: since when, how often used
        self._numbers = itertools.count(1)
        self._told = asyncio.Condition()
        self.app.router.routes.append(Route("/actions/{team}/{number}/{secret}", self._reply, methods=["POST"]))

    def response_url(self) -> str:
        path = f"/actions/{TEAM}/{next(self._numbers)}/secret-of-the-response-url"
        self.response_urls[path] = [time.time(), 0]
        return self.url.removesuffix("/api/") + path

    def payload(self, action: str, value: str | None, *, user: str = DIANA, name: str = "diana") -> dict[str, Any]:
        """As docs.slack.dev shows one of a button in a message."""
        return {
            "type": "block_actions",
            "user": {"id": user, "username": name, "name": name, "team_id": TEAM},
            "api_app_id": APP,
            "token": "not-the-verification-token",
            "container": {"type": "message", "message_ts": "1780000000.000100", "channel_id": CHANNEL},
            "trigger_id": f"12321423423.333649436676.{next(self._numbers)}",
            "team": {"id": TEAM, "domain": "acme"},
            "enterprise": None,
            "is_enterprise_install": False,
            "channel": {"id": CHANNEL, "name": "on-call"},
            "message": {"type": "message", "text": "Token refresh is failing", "ts": "1780000000.000100"},
            "state": {"values": {}},
            "response_url": self.response_url(),
            "actions": [
                {
                    "action_id": f"authwatch_{action}",
                    "block_id": "b1",
                    "type": "button",
                    "text": {"type": "plain_text", "text": action.title(), "emoji": True},
                    "action_ts": f"{time.time():.6f}",
                    **({} if value is None else {"value": value}),
                }
            ],
        }

    def click(self, action: str, value: str | None, **more: Any) -> tuple[dict[str, str], bytes]:
        return signed(form(self.payload(action, value, **more)))

    async def told(self, count: int, *, seconds: float = 5) -> list[dict[str, Any]]:
        """Once clickers were told that much."""
        async with asyncio.timeout(seconds), self._told:
            await self._told.wait_for(lambda: len(self.replies) >= count)
        assert len(self.replies) == count
        return self.replies

    def _do(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if method != "usergroups.users.list":
            return super()._do(method, arguments)
        if "usergroups:read" not in self.scopes:
            raise Refused("missing_scope", needed="usergroups:read", provided=",".join(sorted(self.scopes)))
        if arguments.get("usergroup") not in self.groups:
            raise Refused("no_such_subteam")
        return {"users": self.groups[arguments["usergroup"]]}

    async def _reply(self, request: Request) -> Response:
        self.tried += 1
        if self.refuse_replies is not None:
            return self.refuse_replies
        since_and_uses = self.response_urls.get(request.url.path)
        if since_and_uses is None or time.time() - since_and_uses[0] > USABLE_SECONDS:
            return PlainTextResponse("expired_url", 404)
        if since_and_uses[1] >= USES_MAX:
            return PlainTextResponse("used_url", 404)
        try:
            said = json.loads(await request.body())
        except ValueError:
            return PlainTextResponse("invalid_payload", 400)
        if not isinstance(said, dict) or set(said) - REPLY_FIELDS or not said.get("text"):
            return PlainTextResponse("invalid_payload", 400)
        if said.get("response_type") not in ("ephemeral", "in_channel") or not good_blocks(said.get("blocks")):
            return PlainTextResponse("invalid_blocks", 400)
        since_and_uses[1] += 1
        async with self._told:
            self.replies.append(said)
            self._told.notify_all()
        return PlainTextResponse("ok")


def good_blocks(blocks: Any) -> bool:
    for block in blocks or []:
        match block:
            case {"type": "section", "text": {"type": "mrkdwn" | "plain_text", "text": str() as text}}:
                if not 1 <= len(text) <= 3000:
                    return False
            case {"type": "actions", "elements": [_, *_] as buttons} if len(buttons) <= 25:
                for button in buttons:
                    match button:
                        case {"type": "button", "text": {"type": "plain_text", "text": str() as text}, **rest}:
                            if not (1 <= len(text) <= 75 and len(str(rest.get("url", ""))) <= 3000):
                                return False
                        case _:
                            return False
            case _:
                return False
    return True


def form(payload: Any) -> bytes:
    return urlencode({"payload": json.dumps(payload)}).encode()


def signed(body: bytes, *, secret: str = SIGNING_SECRET, at: int | None = None) -> tuple[dict[str, str], bytes]:
    timestamp = str(int(time.time()) if at is None else at)
    signature = SignatureVerifier(secret).generate_signature(timestamp=timestamp, body=body)
    assert signature is not None
    return {
        "content-type": "application/x-www-form-urlencoded",
        "x-slack-request-timestamp": timestamp,
        "x-slack-signature": signature,
    }, body
