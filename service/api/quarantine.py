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
    cursor: Text | None = None


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
    """`count` is what is kept, `not_kept` what a limit of rate or bytes left out since."""
    query = read_query(request, RejectedQuery)
    before = read_cursor("rejected", query.cursor, cursor_instant, cursor_position) if query.cursor else None
    which: dict[str, Any] = {"source": query.source, "reason": query.reason, "since": query.since}
    async with begin(runtime_of(request).engine) as conn:
        counts = await rejected.summary(conn, **which)
        left_out = await rejected.left_out(conn, **which)
        rows = await rejected.listed(
            conn, **which, before=(before[0], before[1]) if before else None, limit=query.limit + 1
        )
    items = rows[: query.limit]
    more = len(rows) > query.limit
    cursor = write_cursor("rejected", items[-1].received_at.isoformat(), items[-1].id) if more else None
    summary = [
        to_summary(row.source, row.reason, row.requests, left_out.pop((row.source, row.reason), 0), row)
        for row in counts
    ]
    summary += [to_summary(source, reason, 0, count, None) for (source, reason), count in sorted(left_out.items())]
    return JSONResponse(
        {
            "summary": summary,
            "items": [
                {
                    "id": row.id,
                    "source": row.source,
                    "reason": row.reason,
                    "received_at": rfc3339(row.received_at),
                    "body_bytes": row.body_bytes,
                }
                for row in items
            ],
            "next_cursor": cursor,
        }
    )


def to_summary(source: str, reason: str, count: int, not_kept: int, row: Any) -> dict[str, Any]:
    return {
        "source": source,
        "reason": reason,
        "count": count,
        "not_kept": not_kept,
        "first_at": rfc3339(row.first_at) if row else None,
        "last_at": rfc3339(row.last_at) if row else None,
        "diagnosis": diagnosis(reason),
    }


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
