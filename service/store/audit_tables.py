"""The tables of the audit chain, beside `tables.py`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, PrimaryKeyConstraint, Table, Text, text

from service.audit import START
from service.store.tables import Instant, events, metadata

# Where the chain stands, in one row, written with every entry under the log's lock. The anchor is the newest of the
# entries that retention took away: what comes after it still hangs on to something.
audit_chain = Table(
    "audit_chain",
    metadata,
    Column("name", Text, primary_key=True),  # one row: audit
    Column("number", BigInteger, nullable=False, server_default=text("0")),
    Column("position", BigInteger, nullable=False, server_default=text("0")),
    Column("hash", Text, nullable=False, server_default=text(f"'{START}'")),
    Column("at", Instant),
    Column("anchor_number", BigInteger, nullable=False, server_default=text("0")),
    Column("anchor_position", BigInteger, nullable=False, server_default=text("0")),
    Column("anchor_hash", Text, nullable=False, server_default=text(f"'{START}'")),
    Column("cut_position", BigInteger, nullable=False, server_default=text("0")),  # nothing up to here is asked for
)

# The signing secrets each source had when a process last looked, so that a change is an audit entry, written once.
known_secrets = Table(
    "known_secrets",
    metadata,
    Column("source", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("shown_name", Text, nullable=False),
    Column("since", Instant, nullable=False),
    PrimaryKeyConstraint("source", "fingerprint"),
)

# Finds the chain's entries among millions of events. Days made before it came do not have it, as with ix_events_own.
Index(
    "ix_events_chained",
    events.c.position,
    postgresql_where=text("kind IN ('audit', 'workflow.paused', 'workflow.resumed')"),
)
