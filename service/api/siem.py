"""`GET /v1/siem/events`: the pull feed, the same log in the same order as the push sinks read it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import urlencode

from pydantic import AfterValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from service.api.answering import NDJSON, compressed, takes_gzip, wants_ndjson
from service.api.gate import hung_up
from service.api.http import (
    Call,
    Duration,
    Instant,
    Strict,
    Text,
    allowed,
    cursor_instant,
    cursor_position,
    presented,
    read_cursor,
    read_query,
    runtime_of,
    write_cursor,
)
from service.errors import BadRequest, Gone
from service.event import Event, rfc3339
from service.siem_feed import FEED, Feed
from service.sinks.formats import ENCODED, FORMATS, FormatName
from service.store import events, log, pollers, readers, tokens
from service.store.session import begin

SCOPE = "siem"
PATH = "/v1/siem/events"
CURSOR = "siem"
WAIT_MAX = timedelta(seconds=60)
PAGE_BYTES_MAX = 8 * 1024 * 1024  # a page of long items ends before its limit
SLICE_ITEMS = 25  # shaped at a stretch: webhooks are received by the same loop
CURSOR_HEADER, MORE_HEADER = "Authwatch-Next-Cursor", "Authwatch-Has-More"


def not_longer(wait: timedelta) -> timedelta:
    if not timedelta(0) <= wait <= WAIT_MAX:
        raise ValueError(f"is at most {WAIT_MAX.total_seconds():.0f}s")
    return wait


class FeedQuery(Strict):
    cursor: Text | None = Field(None, description="next_cursor of the page before")
    since: Instant | None = Field(
        None, description="without a cursor: start at what was received at or after this time"
    )
    limit: int = Field(100, ge=1, le=1000)
    format: FormatName = "ocsf"
    wait: Annotated[Duration, AfterValidator(not_longer)] = Field(
        timedelta(0), description="how long an empty page waits for something, such as 30s; at most 60s"
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cursor stands: after the row at `position`, received `at`; None where there is no such row to know it by,
    and in the cursors of releases that did not say it."""

    position: int
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Encoded items, the place up to which they go, and whether there is more at once."""

    items: list[bytes]
    place: Place
    has_more: bool


async def feed(request: Request) -> Response:
    """At least once, oldest position first; a probe of ours is passed over."""
    digest = presented(request)
    shared: Feed = getattr(request.app.state, FEED)
    with shared.place():
        await admit(request, digest)
        query = read_query(request, FeedQuery)
        place = None if query.cursor is None else read_place(query.cursor)
        page = await read_page(request, query, place)
        if query.wait and not page.items and not page.has_more:
            with shared.waiting():
                page = await wait_for_news(request, query, page, digest)
        return await answer(request, query, page)


def read_place(cursor: str) -> Place:
    """Raises BadRequest."""
    with suppress(BadRequest):
        return Place(*read_cursor(CURSOR, cursor, cursor_position, cursor_instant))
    return Place(*read_cursor(CURSOR, cursor, cursor_position))


def write_place(place: Place) -> str:
    return write_cursor(CURSOR, place.position, *([] if place.at is None else [rfc3339(place.at)]))


async def admit(request: Request, digest: bytes | None) -> None:
    """Who may ask is noted as a poller, whatever comes of the question. Raises Unauthorized, Forbidden."""
    if digest is None:
        return
    runtime = runtime_of(request)
    async with begin(runtime.engine) as conn:
        token = await tokens.find(conn, digest)
        if token is not None:
            await tokens.used(conn, token.id)
            if SCOPE in token.scopes:
                await pollers.asked(conn, token.id, datetime.now(UTC))
    runtime.verified.told(digest, token)
    allowed(token, SCOPE)


async def still_allowed(request: Request, digest: bytes) -> None:
    """A token that was revoked while it waited is given nothing more."""
    async with begin(runtime_of(request).engine) as conn:
        token = await tokens.find(conn, digest)
    allowed(token, SCOPE)


async def wait_for_news(request: Request, query: FeedQuery, page: Page, digest: bytes | None) -> Page:
    """The first page with an item, or the last empty one; sooner when the client hangs up or the process stops."""
    shared: Feed = getattr(request.app.state, FEED)
    deadline = time.monotonic() + query.wait.total_seconds()
    gone = asyncio.create_task(hung_up(request.receive))
    try:
        while not page.items and not shared.closed and time.monotonic() < deadline:
            await woken(shared, page.place.position, deadline, gone)
            if gone.done():
                break
            page = await read_page(request, query, page.place)
            if digest is not None:  # asked after the page was read: nothing of after a revocation is in it
                await still_allowed(request, digest)
        return page
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


async def woken(shared: Feed, position: int, deadline: float, gone: asyncio.Task[None]) -> None:
    waiting = asyncio.create_task(shared.after(position, deadline))
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def read_page(request: Request, query: FeedQuery, place: Place | None) -> Page:
    """What comes after this place; None: from where the query says. Raises Gone."""
    shared: Feed = getattr(request.app.state, FEED)
    async with shared.page():
        async with begin(runtime_of(request).engine) as conn:
            if place is None:
                since = await events.position_since(conn, query.since) if query.since else 0
                place = Place(max(since, await readers.position(conn, readers.RETENTION)))
            found = await log.read_after(conn, place.position, query.limit + 1)
            known = place.at is None or await log.holds(conn, place.position, place.at)
            # Asked after the page was read: what retention takes away it says before it does.
            floor = await readers.position(conn, readers.RETENTION)
            if place.position < floor:
                raise Gone(
                    "the log no longer holds all that comes after this cursor; start again without it, or with since",
                    code="cursor_expired",
                )
            if not (found and known) and not await log.was_given(conn, place.position):
                raise Gone(
                    "the log has not come as far as this cursor, as after a restore from a backup; start again with "
                    "since, from before the backup was made",
                    code="cursor_ahead",
                )
            if not known and place.position > floor:  # at the floor, the row that it knows may be gone
                raise Gone(
                    "where this cursor stands the log now holds something else, as after a restore from a backup; start"
                    " again with since, from before the backup was made",
                    code="cursor_mismatch",
                )
            if not found and place.at is None and place.position > floor:
                place = Place(place.position, await log.received_at(conn, place.position))
        return await shaped(found, query.limit, query.format, place)


async def shaped(found: list[Event], limit: int, format_: FormatName, place: Place) -> Page:
    """A page of one more event than it may hold, to know whether there is more."""
    encode, size = encoder(format_), 0
    items: list[bytes] = []
    last: Event | None = None
    more = len(found) > limit
    for number, event in enumerate(found[:limit]):
        if number and number % SLICE_ITEMS == 0:
            await asyncio.sleep(0)
        if event.origin != "probe":
            item = encode(event)
            if items and size + len(item) > PAGE_BYTES_MAX:
                more = True
                break
            size += len(item)
            items.append(item)
        last = event
    return Page(items, place if last is None else Place(last.position, last.received_at), has_more=more)


def encoder(format_: FormatName) -> Callable[[Event], bytes]:
    quick, shape = ENCODED[format_], FORMATS[format_]

    def encode(event: Event) -> bytes:
        try:
            return quick(event)
        except (TypeError, ValueError):  # a text that is no Unicode, say: nobody's reader may be held up by it
            return json.dumps(shape(event)).encode()

    return encode


async def answer(request: Request, query: FeedQuery, page: Page) -> Response:
    """JSON, or NDJSON for who asks for it; where the feed goes on is in the headers of both."""
    cursor = write_place(page.place)
    more = "true" if page.has_more else "false"
    if ndjson := wants_ndjson(request.headers.get("accept", "")):
        body = b"".join(item + b"\n" for item in page.items)
    else:
        body = b'{"items":[%b],"next_cursor":"%b","has_more":%b}' % (
            b",".join(page.items),
            cursor.encode(),
            more.encode(),
        )
    goes_on = {"cursor": cursor, "limit": query.limit, "format": query.format}
    if query.wait:
        goes_on["wait"] = f"{query.wait.total_seconds():.0f}s"
    headers = {
        "Link": f'<{PATH}?{urlencode(goes_on)}>; rel="next"',
        CURSOR_HEADER: cursor,
        MORE_HEADER: more,
        "Vary": "Accept, Accept-Encoding",
        "Cache-Control": "no-store",
    }
    if takes_gzip(request.headers.get("accept-encoding", "")):
        body, encoding = await compressed(body)
        headers |= encoding
    return Response(body, media_type=NDJSON if ndjson else "application/json", headers=headers)


CALLS = (
    Call(
        "GET",
        PATH,
        feed,
        SCOPE,
        "The log for a SIEM, in commit order",
        query=FeedQuery,
        or_media_types=(NDJSON,),
        statuses=(410,),
        checks_token=True,
    ),
)
