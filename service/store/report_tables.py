"""Tables of what agents report and what is counted of it: the rest of the schema is in `tables.py`, whose metadata these
belong to.

Raw reports and minutes are partitioned by days, which go whole; hours are cut row by row. `metric_series` says what a
row of a rollup is about.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    Float,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from service.report import ERROR_CLASSES
from service.store.tables import Instant, metadata

report_position = Sequence("report_position", metadata=metadata)

# `day` is the day of receipt: idempotent by `id` for as long as raw reports are kept. `account_id` is as written.
tool_calls = Table(
    "tool_calls",
    metadata,
    Column("day", Date, nullable=False),
    Column("id", Text(collation="C"), nullable=False),
    Column("position", BigInteger, server_default=report_position.next_value(), nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("occurred_at", Instant, nullable=False),
    Column("clock_suspect", Boolean, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("connection_id", Text),
    Column("workflow_id", Text),
    Column("tool", Text, nullable=False),
    Column("provider", Text),
    Column("operation", Text, nullable=False),  # read | write
    Column("outcome", Text, nullable=False),  # success | error
    Column("http_status", Integer),
    Column("error_class", Text),
    Column("error", Text),  # bounded, token-like parts masked
    Column("retries", Integer, nullable=False),
    Column("latency_ms", Float),
    Column("verification", Text, nullable=False),  # verified | pending | missing | mismatch | none
    Column("idempotency_key", Text),
    PrimaryKeyConstraint("id", "day"),
    Index(None, "position"),
    postgresql_partition_by="RANGE (day)",
)

token_refreshes = Table(
    "token_refreshes",
    metadata,
    Column("day", Date, nullable=False),
    Column("id", Text(collation="C"), nullable=False),
    Column("position", BigInteger, server_default=report_position.next_value(), nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("occurred_at", Instant, nullable=False),
    Column("clock_suspect", Boolean, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("provider", Text),
    Column("outcome", Text, nullable=False),  # success | error
    Column("duration_ms", Float),
    Column("http_status", Integer),
    Column("error", Text),
    Column("outweighed", Boolean, nullable=False),  # the provider itself spoke of this account within 60 s
    PrimaryKeyConstraint("id", "day"),
    Index(None, "position"),
    postgresql_partition_by="RANGE (day)",
)

# For review, 30 days: what the model made up, and the tool's schema that it had. Token-like parts are masked.
malformed_calls = Table(
    "malformed_calls",
    metadata,
    Column("received_at", Instant, nullable=False),
    Column("id", Text, nullable=False),
    Column("occurred_at", Instant, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("connection_id", Text),
    Column("workflow_id", Text),
    Column("tool", Text, nullable=False),
    Column("provider", Text),
    Column("http_status", Integer),
    Column("error", Text),
    Column("params", JSONB),
    Column("schema", JSONB),
    PrimaryKeyConstraint("received_at", "id"),
    Index(None, "account_id", "received_at"),
)

# What is counted apart: one account at one provider, or (no account, `written` empty) the sum of a provider.
# `written` and `said_provider` are what reports say; `bound` once that was found to be one account we know.
metric_series = Table(
    "metric_series",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("written", Text, nullable=False),
    Column("said_provider", Text, nullable=False),
    Column("provider", Text, nullable=False),  # in lower case; "" where nobody said it
    Column("source", Text),
    Column("environment_id", Text),
    Column("account_id", Text),
    Column("provider_series_id", Integer),  # the sum it adds to
    Column("bound", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("written", "said_provider"),
    Index(None, "account_id"),
)

# Up to which position of its reports, or of the log, each kind has been counted.
rollup_marks = Table(
    "rollup_marks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
)

RETRIES = tuple(f"retries_{name}" for name in ERROR_CLASSES)
COUNTS = (
    "calls",
    "calls_succeeded",
    "writes",
    "partials",
    *RETRIES,
    "refreshes",
    "refreshes_succeeded",
    "deliveries",
)
# Seconds, by the buckets of service/rules/triggers/quantile.py: those in their order, then how many are in each.
SKETCHES = ("refresh_sizes", "lag_sizes")


def columns() -> list[Any]:
    """Null: nothing was reported. `at` is when the minute or the hour begins."""
    return [
        Column("series_id", Integer, nullable=False),
        Column("at", Instant, nullable=False),
        *(Column(name, Integer) for name in ("calls", "calls_succeeded", "writes", "partials", *RETRIES)),
        *(Column(name, Integer) for name in ("refreshes", "refreshes_succeeded")),
        Column("refresh_sizes", ARRAY(Integer)),
        Column("deliveries", Integer),
        Column("lag_seconds_max", Float),
        Column("lag_sizes", ARRAY(Integer)),
        PrimaryKeyConstraint("series_id", "at"),
    ]


rollup_minutes = Table(
    "rollup_minutes",
    metadata,
    *columns(),
    Index("ix_rollup_minutes_failing", "at", postgresql_where=text("calls_succeeded < calls")),
    postgresql_partition_by="RANGE (at)",
)
rollup_hours = Table(
    "rollup_hours",
    metadata,
    *columns(),
    Index(None, "at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    postgresql_with={"fillfactor": 85},
)
