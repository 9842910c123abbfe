"""The table of who pulls the copy for a SIEM, beside `tables.py`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Table, Text, text

from service.store.tables import Instant, metadata

# One row for each token that ever asked `GET /v1/siem/events`, written at most once a minute.
siem_pollers = Table(
    "siem_pollers",
    metadata,
    Column("token_id", Text, primary_key=True),
    Column("first_asked_at", Instant, nullable=False),
    Column("asked_at", Instant, nullable=False),
    Column("asks", BigInteger, nullable=False, server_default=text("1")),  # in minutes that had one
    Column("gap_seconds", Double, nullable=False, server_default=text("0")),  # the longest of late between two
)
