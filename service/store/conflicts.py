"""Bodies that came signed under an event's identity with other content than the first; `accept_rows` keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Text, and_, cast, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.tables import alerts, conflicts, events, receipts

OF_EVENT_MAX = 10
UNTOLD_MAX = 20  # of a source at a time
UNSIGNED_ORIGINS = ("recovery", "report", "authwatch")


@dataclass(frozen=True, slots=True)
class Conflict:
    source: str
    event_row_id: str
    secret_name: str
    received_at: datetime

    @property
    def about(self) -> str:
        """The group of its alert: of this event one at a time."""
        return f"{self.source}:{self.event_row_id}"


async def of_event(conn: AsyncConnection, event_row_id: str) -> list[Row[Any]]:
    """The first of them, oldest first."""
    rows = await conn.execute(
        select(conflicts)
        .where(conflicts.c.event_row_id == event_row_id)
        .order_by(conflicts.c.received_at, conflicts.c.body_sha256)
        .limit(OF_EVENT_MAX)
    )
    return list(rows)


async def count_of_event(conn: AsyncConnection, event_row_id: str) -> int:
    counted = select(func.count()).select_from(conflicts).where(conflicts.c.event_row_id == event_row_id)
    return (await conn.execute(counted)).scalar_one()


async def untold(conn: AsyncConnection, rule_id: str, source: str, since: datetime | None) -> list[Conflict]:
    """Of that source, received at or after `since` and not told by an alert of that rule, oldest first, bounded.

    Only where both bodies were signed: a provider's API may well write an event in other words than its webhook. Where
    the first one's receipt is gone, its origin must do.
    """
    wanted = [
        conflicts.c.source == source,
        conflicts.c.secret_name.is_not(None),
        or_(
            receipts.c.secret_name.is_not(None),
            and_(
                receipts.c.event_row_id.is_(None),
                or_(events.c.origin.is_(None), events.c.origin.not_in(UNSIGNED_ORIGINS)),
            ),
        ),
        ~exists().where(
            alerts.c.rule_id == rule_id,
            alerts.c.group_key == func.concat(conflicts.c.source, ":", cast(conflicts.c.event_row_id, Text)),
            or_(alerts.c.state != "resolved", alerts.c.fired_at >= conflicts.c.received_at),
        ),
    ]
    if since is not None:
        wanted.append(conflicts.c.received_at >= since)
    rows = await conn.execute(
        select(conflicts.c.source, conflicts.c.event_row_id, conflicts.c.secret_name, conflicts.c.received_at)
        .join_from(conflicts, events, events.c.id == conflicts.c.event_row_id, isouter=True)
        .join(receipts, receipts.c.event_row_id == conflicts.c.event_row_id, isouter=True)
        .where(*wanted)
        .order_by(conflicts.c.received_at)
        .limit(UNTOLD_MAX)
    )
    return [Conflict(*row) for row in rows]
