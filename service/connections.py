"""What uvicorn's connections lack: an end to silence and slow heads, and one write for an answer.

uvicorn cuts only connections that are idle after an answer; a slow body is `service/receive.py`'s, which can still
answer it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS_MAX = 10  # looked at this often, so a slow head lives at most twice as long
NOTHING: dict[str, Any] = {}


class OneWrite:
    """A transport whose writes of one turn of the loop go out together.

    uvicorn writes head and body of an answer apart: two system calls and two packets, a tenth of the front door's time.
    """

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._transport.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """One timer for a connection, not for a request: a look at what has changed since the last one."""

    _look: asyncio.TimerHandle | None = None
    _seen: Any = NOTHING

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]
        self._look = self.loop.call_later(HEAD_SECONDS_MAX, self._cut_or_look_again)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _cut_or_look_again(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        idle = self.timeout_keep_alive_task is not None  # between two requests: uvicorn's own timer runs
        if not answering and not idle and (self.scope is None or self.scope is self._seen):
            self.transport.close()
            return
        self._seen = NOTHING if answering or idle else self.scope
        self._look = self.loop.call_later(HEAD_SECONDS_MAX, self._cut_or_look_again)
