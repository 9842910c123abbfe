"""Alerts, each with what messages and routes say of its account: read together, as one statement."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Row, Text, Uuid, bindparam, column, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey
from service.store.alerts import Alert
from service.store.tables import alerts

OF_ACCOUNT = ("provider", "identifier", "organization_id", "status", "last_refresh_outcome")


@dataclass(frozen=True, slots=True)
class Owner:
    """The account that an alert is about."""

    key: AccountKey
    provider: str | None
    identifier: str | None
    organization_id: str | None
    status: str | None
    last_refresh_outcome: str | None = None


Owned = tuple[Alert, Owner | None]

# By ids that are known before it is planned, never as a join with what gave them: planned while the tables are empty,
# that takes the square of what they have become.
SELECT = f"""
    SELECT {", ".join(f'alerts."{one.name}"' for one in alerts.columns)},
        accounts.account_id IS NOT NULL AS known, {", ".join(f"accounts.{name} AS its_{name}" for name in OF_ACCOUNT)}
    FROM alerts LEFT JOIN accounts USING (source, environment_id, account_id)
"""
COLUMNS = (*alerts.columns, column("known"), *(column(f"its_{name}", Text()) for name in OF_ACCOUNT))
LOAD = (
    text(f"{SELECT} WHERE alerts.id = ANY(:ids)")
    .bindparams(bindparam("ids", type_=ARRAY(Uuid(as_uuid=False))))
    .columns(*COLUMNS)
)
# Both by one snapshot: news comes in the transaction that changed its alert.
TAKE_NEWS = (
    text(
        f"""
    WITH taken AS (
        DELETE FROM alert_news
        WHERE id IN (SELECT id FROM alert_news ORDER BY id LIMIT :news_max FOR UPDATE SKIP LOCKED) RETURNING alert_id
    )
    {SELECT} WHERE alerts.id = ANY(ARRAY(SELECT alert_id FROM taken))
    """
    )
    .bindparams(bindparam("news_max", type_=BigInteger()))
    .columns(*COLUMNS)
)


async def load(conn: AsyncConnection, ids: Collection[str]) -> dict[str, Owned]:
    """By alert id; one that is gone is not in it."""
    return owned(await conn.execute(LOAD, {"ids": list(ids)})) if ids else {}


async def take_news(conn: AsyncConnection, limit: int) -> dict[str, Owned]:
    """What the oldest news are about, gone with this transaction's commit; each alert once."""
    return owned(await conn.execute(TAKE_NEWS, {"news_max": limit}))


def owned(rows: Iterable[Row[Any]]) -> dict[str, Owned]:
    found: dict[str, Owned] = {}
    for row in rows:
        values = dict(row._mapping)
        known, *of_account = (values.pop(name) for name in ("known", *(f"its_{name}" for name in OF_ACCOUNT)))
        key = AccountKey(*(values.pop(name) or "" for name in ("source", "environment_id", "account_id")))
        values["evidence"] = tuple(values["evidence"])
        account = key if key.account_id else None
        found[row.id] = (Alert(**values, account=account), Owner(key, *of_account) if known else None)
    return found
