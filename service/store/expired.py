"""EXPIRED accounts that are asked for at their provider: whose turn it is, and whether the provider wants to be asked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Column, PrimaryKeyConstraint, Table, Text, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.tables import Instant, accounts, metadata, readers

READER = "expired-accounts"  # its row among the readers holds the lease, and how the provider answered last
EXPIRED = "EXPIRED"
COUNTED_MAX = 100_000

expired_asks = Table(
    "expired_asks",
    metadata,
    Column("source", Text, nullable=False),
    Column("environment_id", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("asked_at", Instant, nullable=False),
    Column("next_ask_at", Instant, nullable=False),
    PrimaryKeyConstraint("source", "environment_id", "account_id"),
)


@dataclass(frozen=True, slots=True)
class Due:
    """`expired_since` None: not known, so long. `held`: some workflow is held because of it."""

    account_id: str
    expired_since: datetime | None
    held: bool = False


# What holds a workflow, and then what broke last, comes first; a part of the places is for who has waited longest, so
# that nobody waits for ever. A next time further off than any is of a clock that ran ahead.
DUE = text(
    """
    WITH held AS MATERIALIZED (
        SELECT DISTINCT account_id FROM holds
        WHERE released_at IS NULL AND source = :source AND environment_id = :environment_id AND account_id IS NOT NULL
    ), due AS MATERIALIZED (
        SELECT a.account_id, a.status_since, h.account_id IS NOT NULL AS held,
            coalesce(e.next_ask_at, a.status_since) AS waits_since
        FROM accounts a LEFT JOIN expired_asks e USING (source, environment_id, account_id)
            LEFT JOIN held h ON h.account_id = a.account_id
        WHERE a.status = 'EXPIRED' AND a.source = :source AND a.environment_id = :environment_id
            AND CASE WHEN e.next_ask_at IS NULL THEN a.status_since IS NULL OR a.status_since <= :ripe
                ELSE e.next_ask_at <= :now OR e.next_ask_at > :furthest END
    )
    SELECT account_id, status_since, held FROM (
        (SELECT * FROM due ORDER BY held DESC, status_since DESC NULLS LAST, account_id LIMIT :first)
        UNION
        (SELECT * FROM due ORDER BY waits_since NULLS FIRST, account_id LIMIT :longest)
    ) AS chosen
    ORDER BY held DESC, status_since DESC NULLS LAST, account_id
    """
)
FORGET = text(
    """
    DELETE FROM expired_asks e WHERE NOT EXISTS (
        SELECT FROM accounts a WHERE a.source = e.source AND a.environment_id = e.environment_id
            AND a.account_id = e.account_id AND a.status = 'EXPIRED')
    """
)


async def due(
    conn: AsyncConnection,
    source: str,
    environment_id: str,
    now: datetime,
    *,
    first: int,
    longest: int,
    ripe_after: timedelta,
    interval_max: timedelta,
) -> list[Due]:
    """At most `first` + `longest`, the most urgent first."""
    rows = await conn.execute(
        DUE,
        {
            "source": source,
            "environment_id": environment_id,
            "now": now,
            "ripe": now - ripe_after,
            "furthest": now + interval_max,
            "first": first,
            "longest": longest,
        },
    )
    return [Due(row.account_id, row.status_since, row.held) for row in rows]


async def asked(
    conn: AsyncConnection, source: str, environment_id: str, now: datetime, next_ask_at: dict[str, datetime]
) -> None:
    if not next_ask_at:
        return
    statement = insert(expired_asks).values(
        [
            {
                "source": source,
                "environment_id": environment_id,
                "account_id": account_id,
                "asked_at": now,
                "next_ask_at": at,
            }
            for account_id, at in sorted(next_ask_at.items())
        ]
    )
    await conn.execute(
        statement.on_conflict_do_update(
            index_elements=("source", "environment_id", "account_id"),
            set_={"asked_at": statement.excluded.asked_at, "next_ask_at": statement.excluded.next_ask_at},
        )
    )


async def answered(conn: AsyncConnection, now: datetime) -> None:
    """The round is over, and the provider answers."""
    await conn.execute(
        update(readers)
        .where(readers.c.name == READER)
        .values(
            lease_until=None,
            next_attempt_at=None,
            failures_in_a_row=0,
            last_code=None,
            last_error=None,
            last_ok_at=now,
            moved_at=now,
        )
    )


async def count(conn: AsyncConnection, sources: Collection[str] | None = None) -> int:
    """How many accounts are EXPIRED, counted up to COUNTED_MAX."""
    found = select(accounts.c.account_id).where(accounts.c.status == EXPIRED).limit(COUNTED_MAX)
    if sources is not None:
        found = found.where(accounts.c.source.in_(list(sources)))
    return int((await conn.execute(select(func.count()).select_from(found.subquery()))).scalar_one())


async def forget(conn: AsyncConnection) -> None:
    """Who is no longer EXPIRED is asked for anew if it is again."""
    await conn.execute(FORGET)
