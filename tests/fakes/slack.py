"""Slack's Web API as far as we use it, and as strict: token, scopes, channels, block limits, message identity.

It refuses what Slack refuses, with Slack's words. Knobs make the weather: `refuse_next`, `rate_limit_next`,
`answer_next`, `slow_seconds`, `break_off_next`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

TOKEN = "xoxb-not-a-real-token-0000"
CHANNEL = "C0ONCALL01"
BOT = "U0AUTHWTCH"
BLOCKS_MAX = 50
BLOCKS_CHARS_MAX = 13_200
TEXT_CHARS_MAX = 40_000
SCOPE_OF = {
    "chat.postMessage": "chat:write",
    "chat.update": "chat:write",
    "conversations.history": "channels:history",
    "conversations.replies": "channels:history",
}
REPLY = "chat.postMessage:reply"  # under which `calls` has a post into a thread


class Refused(Exception):
    def __init__(self, error: str, **more: Any) -> None:
        super().__init__(error)
        self.error, self.more = error, more


class BreakOff(Response):
    """Promises a body and ends without it, so that the server cuts the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        raise ConnectionAbortedError("the fake breaks off here")


class FakeSlack:
    """`calls[method]` is every authentic request's arguments; `messages` is what stands in the channels, `replies` what
    stands in the threads of those."""

    def __init__(
        self,
        *,
        token: str = TOKEN,
        channels: dict[str, str] | None = None,
        scopes: Iterable[str] = ("chat:write", "channels:history"),
    ) -> None:
        self.token = token
        self.channels = {CHANNEL: "on-call"} if channels is None else channels
        self.scopes = set(scopes)
        self.archived: set[str] = set()
        self.not_invited: set[str] = set()
        self.calls: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.messages: list[dict[str, Any]] = []
        self.replies: list[dict[str, Any]] = []
        self.slow_seconds = 0.0
        self.url = ""  # whoever serves the app may note its base URL here
        self._weather: list[Response] = []
        self._count = 0
        self.app = Starlette(routes=[Route("/api/{method}", self._answer, methods=["GET", "POST"])])

    def refuse_next(self, error: str, *, times: int = 1) -> None:
        self._weather += [JSONResponse({"ok": False, "error": error})] * times

    def rate_limit_next(self, *, retry_after: str = "7", times: int = 1) -> None:
        answer = JSONResponse({"ok": False, "error": "ratelimited"}, 429, headers={"Retry-After": retry_after})
        self._weather += [answer] * times

    def answer_next(self, response: Response) -> None:
        self._weather.append(response)

    def break_off_next(self) -> None:
        """The next call is done, and its answer never arrives whole."""
        self._weather.append(BreakOff())

    def text_of(self, message: dict[str, Any]) -> str:
        """Everything a reader sees in a message."""
        parts = [message.get("text", "")]
        for block in message.get("blocks") or []:
            texts = [block["text"]] if "text" in block else block["elements"]
            parts += [one["text"]["text"] if isinstance(one["text"], dict) else one["text"] for one in texts]
        return "\n".join(parts)

    async def _answer(self, request: Request) -> Response:
        method = request.path_params["method"]
        try:
            arguments = await self._authenticate(request)
            self.calls[REPLY if arguments.get("thread_ts") else method].append(arguments)
            weather = self._weather.pop(0) if self._weather else None
            if weather is not None and not isinstance(weather, BreakOff):
                return weather
            if (needed := SCOPE_OF.get(method)) and needed not in self.scopes:
                raise Refused("missing_scope", needed=needed, provided=",".join(sorted(self.scopes)))
            body = {"ok": True, **self._do(method, arguments)}
            if self.slow_seconds:
                await asyncio.sleep(self.slow_seconds)
            if weather is not None:
                return weather
        except Refused as refused:
            body = {"ok": False, "error": refused.error, **refused.more}
        return JSONResponse(body, headers={"x-oauth-scopes": ",".join(sorted(self.scopes))})

    async def _authenticate(self, request: Request) -> dict[str, Any]:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            raise Refused("not_authed")
        if token != self.token:
            raise Refused("invalid_auth")
        if request.method == "GET":
            return dict(request.query_params)
        if request.headers.get("content-type", "").startswith("application/json"):
            try:
                sent = json.loads(await request.body())
            except ValueError:
                raise Refused("invalid_json") from None
            if not isinstance(sent, dict):
                raise Refused("json_not_object")
            return sent
        return {key: str(value) for key, value in (await request.form()).items()}

    def _do(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        match method:
            case "auth.test":
                return {"user": "authwatch", "team": "Acme", "user_id": BOT, "url": "https://acme.slack.com/"}
            case "chat.postMessage":
                return self._post(arguments)
            case "chat.update":
                return self._update(arguments)
            case "conversations.history":
                return self._history(arguments)
            case "conversations.replies":
                return self._replies(arguments)
        raise Refused("unknown_method")

    def _post(self, arguments: dict[str, Any]) -> dict[str, Any]:
        wanted = str(arguments.get("channel", "")).removeprefix("#")
        names = {name: channel for channel, name in self.channels.items()}
        channel = names.get(wanted, wanted)
        self._check_channel(channel)
        content = check_content(arguments)
        self._count += 1
        message = {"channel": channel, "ts": f"{int(time.time())}.{self._count:06d}", "user": BOT, **content}
        if "metadata" in arguments:
            message["metadata"] = check_metadata(arguments["metadata"])
        if "thread_ts" in arguments:
            self._root(channel, arguments["thread_ts"])
            self.replies.append(message | {"thread_ts": arguments["thread_ts"]})
        else:
            self.messages.append(message)
        return {"channel": channel, "ts": message["ts"], "message": {"text": content["text"], "user": BOT}}

    def _update(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._check_channel(str(arguments.get("channel", "")))
        where = (arguments["channel"], arguments.get("ts"))
        found = next((m for m in self.messages if (m["channel"], m["ts"]) == where), None)
        if found is None:
            raise Refused("message_not_found")
        if found["user"] != BOT:
            raise Refused("cant_update_message")
        found.update(check_content(arguments))  # text without blocks takes the blocks away
        return {"channel": found["channel"], "ts": found["ts"], "text": found["text"]}

    def _history(self, arguments: dict[str, Any]) -> dict[str, Any]:
        channel = arguments.get("channel", "")
        self._check_channel(channel)  # by id alone: this method knows no names
        return self._page(arguments, [m for m in reversed(self.messages) if m["channel"] == channel])

    def _replies(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The message itself first, then its replies, oldest first."""
        self._check_channel(arguments.get("channel", ""))
        root = self._root(arguments["channel"], arguments.get("ts"))
        thread = [m for m in self.replies if (m["channel"], m["thread_ts"]) == (root["channel"], root["ts"])]
        return self._page(arguments, [root, *thread])

    def _root(self, channel: Any, ts: Any) -> dict[str, Any]:
        found = next((m for m in self.messages if (m["channel"], m["ts"]) == (channel, ts)), None)
        if found is None:
            raise Refused("thread_not_found")
        return found

    def _page(self, arguments: dict[str, Any], those: list[dict[str, Any]]) -> dict[str, Any]:
        limit = int(arguments.get("limit", 100))
        if not 1 <= limit <= 999:
            raise Refused("invalid_limit")
        oldest, start = float(arguments.get("oldest", 0)), int(arguments.get("cursor") or 0)
        there = [m for m in those if float(m["ts"]) > oldest]
        shown = [
            {k: v for k, v in m.items() if k != "metadata" or arguments.get("include_all_metadata") in ("1", "true")}
            for m in there[start : start + limit]
        ]
        more = start + limit < len(there)
        cursor = {"response_metadata": {"next_cursor": str(start + limit)}} if more else {}
        return {"messages": shown, "has_more": more, **cursor}

    def _check_channel(self, channel: str) -> None:
        if channel not in self.channels:
            raise Refused("channel_not_found")
        if channel in self.archived:
            raise Refused("is_archived")
        if channel in self.not_invited:
            raise Refused("not_in_channel")


def check_content(arguments: dict[str, Any]) -> dict[str, Any]:
    text, blocks = arguments.get("text") or "", arguments.get("blocks")
    if isinstance(blocks, str):
        blocks = json.loads(blocks)
    if not blocks and not str(text).strip():
        raise Refused("no_text")
    if len(text) > TEXT_CHARS_MAX:
        raise Refused("msg_too_long")
    if blocks is not None:
        check_blocks(blocks)
    return {"text": text, "blocks": blocks}


def check_blocks(blocks: Any) -> None:
    """Raises `Refused` as Slack does; lengths are counted in UTF-16 units, the strictest reading."""
    if not isinstance(blocks, list) or len(blocks) > BLOCKS_MAX:
        raise Refused("invalid_blocks")
    for block in blocks:
        match block:
            case {"type": "header", "text": {"type": "plain_text"} as text, **rest}:
                check_text(text, 150, rest)
            case {"type": "section", "text": {"type": "plain_text" | "mrkdwn"} as text, **rest}:
                check_text(text, 3_000, rest)
            case {"type": "context", "elements": [_, *_] as elements, **rest} if len(elements) <= 10:
                for element in elements:
                    check_text(element, 3_000, rest)
            case {"type": "actions", "elements": [_, *_] as elements, **rest} if len(elements) <= 25 and set(rest) <= {
                "block_id"
            }:
                check_buttons(elements)
            case {"type": "divider"}:
                pass
            case _:
                raise Refused("invalid_blocks")
    if units(json.dumps(blocks, ensure_ascii=False)) > BLOCKS_CHARS_MAX:
        raise Refused("msg_blocks_too_long")


def check_text(text: Any, limit: int, rest: Mapping[Any, Any]) -> None:
    if not isinstance(text, dict) or not set(rest) <= {"block_id"} or not isinstance(text.get("text"), str):
        raise Refused("invalid_blocks")
    if not set(text) <= {"type", "text", "emoji" if text.get("type") == "plain_text" else "verbatim"}:
        raise Refused("invalid_blocks")
    if not 1 <= units(text["text"]) <= limit or not text["text"].strip():
        raise Refused("invalid_blocks")


def check_buttons(elements: list[Any]) -> None:
    """https://docs.slack.dev/reference/block-kit/block-elements/button-element, and its confirmation dialog."""
    for button in elements:
        match button:
            case {"type": "button", "text": {"type": "plain_text"} as text, "action_id": str() as action_id, **rest}:
                check_text(text, 75, {})
            case _:
                raise Refused("invalid_blocks")
        allowed = {"value", "url", "style", "confirm", "accessibility_label"}
        wrong = (
            not set(rest) <= allowed
            or not 1 <= units(action_id) <= 255
            or not units(str(rest.get("value", ""))) <= 2_000
        )
        if (
            wrong
            or rest.get("style", "primary") not in ("primary", "danger")
            or not units(str(rest.get("url", ""))) <= 3_000
        ):
            raise Refused("invalid_blocks")
        if "confirm" in rest:
            check_confirm(rest["confirm"])
    if len({button["action_id"] for button in elements}) != len(elements):
        raise Refused("invalid_blocks")


def check_confirm(confirm: Any) -> None:
    limits = {"title": 100, "text": 300, "confirm": 30, "deny": 30}
    if not isinstance(confirm, dict) or not set(limits) <= set(confirm) <= {*limits, "style"}:
        raise Refused("invalid_blocks")
    for name, limit in limits.items():
        if not isinstance(confirm[name], dict) or confirm[name].get("type") != "plain_text":
            raise Refused("invalid_blocks")
        check_text(confirm[name], limit, {})


def check_metadata(metadata: Any) -> Any:
    match metadata:
        case {"event_type": str(), "event_payload": dict(), **rest} if not rest:
            return metadata
    raise Refused("invalid_metadata_format")


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2
