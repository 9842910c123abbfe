"""The bare loop, the control of every alerting figure: INSERT the event, NOTIFY, and who listens POSTs it at once.

It verifies nothing, judges nothing and forgets what it listened for when it dies: what remains is what any service on
Postgres has to spend. One process, and it posts to the same receiver that ours posts to.
"""

from __future__ import annotations

import asyncio
import json

import psycopg

from bench.ask import Asking
from bench.house import BenchFailed

CONNECTIONS, POSTS_AT_ONCE = 16, 20
CHANNEL = "bare"
TABLE = """
CREATE TABLE IF NOT EXISTS bare_events (
    id text PRIMARY KEY, body bytea NOT NULL, received_at timestamptz NOT NULL DEFAULT clock_timestamp())
"""


class Bare:
    def __init__(self, url: str, slack_port: int) -> None:
        self._url, self._port = url, slack_port
        self._writers: asyncio.Queue[psycopg.AsyncConnection[tuple[object]]] = asyncio.Queue()
        self._askers: asyncio.Queue[Asking] = asyncio.Queue()
        self._posting: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        for _ in range(CONNECTIONS):
            self._writers.put_nowait(await psycopg.AsyncConnection.connect(self._url))
        for _ in range(POSTS_AT_ONCE):
            asking = Asking(self._port, "-")
            await asking.open()
            self._askers.put_nowait(asking)
        ears = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        await ears.execute(TABLE)
        await ears.execute(f"LISTEN {CHANNEL}".encode())
        self._listening = asyncio.create_task(self._listen(ears))

    async def close(self) -> None:
        assert self._listening is not None, "open() comes first"
        self._listening.cancel()
        await asyncio.gather(self._listening, *self._posting, return_exceptions=True)
        while not self._writers.empty():
            await self._writers.get_nowait().close()
        while not self._askers.empty():
            self._askers.get_nowait().close()

    async def take(self, name: str, body: bytes) -> None:
        """Committed and notified of when this returns; `name` is the delivery id of its message, and its alone."""
        conn = await self._writers.get()
        try:
            await conn.execute("INSERT INTO bare_events (id, body) VALUES (%s, %s)", (name, body))
            await conn.execute("SELECT pg_notify(%s, %s)", (CHANNEL, name))
            await conn.commit()
        finally:
            self._writers.put_nowait(conn)

    async def _listen(self, conn: psycopg.AsyncConnection[tuple[object]]) -> None:
        try:
            async for told in conn.notifies():
                task = asyncio.create_task(self._post(told.payload))
                self._posting.add(task)
                task.add_done_callback(self._posting.discard)
        finally:
            await conn.close()

    async def _post(self, name: str) -> None:
        asking = await self._askers.get()
        try:
            status, said = await asking.ask("POST", "/api/chat.postMessage", message(name))
        finally:
            self._askers.put_nowait(asking)
        if status != 200:
            raise BenchFailed(f"the receiver answered the bare loop {status}: {json.dumps(said)}")


def message(name: str) -> dict[str, object]:
    return {"channel": CHANNEL, "text": name, "metadata": {"event_payload": {"delivery_id": name}}}
