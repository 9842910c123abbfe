"""What an evaluator reads next: the rows of the log that are of its shards, and of its groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import ARRAY, BigInteger, Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import Event
from service.store.log import EVENT_COLUMNS, moved_on, read_after, received_since, to_event
from service.store.shards import SHARD_OF, SHARDS, Held
from service.store.tables import Instant

BEFORE_ALL = datetime(1999, 1, 1, tzinfo=UTC)
# What lies ahead is counted first: of the many rows that are others' only the places are read.
AHEAD = text(
    """
    SELECT max(position), count(*), (array_agg(received_at ORDER BY position DESC))[1] FROM (
        SELECT position, received_at FROM events WHERE position > :after AND received_at >= :floor
        ORDER BY position LIMIT :rows) AS ahead
    """
).bindparams(bindparam("floor", type_=Instant))
OF_SHARDS = text(
    f"""
    SELECT {", ".join(EVENT_COLUMNS)}, position > (CAST(:shards AS bigint[]))[1 + {SHARD_OF}] FROM events
    WHERE position > :after AND position <= :upto AND received_at >= :floor
        AND (position > (CAST(:shards AS bigint[]))[1 + {SHARD_OF}]
            OR (position > :groups AND (CAST(:kinds AS text[]) IS NULL OR kind = ANY(CAST(:kinds AS text[])))))
    ORDER BY position LIMIT :rows
    """
).bindparams(
    bindparam("floor", type_=Instant),
    bindparam("shards", type_=ARRAY(BigInteger())),
    bindparam("kinds", type_=ARRAY(Text())),
)
GROUPS_REACH = 32  # rows gone through for one that may be found
NEVER = 2**63 - 1  # a position after all others


@dataclass(slots=True)
class Page:
    """What comes next, as far as it is ours. `upto`: everything of ours up to there is in it. `as_of`: when the last row
    gone through was received. `full`: there may be more."""

    of_accounts: list[Event]
    of_groups: list[Event]
    upto: int
    as_of: datetime
    full: bool


async def read_page(conn: AsyncConnection, held: Held, kinds: Sequence[str] | None, limit: int) -> Page | None:
    """The next rows of the shards and groups held, at most `limit`; of the groups those of these kinds, None: all."""
    if held.level:
        events = await read_after(conn, held.start, limit)
        if not events:
            return None
        return Page(events, events, events[-1].position, events[-1].received_at, len(events) == limit)
    of_shards = sum(position is not None for position in held.shards)
    # Groups read their windows again for every page, and few kinds are theirs: their pages reach further.
    rows = limit * SHARDS // of_shards if of_shards else limit * (SHARDS if kinds is None else GROUPS_REACH)
    floor = await received_since(conn, held.start) or BEFORE_ALL
    upto, count, as_of = (await conn.execute(AHEAD, {"after": held.start, "floor": floor, "rows": rows})).one()
    if upto != held.start + count if count else await moved_on(conn, held.start):
        floor = BEFORE_ALL  # as in read_after
        upto, count, as_of = (await conn.execute(AHEAD, {"after": held.start, "floor": floor, "rows": rows})).one()
    if not count:
        return None
    asked = {
        "after": held.start,
        "upto": upto,
        "floor": floor,
        "shards": [NEVER if position is None else position for position in held.shards],
        "groups": NEVER if held.groups is None else held.groups,
        "kinds": None if kinds is None else list(kinds),
        "rows": limit,
    }
    of_accounts, of_groups = list[Event](), list[Event]()
    found = (await conn.execute(OF_SHARDS, asked)).all()
    for row in found:
        event = to_event(row)
        if row[-1]:
            of_accounts.append(event)
        if held.groups is not None and event.position > held.groups:
            of_groups.append(event)
    if len(found) == limit:  # more of it is ours than was to be expected
        return Page(of_accounts, of_groups, event.position, event.received_at, True)
    return Page(of_accounts, of_groups, upto, as_of, count == rows)
