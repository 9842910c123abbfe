"""Reported refreshes of which the provider itself told: its word counts alone, whichever of the two came first.

A report looks for the provider's word before it is kept (service/store/reports.py). What each could not see of the other
is found when it is counted: by the report of what is there, and by the log of what was reported before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.report import OUTWEIGHED_BY, OUTWEIGHED_WITHIN, OUTWEIGHING, SOURCE
from service.store import reports
from service.store.columns import literal

TAKEN_BACK_OF = 50_000  # the last refreshes that were reported: older ones stay counted beside what the provider says


def after(table: str) -> str:
    """Rows of one reading: those between two positions."""
    return f"FROM {table} WHERE position > :after AND position <= :upto"


# A report that came before the provider's word on the same account and time, which then counts alone. The short id is that
# account's unless another has it too.
TAKE_BACK = text(
    f"""
    WITH told AS (
        SELECT account_id, source, coalesce(environment_id, '') AS environment_id, occurred_at {after("events")}
            AND account_id IS NOT NULL AND received_at >= :floor AND origin IN {OUTWEIGHING} AND kind IN {OUTWEIGHED_BY}
    ), recent AS MATERIALIZED (
        SELECT day, id, account_id, occurred_at FROM token_refreshes
        WHERE day >= :first_day AND NOT outweighed AND EXISTS (SELECT FROM told)
        ORDER BY position DESC LIMIT {TAKEN_BACK_OF}
    ), taken AS (
        SELECT DISTINCT r.day, r.id FROM told e
        CROSS JOIN LATERAL (VALUES (e.account_id, true),
            (e.source || ':' || e.environment_id || ':' || e.account_id, false)) AS n (written, short)
        JOIN recent r ON r.account_id = n.written
            AND r.occurred_at BETWEEN e.occurred_at - CAST(:within AS interval) AND e.occurred_at + CAST(:within AS interval)
        WHERE NOT n.short OR NOT EXISTS (SELECT FROM accounts a WHERE a.account_id = e.account_id AND a.source <> :ours
            AND (a.source, a.environment_id) <> (e.source, e.environment_id))
    )
    UPDATE token_refreshes t SET outweighed = true FROM taken WHERE t.day = taken.day AND t.id = taken.id
    RETURNING t.position
    """
).bindparams(bindparam("within", value=OUTWEIGHED_WITHIN), bindparam("ours", value=SOURCE))
UNWEIGHED = text(
    f"SELECT id, account_id, occurred_at {after('token_refreshes')} AND day >= :first_day AND NOT outweighed"
)
OUTWEIGH = text(
    """UPDATE token_refreshes SET outweighed = true WHERE position > :after AND position <= :upto AND day >= :first_day
    AND id = ANY (CAST(:ids AS text[]))"""
)


async def by_what_is_there(conn: AsyncConnection, within: Mapping[str, Any]) -> None:
    """Marks reports that are about to be counted. The provider may have spoken of the same refresh while its report was
    being kept: each was committed unseen by the other, and now both are there."""
    rows = (await conn.execute(UNWEIGHED, within)).all()
    bound = await reports.bind(conn, {row.account_id for row in rows})
    told = await reports.told_of(conn, [(row.id, bound[row.account_id].key, row.occurred_at) for row in rows])
    if told:
        await conn.execute(OUTWEIGH, {**within, "ids": literal(sorted(told))})


async def by_what_came_later(conn: AsyncConnection, within: Mapping[str, Any]) -> list[int]:
    """Marks reports of which this part of the log tells; their positions."""
    return list((await conn.execute(TAKE_BACK, within)).scalars())
