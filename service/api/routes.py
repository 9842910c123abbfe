"""Every call of the API, in one list; routes and OpenAPI are made from it."""

from __future__ import annotations

from service.api import (
    accounts,
    alerts,
    classify,
    events,
    explain,
    gate,
    metrics_series,
    poison,
    quarantine,
    receipts,
    reports,
    rules,
    siem,
    silences,
    status,
    workflows,
)
from service.api.http import Call

CALLS: tuple[Call, ...] = (
    *events.CALLS,
    *receipts.CALLS,
    *accounts.CALLS,
    *workflows.CALLS,
    *gate.CALLS,
    *quarantine.CALLS,
    *reports.CALLS,
    *metrics_series.CALLS,
    *alerts.CALLS,
    *silences.CALLS,
    *rules.CALLS,
    *explain.CALLS,
    *classify.CALLS,
    *siem.CALLS,
    *poison.CALLS,
    *status.CALLS,
)
