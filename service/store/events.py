"""Looking events up: by account, connection, type, kind, source and time."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey, Event, order_key
from service.store.log import SELECTED, to_event
from service.store.tables import events


async def search(
    conn: AsyncConnection,
    *,
    account_id: str | None = None,
    source: str | None = None,
    environment_id: str | None = None,
    connection_id: str | None = None,
    type_: str | None = None,
    kind: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    before: tuple[datetime, int] | None = None,
    limit: int,
) -> list[Event]:
    """Newest `occurred_at` first; `before` is the (occurred_at, position) of the last row already seen."""
    query = select(*SELECTED).order_by(events.c.occurred_at.desc(), events.c.position.desc()).limit(limit)
    equal = {
        events.c.account_id: account_id,
        events.c.source: source,
        events.c.environment_id: environment_id,
        events.c.connection_id: connection_id,
        events.c.type: type_,
        events.c.kind: kind,
    }
    for column, value in equal.items():
        if value is not None:
            query = query.where(column == value)
    if since is not None:
        query = query.where(events.c.occurred_at >= since)
    if until is not None:
        query = query.where(events.c.occurred_at < until)
    if before is not None:
        query = query.where(tuple_(events.c.occurred_at, events.c.position) < before)
    return [to_event(row) for row in await conn.execute(query)]


async def load(conn: AsyncConnection, event_row_id: str) -> Event | None:
    row = (await conn.execute(select(*SELECTED).where(events.c.id == event_row_id).limit(1))).first()
    return to_event(row) if row else None


async def load_many(conn: AsyncConnection, event_row_ids: Collection[str]) -> list[Event]:
    """Those that are still in the log, oldest first."""
    if not event_row_ids:
        return []
    rows = await conn.execute(select(*SELECTED).where(events.c.id.in_(list(event_row_ids))))
    return sorted(map(to_event, rows), key=order_key)


async def story_of(conn: AsyncConnection, key: AccountKey, at: datetime, limit: int) -> list[Event]:
    """The newest events of one account that had happened by then, whenever they came; newest first."""
    rows = await conn.execute(
        select(*SELECTED)
        .where(
            events.c.account_id == key.account_id,
            events.c.source == key.source,
            func.coalesce(events.c.environment_id, "") == key.environment_id,
            events.c.origin.not_in(("probe", "authwatch")),
            events.c.occurred_at <= at,
        )
        .order_by(events.c.occurred_at.desc())
        .limit(limit)
    )
    return [to_event(row) for row in rows]


async def position_since(conn: AsyncConnection, since: datetime) -> int:
    """The position just before the first row received at or after `since`."""
    # The end first: what is committed between the two looks comes after it.
    end = (await conn.execute(select(events.c.position).order_by(events.c.position.desc()).limit(1))).first()
    row = (
        await conn.execute(
            select(events.c.position).where(events.c.received_at >= since).order_by(events.c.position).limit(1)
        )
    ).first()
    if row is not None:
        return int(row.position) - 1
    return int(end.position) if end else 0
