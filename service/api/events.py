"""`GET /v1/events` and `GET /v1/events/{id}`."""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.http import (
    Call,
    Instant,
    Strict,
    Text,
    cursor_instant,
    cursor_position,
    read_cursor,
    read_query,
    runtime_of,
    safe_json,
    write_cursor,
)
from service.errors import NotFound
from service.redact import redact
from service.store import accounts, events, log
from service.store.session import begin

LIMIT_MAX = 1000


class EventsQuery(Strict):
    account_id: Text | None = None
    connection_id: Text | None = None
    type: Text | None = None
    kind: Text | None = None
    source: Text | None = None
    since: Instant | None = Field(None, description="occurred_at at or after this time")
    until: Instant | None = Field(None, description="occurred_at before this time")
    limit: int = Field(100, ge=1, le=LIMIT_MAX)
    cursor: Text | None = None


async def list_events(request: Request) -> Response:
    query = read_query(request, EventsQuery)
    before = read_cursor("events", query.cursor, cursor_instant, cursor_position) if query.cursor else None
    async with begin(runtime_of(request).engine) as conn:
        account_id, source, environment_id = query.account_id, query.source, None
        if account_id is not None:
            account = await accounts.find(conn, account_id)
            if account is not None:
                account_id, source, environment_id = (
                    account.key.account_id,
                    account.key.source,
                    account.key.environment_id or None,
                )
                if query.source not in (None, source):
                    return JSONResponse({"items": [], "next_cursor": None})
        found = await events.search(
            conn,
            account_id=account_id,
            source=source,
            environment_id=environment_id,
            connection_id=query.connection_id,
            type_=query.type,
            kind=query.kind,
            since=query.since,
            until=query.until,
            before=(before[0], before[1]) if before else None,
            limit=query.limit + 1,
        )
    items = found[: query.limit]
    more = len(found) > query.limit
    cursor = write_cursor("events", items[-1].occurred_at.isoformat(), items[-1].position) if more else None
    return JSONResponse({"items": [event.to_json() for event in items], "next_cursor": cursor})


async def get_event(request: Request) -> Response:
    event_id = as_uuid(request.path_params["id"])
    async with begin(runtime_of(request).engine) as conn:
        event = await events.load(conn, event_id) if event_id else None
        receipt = await log.receipt_of(conn, event_id) if event and event_id else None
    if event is None:
        raise NotFound("no event of that id", code="unknown_event")
    payload = payload_of(receipt.body) if receipt else redact(dict(event.details or {}))
    return safe_json(
        event.to_json() | {"payload": payload, "details": redact(dict(event.details)) if event.details else None}
    )


def payload_of(body: bytes) -> Any:
    """As sent, token-like fields masked; null when it cannot be read (a quarantined receipt)."""
    try:
        return redact(json.loads(body, parse_constant=lambda _: None, parse_float=number))
    except (ValueError, RecursionError):
        return None


def number(digits: str) -> float | None:
    """`1e999` is JSON, but the infinity that Python reads in it is not."""
    value = float(digits)
    return value if math.isfinite(value) else None


def as_uuid(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


CALLS = (
    Call("GET", "/v1/events", list_events, "read", "Events, newest occurred_at first", query=EventsQuery),
    Call("GET", "/v1/events/{id}", get_event, "read", "One event with its payload, token-like fields masked"),
)
