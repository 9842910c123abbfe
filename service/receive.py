"""The inbound story, top to bottom: find the source, read a bounded body, verify the raw bytes, read what they say,
commit, answer. What it answers is contract.md's table for `POST /webhooks/{source}`.

Its speed is measured (`bench/`). A webhook that arrives whole comes through `arrive`, straight from the connection
(`service/connections.py`); any other as an ASGI request, before the framework's middleware and router. Both are verified,
read and queued by the same loop. Everything rare is raised, and answered by `service/problem.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from service import observe
from service.commit import Answer, Waiting
from service.errors import (
    AuthwatchError,
    BadRequest,
    NotFound,
    PayloadUnreadable,
    RateLimited,
    RequestTimeout,
    SignatureInvalid,
    TooLarge,
    Unavailable,
)
from service.event import ProviderEvent, judge_clock
from service.headers import kept_headers
from service.observe import log
from service.problem import on_authwatch_error, on_unexpected, status_of
from service.runtime import Runtime
from service.signatures import Verified
from service.sources import Source
from service.store.log import Receipt

PATH = "/webhooks/"
BODY_BYTES_MAX = 1024 * 1024
READING_BYTES_MAX = 128 * 1024 * 1024
BODY_SECONDS_MAX = 10  # a sender slower than the provider's own time-out is not the provider
JSON_HEADER = (b"content-type", b"application/json")


Headers = Sequence[tuple[bytes, bytes]]
Arrival = tuple[Source, Headers, bytes, float, Answer]


class FrontDoor:
    """The ASGI endpoint: 202 accepted or quarantined, 200 duplicate, and problem details for all else.

    Requests that arrive in one turn of the event loop are verified and read in one loop: the interpreter runs a short
    loop faster than the same code scattered between the work of the server.
    """

    def __init__(self) -> None:
        self.runtime: Runtime | None = None  # from the start of the lifespan to its end
        self._arrived: list[Arrival] = []
        # Who is reading a body, since when, oldest first: one look a second at the oldest instead of a timer for each.
        self._reading: dict[asyncio.Task[object], float] = {}
        self._reading_bytes: dict[asyncio.Task[object], int] = {}
        self._cut_for: dict[asyncio.Task[object], AuthwatchError] = {}

    def source_at(self, url: bytes) -> Source | None:
        """The source of a request target in its plain form, `/webhooks/NAME`; None for any other form or name."""
        return self.runtime.sources.get(url[len(PATH) :].decode("latin-1")) if self.runtime is not None else None

    def arrive(self, source: Source, headers: Headers, body: bytes, began: float, answer: Answer) -> None:
        """Takes in a whole request; `answer` hears what became of it, once. `began` is `time.monotonic()`."""
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._take_in)
        self._arrived.append((source, headers, body, began, answer))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.runtime is not None
        name = scope["path"][len(PATH) :]
        began = time.monotonic()
        body = b""
        try:
            source = self.runtime.sources.get(name)
            if source is None:
                raise NotFound("no such source, or it is switched off", code="unknown_source")
            body = await self._read_body(scope["headers"], receive)
            answer: asyncio.Future[Waiting] = asyncio.get_running_loop().create_future()
            # How long the sender took is not the database's fault: what counts from here is the wait for the commit.
            self.arrive(source, scope["headers"], body, time.monotonic(), answer)
            status, said = said_of(await answer)
        except asyncio.CancelledError:  # the server is stopping and its patience is over
            stopping = Unavailable("this receiver is stopping; send it again", code="stopping")
            await self.refuse(scope, receive, send, error=stopping, known="", body=body, began=began)
            return
        except Exception as exc:  # noqa: BLE001 - the edge: a bug of ours is an answer too
            # An unknown source's name is a caller's choice and may not become a label.
            known = name if name in self.runtime.sources else ""
            await self.refuse(scope, receive, send, error=exc, known=known, body=body, began=began)
            return
        headers = [(b"content-length", b"%d" % len(said)), JSON_HEADER]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    async def refuse(
        self, scope: Scope, receive: Receive, send: Send, *, error: Exception, known: str, body: bytes, began: float
    ) -> None:
        """Says why not, counts it, and keeps what a wrong secret refused; `known` is the source's name or ""."""
        if not isinstance(error, AuthwatchError):
            await (await on_unexpected(Request(scope), error))(scope, receive, send)
            return
        observe.rejected(known, error.code, status_of(error), time.monotonic() - began)
        log.info("receipt.rejected", reason=error.code, source=known or None)
        if known and isinstance(error, SignatureInvalid) and self.runtime is not None:
            self.runtime.rejections.note(known, error.code, scope["headers"], body, datetime.now(UTC))
        await (await on_authwatch_error(Request(scope), error))(scope, receive, send)

    def _take_in(self) -> None:
        """Verified, read, and queued for the commit, whose outcome each request awaits."""
        arrived, self._arrived = self._arrived, []
        runtime = self.runtime
        now = datetime.now(UTC)
        for source, headers, body, began, answer in arrived:
            try:
                if runtime is None:
                    raise Unavailable("this receiver is stopping; send it again", code="stopping")
                receipt = open_receipt(source, headers, body, now)
                if source.limit is not None and not source.limit.take(began):
                    raise RateLimited("more requests than this source's rate; send it again", retry_after_seconds=1)
                if receipt.origin == "webhook":  # our own probe is no sign that the provider uses this secret
                    runtime.uses.note(source, receipt.secret_name or "", now)
                runtime.committer.commit(receipt, began, answer)
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is answered to the request it belongs to
                if not answer.done():
                    answer.set_exception(exc)

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        """The raw bytes; TooLarge as soon as the limit is passed, announced or not, without reading on."""
        for name, value in headers:
            if name == b"content-length" and value.isdigit() and int(value[:20]) > BODY_BYTES_MAX:
                raise TooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes", code="body_too_large")
        task = asyncio.current_task()
        assert task is not None
        self._reading[task] = time.monotonic()
        try:
            message = await receive()
            body: bytes = message.get("body", b"")
            if (
                message["type"] == "http.request"
                and not message.get("more_body", False)
                and len(body) <= BODY_BYTES_MAX
            ):
                return body
            return await self._read_on(message, receive)
        except asyncio.CancelledError:
            if task in self._cut_for and task.uncancel() == 0:
                raise self._cut_for[task] from None
            raise
        finally:
            del self._reading[task]
            self._cut_for.pop(task, None)

    async def _read_on(self, message: Message, receive: Receive) -> bytes:
        """A body that comes in pieces; those of all senders together are bounded, since nobody has signed them yet."""
        chunks: list[bytes] = []
        task = asyncio.current_task()
        assert task is not None
        sizes = self._reading_bytes
        sizes[task] = 0
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise BadRequest("the sender hung up", code="client_disconnected")
                chunk: bytes = message.get("body", b"")
                sizes[task] = sizes.get(task, 0) + len(chunk)
                if sizes[task] > BODY_BYTES_MAX:
                    raise TooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes", code="body_too_large")
                if sum(sizes.values()) > READING_BYTES_MAX:
                    # Whoever has sent most and still sends makes room, not the one that came last.
                    largest = max(sizes, key=sizes.__getitem__)
                    full = Unavailable("too many bodies are on their way in; send it again", code="too_many_bodies")
                    if largest is task:
                        raise full
                    self._cut(largest, full)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
                message = await receive()
        finally:
            sizes.pop(task, None)

    async def watch(self) -> None:
        """For ever: cuts off who sends a body too slowly."""
        while True:
            await asyncio.sleep(1)
            before = time.monotonic() - BODY_SECONDS_MAX
            for task in [task for task, since in self._reading.items() if since < before]:
                late = f"the body did not arrive within {BODY_SECONDS_MAX} s"
                self._cut(task, RequestTimeout(late, code="body_too_slow"))

    def _cut(self, task: asyncio.Task[object], error: AuthwatchError) -> None:
        self._reading_bytes.pop(task, None)  # it holds nothing any more as soon as it hears of this
        self._cut_for[task] = error
        task.cancel()


def said_of(done: Waiting) -> tuple[int, bytes]:
    """Status and body of the answer to a request whose receipt was committed, now or before."""
    kept = done.kept
    if not kept.accepted:
        return 200, b'{"status":"duplicate","id":"%b"}' % kept.id.encode()
    word = b"quarantined" if done.receipt.event.kind == "quarantine" else b"accepted"
    return 202, b'{"status":"%b","id":"%b"}' % (word, kept.id.encode())


def open_receipt(source: Source, headers: Headers, body: bytes, now: datetime) -> Receipt:
    """What a genuine request brings; SignatureInvalid for any other."""
    verified = source.verify(headers, body, now)
    event, clock_suspect = read(source, verified, body, now)
    return Receipt(
        source=source.name,
        origin=source.origin_of(verified.message_id),
        event=event,
        clock_suspect=clock_suspect,
        headers=kept_headers(headers),
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
        secret_name=verified.secret_name,
        attempted_at=verified.attempted_at,
    )


def read(source: Source, verified: Verified, body: bytes, now: datetime) -> tuple[ProviderEvent, bool]:
    """What the genuine bytes say, and whether its clock is suspect: its time is then the database's at the commit.

    What we cannot read is kept as `quarantine`, with the reason, and never refused.
    """
    try:
        event = source.provider.normalise(body, verified.message_id)
        occurred_at, clock_suspect = judge_clock(event.occurred_at, now)
        return (replace(event, occurred_at=occurred_at) if clock_suspect else event), clock_suspect
    except PayloadUnreadable as exc:
        log.warning("receipt.quarantined", source=source.name, reason=exc.code)
        unread = ProviderEvent(
            event_id=verified.message_id, type="quarantine", kind="quarantine", details={"reason": exc.code}
        )
        return unread, True
