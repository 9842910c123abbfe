"""A wire that can be cut: a TCP proxy between our processes and a server, which stalls, resets and swallows."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

HOST = "127.0.0.1"
CHUNK_BYTES = 64 * 1024
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, no time: closing sends RST


class Wire:
    """Forwards to `port`. What was opened through it lives until an end closes it, or the wire is reset."""

    def __init__(self, port: int) -> None:
        self.target_port = port
        self.port = 0
        self._through = asyncio.Event()
        self._through.set()
        self._swallowing = False
        self._ends: set[asyncio.StreamWriter] = set()
        self._lost: set[asyncio.StreamWriter] = set()

    async def stall(self, seconds: float) -> None:
        """Nothing arrives for a while, then all of it does: not even that the other end has died."""
        self._through.clear()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._through.set()

    async def reset(self) -> None:
        cut(self._ends)

    def lose(self) -> None:
        """Those that are open now never hear anything again; new ones are as always. So does a proxy that has hung."""
        self._lost |= self._ends

    async def blackhole(self, seconds: float) -> None:
        """What is sent is lost without a word, for old connections and new ones; after it each of them is reset, as a
        host does that is asked about a connection it does not know."""
        self._swallowing = True
        self.lose()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._swallowing = False
            cut(self._lost)
            self._lost.clear()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its opening to its end."""
        self._take(writer)
        other: asyncio.StreamWriter | None = None
        try:
            if self._swallowing:
                self._lost.add(writer)
                await reader.read(-1)  # until we reset it, or its end gives up
                return
            await self._through.wait()
            back, other = await asyncio.open_connection(HOST, self.target_port)
            self._take(other)
            pumps = [asyncio.create_task(self._pump(reader, other)), asyncio.create_task(self._pump(back, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the server is not there: its client sees a reset
        finally:
            for end in (writer, other):
                if end is not None:
                    self._ends.discard(end)
                    self._lost.discard(end)
                    end.transport.abort()

    def _take(self, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        self._ends.add(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self._through.wait()
                if writer not in self._lost:
                    writer.write(chunk)
                    await writer.drain()
            await self._through.wait()


def cut(ends: set[asyncio.StreamWriter]) -> None:
    for end in list(ends):
        end.transport.abort()


@asynccontextmanager
async def open_wire(port: int) -> AsyncIterator[Wire]:
    wire = Wire(port)
    server = await asyncio.start_server(wire.carry, HOST, 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        cut(wire._ends)
        await server.wait_closed()
