"""Alerts and their episodes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ARRAY, Row, Text, bindparam, cast, exists, func, or_, select, text, type_coerce
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey
from service.store.columns import literal
from service.store.keys import any_id, key_values, same_account
from service.store.tables import alerts, holds

EVIDENCE_MAX = 50
EPISODES_READ_MAX = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A firing someone should know of. `state` is what people see; `condition_ended_at` is when the trouble itself was
    over, by `occurred_at`. A person may resolve an alert whose trouble goes on: its episode then stays open."""

    id: str
    rule_id: str
    rule_version: str | None
    severity: str
    account: AccountKey | None
    connection_id: str | None
    group: Mapping[str, str]
    group_key: str
    episode: int
    dedup_key: str
    state: str
    summary: str
    what_to_do: str | None
    opened_at: datetime
    fired_at: datetime
    condition_ended_at: datetime | None = None
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    snoozed_until: datetime | None = None
    resolved_at: datetime | None = None
    resolved_reason: str | None = None
    discovered_late: bool = False
    late_seconds: float | None = None
    value: float | None = None
    evidence: tuple[str, ...] = ()
    stable_for_seconds: float = 30.0
    pauses: bool = True
    condition_version: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    shadow: bool = False
    drill: bool = False
    drill_until: datetime | None = None
    late_detection: bool = False
    flapping: bool = False

    def covers(self, start: datetime, end: datetime | None) -> bool:
        """Whether this episode and [start, end) share an instant."""
        return (self.condition_ended_at is None or self.condition_ended_at >= start) and (
            end is None or self.opened_at <= end
        )


def dedup_key(rule_id: str, group_key: str, episode: int) -> str:
    """Stable through repeats and the resolve; at most 255 characters, as PagerDuty wants."""
    return hashlib.sha256(json.dumps([rule_id, group_key, episode]).encode()).hexdigest()


FIELDS = tuple(field.name for field in fields(Alert) if field.name != "account")
COLUMNS = tuple(f'"{column.name}"' for column in alerts.columns)  # quoted: one of them is named group
# One statement and one parameter, however many fire at once.
SAVE = text(
    f"""
    INSERT INTO alerts ({", ".join(COLUMNS)})
    SELECT {", ".join(COLUMNS)} FROM jsonb_populate_recordset(NULL::alerts, CAST(:rows AS jsonb))
    ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name != '"id"')}
    """
)
# Built once: a statement built anew costs about as much as sending it.
OF_ACCOUNTS = (
    select(alerts)
    .where(
        same_account(alerts),
        or_(alerts.c.condition_ended_at.is_(None), alerts.c.condition_ended_at >= bindparam("since")),
    )
    .order_by(alerts.c.condition_ended_at.desc().nulls_first())  # the open ones are never what a limit cuts off
    .limit(EPISODES_READ_MAX)
)


# From the one end of an index for each.
LAST_EPISODES = text(
    """
    SELECT p.rule_id, p.group_key, a.episode FROM unnest(:rule_ids, :group_keys) AS p (rule_id, group_key)
    CROSS JOIN LATERAL (
        SELECT episode FROM alerts WHERE rule_id = p.rule_id AND group_key = p.group_key ORDER BY episode DESC LIMIT 1
    ) AS a
    """
).bindparams(bindparam("rule_ids", type_=ARRAY(Text())), bindparam("group_keys", type_=ARRAY(Text())))


async def save(conn: AsyncConnection, changed: Sequence[Alert]) -> None:
    rows = []
    for alert in {alert.id: alert for alert in changed}.values():  # of two states of one alert the later is written
        values = {name: getattr(alert, name) for name in FIELDS}
        account = alert.account
        values["source"], values["environment_id"], values["account_id"] = account if account else (None, None, None)
        values["group"], values["labels"] = dict(alert.group), dict(alert.labels)
        values["evidence"] = list(alert.evidence)
        rows.append(values)
    if rows:
        await conn.execute(SAVE, {"rows": orjson.dumps(rows).decode()})


async def load(conn: AsyncConnection, alert_id: str) -> Alert | None:
    row = (await conn.execute(select(alerts).where(alerts.c.id == alert_id))).first()
    return to_alert(row) if row else None


async def load_many(conn: AsyncConnection, alert_ids: Collection[str]) -> dict[str, Alert]:
    if not alert_ids:
        return {}
    rows = await conn.execute(select(alerts).where(alerts.c.id == any_id(alert_ids)))
    return {row.id: to_alert(row) for row in rows}


async def of_accounts(
    conn: AsyncConnection, judge_from: Mapping[AccountKey, datetime]
) -> dict[AccountKey, list[Alert]]:
    """Each account's episodes that are open, or ended at or after the given time; oldest first."""
    found: dict[AccountKey, list[Alert]] = {key: [] for key in judge_from}
    if not judge_from:
        return found
    rows = await conn.execute(OF_ACCOUNTS, {**key_values(judge_from), "since": min(judge_from.values())})
    for alert in sorted(map(to_alert, rows), key=lambda alert: (alert.opened_at, alert.episode)):
        assert alert.account is not None
        found[alert.account].append(alert)
    return found


PAIRS = (
    func.unnest(
        cast(bindparam("pair_rules", type_=Text()), ARRAY(Text())),
        cast(bindparam("pair_keys", type_=Text()), ARRAY(Text())),
    )
    .table_valued("rule_id", "group_key", name="pairs", joins_implicitly=True)
    .render_derived()
)


async def of_groups(
    conn: AsyncConnection, pairs: Collection[tuple[str, str]], since: datetime
) -> dict[tuple[str, str], list[Alert]]:
    """The same of (rule id, group key), locked until the transaction ends."""
    found: dict[tuple[str, str], list[Alert]] = {pair: [] for pair in pairs}
    if not found:
        return found
    rows = await conn.execute(
        select(alerts)
        .where(
            alerts.c.rule_id == PAIRS.c.rule_id,
            alerts.c.group_key == PAIRS.c.group_key,
            or_(alerts.c.condition_ended_at.is_(None), alerts.c.condition_ended_at >= since),
        )
        .order_by(alerts.c.condition_ended_at.desc().nulls_first())
        .limit(EPISODES_READ_MAX)
        .with_for_update(of=alerts),  # no account's lock guards them from a person's word
        {
            "pair_rules": literal([rule_id for rule_id, _ in found]),
            "pair_keys": literal([key for _, key in found]),
        },
    )
    for alert in sorted(map(to_alert, rows), key=lambda alert: (alert.opened_at, alert.episode)):
        found[alert.rule_id, alert.group_key].append(alert)
    return found


async def last_episodes(conn: AsyncConnection, pairs: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The newest episode number of each (rule id, group key)."""
    if not pairs:
        return {}
    known = list(pairs)
    rows = await conn.execute(
        LAST_EPISODES, {"rule_ids": [pair[0] for pair in known], "group_keys": [pair[1] for pair in known]}
    )
    return {(row.rule_id, row.group_key): row.episode for row in rows}


async def open_of_group(conn: AsyncConnection, rule_id: str, group_key: str) -> Alert | None:
    row = (
        await conn.execute(
            select(alerts)
            .where(alerts.c.rule_id == rule_id, alerts.c.group_key == group_key, alerts.c.condition_ended_at.is_(None))
            .limit(1)
        )
    ).first()
    return to_alert(row) if row else None


async def of_group(
    conn: AsyncConnection,
    rule_id: str,
    group_key: str | None,
    group: Mapping[str, str],
    *,
    before: datetime,
    limit: int,
) -> list[Alert]:
    """The episodes of one group that began at or before then, newest first. Without its key, by the group's values."""
    query = select(alerts).where(alerts.c.rule_id == rule_id, alerts.c.opened_at <= before)
    query = query.where(
        alerts.c.group_key == group_key
        if group_key is not None
        else alerts.c.group == type_coerce(dict(group), alerts.c.group.type)
    )
    rows = await conn.execute(query.order_by(alerts.c.opened_at.desc(), alerts.c.episode.desc()).limit(limit))
    return [to_alert(row) for row in rows]


async def open_of_rule(conn: AsyncConnection, rule_id: str) -> list[Alert]:
    """The alerts of that rule whose condition lasts, whatever a person made of them; oldest first, bounded."""
    rows = await conn.execute(
        select(alerts)
        .where(alerts.c.rule_id == rule_id, alerts.c.condition_ended_at.is_(None))
        .order_by(alerts.c.fired_at, alerts.c.id)
        .limit(EPISODES_READ_MAX)
    )
    return [to_alert(row) for row in rows]


async def open_of_connections(conn: AsyncConnection, connection_ids: Collection[str]) -> list[Alert]:
    """The alerts about whole connections of these ids whose condition lasts."""
    if not connection_ids:
        return []
    rows = await conn.execute(
        select(alerts)
        .where(
            alerts.c.account_id.is_(None),
            alerts.c.connection_id.in_(list(connection_ids)),
            alerts.c.condition_ended_at.is_(None),
        )
        .limit(EPISODES_READ_MAX)
    )
    return [to_alert(row) for row in rows]


async def standing(conn: AsyncConnection) -> list[Alert]:
    """All that nobody and nothing has resolved, without those in shadow or found late; oldest first, bounded."""
    rows = await conn.execute(
        select(alerts)
        .where(alerts.c.state != "resolved", ~alerts.c.shadow, ~alerts.c.discovered_late)
        .order_by(alerts.c.fired_at, alerts.c.id)
        .limit(EPISODES_READ_MAX)
    )
    return [to_alert(row) for row in rows]


async def drills_over(conn: AsyncConnection, now: datetime, limit: int) -> list[str]:
    """Ids of the drills whose time is up and that last, or still hold a workflow: a person may have resolved one."""
    holding = exists().where(holds.c.alert_id == alerts.c.id, holds.c.released_at.is_(None))
    rows = await conn.execute(
        select(alerts.c.id)
        .where(
            alerts.c.drill,
            alerts.c.drill_until <= now,
            or_(alerts.c.condition_ended_at.is_(None), holding),
        )
        .order_by(alerts.c.drill_until)
        .limit(limit)
    )
    return [row.id for row in rows]


async def load_locked(conn: AsyncConnection, alert_id: str) -> Alert | None:
    """Locked until the transaction ends: of two who would end it, one does."""
    row = (await conn.execute(select(alerts).where(alerts.c.id == alert_id).with_for_update())).first()
    return to_alert(row) if row else None


async def counts(conn: AsyncConnection) -> list[tuple[str, str, str, int]]:
    """(rule id, severity, state, how many), for metrics, without drills and shadows; rule ids are the admin's and bounded by the
    rule files."""
    rows = await conn.execute(
        select(alerts.c.rule_id, alerts.c.severity, alerts.c.state, func.count())
        .where(~alerts.c.drill, ~alerts.c.shadow)
        .group_by(alerts.c.rule_id, alerts.c.severity, alerts.c.state)
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def to_alert(row: Row[Any]) -> Alert:
    values = dict(row._mapping)
    account = AccountKey(values.pop("source") or "", values.pop("environment_id") or "", values.pop("account_id") or "")
    values["evidence"] = tuple(values["evidence"])
    return Alert(**values, account=account if account.account_id else None)


async def unresolved_of(conn: AsyncConnection, keys: Sequence[AccountKey]) -> dict[AccountKey, list[Alert]]:
    """The alerts of these accounts that nobody and nothing has resolved, without those in shadow; oldest first."""
    found: dict[AccountKey, list[Alert]] = {key: [] for key in keys}
    if keys:
        rows = await conn.execute(
            select(alerts)
            .where(
                same_account(alerts),
                alerts.c.state != "resolved",
                ~alerts.c.shadow,
            )
            .order_by(alerts.c.fired_at, alerts.c.id)
            .limit(EPISODES_READ_MAX),
            key_values(keys),
        )
        for row in rows:
            alert = to_alert(row)
            if alert.account is not None:
                found[alert.account].append(alert)
    return found
