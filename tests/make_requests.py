"""Signed requests, as a provider would send them."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

from service.event import new_id
from service.signatures import parse_secret, sign


def signed(
    body: bytes, secret: str, *, at: int | None = None, message_id: str | None = None, prefix: str = "webhook"
) -> dict[str, str]:
    message_id, at = message_id or f"msg_{new_id()}", int(time.time()) if at is None else at
    return {
        "content-type": "application/json",
        f"{prefix}-id": message_id,
        f"{prefix}-timestamp": str(at),
        f"{prefix}-signature": sign(parse_secret(secret, name="test"), message_id, at, body),
    }


def raw_headers(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def event_body(type_: str = "connected_account.updated", **changes: Any) -> bytes:
    """A Scalekit event with an id and a time of its own; `data` fields by `data=`, a value of None takes a key out."""
    data = {
        "id": "ca_1",
        "connection_id": "conn_1",
        "identifier": "bruce@example.com",
        "provider": "GOOGLE_ADS",
        "status": "ACTIVE",
        "authorization_type": "OAUTH",
    } | changes.pop("data", {})
    event = {
        "spec_version": "1",
        "id": f"evt_{new_id()}",
        "type": type_,
        "object": "ConnectedAccount",
        "occurred_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "environment_id": "env_1",
        "data": {name: value for name, value in data.items() if value is not None},
    } | changes
    return json.dumps({name: value for name, value in event.items() if value is not None}).encode()
