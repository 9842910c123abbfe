"""`GET /v1/siem/events`: the pull feed, the same log in the same order as the push sinks read it."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlencode

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service.api.http import (
    Call,
    Instant,
    Strict,
    Text,
    cursor_position,
    read_cursor,
    read_query,
    runtime_of,
    safe_json,
    write_cursor,
)
from service.errors import Gone
from service.sinks.formats import FORMATS
from service.store import events, log, readers
from service.store.session import begin


class FeedQuery(Strict):
    cursor: Text | None = Field(None, description="next_cursor of the page before")
    since: Instant | None = Field(
        None, description="without a cursor: start at what was received at or after this time"
    )
    limit: int = Field(100, ge=1, le=1000)
    format: Literal["ocsf", "ecs", "raw"] = "ocsf"


async def feed(request: Request) -> Response:
    """At least once, oldest position first; a probe of ours is passed over."""
    query = read_query(request, FeedQuery)
    async with begin(runtime_of(request).engine) as conn:
        if query.cursor is not None:
            position = read_cursor("siem", query.cursor, cursor_position)[0]
        else:
            since = await events.position_since(conn, query.since) if query.since else 0
            position = max(since, await readers.position(conn, readers.RETENTION))
        found = await log.read_after(conn, position, query.limit + 1)
        # Asked after the page was read: what retention takes away it says before it does.
        if position < await readers.position(conn, readers.RETENTION):
            raise Gone(
                "the log no longer holds all that comes after this cursor; start again without it, or with since",
                code="cursor_expired",
            )
    page = found[: query.limit]
    cursor = write_cursor("siem", page[-1].position if page else position)
    render = FORMATS[query.format]
    body = {
        "items": [render(event) for event in page if event.origin != "probe"],
        "next_cursor": cursor,
        "has_more": len(found) > query.limit,
    }
    link = (
        f'</v1/siem/events?{urlencode({"cursor": cursor, "limit": query.limit, "format": query.format})}>; rel="next"'
    )
    return safe_json(body, headers={"Link": link})


CALLS = (Call("GET", "/v1/siem/events", feed, "siem", "The log for a SIEM, in commit order", query=FeedQuery),)
