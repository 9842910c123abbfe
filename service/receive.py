"""The inbound story, top to bottom: find the source, read a bounded body, verify the raw bytes, read what they say,
commit, answer. What it answers is contract.md's table for `POST /webhooks/{source}`.

This is the one path that every webhook takes, and its speed is measured (`bench/`). So it speaks ASGI itself: a Request
and a Response object, and a timer for each, would cost a quarter of all it does. Everything rare is raised, and
answered by `service/problem.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from starlette.types import Message, Receive, Scope, Send

from service import observe
from service.errors import (
    AuthwatchError,
    BadRequest,
    NotFound,
    PayloadUnreadable,
    RateLimited,
    RequestTimeout,
    TooLarge,
    Unavailable,
)
from service.event import ProviderEvent, judge_clock
from service.evidence import SIGNATURE_HEADERS
from service.observe import log
from service.problem import status_of
from service.redact import MASK
from service.runtime import Runtime
from service.signatures import Verified
from service.sources import Source
from service.store.log import Kept, Receipt

BODY_BYTES_MAX = 1024 * 1024
READING_BYTES_MAX = 128 * 1024 * 1024
BODY_SECONDS_MAX = 10  # a sender slower than the provider's own time-out is not the provider
HEADER_CHARS_MAX = 4096  # as long as a signature may be
HEADERS_MAX = 64
# Kept as evidence: everything but what could be used to sign in somewhere, at the provider's, at ours or at a proxy's.
CREDENTIAL_HEADERS = frozenset(
    {
        b"api-key",
        b"apikey",
        b"authentication",
        b"authorization",
        b"cf-access-client-secret",
        b"cf-access-jwt-assertion",
        b"cf-access-token",
        b"cookie",
        b"forwarded-authorization",
        b"ocp-apim-subscription-key",
        b"proxy-authorization",
        b"set-cookie",
        b"x-access-token",
        b"x-amz-security-token",
        b"x-amzn-oidc-accesstoken",
        b"x-amzn-oidc-data",
        b"x-amzn-oidc-identity",
        b"x-api-key",
        b"x-api-token",
        b"x-apikey",
        b"x-auth",
        b"x-auth-key",
        b"x-auth-request-access-token",
        b"x-auth-token",
        b"x-authorization",
        b"x-client-secret",
        b"x-csrf-token",
        b"x-forwarded-access-token",
        b"x-forwarded-authorization",
        b"x-functions-key",
        b"x-gitlab-token",
        b"x-goog-iap-jwt-assertion",
        b"x-id-token",
        b"x-ms-token-aad-access-token",
        b"x-ms-token-aad-id-token",
        b"x-ms-token-aad-refresh-token",
        b"x-original-authorization",
        b"x-secret",
        b"x-serverless-authorization",
        b"x-session-id",
        b"x-session-token",
        b"x-token",
        b"x-vault-token",
        b"x-xsrf-token",
    }
)
# A token under a name that nobody thought of; cheap, because it is asked for every header of every request.
TOKEN_STARTS = (
    b"Bearer ",
    b"bearer ",
    b"BEARER ",
    b"Basic ",
    b"basic ",
    b"DPoP ",
    b"Token ",
    b"token ",
    b"eyJ",
    b"whsec_",
)
JSON_HEADER = (b"content-type", b"application/json")


Headers = Sequence[tuple[bytes, bytes]]
Arrival = tuple[Source, Headers, bytes, float, "asyncio.Future[tuple[Receipt, Kept]]"]


class FrontDoor:
    """The ASGI endpoint. 202 accepted or quarantined, 200 duplicate; all else is raised to `service/app.py`.

    Requests that arrive in one turn of the event loop are verified and read in one loop: the interpreter runs a short
    loop about twice as fast as the same code scattered between the work of the server.
    """

    def __init__(self) -> None:
        self._arrived: list[Arrival] = []
        # Who is reading a body, since when, oldest first: one look a second at the oldest instead of a timer for each.
        self._reading: dict[asyncio.Task[object], float] = {}
        self._reading_bytes = 0
        self._too_slow: set[asyncio.Task[object]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        runtime: Runtime = scope["app"].state.runtime
        began = time.monotonic()
        name = scope["path_params"]["source"]
        try:
            source = runtime.sources.get(name)
            if source is None:
                raise NotFound("no such source, or it is switched off", code="unknown_source")
            body = await self._read_body(scope["headers"], receive)
            answer: asyncio.Future[tuple[Receipt, Kept]] = asyncio.get_running_loop().create_future()
            if not self._arrived:
                asyncio.get_running_loop().call_soon(self._take_in, runtime)
            self._arrived.append((source, scope["headers"], body, began, answer))
            receipt, kept = await answer
        except AuthwatchError as exc:
            # An unknown source's name is a caller's choice and may not become a label.
            known = name if name in runtime.sources else ""
            observe.rejected(known, exc.code, status_of(exc), time.monotonic() - began)
            log.info("receipt.rejected", reason=exc.code, source=known or None)
            raise
        if not kept.accepted:
            status, word = 200, b"duplicate"
        else:
            status, word = 202, b"quarantined" if receipt.event.kind == "quarantine" else b"accepted"
        said = b'{"status":"%b","id":"%b"}' % (word, kept.id.encode())
        headers = [(b"content-length", b"%d" % len(said)), JSON_HEADER]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    def _take_in(self, runtime: Runtime) -> None:
        """Verified, read, and queued for the commit, whose outcome each request awaits."""
        arrived, self._arrived = self._arrived, []
        now = datetime.now(UTC)
        for source, headers, body, began, answer in arrived:
            try:
                receipt = open_receipt(source, headers, body, now)
                if source.limit is not None and not source.limit.take(began):
                    raise RateLimited("more requests than this source's rate; send it again", retry_after_seconds=1)
                if receipt.origin == "webhook":  # our own probe is no sign that the provider uses this secret
                    runtime.uses.note(source.name, receipt.secret_name or "", now)
                runtime.committer.commit(receipt, began, answer)
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is raised in the request it belongs to
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
            if task in self._too_slow and task.uncancel() == 0:
                raise RequestTimeout(
                    f"the body did not arrive within {BODY_SECONDS_MAX} s", code="body_too_slow"
                ) from None
            raise
        finally:
            del self._reading[task]
            self._too_slow.discard(task)

    async def _read_on(self, message: Message, receive: Receive) -> bytes:
        """A body that comes in pieces; those of all senders together are bounded, since nobody has signed them yet."""
        chunks: list[bytes] = []
        size = 0
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise BadRequest("the sender hung up", code="client_disconnected")
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                self._reading_bytes += len(chunk)
                if size > BODY_BYTES_MAX:
                    raise TooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes", code="body_too_large")
                if self._reading_bytes > READING_BYTES_MAX:
                    raise Unavailable("too many bodies are on their way in; send it again", code="too_many_bodies")
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
                message = await receive()
        finally:
            self._reading_bytes -= size

    async def watch(self) -> None:
        """For ever: cuts off who sends a body too slowly."""
        while True:
            await asyncio.sleep(1)
            before = time.monotonic() - BODY_SECONDS_MAX
            for task in [task for task, since in self._reading.items() if since < before]:
                self._too_slow.add(task)
                task.cancel()


def open_receipt(source: Source, headers: Headers, body: bytes, now: datetime) -> Receipt:
    """What a genuine request brings; SignatureInvalid for any other."""
    verified = source.verify(headers, body, now)
    event, clock_suspect = read(source, verified, body, now)
    return Receipt(
        source=source.name,
        origin=source.origin_of(verified.message_id),
        event=event,
        clock_suspect=clock_suspect,
        headers=evidence(headers),
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


def evidence(headers: Headers) -> dict[str, str]:
    """Bounded; the signature's headers come first, so that whatever came with them the receipt can be verified again."""
    if len(headers) > HEADERS_MAX:
        headers = sorted(headers, key=lambda header: header[0] not in SIGNATURE_HEADERS)
    return {
        name.decode("latin-1"): MASK if value.startswith(TOKEN_STARTS) else value[:HEADER_CHARS_MAX].decode("latin-1")
        for name, value in headers[:HEADERS_MAX]
        if name not in CREDENTIAL_HEADERS
    }
