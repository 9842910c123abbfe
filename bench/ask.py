"""A lean HTTP connection for measuring from the outside: what it costs must not be most of what it measures."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from bench.house import HOST

ANSWER_SECONDS_MAX = 15
HEAD_BYTES_MAX = 16 * 1024


class Asking:
    """One kept-alive connection; one request at a time. An idle one is opened anew, since the server cuts it."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> None:
        self.close()
        self._streams = await asyncio.open_connection(HOST, self._port, limit=4 * 1024 * 1024)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    def send(self, raw: bytes) -> None:
        assert self._streams is not None, "open() comes first"
        self._streams[1].write(raw)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        assert self._streams is not None, "open() comes first"
        reader = self._streams[0]
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            at = head.find(b"content-length: ")
            length = int(head[at + 16 : head.find(b"\r", at)]) if at >= 0 else 0
            return int(head[9:12]), await reader.readexactly(length)

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        raw = json.dumps(body).encode() if body is not None else b""
        self.send(
            f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\nauthorization: Bearer {self._token}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n".encode()
            + raw
        )
        status, said = await self.answer()
        return status, json.loads(said) if said else None
