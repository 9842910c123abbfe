"""The destinations that the weather falls on: strict fakes behind doors, two Slack workspaces and a pager.

The pager is PagerDuty's Events API where a notifier of that kind is registered, and else a third Slack workspace.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bench.house import HOST
from bench.weather_judge import Heard
from service import children
from service.notify import NOTIFIERS
from service.notify.wording import SIGN_RESOLVED, SIGNS
from tests.fakes import serve
from tests.fakes.door import LOST, SILENCE, Door, Weather
from tests.fakes.slack import CHANNEL, TOKEN, FakeSlack

PAGER = "pagerduty"
ROUTING_KEY = "0" * 32
# How an outage goes, as shares of it: the last answers get lost, then nobody listens, then nobody answers, then 503.
LOSING, REFUSING, SILENT = 0.08, 0.34, 0.3
SIGN_OF = {sign: state for state, sign in SIGNS.items()} | {SIGN_RESOLVED: "resolved"}
STATE_OF = {"trigger": "firing", "acknowledge": "acknowledged", "resolve": "resolved"}


@dataclass(slots=True)
class Place:
    """One fake on a port of its own, which can go away and come back."""

    door: Door
    app: Starlette
    port: int = field(default_factory=lambda: children.choose_port(HOST))
    _stack: AsyncExitStack | None = None

    async def up(self) -> None:
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(serve(self.door.before(self.app), port=self.port))

    async def away(self) -> None:
        if self._stack is not None:
            await self._stack.aclose()
            self._stack = None

    async def down(self, seconds: float) -> None:
        """An outage from its begin to its end."""
        self.door.weather = standing(LOST)
        await asyncio.sleep(seconds * LOSING)
        await self.away()
        await asyncio.sleep(seconds * REFUSING)
        self.door.weather = standing(SILENCE)
        await self.up()
        await asyncio.sleep(seconds * SILENT)
        self.door.weather = lambda _call: JSONResponse({"message": "down"}, 503)
        await asyncio.sleep(seconds * (1 - LOSING - REFUSING - SILENT))
        self.door.weather = standing(None)


def standing(weather: Weather) -> Callable[[str], Weather]:
    return lambda _call: weather


@dataclass(slots=True)
class Slack:
    fake: FakeSlack
    place: Place

    def section(self) -> dict[str, Any]:
        api_url = f"http://{HOST}:{self.place.port}/api/"
        return {"kind": "slack", "token": TOKEN, "channel": CHANNEL, "api_url": api_url}

    async def rain(self, seconds: float, retry_after_seconds: float) -> None:
        """Every call is answered 429."""
        until, door = time.time() + seconds, self.place.door

        def limited(_call: str) -> JSONResponse:
            left = {"Retry-After": f"{retry_after_seconds:.0f}"}
            return JSONResponse({"ok": False, "error": "ratelimited"}, 429, headers=left)

        door.weather = limited
        await asyncio.sleep(max(0.0, until - time.time()))
        door.weather = standing(None)

    def refused(self) -> list[float]:
        return [one.answered_at for one in self.place.door.came if one.status == 429 and one.answered_at is not None]

    def came(self) -> list[float]:
        return [one.at for one in self.place.door.came]

    def heard(self) -> list[Heard]:
        """Replies in a thread are no message of their own, and no edit of one."""
        delivery = {message["ts"]: delivery_of(message) for message in self.fake.messages}
        found = []
        for one in self.place.door.came:
            if not one.let_in or one.said.get("thread_ts"):
                continue
            text, post = str(one.said.get("text", "")), one.call == "chat.postMessage"
            whose = delivery_of(one.said) if post else delivery.get(str(one.said.get("ts")), "")
            if post or one.call == "chat.update":
                marked = post and "repeat" in text.lower()
                found.append(Heard(whose.split(":")[0], one.at, state_of(text), post, marked))
        return found


@dataclass(slots=True)
class Pager:
    kind: str
    place: Place
    section: dict[str, Any]
    slack: Slack | None = None

    @property
    def keyed(self) -> bool:
        """The same key twice has one effect there."""
        return self.slack is None

    async def down(self, seconds: float) -> None:
        await self.place.down(seconds)

    def heard(self, alerts: Mapping[str, str]) -> list[Heard]:
        """`alerts`: the id of each by its dedup key; where an event's key has the alert's own id in it, that counts."""
        if self.slack is not None:
            return self.slack.heard()
        found, ids = [], set(alerts.values())
        for one in self.place.door.came:
            if one.let_in and one.call in STATE_OF:
                key = str(one.said.get("dedup_key", ""))
                inside = next((part for part in re.split(r"[^0-9a-f-]+", key)[::-1] if part in ids), None)
                alert_id = inside or alerts.get(key, key)
                found.append(Heard(alert_id, one.at, STATE_OF[one.call], one.call == "trigger"))
        return found

    def said(self) -> str:
        answers = Counter("none" if one.status is None else str(one.status) for one in self.place.door.came)
        return "answers " + ", ".join(f"{answer}: {times}" for answer, times in sorted(answers.items()))


@dataclass(slots=True)
class Sky:
    slack: Slack
    spare: Slack
    pager: Pager


def open_slack() -> Slack:
    fake = FakeSlack()
    return Slack(fake, Place(Door(), fake.app))


def open_pager() -> Pager:
    if PAGER not in NOTIFIERS:
        slack = open_slack()
        return Pager("slack, as no pager is registered", slack.place, slack.section(), slack)
    place = Place(Door(), Starlette(routes=[Route("/v2/enqueue", enqueue, methods=["POST"])]))
    section = {"kind": PAGER, "routing_key": ROUTING_KEY, "url": f"http://{HOST}:{place.port}/v2/enqueue"}
    return Pager(PAGER, place, section)


async def enqueue(request: Request) -> JSONResponse:
    said = await request.json()
    if said.get("routing_key") != ROUTING_KEY or said.get("event_action") not in STATE_OF:
        return JSONResponse({"status": "invalid event", "message": "Event object is invalid"}, 400)
    answer = {"status": "success", "message": "Event processed", "dedup_key": said.get("dedup_key")}
    return JSONResponse(answer, 202)


@asynccontextmanager
async def open_sky() -> AsyncIterator[Sky]:
    sky = Sky(open_slack(), open_slack(), open_pager())
    places = (sky.slack.place, sky.spare.place, sky.pager.place)
    try:
        for place in places:
            await place.up()
        yield sky
    finally:
        for place in places:
            await place.away()


def delivery_of(message: Mapping[str, Any]) -> str:
    payload = (message.get("metadata") or {}).get("event_payload") or {}
    return str(payload.get("delivery_id", ""))


def state_of(text: str) -> str:
    """By the sign that a message begins with."""
    places = {sign: text.index(sign) for sign in SIGN_OF if sign in text}
    return SIGN_OF[min(places, key=places.__getitem__)] if places else "firing"
