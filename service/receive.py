"""The inbound story, top to bottom: find the source, read a bounded body, verify the raw bytes, read what they say,
commit, answer. What it answers is contract.md's table for `POST /webhooks/{source}`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from service import observe
from service.commit import Committer
from service.errors import AuthwatchError, BadRequest, NotFound, PayloadUnreadable, RequestTimeout, TooLarge
from service.event import ProviderEvent, judge_clock
from service.observe import log
from service.problem import status_of
from service.runtime import Runtime
from service.signatures import Verified
from service.sources import Source
from service.store.log import Receipt
from service.store.secrets import SecretUses

BODY_BYTES_MAX = 1024 * 1024
BODY_SECONDS_MAX = 10  # a sender slower than the provider's own time-out is not the provider
HEADER_CHARS_MAX = 1024
HEADERS_MAX = 64
# Kept as evidence: everything but what could be used to sign in somewhere.
CREDENTIAL_HEADERS = frozenset(
    {"authorization", "cookie", "proxy-authorization", "x-api-key", "x-auth-token", "forwarded-authorization"}
)


async def receive(request: Request) -> Response:
    """202 accepted or quarantined, 200 duplicate; everything else is raised and answered by `service/app.py`."""
    runtime: Runtime = request.app.state.runtime
    began = time.perf_counter()
    name = request.path_params["source"]
    status = 500
    try:
        source = runtime.sources.get(name)
        if source is None:
            raise NotFound("no such source, or it is switched off", code="unknown_source")
        body = await read_body(request)
        answer, status = await accept(
            source, request.scope["headers"], body, runtime.committer, runtime.uses, datetime.now(UTC)
        )
        return JSONResponse(answer, status_code=status)
    except AuthwatchError as exc:
        status = status_of(exc)
        # An unknown source's name is a caller's choice and may not become a label.
        observe.rejected_total.labels(name if name in runtime.sources else "", exc.code).inc()
        log.info("receipt.rejected", reason=exc.code, source=name if name in runtime.sources else None)
        raise
    finally:
        observe.requests_seconds.labels(str(status)).observe(time.perf_counter() - began)


async def read_body(request: Request) -> bytes:
    """The raw bytes; TooLarge as soon as the limit is passed, announced or not, without reading on."""
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > BODY_BYTES_MAX:
        raise TooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes", code="body_too_large")
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for chunk in request.stream():
                size += len(chunk)
                if size > BODY_BYTES_MAX:
                    raise TooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes", code="body_too_large")
                chunks.append(chunk)
    except TimeoutError as exc:
        raise RequestTimeout(f"the body did not arrive within {BODY_SECONDS_MAX} s", code="body_too_slow") from exc
    except ClientDisconnect as exc:
        raise BadRequest("the sender hung up", code="client_disconnected") from exc
    return b"".join(chunks)


async def accept(
    source: Source,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    committer: Committer,
    uses: SecretUses,
    now: datetime,
) -> tuple[dict[str, str], int]:
    """Verified, read, committed: the answer and its status. Never answers before the commit."""
    verified = source.verify(headers, body, now)
    receipt = read(source, verified, headers, body, now)
    if receipt.origin == "webhook":  # our own probe is no sign that the provider uses this secret
        uses.note(source.name, verified.secret_name, now)
    kept = await committer.commit(receipt)
    quarantined = receipt.event.kind == "quarantine"
    if not kept.accepted:
        observe.duplicates_total.labels(source.name, str(kept.same_body).lower()).inc()
        return {"status": "duplicate", "id": kept.id}, 200
    observe.accepted_total.labels(source.name, receipt.event.kind).inc()
    if receipt.event.occurred_at is not None and receipt.origin == "webhook":
        observe.lag_seconds.labels(receipt.event.kind).observe(
            max(0.0, (now - receipt.event.occurred_at).total_seconds())
        )
    return {"status": "quarantined" if quarantined else "accepted", "id": kept.id}, 202


def read(
    source: Source, verified: Verified, headers: Sequence[tuple[bytes, bytes]], body: bytes, now: datetime
) -> Receipt:
    """What the genuine bytes say. What we cannot read is kept as `quarantine`, with the reason, and never refused."""
    try:
        event = source.provider.normalise(body, verified.message_id)
        occurred_at, clock_suspect = judge_clock(event.occurred_at, now)
    except PayloadUnreadable as exc:
        log.warning("receipt.quarantined", source=source.name, reason=exc.code)
        event = ProviderEvent(
            event_id=verified.message_id, type="quarantine", kind="quarantine", details={"reason": exc.code}
        )
        # Its time is unknown, not suspect: nothing it said was read.
        occurred_at, clock_suspect = None, True
    return Receipt(
        source=source.name,
        origin=source.origin_of(verified.message_id),
        event=with_time(event, occurred_at),
        clock_suspect=clock_suspect,
        headers=evidence(headers),
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
        secret_name=verified.secret_name,
        attempted_at=verified.attempted_at,
    )


def with_time(event: ProviderEvent, occurred_at: datetime | None) -> ProviderEvent:
    if event.occurred_at == occurred_at:
        return event
    return ProviderEvent(
        **{name: getattr(event, name) for name in ProviderEvent.__slots__} | {"occurred_at": occurred_at}
    )


def evidence(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    kept: dict[str, str] = {}
    for raw_name, raw_value in headers[:HEADERS_MAX]:
        name = raw_name.decode("latin-1").lower()
        if name not in CREDENTIAL_HEADERS:
            kept[name] = raw_value.decode("latin-1").replace("\x00", "")[:HEADER_CHARS_MAX]
    return kept
