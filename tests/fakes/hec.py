"""A strict Splunk HTTP Event Collector: refuses what Splunk refuses, with Splunk's codes, and keeps what Splunk keeps."""

from __future__ import annotations

import asyncio
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.slack import BreakOff

BODY_BYTES_MAX = 1_000_000
HANG_SECONDS = 30.0
ENVELOPE_KEYS = frozenset({"time", "host", "source", "sourcetype", "index", "event", "fields"})
TEXTS = {
    0: "Success",
    1: "Token disabled",
    2: "Token is required",
    3: "Invalid authorization",
    4: "Invalid token",
    5: "No data",
    6: "Invalid data format",
    7: "Incorrect index",
    8: "Internal server error",
    9: "Server is busy",
    10: "Data channel is missing",
    12: "Event field is required",
    13: "Event field cannot be blank",
    14: "ACK is disabled",
}
STATUSES = {
    0: 200,
    1: 403,
    2: 401,
    3: 401,
    4: 403,
    5: 400,
    6: 400,
    7: 400,
    8: 500,
    9: 503,
    10: 400,
    12: 400,
    13: 400,
    14: 400,
}


@dataclass(frozen=True, slots=True)
class Scripted:
    """One answer given instead of Splunk's own, without keeping anything (unless `keep`)."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    keep: bool = False


class FakeHec:
    """`app` is served with `serve(hec.app)`; `envelopes` is what was indexed, in order."""

    def __init__(
        self, token: str, *, indexes: tuple[str, ...] = ("main",), body_bytes_max: int = BODY_BYTES_MAX
    ) -> None:
        self.token = token
        self.indexes = indexes
        self.body_bytes_max = body_bytes_max
        self.enabled = True
        self.say_which = True  # does a 400 carry invalid-event-number?
        self.envelopes: list[dict[str, Any]] = []
        self.posts: list[int] = []  # envelopes asked for, post by post
        self.sizes: list[int] = []  # bytes before gzip
        self.gzipped: list[bool] = []
        self.script: list[Scripted] = []  # the next answers; empty: behave as Splunk does
        self.always: Scripted | None = None
        self.hang = False
        self.wire: list[str] = []  # every body as it came, unpacked
        self.acknowledges = False  # the token has indexer acknowledgement
        self.indexed_after_asks = 0
        self.asks = 0
        self.ack_script: list[Scripted] = []
        self._ack_ids: dict[str, list[int]] = {}
        self._slow_seconds = 0.0
        self._break_off = -1  # calls until then
        self.refuse_events_with: str | None = None  # an event whose JSON holds this text is invalid data
        self.app = Starlette(
            routes=[
                Route("/services/collector/event", self._collect, methods=["POST"]),
                Route("/services/collector/ack", self._acknowledge, methods=["POST"]),
            ]
        )

    @property
    def events(self) -> list[dict[str, Any]]:
        return [envelope["event"] for envelope in self.envelopes]

    def slow_next(self, seconds: float) -> None:
        """The next call is done, and its answer comes that late."""
        self._slow_seconds = seconds

    def break_off_next(self) -> None:
        """The next call is done, and its answer never arrives whole."""
        self._break_off = 0

    def break_off_after(self, calls: int) -> None:
        """So many calls are answered first."""
        self._break_off = calls

    async def _collect(self, request: Request) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=400)
        self._break_off -= 1
        if self.hang:
            await asyncio.sleep(HANG_SECONDS)
        scripted = self.always or (self.script.pop(0) if self.script else None)
        if scripted is not None:
            if scripted.keep:
                self._index(request, body)
            return Response(scripted.body, status_code=scripted.status, headers=scripted.headers)
        said = self._index(request, body)
        if self._slow_seconds:
            seconds, self._slow_seconds = self._slow_seconds, 0.0
            await asyncio.sleep(seconds)
        if self._break_off == -1:
            return BreakOff()
        return said

    async def _acknowledge(self, request: Request) -> Response:
        refused = self._judge_token(request)
        if refused is not None:
            return refused
        if self.ack_script:
            scripted = self.ack_script.pop(0)
            return Response(scripted.body, status_code=scripted.status, headers=scripted.headers)
        if not self.acknowledges:
            return answer(14)
        channel = request.headers.get("x-splunk-request-channel")
        if channel is None:
            return answer(10)
        numbers = (await request.json())["acks"]
        self.asks += bool(numbers)
        known = self._ack_ids.get(channel, [])
        done = self.asks > self.indexed_after_asks
        return JSONResponse({"acks": {str(number): done and number in known for number in numbers}})

    def _judge_token(self, request: Request) -> Response | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not scheme:
            return answer(2)
        if scheme.lower() != "splunk":
            return answer(3)
        if token != self.token:
            return answer(4)
        if not self.enabled:
            return answer(1)
        return None

    def _index(self, request: Request, body: bytes) -> Response:
        refused = self._judge_token(request)
        if refused is not None:
            return refused
        channel = request.headers.get("x-splunk-request-channel")
        if self.acknowledges and channel is None:
            return answer(10)
        gzipped = request.headers.get("content-encoding") == "gzip"
        if gzipped:
            try:
                body = zlib.decompress(body, wbits=31)
            except zlib.error:
                return answer(6)
        if len(body) > self.body_bytes_max:
            return Response("<html>Request Entity Too Large</html>", status_code=413)
        if not body.strip():
            return answer(5)
        self.wire.append(body.decode("utf-8", "replace"))
        self.sizes.append(len(body))
        self.gzipped.append(gzipped)
        said = self._take(body)
        if not self.acknowledges or channel is None or said.status_code != 200:
            return said
        numbers = self._ack_ids.setdefault(channel, [])
        numbers.append(len(numbers))
        return JSONResponse({"text": TEXTS[0], "code": 0, "ackId": numbers[-1]})

    def _take(self, body: bytes) -> Response:
        """Envelope by envelope; what stands before a bad one is kept."""
        try:
            text = body.decode()
        except UnicodeDecodeError:
            return answer(6, at=0)
        decoder, position, count = json.JSONDecoder(), 0, 0
        kept: list[dict[str, Any]] = []
        refused: Response | None = None
        while position < len(text) and refused is None:
            try:
                envelope, position = decoder.raw_decode(text, position)
            except json.JSONDecodeError:
                refused = self._refuse(6, count)
                break
            code = self._judge(envelope)
            if code:
                refused = self._refuse(code, count)
                break
            kept.append(envelope)
            count += 1
            while position < len(text) and text[position].isspace():
                position += 1
        self.posts.append(count)
        if refused is not None and not self.say_which:
            return refused  # a receiver that takes all or nothing
        self.envelopes += kept
        return refused or answer(0)

    def _judge(self, envelope: Any) -> int:
        if not isinstance(envelope, dict):  # an array around the envelopes, too
            return 6
        if envelope.keys() - ENVELOPE_KEYS:
            return 6
        at = envelope.get("time")
        if at is not None and (isinstance(at, bool) or not isinstance(at, int | float) or not 0 < at < 1e10):
            return 6
        if "event" not in envelope or envelope["event"] is None:
            return 12
        if envelope["event"] in ("", {}):
            return 13
        if "index" in envelope and envelope["index"] not in self.indexes:
            return 7
        if self.refuse_events_with is not None and self.refuse_events_with in json.dumps(envelope["event"]):
            return 6
        return 0

    def _refuse(self, code: int, at: int) -> Response:
        return answer(code, at=at if self.say_which else None)


def answer(code: int, *, at: int | None = None) -> Response:
    body: dict[str, Any] = {"text": TEXTS[code], "code": code}
    if at is not None:
        body["invalid-event-number"] = at
    return JSONResponse(body, status_code=STATUSES[code])
