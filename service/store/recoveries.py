"""What was missed and is to be fetched: up to when the receivers could commit, the spans to recover, what we know already."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, Row, Text, and_, bindparam, func, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import Unavailable
from service.event import ProviderEvent, new_id
from service.habits import PROVIDER_RETRIES
from service.store import log, readers
from service.store.recovery_tables import intake, recoveries
from service.store.tables import accounts, dedup, events

LOCK = 7_305_201_006  # of who claims a recovery: one is under way at a time, whatever the number of workers
# Of a gap in the receivers' beats: longer than a restart takes, well below the provider's 22 minutes of retries.
OUTAGE_SECONDS = 60.0
GAP_SECONDS = 6.0  # more than lies between two beats: a restart, whose events come a little late
BEAT_LOCK_MS = 5_000  # of the bound that a receipt waits for the log's lock (service/commit.py), the larger part
PUT_OFF_MAX = timedelta(hours=1)
MARGIN = timedelta(seconds=60)  # fetched around a span as well: what is known already is a duplicate
WAITING_MAX = 100  # of one source


@dataclass(frozen=True, slots=True)
class Ours:
    """An account as the log has it, evaluated or not; `said_at` is the `occurred_at` of the event that said `status`."""

    status: str | None
    said_at: datetime | None
    connection_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """`token` is the claim: whoever lost its lease finds that its rows are no longer its own."""

    id: str
    source: str
    reason: str
    environment_id: str | None
    since: datetime
    until: datetime
    done_until: datetime | None
    page_token: str | None
    attempts: int
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A source's row of `intake`: up to when its receipts could be committed, its last outage, its last shorter gap."""

    able_until: datetime
    down_from: datetime | None = None
    up_since: datetime | None = None
    gap_from: datetime | None = None
    gap_until: datetime | None = None


def beaten(before: Beat, at: datetime) -> Beat:
    """Able again at `at`, by the clock as it reads now: one that was put back is believed, or what is missed until it
    comes to where it stood would be nobody's gap."""
    gap = (at - before.able_until).total_seconds()
    after = Beat(
        able_until=at,
        down_from=least(before.down_from, at),
        up_since=least(before.up_since, at),
        gap_from=least(before.gap_from, at),
        gap_until=least(before.gap_until, at),
    )
    if gap > GAP_SECONDS:
        # Of several restarts in a row one gap, while what the first one kept out may still be tried again.
        first = before.gap_from
        merged = first is not None and first < before.able_until and at - first < PROVIDER_RETRIES
        after = replace(after, gap_from=first if merged else before.able_until, gap_until=at)
    return replace(after, down_from=before.able_until, up_since=at) if gap > OUTAGE_SECONDS else after


def least(one: datetime | None, at: datetime) -> datetime | None:
    return None if one is None else min(one, at)


async def able(conn: AsyncConnection, sources: Sequence[str]) -> list[tuple[str, datetime, datetime]]:
    """Notes that receipts of these sources can be committed now: the log's lock is to be had, and the accept function
    answers. A gap before it becomes a recovery to do, in the same transaction; answers (source, from, to) of each."""
    names = sorted(sources)  # always in one order: several receivers do this at once
    await conn.execute(text(f"SET LOCAL lock_timeout = {BEAT_LOCK_MS}"))
    if not await log.takes_today(conn):
        await log.ensure_partitions(conn)
        if not await log.takes_today(conn):
            raise Unavailable("no partition takes the receipts of today", code="partition_missing")
    now = await readers.clock(conn)
    fresh = [{"source": name, "able_until": now} for name in names]
    await conn.execute(insert(intake).values(fresh).on_conflict_do_nothing())
    rows = await conn.execute(
        select(intake).where(intake.c.source.in_(names)).order_by(intake.c.source).with_for_update()
    )
    found = rows.all()
    await log.accept(conn, [])
    # Read with the locks held: no older reading comes after it.
    at = await readers.clock(conn)
    outages = []
    for row in found:
        before = Beat(**{name: getattr(row, name) for name in Beat.__slots__})
        after = beaten(before, at)
        values = {name: getattr(after, name) for name in Beat.__slots__}
        await conn.execute(update(intake).where(intake.c.source == row.source).values(**values))
        if (at - before.able_until).total_seconds() > OUTAGE_SECONDS:
            await want(conn, row.source, "outage", before.able_until, at, at)
            outages.append((row.source, before.able_until, at))
    return outages


async def want(
    conn: AsyncConnection,
    source: str,
    reason: str,
    since: datetime,
    until: datetime,
    now: datetime,
    environment_id: str | None = None,
) -> bool:
    """False where a listing of that environment is there already, done or not."""
    made = await conn.execute(
        insert(recoveries)
        .values(
            id=new_id(),
            source=source,
            reason=reason,
            environment_id=environment_id,
            since=since,
            until=until,
            state="waiting",
            created_at=now,
            next_attempt_at=now,
        )
        .on_conflict_do_nothing()
        .returning(recoveries.c.id)
    )
    return made.first() is not None


async def claim(conn: AsyncConnection, sources: Collection[str], now: datetime, lease: timedelta) -> Recovery | None:
    """The oldest that is due, unless one is under way anywhere."""
    await conn.execute(select(func.pg_advisory_xact_lock(LOCK)))
    waiting = recoveries.c.state == "waiting"
    if (
        await conn.execute(
            # Neither a lease nor a putting off reaches further than it may: such a time is of a clock that ran ahead.
            select(recoveries.c.id)
            .where(waiting, recoveries.c.lease_until > now, recoveries.c.lease_until <= now + 2 * lease)
            .limit(1)
        )
    ).first() is not None:
        return None
    row = (
        await conn.execute(
            select(recoveries)
            .where(
                waiting,
                or_(recoveries.c.next_attempt_at <= now, recoveries.c.next_attempt_at > now + PUT_OFF_MAX),
                recoveries.c.source.in_(sources),
            )
            .order_by(recoveries.c.created_at)
            .limit(1)
        )
    ).first()
    if row is None:
        return None
    token = new_id()
    await conn.execute(
        update(recoveries)
        .where(recoveries.c.id == row.id)
        .values(lease_until=now + lease, claimed_by=token, attempts=recoveries.c.attempts + 1)
    )
    return Recovery(
        id=row.id,
        source=row.source,
        reason=row.reason,
        environment_id=row.environment_id,
        since=row.since,
        until=row.until,
        done_until=row.done_until,
        page_token=row.page_token,
        attempts=row.attempts + 1,
        token=token,
    )


async def _mine(conn: AsyncConnection, recovery: Recovery, **values: Any) -> bool:
    changed = await conn.execute(
        update(recoveries)
        .where(recoveries.c.id == recovery.id, recoveries.c.claimed_by == recovery.token)
        .values(**values)
    )
    return changed.rowcount == 1


async def went_on(
    conn: AsyncConnection,
    recovery: Recovery,
    lease_until: datetime,
    *,
    done_until: datetime | None,
    page_token: str | None,
    found: int,
    added: int,
    advanced: bool,
) -> bool:
    """Progress, and the lease held longer; False when another worker has taken it over. Only what `advanced` counts the
    attempts anew: going over what was done before is none."""
    return await _mine(
        conn,
        recovery,
        lease_until=lease_until,
        done_until=done_until,
        page_token=page_token,
        found=recoveries.c.found + found,
        added=recoveries.c.added + added,
        attempts=1 if advanced else recoveries.c.attempts,
    )


async def hold(conn: AsyncConnection, recovery: Recovery, lease_until: datetime) -> bool:
    """The lease held longer, while a step takes its time."""
    return await _mine(conn, recovery, lease_until=lease_until)


async def finished(conn: AsyncConnection, recovery: Recovery, now: datetime) -> bool:
    return await _mine(conn, recovery, state="done", lease_until=None, finished_at=now, last_code=None, last_error=None)


async def failed(conn: AsyncConnection, recovery: Recovery, next_attempt_at: datetime, code: str, error: str) -> bool:
    return await _mine(
        conn, recovery, lease_until=None, next_attempt_at=next_attempt_at, last_code=code, last_error=error[:500]
    )


async def start_over(conn: AsyncConnection, recovery: Recovery) -> None:
    """A listing whose page token the provider no longer knows."""
    await _mine(conn, recovery, page_token=None)


async def cover(conn: AsyncConnection, source: str, since: datetime, until: datetime, now: datetime) -> None:
    """A person recovered this span by hand."""
    await conn.execute(
        update(recoveries)
        .where(
            recoveries.c.source == source,
            recoveries.c.reason == "outage",
            recoveries.c.state == "waiting",
            recoveries.c.since >= since,
            recoveries.c.until <= until,
        )
        .values(state="done", finished_at=now, lease_until=None, claimed_by=None)
    )


async def leave(
    conn: AsyncConnection, longest: timedelta, oldest: datetime, now: datetime, *, but_of: Collection[str] = ()
) -> None:
    """Without an API, which serves at most the sources `but_of`: outages that the provider's own retries outlast are left
    to those, and what is too old to be recovered is left for good."""
    await conn.execute(
        update(recoveries)
        .where(
            recoveries.c.reason == "outage",
            recoveries.c.state == "waiting",
            recoveries.c.source.not_in(list(but_of)),
            or_(recoveries.c.until - recoveries.c.since <= longest, recoveries.c.until < oldest),
        )
        .values(state="left", finished_at=now)
    )


async def waiting(conn: AsyncConnection) -> list[Row[Any]]:
    """The oldest of each source that are not done."""
    number = func.row_number().over(partition_by=recoveries.c.source, order_by=recoveries.c.created_at)
    numbered = select(recoveries, number.label("number")).where(recoveries.c.state == "waiting").subquery()
    return list(
        await conn.execute(
            select(numbered).where(numbered.c.number <= WAITING_MAX).order_by(numbered.c.created_at, numbered.c.id)
        )
    )


async def known(conn: AsyncConnection, source: str, batch: Sequence[ProviderEvent]) -> set[tuple[str, str, str]]:
    """(environment, event id, type) of those that were accepted before."""
    keys = [(event.environment_id or "", event.event_id, event.type) for event in batch]
    rows = await conn.execute(
        select(dedup.c.environment_id, dedup.c.event_id, dedup.c.type).where(
            dedup.c.source == source, tuple_(dedup.c.environment_id, dedup.c.event_id, dedup.c.type).in_(keys)
        )
    )
    return {(row.environment_id, row.event_id, row.type) for row in rows}


async def environments(conn: AsyncConnection, source: str) -> set[str]:
    """Those of the source's accounts."""
    rows = await conn.execute(select(accounts.c.environment_id).where(accounts.c.source == source).distinct())
    return {row.environment_id for row in rows}


NOT_YET_EVALUATED = text(
    """
    SELECT account_id, connection_id, account_status, occurred_at, received_at FROM events
    WHERE source = :source AND coalesce(environment_id, '') = :environment_id AND account_id = ANY(:account_ids)
        AND position > :evaluated AND origin IN ('webhook', 'recovery', 'report')
    ORDER BY account_id, occurred_at, (account_status IS DISTINCT FROM 'ACTIVE')
    """
).bindparams(bindparam("account_ids", type_=ARRAY(Text())))


async def ours(conn: AsyncConnection, source: str, environment_id: str, account_ids: Sequence[str]) -> dict[str, Ours]:
    """What we know of these accounts: their rows, and what the log says after the evaluator's position."""
    # The position first: rows that move on meanwhile are then told twice, never not at all.
    evaluated = await readers.position(conn, readers.EVALUATOR)
    rows = await conn.execute(
        select(accounts.c.account_id, accounts.c.status, accounts.c.last_status_at, accounts.c.connection_id).where(
            accounts.c.source == source,
            accounts.c.environment_id == environment_id,
            accounts.c.account_id.in_(account_ids),
        )
    )
    found = {row.account_id: Ours(row.status, row.last_status_at, row.connection_id) for row in rows}
    later = await conn.execute(
        NOT_YET_EVALUATED,
        {
            "source": source,
            "environment_id": environment_id,
            "account_ids": list(account_ids),
            "evaluated": evaluated,
        },
    )
    for row in later:
        before = found.get(row.account_id, Ours(None, None))
        status, said_at = before.status, before.said_at
        if row.account_status is not None and (said_at is None or row.occurred_at >= said_at):
            status, said_at = row.account_status, row.occurred_at
        found[row.account_id] = Ours(status, said_at, before.connection_id or row.connection_id)
    return found


async def heard_since(
    conn: AsyncConnection, source: str, environment_id: str, account_ids: Sequence[str], at: datetime
) -> set[str]:
    """The accounts whose status an event told after we began to ask: it knows better than the answer."""
    rows = await conn.execute(
        select(events.c.account_id)
        .where(
            events.c.source == source,
            func.coalesce(events.c.environment_id, "") == environment_id,
            events.c.account_id.in_(account_ids),
            events.c.account_status.is_not(None),
            events.c.received_at > at,
            events.c.origin.in_(("webhook", "recovery", "report")),
        )
        .distinct()
    )
    return {row.account_id for row in rows}


async def accounts_after(conn: AsyncConnection, source: str, environment_id: str, after: str, limit: int) -> list[str]:
    """The ids of accounts not known to be deleted, in order."""
    rows = await conn.execute(
        select(accounts.c.account_id)
        .where(
            and_(accounts.c.source == source, accounts.c.environment_id == environment_id),
            or_(accounts.c.status.is_(None), accounts.c.status != "DELETED"),
            accounts.c.account_id > after,
        )
        .order_by(accounts.c.account_id)
        .limit(limit)
    )
    return [row.account_id for row in rows]
