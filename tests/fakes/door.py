"""A door in front of any fake: what comes in is written down, held before its work or after it, or sent away by the weather.

The fakes behind it stay strict and know nothing of it: what the weather sends away, they never hear of.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Where = Literal["before", "after"]
SILENCE: Literal["silence"] = "silence"  # accepted, and never answered
LOST: Literal["lost"] = "lost"  # done, and the connection breaks before the answer is whole
Weather = Response | Literal["silence", "lost"] | None


@dataclass(slots=True)
class Came:
    """One request. `at` is by the wall clock; `let_in`: the fake behind the door had it; `status` of the answer, if any."""

    call: str
    at: float
    said: Mapping[str, Any]
    let_in: bool = False
    status: int | None = None
    answered_at: float | None = None


@dataclass(slots=True)
class Door:
    """`hold`: where each kind of call is held until `let_go`. `weather` is asked about each call as it comes."""

    hold: dict[str, Where] = field(default_factory=dict)
    weather: Callable[[str], Weather] = lambda _call: None
    came: list[Came] = field(default_factory=list)
    held: list[str] = field(default_factory=list)  # calls that wait here now
    _go: asyncio.Event = field(default_factory=asyncio.Event)

    def before(self, app: ASGIApp) -> ASGIApp:
        """The app behind this door; as `add_middleware` takes it."""

        async def enter(scope: Scope, receive: Receive, send: Send) -> None:
            await self._enter(app, scope, receive, send)

        return enter

    def let_go(self) -> None:
        """Whoever is held goes on, and nobody else is held. One held before its work is shown out without it."""
        self.hold.clear()
        self._go.set()

    async def _enter(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        body = await whole(receive)
        said = read(body)
        one = Came(call_of(str(scope["path"]), said), time.time(), said)
        self.came.append(one)

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                one.status, one.answered_at = int(message["status"]), time.time()
            await send(message)

        weather, where = self.weather(one.call), self.hold.get(one.call)
        if where == "before":
            await self._wait(one.call)
        elif weather == SILENCE:
            while (await receive())["type"] != "http.disconnect":
                pass
        elif isinstance(weather, Response):
            await weather(scope, receive, answering)
        else:
            one.let_in = True
            through = answering if weather is None else unfinished(answering)
            if where == "after":
                through = self._late(one.call, through)
            await app(scope, again(body, receive), through)

    def _late(self, call: str, send: Send) -> Send:
        async def late(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._wait(call)
            await send(message)

        return late

    async def _wait(self, call: str) -> None:
        self.held.append(call)
        await self._go.wait()
        self.held.remove(call)


def unfinished(send: Send) -> Send:
    """Says how long the answer is and never sends it: the server then cuts the connection."""

    async def cut(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)

    return cut


async def whole(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


def again(body: bytes, receive: Receive) -> Receive:
    """The body that was read here, then what else comes."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


def read(body: bytes) -> Mapping[str, Any]:
    try:
        said = json.loads(body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def call_of(path: str, said: Mapping[str, Any]) -> str:
    """`workflow.pause` and the like by a webhook's type, a page's `event_action`, else the last part of the path."""
    word = said.get("type") or said.get("event_action")
    return word if isinstance(word, str) else path.rsplit("/", 1)[-1]
