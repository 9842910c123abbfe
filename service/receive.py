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
from service.errors import AuthwatchError, BadRequest, NotFound, PayloadUnreadable, RequestTimeout, TooLarge
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


class FrontDoor:
    """The ASGI endpoint. 202 accepted or quarantined, 200 duplicate; all else is raised to `service/app.py`."""

    def __init__(self) -> None:
        # Who is reading a body, since when, oldest first: one look a second at the oldest instead of a timer for each.
        self._reading: dict[asyncio.Task[object], float] = {}
        self._too_slow: set[asyncio.Task[object]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        runtime: Runtime = scope["app"].state.runtime
        began = time.perf_counter()
        name = scope["path_params"]["source"]
        status = 500
        try:
            source = runtime.sources.get(name)
            if source is None:
                raise NotFound("no such source, or it is switched off", code="unknown_source")
            body = await self._read_body(scope["headers"], receive)
            answer, status = await accept(source, scope["headers"], body, runtime, datetime.now(UTC))
        except AuthwatchError as exc:
            status = status_of(exc)
            # An unknown source's name is a caller's choice and may not become a label.
            observe.rejected_total.labels(name if name in runtime.sources else "", exc.code).inc()
            log.info("receipt.rejected", reason=exc.code, source=name if name in runtime.sources else None)
            raise
        finally:
            observe.answered(status).observe(time.perf_counter() - began)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-length", b"%d" % len(answer)), JSON_HEADER],
            }
        )
        await send({"type": "http.response.body", "body": answer})

    async def _read_body(self, headers: Sequence[tuple[bytes, bytes]], receive: Receive) -> bytes:
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
            return await read_on(message, receive)
        except asyncio.CancelledError:
            if task in self._too_slow and task.uncancel() == 0:
                raise RequestTimeout(
                    f"the body did not arrive within {BODY_SECONDS_MAX} s", code="body_too_slow"
                ) from None
            raise
        finally:
            del self._reading[task]
            self._too_slow.discard(task)

    async def watch(self) -> None:
        """For ever: cuts off who sends a body too slowly."""
        while True:
            await asyncio.sleep(1)
            before = time.monotonic() - BODY_SECONDS_MAX
            for task in [task for task, since in self._reading.items() if since < before]:
                self._too_slow.add(task)
                task.cancel()


async def read_on(message: Message, receive: Receive) -> bytes:
    """A body that comes in pieces."""
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise BadRequest("the sender hung up", code="client_disconnected")
        chunk = message.get("body", b"")
        assert isinstance(chunk, bytes)
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise TooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes", code="body_too_large")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()


async def accept(
    source: Source, headers: Sequence[tuple[bytes, bytes]], body: bytes, runtime: Runtime, now: datetime
) -> tuple[bytes, int]:
    """Verified, read, committed: the answer and its status. Never answers before the commit."""
    verified = source.verify(headers, body, now)
    event, clock_suspect = read(source, verified, body, now)
    origin = source.origin_of(verified.message_id)
    if origin == "webhook":  # our own probe is no sign that the provider uses this secret
        runtime.uses.note(source.name, verified.secret_name, now)
    kept: Kept = await runtime.committer.commit(
        Receipt(
            source=source.name,
            origin=origin,
            event=event,
            clock_suspect=clock_suspect,
            headers=evidence(headers),
            body=body,
            body_sha256=hashlib.sha256(body).digest(),
            secret_name=verified.secret_name,
            attempted_at=verified.attempted_at,
        )
    )
    if not kept.accepted:
        observe.duplicates_total.labels(source.name, str(kept.same_body).lower()).inc()
        return b'{"status":"duplicate","id":"%b"}' % kept.id.encode(), 200
    observe.accepted(source.name, event.kind).inc()
    if event.occurred_at is not None and origin == "webhook":
        observe.lag(event.kind).observe(max(0.0, (now - event.occurred_at).total_seconds()))
    status = b"quarantined" if event.kind == "quarantine" else b"accepted"
    return b'{"status":"%b","id":"%b"}' % (status, kept.id.encode()), 202


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


def evidence(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Bounded; the signature's headers come first, so that whatever came with them the receipt can be verified again."""
    if len(headers) > HEADERS_MAX:
        headers = sorted(headers, key=lambda header: header[0] not in SIGNATURE_HEADERS)
    return {
        name.decode("latin-1"): MASK if value.startswith(TOKEN_STARTS) else value[:HEADER_CHARS_MAX].decode("latin-1")
        for name, value in headers[:HEADERS_MAX]
        if name not in CREDENTIAL_HEADERS
    }
