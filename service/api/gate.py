"""`GET /v1/gate`, what an agent asks before a tool call, and `GET /v1/gate/stream`, which tells it of every change."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Literal

from sqlalchemy.exc import DBAPIError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from service import gate
from service.api.http import Call, Strict, Text, allowed, authorize, presented, read_query, runtime_of
from service.errors import AuthwatchError, BadRequest, Unavailable
from service.gate_asking import Asker
from service.gate_stream import Client, Filter, Streams
from service.observe import log as logger
from service.store import accounts
from service.store.gate import Question, State
from service.store.session import begin

SCOPE = "read"
# Less than a stop of the process waits for, and than a client that reads needs.
SEND_SECONDS_MAX = 5.0
LAST_EVENT_ID_CHARS_MAX = 19


class GateQuery(Strict):
    workflow_id: Text | None = None
    account_id: Text | None = None
    on_unknown: Literal["deny", "allow"] = "deny"


class StreamQuery(Strict):
    workflow_id: Text | None = None
    account_id: Text | None = None


async def ask_gate(request: Request) -> Response:
    """Token and answer in one look at the database; without it, by the tokens of the last minute and `on_unknown`."""
    token = presented(request)
    asker: Asker = request.app.state.gate
    try:
        query = read_query(request, GateQuery)
        if not query.workflow_id and not query.account_id:
            raise BadRequest("give workflow_id, account_id or both", code="nothing_asked")
    except BadRequest:
        await authorize(request, SCOPE)  # what is wrong with the question is told to who may ask
        raise
    question = Question(token=token, workflow_id=query.workflow_id or None, account_id=query.account_id or None)
    try:
        state = await asker.state(question)
    except Unavailable:
        known = runtime_of(request).verified.recall(token) if token is not None else None
        if token is not None:
            if known is None:
                raise  # who asks cannot be known either
            allowed(known, SCOPE)
        answer = gate.unasked(query.on_unknown)
    else:
        check(request, asker, question, state)
        try:
            answer = await asker.answer(question, state, query.on_unknown)
        except Unavailable:
            answer = gate.unasked(query.on_unknown)
    return JSONResponse(
        {"allow": answer.allow, "reason": answer.reason, "detail": answer.detail, "alert_ids": list(answer.alert_ids)}
    )


def check(request: Request, asker: Asker, question: Question, state: State) -> None:
    if question.token is None:
        return
    runtime_of(request).verified.told(question.token, state.token)
    allowed(state.token, SCOPE)
    assert state.token is not None
    asker.note_use(state.token, state.token_noted)


async def stream_gate(request: Request) -> Response:
    query = read_query(request, StreamQuery)
    last_id = read_last_event_id(request.headers.get("last-event-id"))
    only = Filter(query.workflow_id or None, query.account_id or None)
    if only.account_id is not None:
        async with begin(runtime_of(request).engine) as conn:
            account = await accounts.find(conn, only.account_id)
        only = Filter(only.workflow_id, only.account_id, account.key if account is not None else None)
    if request.method == "HEAD":
        return Response(media_type=EventStream.media_type)
    streams: Streams = request.app.state.gate_streams
    client = await streams.open(only, last_id)
    return EventStream(streams, client, request.app.state.gate, presented(request))


def read_last_event_id(written: str | None) -> int | None:
    """The header's; an empty one is what a client sends that has had none."""
    if not written:
        return None
    if not (written.isascii() and written.isdigit()) or len(written) > LAST_EVENT_ID_CHARS_MAX:
        raise BadRequest("Last-Event-ID is not one of ours; open the stream without it", code="invalid_last_event_id")
    return int(written)


class EventStream(Response):
    """Ends when the client hangs up, does not read, or is closed by us; it resumes by its Last-Event-ID."""

    media_type = "text/event-stream"

    def __init__(self, streams: Streams, client: Client, asker: Asker, token: bytes | None) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._streams = streams
        self._client = client
        self._asker = asker
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.create_task(self._send_all(send)), asyncio.create_task(hung_up(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams.leave(self._client)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._streams.frames(self._client)) as frames:
                async for chunk in frames:
                    if not chunk and not await self._still_allowed():
                        break
                    if chunk:
                        await sent(send, chunk, more=True)
            await sent(send, b"", more=False)
        except (TimeoutError, AuthwatchError, DBAPIError) as exc:
            logger.info("gate.stream_broken_off", error=type(exc).__name__)

    async def _still_allowed(self) -> bool:
        """Whether its token was not revoked since; while nobody can say, as before."""
        if self._token is None:
            return True
        try:
            state = await self._asker.state(Question(token=self._token))
        except Unavailable:
            return True
        return state.token is not None and SCOPE in state.token.scopes


async def sent(send: Send, body: bytes, *, more: bool) -> None:
    """Raises TimeoutError when the client does not read."""
    async with asyncio.timeout(SEND_SECONDS_MAX):
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


CALLS = (
    Call("GET", "/v1/gate", ask_gate, SCOPE, "May this tool call go ahead?", query=GateQuery, checks_token=True),
    Call(
        "GET",
        "/v1/gate/stream",
        stream_gate,
        SCOPE,
        "Every change of the gate's answers, as server-sent events",
        query=StreamQuery,
        media_type=EventStream.media_type,
    ),
)
