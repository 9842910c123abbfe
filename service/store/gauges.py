"""What is remembered of gauges between two readings, and what it takes to read them: each a probe of an index."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.actions import OPEN
from service.store.alerts import EPISODES_READ_MAX, Alert, to_alert
from service.store.tables import actions, alerts, gauge_states

EPISODES_RECENT_MAX = 10  # enough to tell whether a group flaps


@dataclass(frozen=True, slots=True, kw_only=True)
class GaugeState:
    """`alert_id`: the episode that lasts, whatever a person made of its alert. `value` was read at `read_at`."""

    rule_id: str
    group_key: str
    condition_version: str
    group: dict[str, str]
    alert_id: str | None
    pending_since: datetime | None
    false_since: datetime | None
    flapping: bool
    value: float
    read_at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """An alert as the gauges must know it. `ruled`: a rule opened it; the built-in alerts have no version of one.
    `lasts`: its condition was not said to be over. `resolved`: a person, or we, said that the alert is. `changed`: an edit
    of its rule ended it, so that what still holds is news."""

    id: str
    rule_id: str
    group_key: str
    ruled: bool
    lasts: bool
    resolved: bool
    changed: bool


async def load(conn: AsyncConnection) -> dict[tuple[str, str], GaugeState]:
    rows = await conn.execute(select(gauge_states))
    return {(row.rule_id, row.group_key): GaugeState(**row._mapping) for row in rows}


async def state_of(conn: AsyncConnection, rule_id: str, group_key: str) -> GaugeState | None:
    """What is remembered of one group; None where it was never measured, or is no more."""
    rows = await conn.execute(
        select(gauge_states).where(gauge_states.c.rule_id == rule_id, gauge_states.c.group_key == group_key)
    )
    row = rows.one_or_none()
    return GaugeState(**row._mapping) if row is not None else None


async def readings_of(conn: AsyncConnection, label: str, since: datetime) -> dict[str, tuple[float, datetime]]:
    """What was last read of groups by that one label whose episode lasts, and when; not of before `since`."""
    rows = await conn.execute(
        select(gauge_states.c.group_key, gauge_states.c.value, gauge_states.c.read_at)
        .where(
            gauge_states.c.alert_id.is_not(None) | gauge_states.c.pending_since.is_not(None),
            gauge_states.c.group.has_key(label),
            gauge_states.c.read_at >= since,
        )
        .limit(EPISODES_READ_MAX)
    )
    return {row.group_key: (row.value, row.read_at) for row in rows}


async def save(conn: AsyncConnection, changed: Sequence[GaugeState]) -> None:
    if not changed:
        return
    statement = insert(gauge_states)
    columns = [name for name in GaugeState.__slots__ if name not in ("rule_id", "group_key")]
    await conn.execute(
        statement.on_conflict_do_update(
            index_elements=("rule_id", "group_key"), set_={name: statement.excluded[name] for name in columns}
        ),
        [{name: getattr(state, name) for name in GaugeState.__slots__} for state in changed],
    )


async def forget(conn: AsyncConnection, keys: Collection[tuple[str, str]]) -> None:
    """By (rule id, group key)."""
    if keys:
        await conn.execute(
            delete(gauge_states).where(tuple_(gauge_states.c.rule_id, gauge_states.c.group_key).in_(list(keys)))
        )


async def standing(conn: AsyncConnection, rule_ids: Collection[str], alert_ids: Collection[str]) -> list[Standing]:
    """The alerts of these rules that last, drills apart, and those named, whatever became of them."""
    if not rule_ids:
        return []
    lasts = alerts.c.condition_ended_at.is_(None)
    rows = await conn.execute(
        select(
            alerts.c.id,
            alerts.c.rule_id,
            alerts.c.group_key,
            alerts.c.rule_version.is_not(None).label("ruled"),
            lasts.label("lasts"),
            (alerts.c.state == "resolved").label("resolved"),
            func.coalesce(alerts.c.resolved_reason == "rule_changed", False).label("changed"),
        )
        .where(or_(alerts.c.rule_id.in_(list(rule_ids)) & lasts & ~alerts.c.drill, alerts.c.id.in_(list(alert_ids))))
        .limit(EPISODES_READ_MAX)
    )
    return [Standing(*row) for row in rows]


async def locked(conn: AsyncConnection, alert_ids: Collection[str]) -> list[Alert]:
    """These alerts, which no person changes until our commit."""
    if not alert_ids:
        return []
    rows = await conn.execute(
        select(alerts).where(alerts.c.id.in_(sorted(alert_ids))).order_by(alerts.c.id).with_for_update()
    )
    return [to_alert(row) for row in rows]


async def recent_turns(conn: AsyncConnection, rule_id: str, group_key: str) -> list[datetime]:
    """When the last episodes of the group began and ended."""
    rows = await conn.execute(
        select(alerts.c.opened_at, alerts.c.condition_ended_at)
        .where(alerts.c.rule_id == rule_id, alerts.c.group_key == group_key)
        .order_by(alerts.c.episode.desc())
        .limit(EPISODES_RECENT_MAX)
    )
    return [at for row in rows for at in row if at is not None]


async def oldest_open_action(conn: AsyncConnection, destination: str, kinds: Collection[str]) -> datetime | None:
    """When the oldest action of these kinds was decided that this destination has not done; one that waits to be tried
    again counts from its beginning."""
    oldest: list[datetime] = []
    for kind in kinds:
        row: Row[Any] | None = (
            await conn.execute(
                select(actions.c.created_at)
                .where(actions.c.destination == destination, actions.c.kind == kind, actions.c.state.in_(OPEN))
                .order_by(actions.c.created_at)
                .limit(1)
            )
        ).first()
        if row is not None:
            oldest.append(row.created_at)
    return min(oldest, default=None)
