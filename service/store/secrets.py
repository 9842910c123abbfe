"""When each signing secret was first and last used: noted in memory for each request, written now and then.

Kept by the key's fingerprint: at a rotation the names `current` and `previous` stand for other keys than before.

Never on the accept path: a receiver that dies loses a few seconds of what is only ever advice to a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.sources import Source
from service.store.tables import secret_uses

WAITING_MAX = 1000  # secrets noted and not yet written; their names are the configuration's, never a caller's
LISTED_MAX = 1000
FINGERPRINT = "^[0-9a-f]{8}$"


@dataclass(frozen=True, slots=True)
class Use:
    """Of one key of one source. `name` is the one it last had. `first_at` and `last_at` by the receiver's clock until
    they are written."""

    source: str
    fingerprint: str
    name: str
    first_at: datetime
    last_at: datetime
    count: int


class SecretUses:
    """What this process has seen since it last wrote."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str, str], tuple[datetime, datetime, int]] = {}

    def note(self, source: Source, name: str, at: datetime) -> None:
        """Cheap: called for every request that a provider signed. Probes are our own and are not noted."""
        key = (source.name, source.fingerprints[name], name)
        seen = self._seen.get(key)
        if seen is not None:
            self._seen[key] = (seen[0], at, seen[2] + 1)
        elif len(self._seen) < WAITING_MAX:
            self._seen[key] = (at, at, 1)

    def take(self) -> list[Use]:
        """Everything noted since the last call, in one order for everybody: rows are locked in it."""
        seen, self._seen = self._seen, {}
        return [Use(*key, first, last, count) for key, (first, last, count) in sorted(seen.items())]

    def put_back(self, uses: list[Use]) -> None:
        """What could not be written waits for the next time."""
        for use in uses:
            key = (use.source, use.fingerprint, use.name)
            first, last, count = self._seen.get(key, (use.first_at, use.last_at, 0))
            if key in self._seen or len(self._seen) < WAITING_MAX:
                self._seen[key] = (min(first, use.first_at), max(last, use.last_at), count + use.count)


async def save(conn: AsyncConnection, uses: list[Use], now: datetime) -> None:
    """`now` is the receiver's clock: times are kept as the database's, so what is written is how long ago it was."""
    if not uses:
        return
    clock = (await conn.execute(select(func.clock_timestamp()))).scalar_one()
    rows = [
        {
            "source": use.source,
            "fingerprint": use.fingerprint,
            "shown_name": use.name,
            "first_used_at": clock - max(now - use.first_at, timedelta(0)),
            "last_used_at": clock - max(now - use.last_at, timedelta(0)),
            "uses": use.count,
        }
        for use in uses
    ]
    statement = insert(secret_uses)
    await conn.execute(
        statement.on_conflict_do_update(
            index_elements=(secret_uses.c.source, secret_uses.c.fingerprint),
            set_={
                "shown_name": statement.excluded.shown_name,
                "first_used_at": func.least(secret_uses.c.first_used_at, statement.excluded.first_used_at),
                "last_used_at": func.greatest(secret_uses.c.last_used_at, statement.excluded.last_used_at),
                "uses": secret_uses.c.uses + statement.excluded.uses,
            },
        ),
        rows,
    )


async def everyone(conn: AsyncConnection) -> list[Use]:
    """Every secret that was ever used, by source and last use, the newest first."""
    table = secret_uses.c
    rows = await conn.execute(
        select(secret_uses)
        # What old code counted by a name may be of several keys.
        .where(or_(table.shown_name.is_not(None), table.fingerprint.regexp_match(FINGERPRINT)))
        .order_by(table.source, table.last_used_at.desc(), table.fingerprint)
        .limit(LISTED_MAX)
    )
    return [
        Use(
            row.source,
            row.fingerprint,
            row.shown_name or row.fingerprint,
            row.first_used_at,
            row.last_used_at,
            row.uses,
        )
        for row in rows
    ]
