"""What every call of /v1 shares: who is asking, reading query and body strictly, durations, cursors."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

from msgspec import Struct
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import BadRequest, Forbidden, RequestTimeout, TooLarge, Unauthorized
from service.runtime import Runtime
from service.store import tokens
from service.store.session import begin
from service.store.tokens import SCOPES, Token

JSON_BYTES_MAX = 1024 * 1024
JSON_SECONDS_MAX = 10
CURSOR_CHARS_MAX = 10_000  # three ids of 512 characters, each up to four bytes, as base64
POSITION_MAX = 2**62
DURATION = re.compile(r"(\d{1,9})([smhd])")
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
Handler = Callable[[Request], Awaitable[Response]]


class Strict(BaseModel):
    """Unknown keys are refused: a misspelt filter must not answer as if it filtered."""

    model_config = ConfigDict(extra="forbid")


M = TypeVar("M", bound=BaseModel)


def storable(value: Any) -> Any:
    """Postgres text takes neither NUL nor lone surrogates."""
    if isinstance(value, str) and ("\x00" in value or any("\ud800" <= char <= "\udfff" for char in value)):
        raise ValueError("has a character that cannot be stored")
    return value


Text = Annotated[str, BeforeValidator(storable)]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of /v1 as its handler declares it; `routes.py` makes the route and OpenAPI from the same value."""

    method: str
    path: str
    handler: Handler
    scope: str | None
    summary: str
    query: type[BaseModel] | None = None
    body: type[BaseModel | Struct] | None = None
    ok: int = 200
    media_type: str = "application/json"
    or_media_types: tuple[str, ...] = ()  # for who asks for them by Accept
    statuses: tuple[int, ...] = ()  # beside those of every call
    checks_token: bool = False  # its handler does, in the same look at the database as its answer


def runtime_of(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


def guarded(call: Call) -> Handler:
    """401 without a token, 403 outside its scopes."""

    async def endpoint(request: Request) -> Response:
        if call.scope is not None and not call.checks_token:
            request.state.actor, request.state.scopes = await authorize(request, call.scope)
        return await call.handler(request)

    return endpoint


async def authorize(request: Request, scope: str) -> tuple[str, frozenset[str]]:
    """The name of who asks, and every scope that they have."""
    runtime = runtime_of(request)
    digest = presented(request)
    if digest is None:
        return "admin", frozenset(SCOPES)
    async with begin(runtime.engine) as conn:
        token = await tokens.find(conn, digest)
        if token is not None:
            await tokens.used(conn, token.id)
    runtime.verified.told(digest, token)
    return allowed(token, scope)


def presented(request: Request) -> bytes | None:
    """The hash of the token that came with it, not looked up yet; None: the admin's own. Raises Unauthorized."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    text = text.strip()
    if scheme.lower() != "bearer" or not text or len(text) > 500:
        raise Unauthorized("send `Authorization: Bearer TOKEN`; make a token with `authwatch tokens create`")
    admin = runtime_of(request).settings.admin_token
    if admin is not None and hmac.compare_digest(
        text.encode("utf-8", "surrogatepass"), admin.get_secret_value().encode()
    ):
        return None
    return tokens.digest(text)


def allowed(token: Token | None, scope: str) -> tuple[str, frozenset[str]]:
    """Name and scopes of a token as the database knows it. Raises Unauthorized, Forbidden."""
    if token is None:
        raise Unauthorized("this token is not known, or was revoked", code="token_unknown")
    if scope not in token.scopes:
        raise Forbidden(
            f'this call needs the scope "{scope}"; the token has {", ".join(sorted(token.scopes)) or "none"}',
            code="scope_missing",
        )
    return token.name, token.scopes


def read_query(request: Request, model: type[M]) -> M:
    seen: dict[str, str] = {}
    for key, value in request.query_params.multi_items():
        if key in seen:
            raise BadRequest(f'"{key[:50]}" is given twice', code="invalid_query")
        seen[key] = value
    return validate(model, seen, "query")


async def read_body(request: Request, *, bytes_max: int = JSON_BYTES_MAX) -> bytes:
    """The raw bytes; TooLarge as soon as there are more than that, RequestTimeout when they do not come in time."""
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(JSON_SECONDS_MAX):
            async for chunk in request.stream():
                size += len(chunk)
                if size > bytes_max:
                    raise TooLarge(f"the body is larger than {bytes_max} bytes", code="body_too_large")
                chunks.append(chunk)
    except TimeoutError as exc:
        raise RequestTimeout("the body did not arrive in time") from exc
    except ClientDisconnect as exc:
        raise BadRequest("the sender hung up", code="client_disconnected") from exc
    return b"".join(chunks)


async def read_json(request: Request, model: type[M], *, optional: bool = False) -> M:
    raw = await read_body(request)
    if not raw and optional:
        return validate(model, {}, "body")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise BadRequest("the body is not JSON", code="invalid_json") from exc
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_body")
    return validate(model, value, "body")


def validate(model: type[M], value: Mapping[str, Any], what: str) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        error = exc.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in error["loc"])[:100]
        if error["type"] == "extra_forbidden":
            raise BadRequest(
                f'{what}: "{where}" is not known; known: {", ".join(model.model_fields)}', code=f"invalid_{what}"
            ) from exc
        said = error["msg"].removeprefix("Value error, ")
        raise BadRequest(f"{what}: {where}: {said}", code=f"invalid_{what}") from exc


def path_text(request: Request, name: str) -> str:
    value = str(request.path_params[name])
    try:
        return str(storable(value))
    except ValueError as exc:
        raise BadRequest(f"the {name} in the path cannot be stored", code="invalid_path") from exc


def aware(value: Any) -> Any:
    """RFC 3339 with an offset; a time without one would mean something else to everyone."""
    if isinstance(value, str):
        try:
            # A `+` in a query string arrives as a space.
            parsed = datetime.fromisoformat(value.strip().replace(" ", "+"))
        except ValueError:
            raise ValueError("write a time such as 2026-11-24T02:00:00Z") from None
        if parsed.tzinfo is None:
            raise ValueError("needs an offset, such as Z")
        try:
            return parsed.astimezone(UTC)
        except OverflowError:
            raise ValueError("is outside the years 1 to 9999") from None
    return value


Instant = Annotated[datetime, BeforeValidator(aware)]


def duration(value: Any) -> Any:
    """`30s`, `10m`, `2h`, `1d`, or seconds as a number."""
    if isinstance(value, str):
        match = DURATION.fullmatch(value)
        if match is None:
            raise ValueError("write a duration such as 30s, 10m, 2h or 1d")
        return timedelta(seconds=int(match[1]) * UNIT_SECONDS[match[2]])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("write a duration such as 30s, 10m, 2h or 1d")
    try:
        return timedelta(seconds=value)
    except OverflowError:
        raise ValueError("is too long") from None


Duration = Annotated[timedelta, BeforeValidator(duration)]


def safe_json(value: Any, *, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """For what came from outside: escaped, so that a lone surrogate a provider sent cannot break the answer."""
    return Response(
        json.dumps(value, ensure_ascii=True), status_code=status_code, media_type="application/json", headers=headers
    )


def write_cursor(resource: str, *parts: object) -> str:
    """Opaque, versioned and bound to its resource."""
    written = json.dumps(["v1", resource, *parts], ensure_ascii=False)
    return base64.urlsafe_b64encode(written.encode()).decode().rstrip("=")


def read_cursor(resource: str, cursor: str, *kinds: Callable[[Any], Any]) -> list[Any]:
    """Its parts, each as its kind reads it; whoever makes a cursor up is told so, whatever is in it."""
    try:
        if len(cursor) > CURSOR_CHARS_MAX:
            raise ValueError
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(parts, list) or parts[:2] != ["v1", resource] or len(parts) != len(kinds) + 2:
            raise ValueError
        return [kind(part) for kind, part in zip(kinds, parts[2:], strict=True)]
    except (ValueError, RecursionError) as exc:
        raise BadRequest("this cursor is not one of ours; start again without it", code="invalid_cursor") from exc


def cursor_text(part: Any) -> str:
    if not isinstance(part, str):
        raise ValueError
    return str(storable(part))


def cursor_instant(part: Any) -> datetime:
    at: datetime = aware(cursor_text(part))
    return at


def cursor_position(part: Any) -> int:
    if not isinstance(part, int) or isinstance(part, bool) or not 0 <= part < POSITION_MAX:
        raise ValueError
    return part


def cursor_id(part: Any) -> str:
    return str(uuid.UUID(cursor_text(part)))


__all__ = [
    "SCOPES",
    "Call",
    "Duration",
    "Instant",
    "Strict",
    "Text",
    "guarded",
    "read_body",
    "read_json",
    "read_query",
    "runtime_of",
    "safe_json",
]
