"""Where the evaluators stand in the log: accounts are divided into shards, and each shard, and what is judged by groups,
is read on by one worker at a time. So several workers judge beside each other, and one account's events stay in order.

The row named `evaluator` is what others read (the gate, health, retention, explain): up to there all has been evaluated.
Whoever locks that row stops all evaluation, once those that are at it rest; versions before this one knew it alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ARRAY, Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.readers import EVALUATOR

SHARDS = 8
GROUPS = f"{EVALUATOR}/groups"
OF_ACCOUNTS = tuple(f"{EVALUATOR}/{number}" for number in range(SHARDS))
ALL = (*OF_ACCOUNTS, GROUPS)
# The hash that Postgres keeps hash partitions by, which therefore stays what it is. Its low bits are those of the
# account's lock too (service/store/accounts.py): accounts of two shards never share a lock.
SHARD_OF = f"(hashtextextended(coalesce(account_id, ''), 0) & {SHARDS - 1})::int"

# With `:shards`, None for all of them.
MINE = f"(CAST(:shards AS int[]) IS NULL OR {SHARD_OF} = ANY(CAST(:shards AS int[])))"


@dataclass(frozen=True, slots=True)
class Held:
    """The parts of the log's reading that are this transaction's, each with its position. `published`: what others are
    told of all of them."""

    positions: Mapping[str, int]
    published: int

    @property
    def start(self) -> int:
        return min(self.positions.values())

    @property
    def whole(self) -> bool:
        return len(self.positions) == len(ALL)

    @property
    def level(self) -> bool:
        """Whether all there is to read is new to all of it."""
        return self.whole and len(set(self.positions.values())) == 1

    @property
    def groups(self) -> int | None:
        return self.positions.get(GROUPS)

    @property
    def shards(self) -> list[int | None]:
        return [self.positions.get(name) for name in OF_ACCOUNTS]

    @property
    def numbers(self) -> list[int] | None:
        """The shards it holds; None for all of them."""
        found = [number for number, position in enumerate(self.shards) if position is not None]
        return None if len(found) == SHARDS else found


# Those that lag most come first. The evaluator's own row is only looked at, so that who locks it can stop us.
TAKE = text(
    """
    SELECT s.name, greatest(s.position, e.position), e.position FROM readers s, readers e
    WHERE e.name = :evaluator AND s.name = ANY(:names)
    ORDER BY s.position, s.name LIMIT :most
    FOR UPDATE OF s SKIP LOCKED FOR KEY SHARE OF e SKIP LOCKED
    """
).bindparams(bindparam("names", type_=ARRAY(Text())))
MAKE = text(
    """
    INSERT INTO readers (name, position, moved_at)
    SELECT n.name, e.position, e.moved_at FROM readers e, unnest(:names) AS n (name) WHERE e.name = :evaluator
    ON CONFLICT DO NOTHING
    """
).bindparams(bindparam("names", type_=ARRAY(Text())))
MOVE = text(
    """
    UPDATE readers SET position = greatest(position, :to), moved_at = clock_timestamp(),
        last_ok_at = clock_timestamp(), failures_in_a_row = 0, last_code = NULL, last_error = NULL
    WHERE name = ANY(:names)
    """
).bindparams(bindparam("names", type_=ARRAY(Text())))
PUBLISH = text(
    """
    UPDATE readers SET position = least_read.position, moved_at = clock_timestamp(), last_ok_at = clock_timestamp()
    FROM (SELECT min(position) AS position FROM readers WHERE name = ANY(:names)) AS least_read
    WHERE name = :evaluator AND readers.position < least_read.position
    """
).bindparams(bindparam("names", type_=ARRAY(Text())))
POSITIONS = text(
    f"""
    SELECT a.account_id, greatest(s.position, e.position)
    FROM unnest(:account_ids) AS a (account_id) CROSS JOIN readers e
    LEFT JOIN readers s ON s.name = :evaluator || '/' || {SHARD_OF}
    WHERE e.name = :evaluator
    """
).bindparams(bindparam("account_ids", type_=ARRAY(Text())))


async def take(conn: AsyncConnection, names: Sequence[str] = ALL, most: int = len(ALL)) -> Held | None:
    """Those of `names` that nobody holds, locked until the transaction ends; None where all are held."""
    values = {"names": list(names), "most": most, "evaluator": EVALUATOR}
    rows = (await conn.execute(TAKE, values)).all()
    if not rows:
        made = await conn.execute(MAKE, {"names": list(ALL), "evaluator": EVALUATOR})
        rows = (await conn.execute(TAKE, values)).all() if made.rowcount else []
    return Held({row[0]: row[1] for row in rows}, rows[0][2]) if rows else None


async def move(conn: AsyncConnection, held: Held, to: int) -> None:
    names = [*held.positions, EVALUATOR] if held.whole else list(held.positions)
    await conn.execute(MOVE, {"names": names, "to": to})


async def publish(conn: AsyncConnection) -> None:
    """Says how far all of them have come, while each goes its own way."""
    await conn.execute(PUBLISH, {"names": list(ALL), "evaluator": EVALUATOR})


async def evaluated(conn: AsyncConnection, account_ids: Collection[str]) -> dict[int, set[str]]:
    """Up to which position these accounts have been judged, exactly: what a judgement beside the evaluator's stands on.

    Under their locks, since the evaluator moves on with them only."""
    found: dict[int, set[str]] = {}
    for account_id, position in await conn.execute(
        POSITIONS, {"account_ids": list(account_ids), "evaluator": EVALUATOR}
    ):
        found.setdefault(position, set()).add(account_id)
    return found
