"""`GET /v1/events/{id}/receipt`: the evidence of one event, verified again as it is asked for.

The true body may hold tokens of the provider's user. It is given to the scope `admin` alone; every other reader has it
with token-like fields masked (`body_masked`). Length, hash and verification are always of the true bytes.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from service.api.events import as_uuid
from service.api.http import Call, runtime_of, safe_json
from service.errors import NotFound
from service.evidence import Evidence, shown
from service.store import events, log
from service.store.session import begin

SIGNED_ORIGINS = ("webhook", "probe")


async def get_receipt(request: Request) -> Response:
    runtime = runtime_of(request)
    event_id = as_uuid(request.path_params["id"])
    async with begin(runtime.engine) as conn:
        event = await events.load(conn, event_id) if event_id else None
        receipt = await log.receipt_of(conn, event_id) if event and event_id else None
    if event is None:
        raise NotFound("no event of that id", code="unknown_event")
    if event.origin not in SIGNED_ORIGINS:
        raise NotFound(
            f"this event has the origin {event.origin}: no signed request told of it, so there is no receipt",
            code="no_receipt",
        )
    if receipt is None:
        raise NotFound("the receipt of this event is older than its retention and was dropped", code="receipt_dropped")
    raw = "admin" in request.state.scopes
    source = runtime.sources.get(receipt.source)
    kept = Evidence(
        source=receipt.source,
        received_at=receipt.received_at,
        attempted_at=receipt.attempted_at,
        headers=receipt.headers,
        body=bytes(receipt.body),
        body_sha256=bytes(receipt.body_sha256),
        secret_name=receipt.secret_name,
    )
    return safe_json({"id": event.id, "source": receipt.source, "origin": event.origin} | shown(kept, source, raw=raw))


CALLS = (
    Call(
        "GET",
        "/v1/events/{id}/receipt",
        get_receipt,
        "read",
        "The evidence: headers, body, hash, and whether it verifies now; the true body for the scope admin only",
    ),
)
