"""Builders of values, so that a test names only what it is about."""

from __future__ import annotations

import hashlib
import itertools
from datetime import UTC, datetime
from typing import Any

from service.event import ProviderEvent
from service.store.log import Receipt

numbers = itertools.count(1)


def make_receipt(*, body: bytes = b"{}", source: str = "scalekit", origin: str = "webhook", **event: Any) -> Receipt:
    values: dict[str, Any] = {
        "event_id": f"evt_{next(numbers)}",
        "type": "connected_account.updated",
        "kind": "account.updated",
        "account_id": "ca_1",
        "connection_id": "conn_1",
        "environment_id": "env_1",
        "occurred_at": datetime.now(UTC),
    } | event
    return Receipt(
        source=source,
        origin=origin,
        event=ProviderEvent(**values),
        clock_suspect=False,
        headers={"webhook-id": "msg_1"},
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
        secret_name="scalekit-1",
        attempted_at=datetime.now(UTC),
    )
