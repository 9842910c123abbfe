"""Deadlines: when an account's verdict may change with no event. One row an account, and one for each that an absence rule
waits for (`armed`); whoever is due is found at one end of an index, however many wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import orjson
from sqlalchemy import DateTime, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey
from service.store.keys import key_values, same_account
from service.store.shards import MINE
from service.store.tables import deadlines

PUT = """
    INSERT INTO deadlines (source, environment_id, account_id, due_at)
    SELECT source, environment_id, account_id, due_at
    FROM jsonb_populate_recordset(NULL::deadlines, CAST(:rows AS jsonb))
    ON CONFLICT (source, environment_id, account_id) DO UPDATE SET due_at = """
SET, BRING_FORWARD = text(PUT + "excluded.due_at"), text(PUT + "least(deadlines.due_at, excluded.due_at)")
REMOVE = deadlines.delete().where(same_account(deadlines))
DUE = text(
    f"""
    (SELECT source, environment_id, account_id, due_at FROM deadlines WHERE due_at <= :now AND {MINE}
     ORDER BY due_at LIMIT :limit)
    UNION ALL
    (SELECT source, environment_id, account_id, due_at FROM armed WHERE due_at <= :now AND {MINE}
     ORDER BY due_at LIMIT :limit)
    """
).bindparams(bindparam("now", type_=DateTime(timezone=True)))
NEXT_DUE = text(
    """
    SELECT min(due_at), min(due_at) <= clock_timestamp() FROM (
        (SELECT due_at FROM deadlines ORDER BY due_at LIMIT 1)
        UNION ALL (SELECT due_at FROM armed ORDER BY due_at LIMIT 1)
        UNION ALL (SELECT due_at FROM groups WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1)
    ) AS next
    """
)


async def put(conn: AsyncConnection, due: Mapping[AccountKey, datetime | None]) -> None:
    """The earliest instant at which each account's verdict may change; None: at none."""
    gone = [key for key, at in due.items() if at is None]
    if gone:
        await conn.execute(REMOVE, key_values(gone))
    if rows := rows_of(due):
        await conn.execute(SET, {"rows": rows})


async def bring_forward(conn: AsyncConnection, due: Mapping[AccountKey, datetime]) -> None:
    """Judged again by then at the latest; an earlier deadline stays."""
    if rows := rows_of(due):
        await conn.execute(BRING_FORWARD, {"rows": rows})


def rows_of(due: Mapping[AccountKey, datetime | None]) -> str | None:
    rows = [
        {"source": key.source, "environment_id": key.environment_id, "account_id": key.account_id, "due_at": at}
        for key, at in due.items()
        if at is not None
    ]
    return orjson.dumps(rows).decode() if rows else None


async def due(
    conn: AsyncConnection, now: datetime, limit: int, *, shards: Sequence[int] | None = None
) -> dict[AccountKey, datetime]:
    """The accounts whose verdict may have changed by time alone, with the earliest instant of each; of these shards."""
    rows = await conn.execute(DUE, {"now": now, "limit": limit, "shards": None if shards is None else list(shards)})
    found: dict[AccountKey, datetime] = {}
    for row in rows:
        key = AccountKey(row[0], row[1], row[2])
        found[key] = min(found.get(key, row[3]), row[3])
    return found


async def next_due(conn: AsyncConnection) -> tuple[datetime | None, bool]:
    """The earliest deadline, and whether it has come."""
    at, is_due = (await conn.execute(NEXT_DUE)).one()
    return at, bool(is_due)
