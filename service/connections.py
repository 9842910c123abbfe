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
from service.receive import PATH, FrontDoor, said_of
from service.sources import Source

HEAD_SECONDS_MAX = 10  # looked at this often, so silence and a slow head live at most twice as long
HEAD_BYTES_MAX = 64 * 1024
PIPELINE_MAX = 32  # requests sent behind one that is not yet answered
FRONT_DOOR = "front_door"  # where the lifespan leaves it in the app's state
ROUTE = PATH.encode()
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

    __slots__ = ("_protocol", "began", "body", "disconnected", "headers", "keep_alive", "response_complete", "source")
    message_event = Nobody()

    def __init__(self, protocol: BoundedProtocol, source: Source, headers: list[tuple[bytes, bytes]]) -> None:
        self._protocol = protocol
        self.source = source
        self.headers = headers
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
    _head_bytes = 0
    _begun = 0
    _begun_seen = 0
    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]
        self._door = self.app_state.get(FRONT_DOOR)
        self._look = self.loop.call_later(HEAD_SECONDS_MAX, self._cut_or_look_again)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._direct is not None:  # its body comes in pieces
            direct, self._direct = self._direct, None
            if not self.transport.is_closing():
                self._hand_over()
                if direct.body:
                    super().on_body(direct.body)
        elif self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self.send_400_response("The head of this request is too large.")

    # Parser callbacks

    def on_message_begin(self) -> None:
        """uvicorn's own, which builds the scope, is called once it is known that the request goes uvicorn's way."""
        self.url = b""
        self.headers = []
        self._in_head = True
        self._begun += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what follows a chunked body is nobody's header
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        url, door, parser = self.url, self._door, self.parser
        if (
            door is not None
            and url.startswith(ROUTE)
            and (self.cycle is None or self.cycle.response_complete)
            and not self.pipeline
            and parser.get_method() == b"POST"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and parser.get_http_version() == "1.1"
            and not self.flow.write_paused
            and (source := door.source_at(url)) is not None
        ):
            self._direct = DirectRequest(self, source, self.headers)
        else:
            self._hand_over()

    def on_body(self, body: bytes) -> None:
        if self._direct is not None:
            self._direct.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        direct = self._direct
        if direct is None:
            super().on_message_complete()
            return
        self._direct = None
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
        if self.transport.is_closing():
            return
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
