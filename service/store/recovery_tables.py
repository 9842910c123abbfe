"""The tables of gap recovery and of sources' habits, beside `tables.py`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB

from service.store.tables import Instant, metadata

# Up to when each source's receipts could be committed, kept by the receivers; a gap in it is an outage.
intake = Table(
    "intake",
    metadata,
    Column("source", Text, primary_key=True),
    Column("able_until", Instant, nullable=False),
    Column("down_from", Instant),  # the last outage, null before the first
    Column("up_since", Instant),
    Column("gap_from", Instant),  # the last shorter gap, a restart's, which only the lag of events needs to know
    Column("gap_until", Instant),
)

# A span of a source's events, or the first listing of its accounts, to be fetched from the provider's API.
recoveries = Table(
    "recoveries",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("source", Text, nullable=False),
    Column("reason", Text, nullable=False),  # outage | listing
    Column("environment_id", Text),  # of a listing
    Column("since", Instant, nullable=False),
    Column("until", Instant, nullable=False),
    Column("state", Text, nullable=False),  # waiting | done | left (to the provider's own retries)
    Column("done_until", Instant),  # events up to here are in
    Column("page_token", Text),  # where a listing goes on
    Column("created_at", Instant, nullable=False),
    Column("next_attempt_at", Instant, nullable=False),
    Column("lease_until", Instant),
    Column("claimed_by", Uuid(as_uuid=False)),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("last_code", Text),
    Column("last_error", Text),
    Column("found", BigInteger, nullable=False, server_default=text("0")),
    Column("added", BigInteger, nullable=False, server_default=text("0")),
    Column("finished_at", Instant),
    Index("ix_recoveries_waiting", "created_at", postgresql_where=text("state = 'waiting'")),
    Index(
        "uq_recoveries_listing",
        "source",
        "environment_id",
        unique=True,
        postgresql_where=text("reason = 'listing'"),
    ),
)

# How often a source speaks, and when it last spoke late; learnt from the log by one reader.
habits = Table(
    "habits",
    metadata,
    Column("source", Text, primary_key=True),
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("gaps", JSONB, nullable=False, server_default=text("'{}'")),  # day -> largest gap that ended on it, seconds
    Column("late_at", Instant),
    Column("late_seconds", Float),
    Column("late_break_at", Instant),  # of disconnections and failed refreshes
    Column("late_break_seconds", Float),
)
