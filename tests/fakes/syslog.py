"""A syslog receiver over TLS that reads frames and messages as strictly as RFC 5425 and RFC 5424 are written."""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import socket
import ssl
import termios
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tests.certificates import Authority, Pair

WAIT_SECONDS_MAX = 10.0
MESSAGE_BYTES_MAX = 8192
RECEIVE_BUFFER_BYTES = 64 * 1024  # small, so that a batch fills it when nobody reads
LENGTH = re.compile(rb"[1-9][0-9]{0,6} ")  # NONZERO-DIGIT *DIGIT SP
PRINTUSASCII = "[\x21-\x7e]"
VALUE = r'(?:[^"\\\]]|\\["\\\]])*'  # `"`, `\` and `]` stand only escaped
HEADER = re.compile(
    r"<(?P<priority>0|[1-9][0-9]{0,2})>1 "
    r"(?P<at>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)) "
    rf"(?P<host>{PRINTUSASCII}{{1,255}}) (?P<app>{PRINTUSASCII}{{1,48}}) "
    rf"(?P<process>{PRINTUSASCII}{{1,128}}) (?P<kind>{PRINTUSASCII}{{1,32}}) "
    rf"\[(?P<sd_id>[^\x00-\x20=\]\"\x7f]{{1,32}})(?P<data>(?: [^\x00-\x20=\]\"\x7f]{{1,32}}=\"{VALUE}\")*)\] ",
    re.ASCII,
)
PARAMETER = re.compile(rf' ([^ =]+)="({VALUE})"')
# What it does to a new connection instead of listening to it.
Mood = Literal["well", "plain", "silent", "hangs up", "talks", "deaf"]


@dataclass(frozen=True)
class Message:
    facility: int
    severity: int
    at: str
    host: str
    app: str
    process: str
    kind: str
    sd_id: str
    data: dict[str, str]
    item: dict[str, Any]
    octets: int
    marked: bool  # it had a byte order mark


def read(raw: bytes) -> Message:
    """Raises AssertionError where it is no message of RFC 5424 with JSON in it."""
    assert len(raw) <= MESSAGE_BYTES_MAX, f"{len(raw)} octets"
    text = raw.decode()
    found = HEADER.match(text)
    assert found, f"no header: {text[:200]!r}"
    assert int(found["priority"]) <= 191
    rest = text[found.end() :]
    data = {name: re.sub(r'\\(["\\\]])', r"\1", value) for name, value in PARAMETER.findall(found["data"])}
    facility, severity = divmod(int(found["priority"]), 8)
    return Message(
        facility=facility,
        severity=severity,
        at=found["at"],
        host=found["host"],
        app=found["app"],
        process=found["process"],
        kind=found["kind"],
        sd_id=found["sd_id"],
        data=data,
        item=json.loads(rest.removeprefix("\ufeff")),
        octets=len(raw),
        marked=rest.startswith("\ufeff"),
    )


class Listening(asyncio.Protocol):
    def __init__(self, fake: FakeSyslog) -> None:
        self._fake = fake
        self._rest = b""
        self._transport: asyncio.Transport
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._fake.open[self] = self._transport
        self._fake.connections += 1
        if self._fake.mood == "hangs up":
            self._transport.close()
        elif self._fake.mood == "talks":
            self._transport.write(b"220 mail.example ESMTP\r\n")
        elif self._fake.mood == "deaf":
            self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        fake = self._fake
        if fake.abort_after is not None:
            fake.abort_after -= len(data)
            if fake.abort_after <= 0:
                fake.abort_after = None
                self._transport.abort()
                return
        self._rest += data
        while found := LENGTH.match(self._rest):
            end = found.end() + int(found[0])
            if len(self._rest) < end:
                return
            message, self._rest = self._rest[found.end() : end], self._rest[end:]
            fake.wire.append(message.decode())
            try:
                fake.messages.append(read(message))
            except (AssertionError, ValueError) as exc:
                fake.faults.append(str(exc))
        if len(self._rest) > 8 or (self._rest and not self._rest.isdigit()):
            fake.faults.append(f"no frame: {self._rest[:40]!r}")
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fake.open.pop(self, None)
        if not self.ended.done():
            self.ended.set_result(None)


class FakeSyslog:
    """It runs in a thread of its own, since who asks it what it holds does so without waiting for the loop."""

    def __init__(self, authority: Authority, pair: Pair) -> None:
        self._authority, self._pair = authority, pair
        self.messages: list[Message] = []
        self.wire: list[str] = []
        self.faults: list[str] = []
        self.mood: Mood = "well"
        self.abort_after: int | None = None  # bytes, after which it breaks off the connection, once
        self.connections = 0
        self.open: dict[Listening, asyncio.Transport] = {}
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair.certificate, pair.key)

    @property
    def ca_file(self) -> Path:
        return self._authority.file

    def use(self, pair: Pair) -> None:
        """Another certificate, from the next handshake on."""
        self._context.load_cert_chain(pair.certificate, pair.key)

    def want_certificate(self) -> None:
        self._context.load_verify_locations(self._authority.file)
        self._context.verify_mode = ssl.CERT_REQUIRED

    def hang_up(self) -> None:
        """On everybody who is connected; returns when that is on its way."""
        self._run(self._close)

    def settled(self) -> None:
        """Returns when all that has arrived is read."""
        self._run(self._read_all)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._start(), self._loop))
            yield f"https://127.0.0.1:{self.port}"
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._stop(), self._loop))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()
        assert self.faults == []

    async def _start(self) -> None:
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        held.bind(("127.0.0.1", 0))
        self._server = await self._loop.create_server(self._protocol(), sock=held, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    def _protocol(self) -> Callable[[], Listening]:
        return lambda: Listening(self)

    async def be(self, mood: Mood) -> None:
        """Plain and silent are not spoken by a TLS server: another one takes its port."""
        self.mood = mood
        if mood in ("plain", "silent"):
            self._server.close()
            again = await asyncio.start_server(self._no_tls, "127.0.0.1", self.port)
            self._server = again

    def turn(self, mood: Mood) -> None:
        asyncio.run_coroutine_threadsafe(self.be(mood), self._loop).result(WAIT_SECONDS_MAX)

    async def _no_tls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.mood == "plain":
                writer.write(b"220 mail.example ESMTP\r\n")
            while await reader.read(4096):
                pass
        finally:
            writer.close()

    async def _close(self) -> None:
        for transport in [*self.open.values()]:
            transport.close()

    async def _close_all(self) -> None:
        lasting = [protocol.ended for protocol in self.open]
        await self._close()
        if lasting:
            await asyncio.wait(lasting, timeout=WAIT_SECONDS_MAX)

    async def _stop(self) -> None:
        self._server.close()
        await self._close_all()
        me = asyncio.current_task()
        for task in [task for task in asyncio.all_tasks(self._loop) if task is not me]:
            task.cancel()
            await asyncio.wait({task})

    async def _read_all(self) -> None:
        quiet = 0
        while quiet < 5:
            waiting = 0
            for transport in list(self.open.values()):
                held = transport.get_extra_info("socket")
                if held is not None and held.fileno() >= 0:
                    waiting += int.from_bytes(fcntl.ioctl(held.fileno(), termios.FIONREAD, b"\0\0\0\0"), "little")
            quiet = 0 if waiting else quiet + 1
            await asyncio.sleep(0)

    def _run(self, what: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(what(), self._loop).result(WAIT_SECONDS_MAX)
