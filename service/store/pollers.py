"""Which token asks for the copy, when it last did, and how long it usually stays away."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import bindparam, delete, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.siem_tables import siem_pollers
from service.store.tables import Instant, tokens

WRITE_EVERY_SECONDS = 60
GAP_FADES_BY = 0.9  # at each ask: a gap of long ago says nothing of today
GAP_GROWS_BY = 2  # at most, at each ask: an outage of hours is not what is usual from then on
REGULAR_ASKS_MIN = 10  # in as many different minutes; by then it is no person who tries it out
REGULAR_SPAN = timedelta(minutes=30)
SILENT_GAPS = 3  # times the longest gap of late, after which it has stopped
SILENT_AFTER_MIN = timedelta(minutes=10)
POLLERS_MAX = 1000

# The usual ask within a minute of the last one finds its row, and writes and locks nothing.
ASKED = text(
    """
    INSERT INTO siem_pollers AS p (token_id, first_asked_at, asked_at)
    SELECT CAST(:token_id AS text), :now, :now
    WHERE NOT EXISTS (SELECT FROM siem_pollers WHERE token_id = :token_id AND asked_at > :recently)
    ON CONFLICT (token_id) DO UPDATE SET
        asks = p.asks + 1,
        gap_seconds = GREATEST(p.gap_seconds * :fades, LEAST(
            extract(epoch FROM excluded.asked_at - p.asked_at), :grows * GREATEST(p.gap_seconds, :every))),
        asked_at = excluded.asked_at
    WHERE p.asked_at <= :recently
    """
).bindparams(bindparam("now", type_=Instant), bindparam("recently", type_=Instant))


@dataclass(frozen=True, slots=True, kw_only=True)
class Poller:
    """A live token that has asked for the copy."""

    token_id: str
    name: str
    first_asked_at: datetime
    asked_at: datetime
    asks: int
    gap_seconds: float

    @property
    def is_regular(self) -> bool:
        return self.asks >= REGULAR_ASKS_MIN and self.asked_at - self.first_asked_at >= REGULAR_SPAN

    @property
    def silent_after(self) -> timedelta:
        return max(SILENT_AFTER_MIN, timedelta(seconds=SILENT_GAPS * self.gap_seconds))

    def silence(self, now: datetime) -> timedelta:
        """How long it has not asked, once that is far longer than usual; 0 until then, and for who never was regular."""
        since = now - self.asked_at
        return since if self.is_regular and since > self.silent_after else timedelta(0)


async def asked(conn: AsyncConnection, token_id: str, now: datetime) -> None:
    """A request for the copy, by this token; for every one of them, and one write a minute."""
    await conn.execute(
        ASKED,
        {
            "token_id": token_id,
            "now": now,
            "recently": now - timedelta(seconds=WRITE_EVERY_SECONDS),
            "fades": GAP_FADES_BY,
            "grows": GAP_GROWS_BY,
            "every": WRITE_EVERY_SECONDS,
        },
    )


async def live(conn: AsyncConnection) -> list[Poller]:
    """Those whose token still works and may still ask; a revoked one is silent on purpose."""
    rows = await conn.execute(
        select(siem_pollers, tokens.c.name)
        .join(tokens, tokens.c.id == siem_pollers.c.token_id)
        .where(tokens.c.revoked_at.is_(None), tokens.c.scopes.contains(["siem"]))
        .order_by(siem_pollers.c.token_id)
        .limit(POLLERS_MAX)
    )
    return [Poller(**row._mapping) for row in rows]


async def forget(conn: AsyncConnection, token_id: str) -> None:
    """It is not waited for any more; its next ask is its first."""
    await conn.execute(delete(siem_pollers).where(siem_pollers.c.token_id == token_id))
