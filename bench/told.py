"""Genuine Scalekit events about one account, whose connection is its own: no connection seems to fail as a whole."""

from __future__ import annotations

import json
import time

from bench.load import PATH, occurred, request
from service.event import new_id
from service.signatures import Secret, sign

ENVIRONMENT = "env_58345499215204356"


def body_of(account: str, status: str, at: float, what: str = "status_updated") -> dict[str, object]:
    """`at`: seconds since the epoch; `what`: the last word of its type."""
    return {
        "spec_version": "1",
        "id": f"evt_{new_id()}",
        "type": f"connected_account.{what}",
        "object": "ConnectedAccount",
        "occurred_at": occurred(at),
        "environment_id": ENVIRONMENT,
        "data": {
            "id": account,
            "connection_id": f"conn_{account}",
            "identifier": f"{account}@example.com",
            "provider": "GMAIL",
            "status": status,
        },
    }


def signed(secret: Secret, body: dict[str, object]) -> bytes:
    """The whole request, signed now."""
    raw, event_id = json.dumps(body).encode(), str(body["id"])
    at = int(time.time())
    return request("127.0.0.1", PATH, event_id, at, sign(secret, event_id, at, raw), raw)
