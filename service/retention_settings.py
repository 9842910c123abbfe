"""The config file's section `retention`: how long what is kept."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator

from service.strict import Strict

RETENTION_DAYS_MIN, RETENTION_DAYS_MAX = 1, 3650
DURATION = re.compile(r"(\d{1,6})([smhd])")
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def retention(value: Any) -> Any:
    """As durations are written in rule files, and long enough that a slip of the unit does not empty the log."""
    if isinstance(value, str) and (match := DURATION.fullmatch(value)):
        value = timedelta(seconds=int(match[1]) * UNIT_SECONDS[match[2]])
    if not isinstance(value, timedelta):
        raise ValueError("write a duration such as 36h or 90d")
    if not timedelta(days=RETENTION_DAYS_MIN) <= value <= timedelta(days=RETENTION_DAYS_MAX):
        raise ValueError(f"must be between {RETENTION_DAYS_MIN}d and {RETENTION_DAYS_MAX}d")
    return value


Retention = Annotated[timedelta, BeforeValidator(retention)]


class RetentionSettings(Strict):
    """How long what is kept. `sink_backlog_max`: how much longer the log waits for a sink that lags."""

    receipts: Retention = timedelta(days=30)
    events: Retention = timedelta(days=90)
    alerts: Retention = timedelta(days=400)
    audit: Retention = timedelta(days=400)
    sink_backlog_max: Retention = timedelta(days=7)
