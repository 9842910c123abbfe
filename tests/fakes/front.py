"""One server for a whole file of tests, in a thread of its own, in front of the fake of the test that runs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from tests.fakes import START_SECONDS_MAX, STOP_SECONDS_MAX, AsgiApp, serve


class Front:
    """Set `app` to the fake that should answer now. A server for each test would cost them all a fifth of a second."""

    app: AsgiApp
    url: str

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@contextlib.contextmanager
def standing() -> Iterator[Front]:
    front, loop = Front(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = serve(front)
    try:
        front.url = asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(START_SECONDS_MAX)
        yield front
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(2 * STOP_SECONDS_MAX)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
