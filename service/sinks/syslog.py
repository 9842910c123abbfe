"""Syslog over TLS: RFC 5424 messages, octet-counted as RFC 5425 has it, on one connection that is kept.

The standard library's ssl and asyncio: the known packages are logging handlers, which drop what they cannot send. Syslog
has no acknowledgement. A batch counts as taken when the receiver's kernel has confirmed every byte and the connection still
stands; what a receiver loses after that, nobody tells us. A batch that broke off goes again whole, with the same eventIds.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Sequence
from datetime import UTC
from pathlib import Path
from typing import Literal, Self

import httpx
from pydantic import Field, field_validator, model_validator

from service.event import Event
from service.redact import redact_text
from service.sinks.base import Progress, Sent, SinkConfig, with_breath
from service.sinks.formats import ENCODED
from service.sinks.severity import HIGH, INFORMATIONAL, LOW, MEDIUM, security_severity
from service.sinks.syslog_tls import Connection, Endpoint

BATCH_ITEMS_MAX = 500
WRITE_BYTES = 64 * 1024
# 10, security/authorization (authpriv): that is what these events are about, and receivers keep it apart with few readers
# by default. 13, log audit, is about the log itself, and rsyslog has no name for it.
FACILITY = 10
PORT = 6514  # RFC 5425, 4.1
MESSAGE_BYTES_MAX = 8192  # rsyslog's default; RFC 5425 asks receivers to take 2,048 and wishes for 8,192
# RFC 5612 keeps it for examples; it belongs to nobody, and we have none of our own.
ENTERPRISE_NUMBER = 32473
APP_NAME = "authwatch"
MSGID_CHARS_MAX = 32
HOSTNAME_CHARS_MAX = 255
BOM = b"\xef\xbb\xbf"
# Syslog's severities: 3 error, 4 warning, 5 notice, 6 informational; 0..2 are for a system that fails, which none of this is.
SEVERITIES = {INFORMATIONAL: 6, LOW: 5, MEDIUM: 4, HIGH: 3}
NOT_GRAPHIC = re.compile(r"[^\x21-\x7e]")  # RFC 5424 PRINTUSASCII
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
ESCAPED = re.compile(r'(["\\\]])')  # RFC 5424, 6.3.3


class SyslogConfig(SinkConfig):
    """`ca_file`: the only signers that are believed; none: the system's. `server_name`: the name in the receiver's
    certificate, where it is not `host`."""

    kind: Literal["syslog"] = "syslog"
    name: str = Field(default="syslog", min_length=1, max_length=64)
    host: str = Field(min_length=1, max_length=253, pattern=r"^[0-9A-Za-z.:_-]+$")
    port: int = Field(default=PORT, ge=1, le=65_535)
    ca_file: str | None = Field(default=None, min_length=1)
    client_certificate_file: str | None = Field(default=None, min_length=1)
    client_key_file: str | None = Field(default=None, min_length=1)
    server_name: str | None = Field(default=None, min_length=1, max_length=253)
    check_server_name: bool = True
    facility: int = Field(default=FACILITY, ge=0, le=23)
    hostname: str | None = Field(default=None, min_length=1, max_length=HOSTNAME_CHARS_MAX)
    enterprise_number: int = Field(default=ENTERPRISE_NUMBER, ge=1, le=4_294_967_295)
    byte_order_mark: bool = True
    message_bytes_max: int = Field(default=MESSAGE_BYTES_MAX, ge=2048, le=4_000_000)
    batch_items_max: int = Field(default=BATCH_ITEMS_MAX, ge=1, le=BATCH_ITEMS_MAX)

    @field_validator("hostname")
    @classmethod
    def _hostname_is_graphic(cls, value: str | None) -> str | None:
        if value is not None and NOT_GRAPHIC.search(value):
            raise ValueError("must be printable ASCII without spaces (RFC 5424 HOSTNAME)")
        return value

    @model_validator(mode="after")
    def _key_has_its_certificate(self) -> Self:
        if self.client_key_file is not None and self.client_certificate_file is None:
            raise ValueError("client_key_file needs its client_certificate_file")
        return self


class Syslog:
    """A Sink. Holds one connection between batches, and closes it with `aclose()`."""

    kind = "syslog"

    def __init__(self, config: SyslogConfig, _client: httpx.AsyncClient | None = None) -> None:
        self.name = config.name
        self.batch_items_max = config.batch_items_max
        self._config = config
        self._encoded = ENCODED[config.format]
        self._endpoint = Endpoint(
            host=config.host,
            port=config.port,
            server_name=config.server_name or config.host,
            check_server_name=config.check_server_name,
            ca_file=_path(config.ca_file),
            certificate_file=_path(config.client_certificate_file),
            key_file=_path(config.client_key_file),
        )
        self._hostname = config.hostname or NOT_GRAPHIC.sub("_", socket.gethostname())[:HOSTNAME_CHARS_MAX] or "-"
        self._connection: Connection | None = None
        self._one_at_a_time = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Syslog(name={self.name!r})"

    async def send(self, items: Sequence[Event]) -> Sent:
        progress = Progress()
        async with self._one_at_a_time:
            connection: Connection | None = None
            try:
                async for chunk in self._chunks(items, progress):
                    if connection is None:
                        connection = await self._connected()
                        until = asyncio.get_running_loop().time() + self._config.timeout_seconds
                    await connection.put(chunk, until)
                if connection is not None:
                    await connection.confirm(until)
            except BaseException:
                if connection is not None:
                    connection.abort()  # half a frame may be out: nothing can follow it
                raise
            if connection is not None:
                self._connection = connection
        return progress.sent()

    async def check(self) -> str:
        """A connection of its own, on which nothing is sent."""
        connection = await Connection.open(self._endpoint, self._config.timeout_seconds)
        said = connection.version
        await connection.close()
        return f"{self._config.host}:{self._config.port} accepts a connection ({said}); syslog itself never answers"

    async def aclose(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def _connected(self) -> Connection:
        """The one that is kept, where it still stands; whoever gets it puts it back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if await connection.stands():
                return connection
            connection.abort()
        return await Connection.open(self._endpoint, self._config.timeout_seconds)

    async def _chunks(self, items: Sequence[Event], progress: Progress) -> AsyncIterator[bytes]:
        """Whole frames, `MSG-LEN SP SYSLOG-MSG`, in order, about WRITE_BYTES at a time."""
        chunk = bytearray()
        async for index, event in with_breath(items):
            try:
                message = self._message(event)
            except (ValueError, TypeError) as exc:
                progress.unfit(index, f"cannot be written as JSON: {type(exc).__name__}")
                continue
            if len(message) > self._config.message_bytes_max:
                # Not cut: half a JSON object is read by nobody.
                progress.unfit(
                    index,
                    f"{len(message)} bytes, message_bytes_max is {self._config.message_bytes_max}; raise it here and at"
                    " the receiver (rsyslog: maxMessageSize), then use `authwatch sinks replay`",
                )
                continue
            chunk += b"%d " % len(message) + message
            progress.accepted += 1
            if len(chunk) >= WRITE_BYTES:
                yield bytes(chunk)
                chunk.clear()
        if chunk:
            yield bytes(chunk)

    def _message(self, event: Event) -> bytes:
        """One SYSLOG-MSG of RFC 5424, 6; ValueError or TypeError where the event is no UTF-8 or no JSON."""
        priority = self._config.facility * 8 + SEVERITIES[security_severity(event)]
        at = event.occurred_at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
        data = "".join(
            f' {name}="{_escaped(value)}"'
            for name, value in (
                ("eventId", event.id),
                ("position", str(event.position)),
                ("source", redact_text(event.source)),
                ("format", self._config.format),
            )
        )
        header = (
            f"<{priority}>1 {at}Z {self._hostname} {APP_NAME} {os.getpid()} {_msgid(event.kind)}"
            f" [{APP_NAME}@{self._config.enterprise_number}{data}] "
        )
        mark = BOM if self._config.byte_order_mark else b""
        return header.encode() + mark + self._encoded(event)


def _msgid(kind: str) -> str:
    return NOT_GRAPHIC.sub("_", kind)[:MSGID_CHARS_MAX] or "-"


def _escaped(value: str) -> str:
    return ESCAPED.sub(r"\\\1", CONTROL.sub(" ", value))


def _path(value: str | None) -> Path | None:
    return Path(value) if value is not None else None
