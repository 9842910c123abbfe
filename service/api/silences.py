"""`/v1/silences`: what is not to be told for a while. Messages only, unless a silence says `mutes_pauses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from service import silencing
from service.api.events import as_uuid
from service.api.http import Call, Duration, Instant, Strict, Text, read_json, read_query, runtime_of, safe_json
from service.errors import BadRequest, NotFound
from service.event import new_id, rfc3339
from service.queue import ACT, SHIP
from service.routing.matchers import BadMatcher, read_matchers
from service.routing.model import not_everything
from service.routing.mute import Silence
from service.store import log, readers
from service.store import silences as silence_store
from service.store.session import begin


class SilencesQuery(Strict):
    state: Literal["pending", "active", "expired"] | None = None
    limit: int = Field(100, ge=1, le=silence_store.LIST_MAX)


class SilenceBody(Strict):
    matchers: Annotated[
        list[Text | dict[str, Any]],
        Field(min_length=1, max_length=50, description='such as ["severity=~P3|P4", "connection_id=conn_1"]'),
    ]
    start: Instant | None = Field(None, description="by default now")
    end: Instant | None = None
    for_: Duration | None = Field(None, alias="for", description="30m, 2h, 1d: instead of end")
    author: Annotated[Text, Field(min_length=1, max_length=100)] | None = Field(
        None, description="by default the token's name"
    )
    comment: Annotated[Text, Field(min_length=1, max_length=1000)]
    time_intervals: list[Text] = Field(
        [], max_length=20, description="names of the config file's: it mutes only while one of them holds"
    )
    mutes_pauses: bool = Field(False, description="true: workflows are not paused either by what it mutes")

    @model_validator(mode="after")
    def ends_once(self) -> SilenceBody:
        if (self.end is None) == (self.for_ is None):
            raise ValueError("give end or for, one of them")
        return self


async def list_silences(request: Request) -> Response:
    """Newest first; the state is that of now."""
    query = read_query(request, SilencesQuery)
    async with begin(runtime_of(request).engine) as conn:
        now = await readers.clock(conn)
        found = await silence_store.listed(conn)
    items = [silence_json(one, one.state(now)) for one in found if query.state in (None, one.state(now))]
    return safe_json({"items": items[: query.limit]})


async def get_silence(request: Request) -> Response:
    async with begin(runtime_of(request).engine) as conn:
        now = await readers.clock(conn)
        silence = await silence_store.load(conn, silence_id_of(request))
    if silence is None:
        raise NotFound("no silence of that id", code="unknown_silence")
    return safe_json(silence_json(silence, silence.state(now)))


async def create_silence(request: Request) -> Response:
    runtime = runtime_of(request)
    body = await read_json(request, SilenceBody)
    try:
        matchers = not_everything(read_matchers(body.matchers))
    except (BadMatcher, ValueError) as exc:
        raise BadRequest(f"matchers: {exc}", code="invalid_body") from None
    async with begin(runtime.engine) as conn:
        now = await readers.clock(conn)
        start = body.start or now
        try:
            end = body.end if body.end is not None else start + (body.for_ or start - start)
        except OverflowError:
            raise BadRequest("for: is too long", code="invalid_body") from None
        silence = Silence(
            id=new_id(),
            matchers=matchers,
            start=start,
            end=end,
            author=body.author or request.state.actor,
            comment=body.comment,
            created_at=now,
            time_intervals=tuple(body.time_intervals),
            mutes_pauses=body.mutes_pauses,
        )
        decisions = await silencing.create(conn, silence, runtime.settings.routing, request.state.actor)
        await log.append(conn, decisions)
    runtime.nudger.nudge(SHIP)
    return safe_json(silence_json(silence, silence.state(now)), status_code=201)


async def end_silence(request: Request) -> Response:
    runtime = runtime_of(request)
    async with begin(runtime.engine) as conn:
        now = await readers.clock(conn)
        silence, decisions = await silencing.end(conn, silence_id_of(request), request.state.actor, now)
        await log.append(conn, decisions)
    for part in (ACT, SHIP):
        runtime.nudger.nudge(part)
    return safe_json(silence_json(silence, "expired"))


def silence_id_of(request: Request) -> str:
    silence_id = as_uuid(request.path_params["id"])
    if silence_id is None:
        raise NotFound("no silence of that id", code="unknown_silence")
    return silence_id


def silence_json(silence: Silence, state: str) -> dict[str, Any]:
    return {
        "id": silence.id,
        "state": state,
        "matchers": [str(matcher) for matcher in silence.matchers],
        "start": rfc3339(silence.start),
        "end": rfc3339(silence.end),
        "author": silence.author,
        "comment": silence.comment,
        "created_at": rfc3339(silence.created_at),
        "time_intervals": list(silence.time_intervals),
        "mutes_pauses": silence.mutes_pauses,
        "declared": silence.declared,
    }


CALLS = (
    Call("GET", "/v1/silences", list_silences, "read", "Silences, newest first", query=SilencesQuery),
    Call("GET", "/v1/silences/{id}", get_silence, "read", "One silence"),
    Call(
        "POST",
        "/v1/silences",
        create_silence,
        "write",
        "Mute messages about what matches, until an end; with a comment",
        body=SilenceBody,
        ok=201,
    ),
    Call("DELETE", "/v1/silences/{id}", end_silence, "write", "End a silence now; it stays listed as expired"),
)
