"""`POST /v1/tool-calls`, `POST /v1/token-refreshes`: what agents report; `GET /v1/malformed-calls`: what waits for a review.

A request is taken whole or, with 400, not at all: the answer names the item and how to mend it.
"""

from __future__ import annotations

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import report
from service.api.http import (
    Call,
    Instant,
    Strict,
    Text,
    cursor_instant,
    cursor_text,
    read_body,
    read_cursor,
    read_query,
    runtime_of,
    safe_json,
    write_cursor,
)
from service.event import rfc3339
from service.reporting import Counted
from service.store import reports
from service.store.session import begin

LIMIT_MAX = 1000


async def report_tool_calls(request: Request) -> Response:
    calls = report.read_tool_calls(await read_body(request, bytes_max=report.BODY_BYTES_MAX))
    return taken(await runtime_of(request).tool_calls.keep(calls))


async def report_token_refreshes(request: Request) -> Response:
    refreshes = report.read_token_refreshes(await read_body(request, bytes_max=report.BODY_BYTES_MAX))
    return taken(await runtime_of(request).token_refreshes.keep(refreshes))


def taken(counted: Counted) -> Response:
    return JSONResponse({"accepted": counted.accepted, "duplicates": counted.duplicates}, 202)


class MalformedQuery(Strict):
    account_id: Text | None = Field(None, description="as the report wrote it")
    tool: Text | None = None
    since: Instant | None = Field(None, description="received at or after this time")
    limit: int = Field(100, ge=1, le=LIMIT_MAX)
    cursor: Text | None = None


async def list_malformed(request: Request) -> Response:
    query = read_query(request, MalformedQuery)
    before = read_cursor("malformed-calls", query.cursor, cursor_instant, cursor_text) if query.cursor else None
    async with begin(runtime_of(request).engine) as conn:
        rows = await reports.list_malformed(
            conn,
            account_id=query.account_id,
            tool=query.tool,
            since=query.since,
            before=(before[0], before[1]) if before else None,
            limit=query.limit + 1,
        )
    shown, more = rows[: query.limit], len(rows) > query.limit
    items = [
        {name: rfc3339(value) if name.endswith("_at") else value for name, value in row._mapping.items()}
        for row in shown
    ]
    cursor = write_cursor("malformed-calls", shown[-1].received_at.isoformat(), shown[-1].id) if more else None
    return safe_json({"items": items, "next_cursor": cursor})


CALLS = (
    Call(
        "POST",
        "/v1/tool-calls",
        report_tool_calls,
        "telemetry",
        "What agents report of their tool calls, at most 1,000; idempotent by id",
        body=report.ToolCalls,
        ok=202,
    ),
    Call(
        "POST",
        "/v1/token-refreshes",
        report_token_refreshes,
        "telemetry",
        "Refreshes of an agent's own vault, which no provider's webhook tells; at most 1,000, idempotent by id",
        body=report.TokenRefreshes,
        ok=202,
    ),
    Call(
        "GET",
        "/v1/malformed-calls",
        list_malformed,
        "read",
        "Params and schema of malformed calls, newest first, token-like parts masked; kept for 30 days",
        query=MalformedQuery,
    ),
)
