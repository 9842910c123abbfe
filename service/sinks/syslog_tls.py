"""One TLS connection to a syslog receiver: opened with every check, watched while it is idle, written to the last byte.

A receiver says nothing, ever. So what can be known is read off the connection: its end, an alert of TLS, and how many of
our bytes the other kernel has not confirmed.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import ssl
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from service.errors import DeliveryFailed
from service.outbound import CONNECT_TIMEOUT_SECONDS

# Under TLS 1.3 a server looks at our certificate after the handshake is over for us: its refusal comes this late.
SETTLE_SECONDS = 0.1
CLOSE_SECONDS_MAX = 2.0
LOOK_SECONDS = 0.001  # between two looks at what is unconfirmed; doubled up to the next
LOOK_SECONDS_MAX = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    host: str
    port: int
    server_name: str
    check_server_name: bool = True
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Connection:
    """`open` it; a write that failed leaves half a frame behind: `abort` it then."""

    def __init__(
        self,
        endpoint: Endpoint,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        raw: asyncio.WriteTransport,
    ) -> None:
        self._endpoint = endpoint
        self._writer = writer
        self._raw = raw
        self._socket: socket.socket = raw.get_extra_info("socket")
        self._end = asyncio.create_task(self._watch(reader), name=f"syslog {endpoint}")

    @classmethod
    async def open(cls, endpoint: Endpoint, timeout_seconds: float) -> Connection:
        """Raises DeliveryFailed, never ambiguous. A certificate or a file of ours that is wrong is permanent."""
        context = await asyncio.to_thread(_context, endpoint)  # files are read anew: certificates are renewed
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(min(timeout_seconds, CONNECT_TIMEOUT_SECONDS)):
                reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            raw = writer.transport
            raw.set_write_buffer_limits(high=0)
            async with asyncio.timeout(min(timeout_seconds, CONNECT_TIMEOUT_SECONDS)):
                await writer.start_tls(context, server_hostname=endpoint.server_name)
        except BaseException as exc:
            if writer is not None:
                writer.transport.abort()
            if not isinstance(exc, OSError | TimeoutError):
                raise
            _raise_of_opening(endpoint, exc, began=writer is not None)
        writer.transport.set_write_buffer_limits(high=1, low=0)  # asyncio's TLS pauses for ever at 0
        connection = cls(endpoint, reader, writer, raw)
        try:
            await asyncio.wait({connection._end}, timeout=SETTLE_SECONDS)
            if connection._end.done():
                connection._raise_of_end(sent=False)
        except BaseException:
            connection.abort()
            raise
        return connection

    @property
    def version(self) -> str:
        found: ssl.SSLObject = self._writer.get_extra_info("ssl_object")
        return found.version() or "TLS"

    async def stands(self) -> bool:
        """Whether the other side has not ended it meanwhile, as far as our kernel knows."""
        if not self._end.done() and self._readable():
            await asyncio.wait({self._end}, timeout=SETTLE_SECONDS)
        return not self._end.done()

    async def put(self, chunk: bytes, until: float) -> None:
        """Whole frames. `until`: of the loop's clock. Raises DeliveryFailed, always ambiguous."""
        try:
            async with asyncio.timeout_at(until):
                self._writer.write(chunk)
                await self._writer.drain()
        except TimeoutError:
            self._raise_late()
        except OSError:
            self._raise_of_end(sent=True)
        if self._end.done():
            self._raise_of_end(sent=True)

    async def confirm(self, until: float) -> None:
        """Returns when the other kernel has every byte and the connection stands; raises as `put` does."""
        look = LOOK_SECONDS
        while self._unconfirmed() and not self._end.done():
            if asyncio.get_running_loop().time() >= until:
                self._raise_late()
            await asyncio.wait({self._end}, timeout=look)
            look = min(look * 2, LOOK_SECONDS_MAX)
        if not await self.stands():
            self._raise_of_end(sent=True)

    async def close(self) -> None:
        """With the close_notify that TLS asks for; bounded, since the other side need not answer it."""
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self._writer.wait_closed()
        self.abort()

    def abort(self) -> None:
        self._end.cancel()
        self._writer.transport.abort()

    async def _watch(self, reader: asyncio.StreamReader) -> bytes | OSError:
        """Ends with what ended the connection: nothing, an error, or a word that a receiver never says."""
        try:
            return await reader.read(1)
        except OSError as exc:
            return exc
        finally:
            self._writer.close()  # theirs is shut: ours is not left open until the next batch

    def _readable(self) -> bool:
        if self._socket.fileno() < 0:
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket.fileno(), selectors.EVENT_READ)
            return bool(selector.select(0))

    def _unconfirmed(self) -> int:
        """Bytes: with us, and on Linux in the kernel until the other one has confirmed them."""
        ours = self._raw.get_write_buffer_size()
        if ours == 0 and sys.platform == "linux" and self._socket.fileno() >= 0:
            import fcntl
            import termios

            answer = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")  # SIOCOUTQ of tcp(7)
            return int.from_bytes(answer, sys.byteorder)
        return ours

    def _raise_late(self) -> NoReturn:
        raise DeliveryFailed(
            f"{self._endpoint} did not take a batch in time; it may have taken a part of it",
            code="timeout",
            ambiguous=True,
        ) from None

    def _raise_of_end(self, *, sent: bool) -> NoReturn:
        ended: bytes | OSError = b""
        if self._end.done() and not self._end.cancelled():
            ended = self._end.result()
        if isinstance(ended, ssl.SSLError) and not sent:
            raise DeliveryFailed(
                f"{self._endpoint} ended the connection: {_alert(ended)}; it wants a certificate of ours: see"
                " client_certificate_file and client_key_file",
                code="certificate_refused",
                permanent=True,
            ) from None
        if ended and isinstance(ended, bytes):
            raise DeliveryFailed(
                f"{self._endpoint} said something, and a syslog receiver is silent; check the sink's host and port",
                code="answer_unexpected",
                ambiguous=sent,
            ) from None
        raise DeliveryFailed(
            f"{self._endpoint} closed the connection"
            + (
                "; it may have taken a part of the batch"
                if sent
                else " before anything was sent; does it want a certificate of ours (client_certificate_file)?"
            ),
            code="disconnected",
            ambiguous=sent,
        ) from None


def _context(endpoint: Endpoint) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=endpoint.ca_file)
    except OSError as exc:
        _raise_of_file("ca_file", exc)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = endpoint.check_server_name
    if endpoint.certificate_file is not None:
        try:
            # A key with a passphrase would be asked for at the terminal; there is none here.
            context.load_cert_chain(endpoint.certificate_file, endpoint.key_file, password=lambda: "")
        except OSError as exc:
            _raise_of_file("client_certificate_file or client_key_file", exc)
    return context


def _raise_of_file(setting: str, exc: OSError) -> NoReturn:
    why = "it is no PEM file that fits" if isinstance(exc, ssl.SSLError) else (exc.strerror or type(exc).__name__)
    raise DeliveryFailed(
        f"{setting} cannot be used: {why}; name a PEM file that this user can read",
        code="tls_file_unusable",
        permanent=True,
    ) from None


def _raise_of_opening(endpoint: Endpoint, exc: OSError | TimeoutError, *, began: bool) -> NoReturn:
    if isinstance(exc, ssl.SSLCertVerificationError):
        raise DeliveryFailed(
            f"the certificate of {endpoint} was not accepted: {exc.verify_message}; check ca_file, and server_name"
            f" (now {endpoint.server_name})",
            code="certificate_invalid",
            permanent=True,
        ) from None
    if isinstance(exc, ssl.SSLError):
        raise DeliveryFailed(
            f"no TLS with {endpoint}: {_alert(exc)}; does it speak TLS on this port, and does it take our certificate?",
            code="tls_failed",
        ) from None
    if began:
        why = (
            "it did not answer the TLS handshake" if isinstance(exc, TimeoutError) else "it closed in the TLS handshake"
        )
    elif isinstance(exc, socket.gaierror):
        why = "its name is unknown"
    else:
        why = "no answer" if isinstance(exc, TimeoutError) else "refused or unreachable"
    raise DeliveryFailed(
        f"cannot connect to {endpoint} ({why}); check the host, the port and the network", code="connect_failed"
    ) from None


def _alert(exc: ssl.SSLError) -> str:
    return (exc.reason or "no reason given").replace("_", " ").lower()
