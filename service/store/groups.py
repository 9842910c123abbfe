"""Groups of rules, their samples and their buckets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import ARRAY, DateTime, Text, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey
from service.rules.given import Bucket, Sample
from service.store.keys import any_of
from service.store.rule_tables import buckets, groups, samples
from service.store.shards import MINE

GROUP_MAX = 10_000  # groups a rule may have (facts: more than that is a field that should not be grouped by)
SAMPLES_MAX = 20_000  # of one group that are judged together; the newest
PRUNE_MAX = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One group of one rule. `values`: what it is grouped by. `account`, `connection`: where they name one."""

    rule_id: str
    key: str
    condition_version: str
    values: Mapping[str, str]
    account: AccountKey | None = None
    connection: AccountKey | None = None  # source, environment and connection id
    due_at: datetime | None = None
    last_at: datetime | None = None


@dataclass(slots=True)
class Kept:
    """A sample as it is stored: `order` is its place among those of one instant."""

    sample: Sample
    order: str = field(default="")


IDS = "unnest(CAST(:rules AS text[]), CAST(:keys AS text[]), CAST(:versions AS text[]), :sinces)"
SINCES = bindparam("sinces", type_=ARRAY(DateTime(timezone=True)))
FIND = text(
    """
    SELECT g.* FROM unnest(CAST(:rules AS text[]), CAST(:keys AS text[])) AS k (rule_id, group_key)
    JOIN groups g ON g.rule_id = k.rule_id AND g.group_key = k.group_key
    """
)
SAVE = text(
    """
    INSERT INTO groups (rule_id, group_key, condition_version, "group", source, environment_id, account_id, connection_id,
                        first_seen_at, last_at, due_at)
    SELECT rule_id, group_key, condition_version, "group", source, environment_id, account_id, connection_id,
           first_seen_at, last_at, due_at
    FROM jsonb_populate_recordset(NULL::groups, CAST(:rows AS jsonb))
    ON CONFLICT (rule_id, group_key) DO UPDATE SET
        condition_version = excluded.condition_version,
        last_at = greatest(groups.last_at, excluded.last_at), due_at = excluded.due_at
    """
)
ADD_SAMPLES = text(
    """
    INSERT INTO samples (rule_id, group_key, condition_version, at, event_row_id, role, "order", "distinct")
    SELECT rule_id, group_key, condition_version, at, event_row_id, role, "order", "distinct"
    FROM jsonb_populate_recordset(NULL::samples, CAST(:rows AS jsonb))
    ON CONFLICT DO NOTHING
    """
)
READ_SAMPLES = text(
    f"""
    SELECT k.rule_id, k.group_key, s.at, s.event_row_id, s.role, s."order", s."distinct"
    FROM {IDS} AS k (rule_id, group_key, condition_version, since)
    CROSS JOIN LATERAL (
        SELECT * FROM samples
        WHERE rule_id = k.rule_id AND group_key = k.group_key AND condition_version = k.condition_version
            AND at >= k.since
        ORDER BY at DESC LIMIT :most
    ) AS s
    """
).bindparams(SINCES)
# Sums are the same in any order, so a bucket may be added to by whoever comes.
ADD_BUCKETS = text(
    """
    INSERT INTO buckets AS b (rule_id, group_key, condition_version, at, total, good, sizes, examples)
    SELECT rule_id, group_key, condition_version, at, total, good, sizes, examples
    FROM jsonb_populate_recordset(NULL::buckets, CAST(:rows AS jsonb))
    ON CONFLICT (rule_id, group_key, condition_version, at) DO UPDATE SET
        total = b.total + excluded.total, good = b.good + excluded.good,
        sizes = CASE WHEN excluded.sizes = '{}' THEN b.sizes ELSE (
            SELECT coalesce(jsonb_object_agg(size, n), '{}') FROM (
                SELECT key AS size, sum(value::int) AS n
                FROM (SELECT * FROM jsonb_each_text(b.sizes) UNION ALL SELECT * FROM jsonb_each_text(excluded.sizes)) AS pairs
                GROUP BY key) AS summed) END,
        examples = (b.examples || excluded.examples)[1:3]
    """
)
READ_BUCKETS = text(
    f"""
    SELECT k.rule_id, k.group_key, b.at, b.total, b.good, b.sizes, b.examples
    FROM {IDS} AS k (rule_id, group_key, condition_version, since)
    JOIN buckets b ON b.rule_id = k.rule_id AND b.group_key = k.group_key
        AND b.condition_version = k.condition_version AND b.at >= k.since
    """
).bindparams(SINCES)


def ids(wanted: Collection[tuple[str, str]]) -> dict[str, Any]:
    return {"rules": [rule_id for rule_id, _ in wanted], "keys": [key for _, key in wanted]}


async def find(conn: AsyncConnection, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Group]:
    """By (rule id, group key)."""
    if not wanted:
        return {}
    return {(row.rule_id, row.group_key): to_group(row) for row in await conn.execute(FIND, ids(list(wanted)))}


async def named(conn: AsyncConnection, rule_id: str, values: Mapping[str, str]) -> str | None:
    """The key of the group that these values belong to; None where none does, or several do."""
    rows = await conn.execute(
        select(groups.c.group_key).where(groups.c.rule_id == rule_id, groups.c.group.contains(dict(values))).limit(2)
    )
    found = [row.group_key for row in rows]
    return found[0] if len(found) == 1 else None


async def alike(conn: AsyncConnection, rule_id: str, values: Mapping[str, str], limit: int) -> list[dict[str, str]]:
    """The values of the groups that have these, in full."""
    rows = await conn.execute(
        select(groups.c.group)
        .where(groups.c.rule_id == rule_id, groups.c.group.contains(dict(values)))
        .order_by(groups.c.group_key)
        .limit(limit)
    )
    return [dict(row.group) for row in rows]


async def counts(conn: AsyncConnection, rule_ids: Collection[str]) -> dict[str, int]:
    """How many groups each of these rules has."""
    if not rule_ids:
        return {}
    rows = await conn.execute(
        select(groups.c.rule_id, func.count()).where(groups.c.rule_id == any_of(rule_ids)).group_by(groups.c.rule_id)
    )
    return {row[0]: row[1] for row in rows}


async def save(conn: AsyncConnection, changed: Sequence[Group], now: datetime) -> None:
    rows = []
    for group in changed:
        where = group.account or group.connection
        rows.append(
            {
                "rule_id": group.rule_id,
                "group_key": group.key,
                "condition_version": group.condition_version,
                "group": dict(group.values),
                "source": where.source if where else None,
                "environment_id": where.environment_id if where else None,
                "account_id": group.account.account_id if group.account else None,
                "connection_id": group.connection.account_id if group.connection else None,
                "first_seen_at": now,
                "last_at": group.last_at or now,
                "due_at": group.due_at,
            }
        )
    if rows:
        await conn.execute(SAVE, {"rows": orjson.dumps(rows).decode()})


async def add_samples(conn: AsyncConnection, new: Mapping[tuple[str, str, str], Sequence[Kept]]) -> None:
    """By (rule id, group key, condition version)."""
    rows = [
        {
            "rule_id": rule_id,
            "group_key": key,
            "condition_version": version,
            "at": kept.sample.at,
            "event_row_id": kept.sample.id,
            "role": kept.sample.role,
            "order": kept.order,
            "distinct": kept.sample.distinct,
        }
        for (rule_id, key, version), of_group in new.items()
        for kept in of_group
    ]
    if rows:
        await conn.execute(ADD_SAMPLES, {"rows": orjson.dumps(rows).decode()})


async def add_buckets(conn: AsyncConnection, new: Mapping[tuple[str, str, str], Sequence[Bucket]]) -> None:
    rows = [
        {
            "rule_id": rule_id,
            "group_key": key,
            "condition_version": version,
            "at": bucket.at,
            "total": bucket.total,
            "good": bucket.good,
            "sizes": {str(size): count for size, count in bucket.sizes.items()},
            "examples": list(bucket.examples),
        }
        for (rule_id, key, version), of_group in sorted(new.items())
        for bucket in of_group
    ]
    if rows:
        await conn.execute(ADD_BUCKETS, {"rows": orjson.dumps(rows).decode()})


def since_values(sinces: Mapping[tuple[str, str, str], datetime]) -> dict[str, Any]:
    wanted = list(sinces)
    return ids([(rule_id, key) for rule_id, key, _ in wanted]) | {
        "versions": [version for _, _, version in wanted],
        "sinces": list(sinces.values()),
    }


async def read_samples(
    conn: AsyncConnection, sinces: Mapping[tuple[str, str, str], datetime]
) -> dict[tuple[str, str], list[Sample]]:
    """Each group's samples from the given time on, in their order."""
    found: dict[tuple[str, str], list[tuple[datetime, str, Sample]]] = {}
    if not sinces:
        return {}
    for row in await conn.execute(READ_SAMPLES, since_values(sinces) | {"most": SAMPLES_MAX}):
        sample = Sample(row.at, row.role, str(row.event_row_id), distinct=row.distinct)
        found.setdefault((row.rule_id, row.group_key), []).append((row.at, row.order, sample))
    return {
        name: [sample for _, _, sample in sorted(rows, key=lambda row: (row[0], row[1], row[2].id))]
        for name, rows in found.items()
    }


async def read_buckets(
    conn: AsyncConnection, sinces: Mapping[tuple[str, str, str], datetime]
) -> dict[tuple[str, str], list[Bucket]]:
    found: dict[tuple[str, str], list[Bucket]] = {}
    if not sinces:
        return found
    for row in await conn.execute(READ_BUCKETS, since_values(sinces)):
        sizes = orjson.loads(row.sizes) if isinstance(row.sizes, str) else row.sizes
        found.setdefault((row.rule_id, row.group_key), []).append(
            Bucket(row.at, row.total, row.good, {int(size): n for size, n in sizes.items()}, tuple(row.examples))
        )
    return found


DUE = text(
    f"""
    SELECT * FROM groups WHERE due_at <= :now
        AND CASE WHEN account_id IS NULL THEN :others ELSE {MINE} END
    ORDER BY due_at LIMIT :limit
    """
).bindparams(bindparam("now", type_=DateTime(timezone=True)))


async def due(
    conn: AsyncConnection, now: datetime, limit: int, *, shards: Sequence[int] | None, others: bool
) -> list[Group]:
    """Those about an account of these shards (None: of all), and `others`: those that are about none."""
    asked = {"now": now, "limit": limit, "shards": None if shards is None else list(shards), "others": others}
    return [to_group(row) for row in await conn.execute(DUE, asked)]


async def look_again(conn: AsyncConnection, conditions: Mapping[str, str], at: datetime) -> None:
    """Groups whose rule has another condition than they were judged by."""
    if conditions:
        await conn.execute(
            text(
                "UPDATE groups g SET due_at = least(g.due_at, :at), condition_version = r.condition"
                " FROM unnest(CAST(:rules AS text[]), CAST(:conditions AS text[])) AS r (id, condition)"
                " WHERE g.rule_id = r.id AND g.condition_version <> r.condition"
            ).bindparams(bindparam("at", type_=DateTime(timezone=True))),
            {"rules": list(conditions), "conditions": list(conditions.values()), "at": at},
        )


async def set_due(conn: AsyncConnection, alert_ids: Collection[str], at: datetime) -> None:
    """The groups of these alerts are looked at then, at the latest."""
    if alert_ids:
        await conn.execute(
            text(
                "UPDATE groups g SET due_at = least(g.due_at, :at) FROM alerts a"
                " WHERE a.id = ANY (CAST(:ids AS uuid[])) AND g.rule_id = a.rule_id AND g.group_key = a.group_key"
            ).bindparams(bindparam("at", type_=DateTime(timezone=True))),
            {"ids": list(alert_ids), "at": at},
        )


def to_group(row: Any) -> Group:
    values = orjson.loads(row.group) if isinstance(row.group, str) else row.group
    account = connection = None
    if row.account_id is not None:
        account = AccountKey(row.source or "", row.environment_id or "", row.account_id)
    if row.connection_id is not None:
        connection = AccountKey(row.source or "", row.environment_id or "", row.connection_id)
    return Group(
        rule_id=row.rule_id,
        key=row.group_key,
        condition_version=row.condition_version,
        values=values,
        account=account,
        connection=connection,
        due_at=row.due_at,
        last_at=row.last_at,
    )


async def rules_gone(conn: AsyncConnection, rule_ids: Collection[str]) -> list[str]:
    """Rules that have groups and are not among these."""
    rows = await conn.execute(select(groups.c.rule_id).where(groups.c.rule_id.not_in(list(rule_ids))).distinct())
    return [row.rule_id for row in rows]


async def prune(conn: AsyncConnection, rule_id: str, horizon: timedelta) -> int:
    """Lets go of what no verdict of this rule can depend on any more: so long before the group's newest sample, and
    groups of which nothing is left. A bounded number at a time; how many went."""
    gone = 0
    for table in (samples, buckets):
        result = await conn.execute(
            text(
                f"DELETE FROM {table.name} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table.name}"
                " WHERE rule_id = :rule AND at < clock_timestamp() - :horizon LIMIT :most))"
            ).bindparams(bindparam("rule", type_=Text())),
            {"rule": rule_id, "horizon": horizon, "most": PRUNE_MAX},
        )
        gone += result.rowcount
    result = await conn.execute(
        text(
            """
            DELETE FROM groups g WHERE rule_id = :rule AND due_at IS NULL AND last_at < clock_timestamp() - :horizon
                AND NOT EXISTS (SELECT FROM alerts a WHERE a.rule_id = g.rule_id AND a.group_key = g.group_key
                    AND (a.condition_ended_at IS NULL
                        OR EXISTS (SELECT FROM holds h WHERE h.alert_id = a.id AND h.released_at IS NULL)))
            """
        ),
        {"rule": rule_id, "horizon": horizon},
    )
    return gone + result.rowcount
