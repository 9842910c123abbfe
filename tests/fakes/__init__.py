"""Other companies' servers, rebuilt strictly for tests; `serve` runs any of them on a free loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

START_SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 5.0

Message = MutableMapping[str, Any]
AsgiApp = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


class _Server(uvicorn.Server):
    """Uvicorn inside the test's own loop: signals stay with pytest."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    async def main_loop(self) -> None:
        """Uvicorn's own, looking ten times as often whether to stop: a suite starts hundreds of these."""
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864_000
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Without uvicorn's pause of a tenth of a second where nobody is connected any more."""
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
        else:
            for server in self.servers:
                server.close()


@contextlib.asynccontextmanager
async def serve(app: AsgiApp, *, port: int = 0) -> AsyncIterator[str]:
    """Run an ASGI app in this loop; yields `http://127.0.0.1:PORT`. Pass `port` to come back where one was before."""
    # The protocol is named because asyncio sets TCP_NODELAY only then; without it every answer takes 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(START_SECONDS_MAX):
            while not server.started:
                if running.done():
                    await running  # raises what kept it from starting
                    raise RuntimeError("the fake server ended before it started")
                await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await running
        finally:
            listener.close()
