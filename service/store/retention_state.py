"""How retention is getting on, in one row: what the next run, the watch and the commands must know of the last ones."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Row, Table, Text, func, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from service.retention import recover_since_min
from service.settings import RetentionSettings
from service.store.tables import Instant, metadata

retention_state = Table(
    "retention_state",
    metadata,
    Column("name", Text, primary_key=True),  # one row: retention
    Column("completed_at", Instant, nullable=False),  # of the last run that came to its end, or of the installation
    Column("unfinished", Text),  # what the last run did not come to
    Column("dedup_before", Instant),  # the latest time that dedup was ever cut before
    Column("configured", JSONB),  # the retention and the sinks that the worker runs with; null before its first run
)


async def read(conn: AsyncConnection) -> Row[Any]:
    return (await conn.execute(select(retention_state))).one()


async def completed(conn: AsyncConnection, at: datetime) -> None:
    await conn.execute(update(retention_state).values(completed_at=at, unfinished=None))


async def unfinished(conn: AsyncConnection, what: str) -> None:
    await conn.execute(update(retention_state).values(unfinished=what[:500]))


async def configured(conn: AsyncConnection, values: Mapping[str, Any]) -> None:
    await conn.execute(update(retention_state).values(configured=dict(values)))


async def dedup_cut(conn: AsyncConnection, before: datetime) -> None:
    """Written before it is done. Never back: what was cut stays unknown, whatever is configured later."""
    latest = func.greatest(retention_state.c.dedup_before, before)
    await conn.execute(update(retention_state).values(dedup_before=latest))


async def recover_floor(conn: AsyncConnection, now: datetime, keep: RetentionSettings) -> datetime:
    """How far back a recovery may go."""
    return recover_since_min(now, keep, (await read(conn)).dedup_before)
