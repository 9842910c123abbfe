"""Cuts connections that send no request, or the head of one too slowly. uvicorn cuts only those idle after an answer;
a slow body is `service/receive.py`'s, which can still answer it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS_MAX = 10  # looked at this often, so a slow head lives at most twice as long
NOTHING: dict[str, Any] = {}


class BoundedProtocol(HttpToolsProtocol):
    """One timer for a connection, not for a request: a look at what has changed since the last one."""

    _look: asyncio.TimerHandle | None = None
    _seen: Any = NOTHING

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
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
