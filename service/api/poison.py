"""`GET /v1/siem/poison`: what sinks refused for good, and so is missing in their SIEM."""

from __future__ import annotations

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.http import (
    Call,
    Strict,
    Text,
    cursor_instant,
    cursor_position,
    cursor_text,
    read_cursor,
    read_query,
    runtime_of,
    write_cursor,
)
from service.event import rfc3339
from service.store import shipping
from service.store.session import begin

LIMIT_MAX = 1000


class PoisonQuery(Strict):
    sink: Text | None = None
    limit: int = Field(100, ge=1, le=LIMIT_MAX)
    cursor: Text | None = None


async def list_poison(request: Request) -> Response:
    """Newest first. The event itself is at `/v1/events/{event_id}` while the log holds it."""
    query = read_query(request, PoisonQuery)
    before = (
        read_cursor("poison", query.cursor, cursor_instant, cursor_text, cursor_position)
        if query.cursor is not None
        else None
    )
    async with begin(runtime_of(request).engine) as conn:
        rows = await shipping.put_aside(
            conn,
            sink=query.sink,
            before=(before[0], before[1], before[2]) if before else None,
            limit=query.limit + 1,
        )
    page, more = rows[: query.limit], len(rows) > query.limit
    items = [
        {
            "sink": row.reader.removeprefix(shipping.PREFIX),
            "position": row.position,
            "event_id": row.event_row_id,
            "reason": row.reason,
            "at": rfc3339(row.at),
        }
        for row in page
    ]
    last = page[-1] if page else None
    cursor = write_cursor("poison", last.at.isoformat(), last.reader, last.position) if more and last else None
    return JSONResponse({"items": items, "next_cursor": cursor})


CALLS = (
    Call("GET", "/v1/siem/poison", list_poison, "siem", "What sinks refused for good, put aside", query=PoisonQuery),
)
