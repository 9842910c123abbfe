"""One alert, as the notifiers' tests tell of it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

from service.notify.base import AlertView, WorkflowLine

OPENED = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
VIEW = AlertView(
    id="0199-alert",
    rule_id="token-refresh-failing",
    severity="P2",
    state="firing",
    summary="Token refresh is failing",
    opened_at=OPENED,
    fired_at=OPENED + timedelta(seconds=2),
    account_id="ca_1",
    provider="GOOGLE_ADS",
    identifier="clark@example.com",
    workflows=(WorkflowLine(workflow_id="w1", name="Nightly report", state="paused"),),
    url="https://authwatch.example.com/#alert=1&x=2",
)
ACKNOWLEDGED = dataclasses.replace(VIEW, state="acknowledged", acknowledged_by="Kim")
RESOLVED = dataclasses.replace(VIEW, state="resolved", resolved_at=OPENED + timedelta(minutes=9))
