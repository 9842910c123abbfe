"""`GET /v1/events/{id}/receipt`: the evidence of one event, verified again as it is asked for.

The true body may hold tokens of the provider's user. It is given to the scope `admin` alone; every other reader has it
with token-like fields masked (`body_masked`). `first_received_at` is when a request came that was replayed later; its
skew and its verification are of then. Length, hash and verification are always of the true bytes. `conflicts`
are the first of the other bodies that came under the same identity, shown and verified in the same way.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row
from starlette.requests import Request
from starlette.responses import Response

from service.api.events import as_uuid
from service.api.http import Call, runtime_of, safe_json
from service.errors import NotFound
from service.evidence import Evidence, shown
from service.store import conflicts, events, log
from service.store.session import begin

SIGNED_ORIGINS = ("webhook", "probe")


async def get_receipt(request: Request) -> Response:
    runtime = runtime_of(request)
    event_id = as_uuid(request.path_params["id"])
    async with begin(runtime.engine) as conn:
        event = await events.load(conn, event_id) if event_id else None
        receipt = await log.receipt_of(conn, event_id) if event and event_id else None
        others = await conflicts.of_event(conn, event.id) if event else []
        total = await conflicts.count_of_event(conn, event.id) if event else 0
    if event is None:
        raise NotFound("no event of that id", code="unknown_event")
    replayed = receipt is not None and receipt.secret_name is not None  # signed, and taken later than it came
    if event.origin not in SIGNED_ORIGINS and not replayed:
        raise NotFound(
            f"this event has the origin {event.origin}: no signed request told of it, so there is no receipt",
            code="no_receipt",
        )
    if receipt is None:
        raise NotFound("the receipt of this event is older than its retention and was dropped", code="receipt_dropped")
    raw = "admin" in request.state.scopes
    source = runtime.sources.get(receipt.source)
    return safe_json(
        {"id": event.id, "source": receipt.source, "origin": event.origin}
        | shown(evidence_of(receipt), source, raw=raw)
        | {
            "conflicts": [shown(evidence_of(row), source, raw=raw) for row in others],
            "conflicts_total": total,
        }
    )


def evidence_of(row: Row[Any]) -> Evidence:
    """Of a receipt, or of a conflict: what came signed under the same identity with another body."""
    return Evidence(
        source=row.source,
        received_at=row.received_at,
        first_received_at=row.first_received_at,
        attempted_at=row.attempted_at,
        headers=row.headers,
        body=bytes(row.body),
        body_sha256=bytes(row.body_sha256),
        secret_name=row.secret_name,
    )


CALLS = (
    Call(
        "GET",
        "/v1/events/{id}/receipt",
        get_receipt,
        "read",
        "The evidence: headers, body, hash, and whether it verifies now; the true body for the scope admin only",
    ),
)
