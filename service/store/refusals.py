"""Notifiers that refuse everything until somebody mends them, as rows: since when, why, and when one message is tried.

A row stays when its notifier takes messages again (`taken_at`): what was decided in between is known by it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    ARRAY,
    Boolean,
    Column,
    DateTime,
    Integer,
    Interval,
    Row,
    Table,
    Text,
    Uuid,
    and_,
    bindparam,
    column,
    delete,
    func,
    not_,
    or_,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.actions import NOTIFY, OPEN
from service.store.asks import KINDS, OF_CREDENTIALS
from service.store.routing_tables import alert_news
from service.store.tables import Instant, actions, metadata

ROWS_MAX = 200  # notifiers that ever refused; each is a section of the config file
DETAIL_CHARS_MAX = 300

notifier_refusals = Table(
    "notifier_refusals",
    metadata,
    Column("destination", Text, primary_key=True),
    Column("refused_at", Instant, nullable=False),
    Column("code", Text, nullable=False),
    Column("detail", Text, nullable=False),  # what it answered and the mend, as the notifier worded it
    Column("probe_at", Instant, nullable=False),  # when one message is tried again
    Column("taken_at", Instant),  # since when it takes messages again; null while it refuses
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """`may_probe`: one message may be tried now, by whoever was told so. `is_open`: an alert stands that says it refuses;
    `told`: one was opened since it does, whatever a person made of it."""

    destination: str
    refused_at: datetime
    code: str
    detail: str
    taken_at: datetime | None = None
    may_probe: bool = False
    is_open: bool = False
    told: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """One attempt that was refused as every other there would be."""

    destination: str
    code: str
    detail: str
    probe_after: timedelta


# The first answer says since when; a later one says why, and puts off the next try. What was taken meanwhile by another
# process ended that refusal: this is a new one.
REFUSE = text(
    """
    INSERT INTO notifier_refusals AS r (destination, refused_at, code, detail, probe_at)
    VALUES (:destination, clock_timestamp(), :code, :detail, clock_timestamp() + :probe_after)
    ON CONFLICT (destination) DO UPDATE SET code = excluded.code, detail = excluded.detail,
        probe_at = excluded.probe_at, taken_at = NULL,
        refused_at = CASE WHEN r.taken_at IS NULL THEN r.refused_at ELSE excluded.refused_at END
    """
).bindparams(bindparam("probe_after", type_=Interval()))


async def refuse(conn: AsyncConnection, refused: Sequence[Refused]) -> None:
    """In one order, so that no two ever wait for each other."""
    for one in sorted({one.destination: one for one in refused}.values(), key=lambda one: one.destination):
        await conn.execute(
            REFUSE,
            {
                "destination": one.destination,
                "code": one.code,
                "detail": one.detail[:DETAIL_CHARS_MAX],
                "probe_after": one.probe_after,
            },
        )


# Only by an attempt that began after the refusal: what was under way when the channel went says nothing of it now.
TAKE = text(
    """
    UPDATE notifier_refusals r SET taken_at = clock_timestamp()
    FROM actions a JOIN attempts t ON t.action_id = a.id AND t.number = a.attempts
    WHERE a.id = ANY(:ids) AND r.destination = a.destination AND t.outcome = 'done' AND t.started_at > r.refused_at
        AND r.taken_at IS NULL
    RETURNING r.destination
    """
).bindparams(bindparam("ids", type_=ARRAY(Uuid(as_uuid=False))))


async def take(conn: AsyncConnection, action_ids: Collection[str]) -> set[str]:
    """These messages have arrived: the destinations that refused until then."""
    if not action_ids:
        return set()
    return {row[0] for row in await conn.execute(TAKE, {"ids": sorted(action_ids)})}


async def forget(conn: AsyncConnection, destinations: Collection[str]) -> None:
    """That nobody configures any more."""
    if destinations:
        gone = notifier_refusals.c.destination.in_(sorted(destinations))
        await conn.execute(delete(notifier_refusals).where(gone))


# Whoever is given a probe is the only one, for as long as `again` says.
LOOK = (
    text(
        f"""
    WITH due AS (
        UPDATE notifier_refusals SET probe_at = clock_timestamp() + :again
        WHERE taken_at IS NULL AND (:anew OR probe_at <= clock_timestamp()) AND destination = ANY(:names)
        RETURNING destination
    )
    SELECT r.destination, r.refused_at, r.code, r.detail, r.taken_at,
        r.destination IN (SELECT destination FROM due) AS may_probe,
        EXISTS (SELECT 1 FROM alerts a WHERE a.rule_id = :rule_id AND a.group_key = r.destination
            AND a.condition_ended_at IS NULL) AS is_open,
        EXISTS (SELECT 1 FROM alerts a WHERE a.rule_id = :rule_id AND a.group_key = r.destination
            AND a.opened_at >= r.refused_at) AS told
    FROM notifier_refusals r ORDER BY r.destination LIMIT {ROWS_MAX}
    """
    )
    .bindparams(
        bindparam("again", type_=Interval()),
        bindparam("anew", type_=Boolean()),
        bindparam("names", type_=ARRAY(Text())),
        bindparam("rule_id", type_=Text()),
    )
    .columns(
        column("destination", Text()),
        column("refused_at", DateTime(timezone=True)),
        column("code", Text()),
        column("detail", Text()),
        column("taken_at", DateTime(timezone=True)),
        column("may_probe", Boolean()),
        column("is_open", Boolean()),
        column("told", Boolean()),
    )
)


async def look(
    conn: AsyncConnection, probing: Collection[str], rule_id: str, *, again: timedelta, anew: bool = False
) -> list[Refusal]:
    """All that refuse or did. One message may be tried at those of `probing` whose time has come, with `anew` at all of
    them. `rule_id`: of the alert that says so."""
    values = {"names": sorted(probing), "again": again, "anew": anew, "rule_id": rule_id}
    return [Refusal(**row._mapping) for row in await conn.execute(LOOK, values)]


async def standing(conn: AsyncConnection) -> list[Row[tuple[str, datetime, str, str, int]]]:
    """Those that refuse now, each with how many messages wait: for what others are shown."""
    rows = await conn.execute(STANDING)
    return list(rows)


STANDING = text(
    f"""
    SELECT r.destination, r.refused_at, r.code, r.detail, (
        SELECT count(*) FROM actions a
        WHERE a.destination = r.destination AND a.kind = 'notify' AND a.state IN ('pending', 'running')) AS waiting
    FROM notifier_refusals r WHERE r.taken_at IS NULL ORDER BY r.destination LIMIT {ROWS_MAX}
    """
).columns(
    column("destination", Text()),
    column("refused_at", DateTime(timezone=True)),
    column("code", Text()),
    column("detail", Text()),
    column("waiting", Integer()),
)
REFUSING = select(notifier_refusals.c.destination).where(notifier_refusals.c.taken_at.is_(None))


async def waiting(conn: AsyncConnection) -> tuple[int, datetime | None, int]:
    """(open actions, creation time of the oldest of them, failed for good). News of an alert of which nobody has decided yet
    whom to tell is as good as an action; not counted is what waits for a mend: at a notifier that takes nothing, and at an
    orchestrator that does not take our credentials."""
    undecided = select(func.count()).select_from(alert_news).scalar_subquery()
    since = select(func.min(alert_news.c.at)).scalar_subquery()
    refused = and_(actions.c.kind.in_(KINDS), func.coalesce(actions.c.last_code, "").in_(OF_CREDENTIALS))
    is_open = and_(
        actions.c.state.in_(OPEN),
        or_(actions.c.kind != NOTIFY, actions.c.destination.not_in(REFUSING)),
        not_(refused),
    )
    row = (
        await conn.execute(
            select(
                func.count().filter(is_open) + undecided,
                func.least(func.min(actions.c.created_at).filter(is_open), since),
                func.count().filter(actions.c.state == "failed"),
            )
        )
    ).one()
    return row[0], row[1], row[2]
