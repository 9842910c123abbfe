"""Every HTTP call to somebody else's server: bounded in time and size, no redirects, failures told apart by what may have arrived.

httpx, since its exceptions say whether anything was sent; its own retries stay off: when to try again is a row in Postgres.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import urlsplit

import httpx

from service.errors import DeliveryFailed
from service.redact import MASK, redact_text

CONNECT_TIMEOUT_SECONDS = 5.0
TIMEOUT_SECONDS = 10.0  # of a whole call, where the caller names none
CONNECTIONS_MAX = 20  # to one origin
# Shorter than what servers usually allow, so that a closing connection is rarely taken for a new call.
KEEPALIVE_SECONDS = 3.0
RESPONSE_BYTES_MAX = 64 * 1024
EXCERPT_CHARS_MAX = 200
RETRY_AFTER_SECONDS_MAX = 3600.0
# 408 Request Timeout, 425 Too Early, 429 Too Many Requests: they say "not now", the other 4xx say "not this".
TRANSIENT_4XX = frozenset({408, 425, 429})
HARMLESS_HEADERS = frozenset({"content-type", "content-encoding", "accept", "accept-encoding", "user-agent"})


@dataclass(frozen=True, slots=True)
class Response:
    """What came back. `body` is bounded; `excerpt` is its start, safe to show and to store."""

    status: int
    host: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    excerpt: str = field(repr=False, default="")


def open_client() -> httpx.AsyncClient:
    """The one client of a process; close it with `aclose()`. Proxies and netrc of the environment are not obeyed:
    they would decide where our tokens go."""
    return httpx.AsyncClient(
        trust_env=False,
        follow_redirects=False,  # a redirect would carry the token, or the payload, to a place nobody configured
        timeout=httpx.Timeout(TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
        transport=OwnConnections(),
        # A response is read raw and bounded, so a small body can not unpack into a large one.
        headers={"user-agent": "authwatch", "accept-encoding": "identity"},
    )


class OwnConnections(httpx.AsyncBaseTransport):
    """To each origin connections of its own: one that takes them all and never answers keeps no other waiting. There
    are as many origins as the configuration names."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str, int | None], httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        origin = (request.url.scheme, request.url.host, request.url.port)
        if origin not in self._of:
            self._of[origin] = httpx.AsyncHTTPTransport(
                verify=_tls(),
                trust_env=False,
                limits=httpx.Limits(
                    max_connections=CONNECTIONS_MAX,
                    max_keepalive_connections=CONNECTIONS_MAX,
                    keepalive_expiry=KEEPALIVE_SECONDS,
                ),
            )
        return await self._of[origin].handle_async_request(request)

    async def aclose(self) -> None:
        for transport in self._of.values():
            await transport.aclose()


@lru_cache(maxsize=1)  # reading the certificates takes a tenth of a second
def _tls() -> ssl.SSLContext:
    """SSL_CERT_FILE and SSL_CERT_DIR are obeyed: a Splunk inside the house is often signed by the house."""
    return httpx.create_ssl_context(trust_env=True)


async def post(
    client: httpx.AsyncClient,
    url: str,
    *,
    content: bytes,
    headers: Mapping[str, str],
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Response:
    """POST once. Raises DeliveryFailed when no whole answer came; `ambiguous` unless certainly nothing was sent."""
    return await call(client, "POST", url, content=content, headers=headers, timeout_seconds=timeout_seconds)


async def call(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    content: bytes | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    response_bytes_max: int = RESPONSE_BYTES_MAX,
) -> Response:
    """One request, once; raises as `post` does. An answer longer than `response_bytes_max` is cut."""
    host = _host(url)
    timeout = httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, CONNECT_TIMEOUT_SECONDS))
    try:
        # httpx bounds each read and write; this bounds them all, against a server that answers a byte at a time.
        async with asyncio.timeout(timeout_seconds):
            async with client.stream(method, url, content=content, headers=dict(headers), timeout=timeout) as answer:
                body = await _read_bounded(answer, response_bytes_max)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
        raise DeliveryFailed(
            f"cannot connect to {host} ({_reason(exc)}); check the address, the port and the network",
            code="connect_failed",
        ) from None
    except (httpx.TimeoutException, TimeoutError):
        raise DeliveryFailed(
            f"{host} did not answer within {timeout_seconds:g} s; it may have taken what we sent",
            code="timeout",
            ambiguous=True,
        ) from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
        # Without the library's text: it quotes the URL or the header.
        raise DeliveryFailed(
            f"the URL or a header for {host} is not valid HTTP; mend its configuration",
            code="request_invalid",
            permanent=True,
        ) from None
    except httpx.TransportError:
        raise DeliveryFailed(
            f"{host} closed the connection before its answer was complete; it may have taken what we sent",
            code="disconnected",
            ambiguous=True,
        ) from None
    return Response(answer.status_code, host, answer.headers, body, _excerpt(body, url, headers))


def raise_for_status(response: Response, *, permanent_statuses: Collection[int] = (), hint: str = "") -> None:
    """2xx passes; else DeliveryFailed. `permanent_statuses` are further ones this destination never takes back;
    `hint` says how to mend it."""
    status = response.status
    if 200 <= status < 300:
        return
    said = f": {response.excerpt}" if response.excerpt else ""
    if 300 <= status < 400:
        raise DeliveryFailed(
            f"{response.host} answered {status}, a redirect, which is not followed; configure the final address",
            code="redirected",
            permanent=True,
            status=status,
        )
    transient = (status in TRANSIENT_4XX or status >= 500) and status not in permanent_statuses
    raise DeliveryFailed(
        f"{response.host} answered {status}{said}{'; ' + hint if hint else ''}",
        code=f"http_{status}",
        permanent=not transient,
        retry_after_seconds=retry_after_seconds(response.headers, datetime.now(UTC)) if transient else None,
        status=status,
    )


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Retry-After as seconds or as an HTTP date, between 0 and RETRY_AFTER_SECONDS_MAX; None when absent or unreadable."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value[:12]), RETRY_AFTER_SECONDS_MAX)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)


async def _read_bounded(answer: httpx.Response, bytes_max: int) -> bytes:
    body = bytearray()
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) >= bytes_max:
            break  # leaving the stream closes the connection
    return bytes(body[:bytes_max])


def _host(url: str) -> str:
    """Only the host: the rest of a URL may be the secret (a webhook's path, a query, user information)."""
    try:
        return urlsplit(url).hostname or "the destination"
    except ValueError:
        return "the destination"


def _reason(exc: Exception) -> str:
    text = str(exc).lower()
    if "certificate" in text or "ssl" in text:
        return "its TLS certificate was not accepted" if "certificate" in text else "no TLS connection"
    if isinstance(exc, httpx.PoolTimeout):
        return "too many calls at once"
    if isinstance(exc, httpx.ConnectTimeout):
        return "no answer"
    if "name" in text or "getaddrinfo" in text or "nodename" in text:
        return "its name is unknown"
    return "refused or unreachable"


def _excerpt(body: bytes, url: str, headers: Mapping[str, str]) -> str:
    """The start of an answer without what we sent in confidence: some servers echo it."""
    text = " ".join(body[: EXCERPT_CHARS_MAX * 8].decode("utf-8", "replace").split())
    parts = urlsplit(url)
    confided = [parts.query, parts.username or "", parts.password or "", parts.path if len(parts.path) > 1 else ""]
    for name, value in headers.items():
        if name.lower() not in HARMLESS_HEADERS:
            confided += [value, *value.split()]
    for value in sorted({v for v in confided if len(v) >= 4}, key=len, reverse=True):
        text = text.replace(value, MASK)
    text = "".join(char if char.isprintable() else " " for char in redact_text(text))
    return text if len(text) <= EXCERPT_CHARS_MAX else text[:EXCERPT_CHARS_MAX] + "..."


def check_url(url: str) -> None:
    """Of a config: ValueError where nothing can be posted to it, without saying what it is, since it may hold a secret."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment or "@" in parts.netloc:
        raise ValueError("not a URL of the form https://host/path")
