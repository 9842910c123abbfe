"""What there is to holds beside their row in `tables.py`: how they are found by age, and the earlier times of one that came
back (a dependency that was dropped and taken up again in the same episode)."""

from __future__ import annotations

from sqlalchemy import Column, Index, PrimaryKeyConstraint, Table, Text, Uuid, text

from service.store.tables import Instant, holds, metadata

Index("ix_holds_workflow_id_placed_at_id", holds.c.workflow_id, holds.c.placed_at, holds.c.id)
Index(
    "ix_holds_expires",
    holds.c.expires_at,
    postgresql_where=text("released_at IS NULL AND expires_at IS NOT NULL"),
)

# The row in `holds` is the newest time of a workflow and an episode; each earlier one is kept here when it comes back.
past_holds = Table(
    "past_holds",
    metadata,
    Column("id", Uuid(as_uuid=False), nullable=False),
    Column("workflow_id", Text, nullable=False),
    Column("alert_id", Uuid(as_uuid=False)),
    Column("scope", Text, nullable=False),
    Column("source", Text),
    Column("environment_id", Text),
    Column("account_id", Text),
    Column("connection_id", Text),
    Column("reason", Text, nullable=False),
    Column("placed_at", Instant, nullable=False),
    Column("released_at", Instant, nullable=False),
    Column("release_reason", Text),
    Column("placed_by", Text),
    Column("expires_at", Instant),
    Column("released_by", Text),
    Column("release_note", Text),
    PrimaryKeyConstraint("id", "placed_at"),
    Index("ix_past_holds_workflow_id_placed_at_id", "workflow_id", "placed_at", "id"),
    Index(None, "alert_id"),
)
