"""Errors as RFC 9457 problem details; the one place where an error class meets an HTTP status."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from service import errors
from service.observe import log

MEDIA_TYPE = "application/problem+json"
STATUSES: dict[type[errors.AuthwatchError], int] = {
    errors.SignatureInvalid: 401,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.RequestTimeout: 408,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.TooLarge: 413,
    errors.BadRequest: 400,
    errors.RateLimited: 429,
    errors.Unavailable: 503,
}
TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    410: "Gone",
    413: "Content too large",
    429: "Too many requests",
    500: "Internal error",
    503: "Service unavailable",
}
# The connection is not kept after these: part of the request may still be on its way.
CLOSING = frozenset({408, 413})
LINGER_BYTES_MAX = 8 * 1024 * 1024
LINGER_SECONDS_MAX = 2.0


def status_of(exc: errors.AuthwatchError) -> int:
    for kind in type(exc).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return 500


def problem(
    status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **extra: object
) -> Response:
    body = {
        "type": f"urn:authwatch:problem:{code}",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "code": code,
        **extra,
    }
    if status in CLOSING:
        return Lingering(
            body, status_code=status, media_type=MEDIA_TYPE, headers={**(headers or {}), "Connection": "close"}
        )
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


class Lingering(JSONResponse):
    """An answer given before the request was read to its end; the connection is closed after it.

    Closing at once would reset the connection while the sender still writes, and the answer would be lost with it. So a
    bounded part of the rest is thrown away unread first (what nginx calls a lingering close).
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        # Who waits for "100 Continue" sends nothing until told to.
        if not any(name == b"expect" for name, _ in scope["headers"]):
            await throw_away(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def throw_away(receive: Receive) -> None:
    left = LINGER_BYTES_MAX
    try:
        async with asyncio.timeout(LINGER_SECONDS_MAX):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b"")) or 1
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def on_authwatch_error(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, errors.AuthwatchError)
    status = status_of(exc)
    headers: dict[str, str] = {}
    if isinstance(exc, errors.Unavailable):
        headers["Retry-After"] = str(exc.retry_after_seconds)
    if isinstance(exc, errors.Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="authwatch"'
    if status == 500:
        log.error("request.failed", code=exc.code)
        return problem(500, "internal_error", "something went wrong here; it is logged")
    return problem(status, exc.code, str(exc), headers=headers, **getattr(exc, "extra", {}))


async def on_http_exception(_request: Request, exc: Exception) -> Response:
    """Starlette's own 404 and 405."""
    assert isinstance(exc, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(exc.status_code, "http_error")
    return problem(exc.status_code, code, str(exc.detail), headers=exc.headers)


async def on_unexpected(request: Request, exc: Exception) -> Response:
    """A bug of ours: said as 500 with nothing of its inside, and logged whole."""
    log.error("request.crashed", path=request.scope.get("path", "")[:200], error=type(exc).__name__, exc_info=exc)
    return problem(500, "internal_error", "something went wrong here; it is logged")
