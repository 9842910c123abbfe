"""Tables of what rules keep: the rest of the schema is in `tables.py`, whose metadata these belong to."""

from __future__ import annotations

from sqlalchemy import ARRAY, Column, Index, Integer, PrimaryKeyConstraint, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB

from service.store.tables import Instant, metadata

# What an account still owes: an `absence` rule waits for an event until `due_at`. Gone once it came, or was missed.
armed = Table(
    "armed",
    metadata,
    Column("source", Text, nullable=False),
    Column("environment_id", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("rule_id", Text, nullable=False),
    Column("condition_version", Text, nullable=False),
    Column("armed_at", Instant, nullable=False),
    Column("event_row_id", Uuid(as_uuid=False), nullable=False),
    Column("due_at", Instant, nullable=False),
    PrimaryKeyConstraint("source", "environment_id", "account_id", "rule_id"),
    Index(None, "due_at"),
)

# The groups of rules that do not judge one account's story: what they are, and when they are judged with no event.
groups = Table(
    "groups",
    metadata,
    Column("rule_id", Text, nullable=False),
    Column("group_key", Text, nullable=False),
    Column("condition_version", Text, nullable=False),
    Column("group", JSONB, nullable=False),
    Column("source", Text),
    Column("environment_id", Text),
    Column("account_id", Text),
    Column("connection_id", Text),
    Column("first_seen_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),
    Column("due_at", Instant),
    PrimaryKeyConstraint("rule_id", "group_key"),
    Index("ix_groups_due_at", "due_at", postgresql_where=text("due_at IS NOT NULL")),
)

# What such a rule counts, event by event.
samples = Table(
    "samples",
    metadata,
    Column("rule_id", Text, nullable=False),
    Column("group_key", Text, nullable=False),
    Column("condition_version", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("event_row_id", Uuid(as_uuid=False), nullable=False),
    Column("role", Text, nullable=False),
    Column("order", Text, nullable=False),  # of samples of one instant, by what the provider sent
    Column("distinct", Text),
    PrimaryKeyConstraint("rule_id", "group_key", "condition_version", "at", "event_row_id"),
    Index(None, "at"),
)

# The same by the bucket, where they are too many (service/rules/triggers/rolling.py).
buckets = Table(
    "buckets",
    metadata,
    Column("rule_id", Text, nullable=False),
    Column("group_key", Text, nullable=False),
    Column("condition_version", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("total", Integer, nullable=False),
    Column("good", Integer, nullable=False),
    Column("sizes", JSONB, nullable=False),
    Column("examples", ARRAY(Text), nullable=False),
    PrimaryKeyConstraint("rule_id", "group_key", "condition_version", "at"),
    Index(None, "at"),
)
