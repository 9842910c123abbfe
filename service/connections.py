"""What uvicorn's connections lack: an end to silence and to heads without end, and a short way in for webhooks.

A webhook that arrives whole in one read, which is nearly every one, goes from the parser straight to the front door and
its answer straight to the socket. A task, an event, a scope and messages for each request are what the framework needs
to serve anything at all; they cost twice as much as verifying, reading and keeping the webhook. Whatever is unusual
(a body in pieces, another method or path, HTTP/1.0, an upgrade, more requests behind one that waits) goes uvicorn's own
way to the same front door, and so does every refusal.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.commit import Waiting
from service.gate_stream import STREAMS
from service.receive import PATH, FrontDoor, said_of
from service.siem_feed import FEED
from service.sources import Source

HEAD_SECONDS_MAX = 10  # looked at this often, so silence and a slow head live at most twice as long
HEAD_BYTES_MAX = 64 * 1024  # read with no request, header or part of a body to show for it
PIPELINE_MAX = 32  # requests sent behind one that is not yet answered
FRONT_DOOR = "front_door"  # where the lifespan leaves it in the app's state
ROUTE = PATH.encode()
ANNOUNCE_A_BODY = frozenset({b"content-length", b"transfer-encoding"})
STATUS_LINES = {200: b"HTTP/1.1 200 OK", 202: b"HTTP/1.1 202 Accepted"}


class OneWrite:
    """A transport whose writes of one turn of the loop go out together.

    uvicorn writes head and body of an answer apart: two system calls and two packets.
    """

    __slots__ = ("_held", "_loop", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def write_whole(self, data: bytes) -> None:
        """A whole answer: nothing follows that it could go out together with."""
        if self._held:
            self._flush()
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._transport.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Nobody:
    """The event of a request that no task waits for."""

    def set(self) -> None:
        pass


class DirectRequest:
    """A webhook on the short way: the `Answer` its receipt is committed for, and to uvicorn a request that is going on."""

    __slots__ = (
        "_protocol",
        "began",
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "parts",
        "response_complete",
        "source",
    )
    message_event = Nobody()

    def __init__(self, protocol: BoundedProtocol, source: Source, headers: list[tuple[bytes, bytes]]) -> None:
        self._protocol = protocol
        self.source = source
        self.headers = headers
        self.parts: list[bytes] = []
        self.body = b""
        self.began = 0.0
        self.response_complete = False
        self.keep_alive = True
        self.disconnected = False

    def done(self) -> bool:
        return self.response_complete

    def set_result(self, done: Waiting) -> None:
        self.response_complete = True
        status, said = said_of(done)
        self._protocol.answer(
            self,
            b"%b\r\ncontent-length: %d\r\ncontent-type: application/json\r\n%b\r\n%b"
            % (STATUS_LINES[status], len(said), b"" if self.keep_alive else b"connection: close\r\n", said),
        )

    def set_exception(self, error: Exception) -> None:
        self.response_complete = True
        self._protocol.refuse(self, error)


class BoundedProtocol(HttpToolsProtocol):
    """One timer for a connection, not for a request: a look at what has changed since the last one."""

    transport: OneWrite  # type: ignore[assignment]
    cycle: RequestResponseCycle | DirectRequest | None  # type: ignore[assignment]
    _door: FrontDoor | None = None
    _direct: DirectRequest | None = None  # its head has been read, its end has not
    _in_head = False
    _idle_bytes = 0  # read since the parser last had something to say
    _upgrade = False
    _begun = 0
    _begun_seen = 0
    _heard = 0
    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]
        self._door = self.app_state.get(FRONT_DOOR)
        self._look = self.loop.call_later(HEAD_SECONDS_MAX, self._cut_or_look_again)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: an answer without end, or one that waits for news, is ended, or the stop would wait for it."""
        for waits in (self.app_state.get(STREAMS), self.app_state.get(FEED)):
            if waits is not None:
                waits.close()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        heard = self._heard
        super().data_received(data)
        if self.transport.is_closing():
            self._direct = None
        elif self._upgrade:
            self.send_400_response(
                "An offer to upgrade cannot come with a body here; send it without the Upgrade header."
            )
        elif self._direct is not None:  # its body comes in pieces
            direct, self._direct = self._direct, None
            self._hand_over()
            for part in direct.parts:
                super().on_body(part)
        elif self._heard == heard:
            # In the middle of a head, of a trailer or of a chunk's extension, which the parser keeps and copies.
            self._idle_bytes += len(data)
            if self._idle_bytes > HEAD_BYTES_MAX:
                self.send_400_response("The head of this request is too large.")
        else:
            self._idle_bytes = 0

    # Parser callbacks

    def on_message_begin(self) -> None:
        """uvicorn's own, which builds the scope, is called once it is known that the request goes uvicorn's way."""
        self.url = b""
        self.headers = []
        self._in_head = True
        self._begun += 1
        self._heard += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what follows a chunked body is nobody's header
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._heard += 1
        url, door, parser = self.url, self._door, self.parser
        if parser.should_upgrade() and any(name in ANNOUNCE_A_BODY for name, _ in self.headers):
            # The parser reads no body after an offer to upgrade: a genuine webhook would look like a forged one.
            self._upgrade = True
        elif (
            door is not None
            and not parser.should_upgrade()
            and url.startswith(ROUTE)
            and (self.cycle is None or self.cycle.response_complete)
            and not self.pipeline
            and parser.get_method() == b"POST"
            and parser.should_keep_alive()
            and parser.get_http_version() == "1.1"
            and not self.flow.write_paused
            and (source := door.source_at(url)) is not None
        ):
            self._direct = DirectRequest(self, source, self.headers)
        else:
            self._hand_over()

    def on_body(self, body: bytes) -> None:
        self._heard += 1
        if self._direct is not None:
            self._direct.parts.append(body)
        elif not self._upgrade:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._heard += 1
        direct = self._direct
        if direct is None:
            if not self._upgrade:
                super().on_message_complete()
            return
        self._direct = None
        direct.body = direct.parts[0] if len(direct.parts) == 1 else b"".join(direct.parts)
        self.cycle = direct
        direct.began = time.monotonic()
        assert self._door is not None
        self._door.arrive(direct.source, direct.headers, direct.body, direct.began, direct)

    def _hand_over(self) -> None:
        """To uvicorn, as if it had read the head itself."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINE_MAX:
            self.transport.close()

    # Answers of the short way

    def answer(self, direct: DirectRequest, answer: bytes) -> None:
        if self.transport.is_closing():
            return
        self.transport.write_whole(answer)
        if not direct.keep_alive:
            self.transport.close()
        elif self.pipeline:
            self.on_response_complete()

    def refuse(self, direct: DirectRequest, error: Exception) -> None:
        """By the framework, which can say everything; seldom enough."""
        assert self._door is not None
        scope = {"type": "http", "method": "POST", "path": PATH + direct.source.name, "headers": direct.headers}
        cycle = RequestResponseCycle(
            scope=cast(Any, scope),
            transport=cast(asyncio.Transport, self.transport),
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=direct.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.more_body = False
        cycle.disconnected = self.transport.is_closing()  # then it is counted and kept, and nothing is said
        if self.cycle is direct:
            self.cycle = cycle
        refusal = partial(
            self._door.refuse, error=error, known=direct.source.name, body=direct.body, began=direct.began
        )
        self._start_asgi_task(cycle, cast(Any, refusal))

    def _cut_or_look_again(self) -> None:
        if self.transport.is_closing():
            self.transport.abort()  # closed at the last look or before, and its peer still does not read
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        idle = self.timeout_keep_alive_task is not None  # between two requests: uvicorn's own timer runs
        if not answering and not idle and self._begun == self._begun_seen:
            self.transport.close()
        self._begun_seen = -1 if answering or idle else self._begun
        self._look = self.loop.call_later(HEAD_SECONDS_MAX, self._cut_or_look_again)
