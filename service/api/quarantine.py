"""`GET /v1/quarantine` and `GET /v1/quarantine/rejected`: what was put aside and what was refused, by metadata alone.

No body and no header is shown here: a quarantined one has its receipt at `/v1/events/{id}/receipt`, and what an unknown
caller sent is nobody's to read.
"""

from __future__ import annotations

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
    write_cursor,
)
from service.event import rfc3339
from service.rejections import diagnosis
from service.store import rejected
from service.store.session import begin

LIMIT_MAX = 1000


class QuarantineQuery(Strict):
    source: Text | None = None
    since: Instant | None = Field(None, description="received at or after this time")
    limit: int = Field(100, ge=1, le=LIMIT_MAX)
    cursor: Text | None = None


class RejectedQuery(Strict):
    source: Text | None = None
    reason: Text | None = None
    since: Instant | None = Field(None, description="received at or after this time")
    limit: int = Field(100, ge=1, le=LIMIT_MAX)


async def list_quarantine(request: Request) -> Response:
    query = read_query(request, QuarantineQuery)
    before = read_cursor("quarantine", query.cursor, cursor_instant, cursor_position) if query.cursor else None
    async with begin(runtime_of(request).engine) as conn:
        rows = await rejected.quarantined(
            conn,
            source=query.source,
            since=query.since,
            before=(before[0], before[1]) if before else None,
            limit=query.limit + 1,
        )
    items = rows[: query.limit]
    more = len(rows) > query.limit
    cursor = write_cursor("quarantine", items[-1].received_at.isoformat(), items[-1].position) if more else None
    return JSONResponse({"items": [to_json(row) for row in items], "next_cursor": cursor})


def to_json(row: Any) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "source": row.source,
        "received_at": rfc3339(row.received_at),
        "reason": (row.details or {}).get("reason"),
        "body_bytes": row.body_bytes,
        "body_sha256": row.body_sha256.hex(),
        "secret_name": row.secret_name,
        "receipt": f"/v1/events/{row.id}/receipt",
        "replayed_as": str(row.replayed_as) if row.replayed_as else None,
    }


async def list_rejected(request: Request) -> Response:
    query = read_query(request, RejectedQuery)
    async with begin(runtime_of(request).engine) as conn:
        counts = await rejected.summary(conn, source=query.source, reason=query.reason, since=query.since)
        rows = await rejected.listed(
            conn, source=query.source, reason=query.reason, since=query.since, limit=query.limit
        )
    return JSONResponse(
        {
            "summary": [
                {
                    "source": row.source,
                    "reason": row.reason,
                    "count": row.requests,
                    "first_at": rfc3339(row.first_at),
                    "last_at": rfc3339(row.last_at),
                    "diagnosis": diagnosis(row.reason),
                }
                for row in counts
            ],
            "items": [
                {
                    "id": row.id,
                    "source": row.source,
                    "reason": row.reason,
                    "received_at": rfc3339(row.received_at),
                    "body_bytes": row.body_bytes,
                }
                for row in rows
            ],
        }
    )


CALLS = (
    Call(
        "GET",
        "/v1/quarantine",
        list_quarantine,
        "read",
        "Genuine requests that could not be read",
        query=QuarantineQuery,
    ),
    Call(
        "GET",
        "/v1/quarantine/rejected",
        list_rejected,
        "admin",
        "Requests refused at the front door in the last day, with a diagnosis",
        query=RejectedQuery,
    ),
)
