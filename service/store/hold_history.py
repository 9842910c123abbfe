"""How long holds last, and every hold that a workflow ever had: those that stand, those that went, and the earlier times of
those that came back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import DateTime, Integer, Text, Uuid, bindparam, column, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.hold_tables import past_holds
from service.store.keys import any_id
from service.store.tables import alerts, holds
from service.store.workflows import Hold, to_hold

SET_EXPIRY = (
    update(holds)
    .where(
        holds.c.workflow_id == bindparam("held", type_=Text()),
        holds.c.alert_id.is_(None),
        holds.c.released_at.is_(None),
        holds.c.expires_at.is_distinct_from(bindparam("until", type_=DateTime(timezone=True))),
    )
    .values(expires_at=bindparam("until", type_=DateTime(timezone=True)))
    .returning(holds.c.id)
)


async def set_expiry(conn: AsyncConnection, workflow_id: str, until: datetime | None) -> bool:
    """Moves the end of a person's open hold; False when there is none, or it ends then already."""
    return (await conn.execute(SET_EXPIRY, {"held": workflow_id, "until": until})).first() is not None


async def expired(conn: AsyncConnection, limit: int) -> list[str]:
    """Workflows with a hold whose time is over by the database's clock, those that have been so longest first."""
    rows = await conn.execute(
        select(holds.c.workflow_id)
        .where(holds.c.released_at.is_(None), holds.c.expires_at <= func.clock_timestamp())
        .order_by(holds.c.expires_at)
        .limit(limit)
    )
    return list(dict.fromkeys(row.workflow_id for row in rows))


@dataclass(frozen=True, slots=True)
class Held:
    """One time that something held a workflow, with the rule of the alert that did; None of a person's."""

    hold: Hold
    rule_id: str | None


COLUMNS = ", ".join(one.name for one in past_holds.columns)
PAGE = """
    SELECT * FROM (
        SELECT {columns} FROM {table} WHERE workflow_id = :workflow_id {before}
        ORDER BY placed_at DESC, id DESC LIMIT :limit) AS of_{table}
"""


def newest_first(before: str) -> str:
    pages = (PAGE.format(columns=COLUMNS, table=table, before=before) for table in ("holds", "past_holds"))
    return f"""
        SELECT h.*, a.rule_id FROM ({" UNION ALL ".join(pages)}) AS h LEFT JOIN alerts a ON a.id = h.alert_id
        ORDER BY h.placed_at DESC, h.id DESC LIMIT :limit
    """


FOUND = (*past_holds.columns, column("rule_id", Text()))
SIZED = bindparam("limit", type_=Integer())
FIRST = text(newest_first("")).bindparams(SIZED).columns(*FOUND)
NEXT = (
    text(newest_first("AND (placed_at, id) < (:at, :id)"))
    .bindparams(SIZED, bindparam("at", type_=DateTime(timezone=True)), bindparam("id", type_=Uuid(as_uuid=False)))
    .columns(*FOUND)
)


async def history(
    conn: AsyncConnection, workflow_id: str, limit: int, before: tuple[datetime, str] | None = None
) -> list[Held]:
    """Newest first, whether the workflow still exists or not. `before`: (placed_at, id) of the last one read."""
    asked = {"workflow_id": workflow_id, "limit": limit}
    if before is None:
        rows = await conn.execute(FIRST, asked)
    else:
        rows = await conn.execute(NEXT, asked | {"at": before[0], "id": before[1]})
    return [Held(to_hold(row), row.rule_id) for row in rows]


async def rules_of(conn: AsyncConnection, alert_ids: Collection[str]) -> dict[str, str]:
    """By alert id, the rule that opened it."""
    if not alert_ids:
        return {}
    rows = await conn.execute(select(alerts.c.id, alerts.c.rule_id).where(alerts.c.id == any_id(alert_ids)))
    return {row.id: row.rule_id for row in rows}
