"""Days of the log leave: detached without stopping anybody, carried over where something must stay, dropped.

A day goes in steps, each found again at the next run if we die after it:
  1. its partition is marked (COMMENT) in the transaction that records what its going means;
  2. DETACH ... CONCURRENTLY, which cannot run in a transaction; interrupted, it is finished with FINALIZE;
  3. with `events_kept` detached too, a transaction for each day copies what Authwatch decided itself into it and drops
     the day; then it is attached again with its new, longer range.
One table holds all that is kept, so that readers open one partition more and not three hundred. While it is apart, in
steps 2 and 3, entries older than `events` are out of sight for a moment; sinks and feed never read back so far
(`readers.RETENTION`), and the alternative is a lock on the log that stops the front door.
Only tables of our own name that carry our mark are ever dropped.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import date, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service.errors import Unavailable
from service.observe import log as logger
from service.retention import EVENTS, RECEIPTS, Day
from service.store import log
from service.store.session import begin, unavailable

LOCK = 7_305_201_005  # one run at a time
KEPT = "events_kept"
MARK = "authwatch: over, to be dropped"
KEPT_MARK = re.compile(r"authwatch: kept (\S+) (\S+)")
DAY_NAME = re.compile(r"(events|receipts)_(\d{8})")
LOCK_TIMEOUT_MS = 2_000
STATEMENT_TIMEOUT_MS = 15_000  # a detach waits for every reader of the day; nobody waits for it longer than this
DETACH_ATTEMPTS_MAX = 3
FOLD_SECONDS_MAX = 3600.0  # of carrying one day over: one that was made before it had its index is read from end to end
LOST_COUNTED_MAX = 100_000
GAVE_UP = frozenset({"55P03", "57014"})  # lock_not_available, query_canceled

PARTITIONS = text(
    """
    SELECT p.relname AS parent, c.relname AS name, i.inhdetachpending AS pending
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
    WHERE p.relname IN ('events', 'receipts') AND p.relnamespace = current_schema()::regnamespace ORDER BY 1, 2
    """
)
LOOSE = text(
    """
    SELECT relname AS name, obj_description(oid, 'pg_class') AS mark FROM pg_class
    WHERE relkind = 'r' AND NOT relispartition AND relnamespace = current_schema()::regnamespace
        AND (relname ~ '^(events|receipts)_[0-9]{8}$' OR relname = 'events_kept') ORDER BY 1
    """
)
KEPT_MARKED = text("SELECT obj_description(to_regclass('events_kept'), 'pg_class')")
KEPT_SPAN = text(
    """
    SELECT min(position), max(position) FROM events_kept
    WHERE received_at >= CAST(:day AS date) AND received_at < CAST(:day AS date) + 1
    """
)


@asynccontextmanager
async def alone(engine: AsyncEngine) -> AsyncIterator[AsyncConnection | None]:
    """A connection outside any transaction, for DETACH, held by one run at a time; None while another one runs."""
    async with engine.connect() as raw:
        conn = await raw.execution_options(isolation_level="AUTOCOMMIT")
        if not (await conn.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK})).scalar_one():
            yield None
            return
        try:
            await conn.execute(text(f"SET lock_timeout = {LOCK_TIMEOUT_MS}"))
            await conn.execute(text(f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}"))
            yield conn
        except DBAPIError as exc:
            if exc.connection_invalidated:
                raise unavailable(exc) from exc
            raise
        finally:
            # Its lock and its time-outs are the session's: it goes, and is not lent to anybody else. Unlocked first,
            # since a backend may end a while after its connection.
            if not raw.invalidated:
                with suppress(DBAPIError):
                    await conn.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
                await raw.invalidate()


async def days(conn: AsyncConnection) -> list[Day]:
    """Every day there is, with the first and last position of its events."""
    partitions = (await conn.execute(PARTITIONS)).all()
    named = [row for row in partitions if DAY_NAME.fullmatch(row.name)]
    of_events = [row.name for row in named if row.parent == EVENTS]
    spans: dict[str, tuple[int | None, int | None]] = {}
    if of_events:
        ends = " UNION ALL ".join(
            f"SELECT '{name[-8:]}', (SELECT min(position) FROM {name}), (SELECT max(position) FROM {name})"
            for name in of_events
        )
        spans = {row[0]: (row[1], row[2]) for row in await conn.execute(text(ends))}
    if any(row.name == KEPT for row in partitions):
        # Receipts whose day of events is carried over: written since, while the clock stood back.
        for row in named:
            if row.name[-8:] not in spans:
                spans[row.name[-8:]] = tuple((await conn.execute(KEPT_SPAN, {"day": row.name[-8:]})).one())
    return [
        Day(
            parent=row.parent,
            name=row.name,
            day=date(int(row.name[-8:-4]), int(row.name[-4:-2]), int(row.name[-2:])),
            first_position=spans.get(row.name[-8:], (None, None))[0],
            last_position=spans.get(row.name[-8:], (None, None))[1],
        )
        for row in named
    ]


async def kept_from(conn: AsyncConnection) -> date | None:
    written = KEPT_MARK.fullmatch((await conn.execute(KEPT_MARKED)).scalar_one() or "")
    return date.fromisoformat(written[1]) if written else None


async def days_ahead(conn: AsyncConnection, now: datetime) -> int:
    """For how many days after today events and receipts already have their partitions, without a gap."""
    have = {row.name for row in await conn.execute(PARTITIONS)}
    ahead = 0
    while all(f"{parent}_{now + timedelta(days=ahead + 1):%Y%m%d}" in have for parent in (EVENTS, RECEIPTS)):
        ahead += 1
    return ahead


async def lost(conn: AsyncConnection, day: Day, position: int) -> tuple[int, datetime | None, datetime | None]:
    """How many of that day's rows a reader at `position` has not read, counted up to LOST_COUNTED_MAX, and when the first
    and the last of them were received."""
    unread = f"FROM {checked(day.name)} WHERE position > :position AND origin <> 'probe'"
    row = (
        await conn.execute(
            text(
                f"SELECT (SELECT count(*) FROM (SELECT {unread} LIMIT {LOST_COUNTED_MAX}) AS unread),"
                f" (SELECT received_at {unread} ORDER BY position LIMIT 1),"
                f" (SELECT received_at {unread} ORDER BY position DESC LIMIT 1)"
            ),
            {"position": position},
        )
    ).one()
    return row[0], row[1], row[2]


async def mark(conn: AsyncConnection, day: Day) -> None:
    """From here on the day is to go, also if this run does not come to it."""
    await conn.execute(text(f"COMMENT ON TABLE {checked(day.name)} IS '{MARK}'"))


async def finish_interrupted(conn: AsyncConnection, parent: str | None = None) -> list[str]:
    """A detach that was cut off hides its partition and forbids the next one of that parent, until it is finished."""
    done = []
    for row in (await conn.execute(PARTITIONS)).all():
        ours = DAY_NAME.fullmatch(row.name) or row.name == KEPT
        if row.pending and ours and parent in (None, row.parent):
            await conn.execute(text(f"ALTER TABLE {row.parent} DETACH PARTITION {row.name} FINALIZE"))
            logger.info("retention.detach_finished", partition=row.name)
            done.append(row.name)
    return done


async def detach(conn: AsyncConnection, parent: str, name: str) -> bool:
    """False when somebody holds the table for longer than we wait: what is pending is finished at the next run."""
    for attempt in range(1, DETACH_ATTEMPTS_MAX + 1):
        try:
            if name not in await finish_interrupted(conn, parent):
                await conn.execute(text(f"ALTER TABLE {parent} DETACH PARTITION {name} CONCURRENTLY"))
            return True
        except DBAPIError as exc:
            if not gave_up(exc):
                raise
            logger.warning("retention.detach_waits", partition=name, attempt=attempt)
            await asyncio.sleep(0.2 * attempt)
    return False


def gave_up(exc: DBAPIError) -> bool:
    """A lock that was not to be had in the time we wait for it."""
    return getattr(exc.orig, "sqlstate", None) in GAVE_UP


async def detach_kept(conn: AsyncConnection) -> bool:
    attached = {row.name for row in await conn.execute(PARTITIONS)}
    return KEPT not in attached or await detach(conn, EVENTS, KEPT)


async def loose(conn: AsyncConnection) -> tuple[list[str], bool]:
    """Our detached days that wait to be dropped, and whether `events_kept` is apart from its parent."""
    rows = (await conn.execute(LOOSE)).all()
    ours = [row.name for row in rows if DAY_NAME.fullmatch(row.name) and row.mark == MARK]
    return ours, any(row.name == KEPT and KEPT_MARK.fullmatch(row.mark or "") for row in rows)


async def drop_receipts(conn: AsyncConnection, name: str) -> None:
    await conn.execute(text(f"DROP TABLE {checked(name)}"))


async def open_kept(conn: AsyncConnection) -> None:
    await conn.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
    await conn.execute(text(f"CREATE TABLE IF NOT EXISTS {KEPT} (LIKE events INCLUDING DEFAULTS INCLUDING INDEXES)"))
    # Detaching leaves the old range behind as a check constraint.
    for (name,) in (
        await conn.execute(
            text(f"SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid = '{KEPT}'::regclass")
        )
    ).all():
        await conn.execute(text(f'ALTER TABLE {KEPT} DROP CONSTRAINT "{name}"'))


async def kept_bounds(conn: AsyncConnection) -> set[date]:
    written = KEPT_MARK.fullmatch((await conn.execute(KEPT_MARKED)).scalar_one() or "")
    return {date.fromisoformat(written[1]), date.fromisoformat(written[2])} if written else set()


async def fold(
    conn: AsyncConnection, name: str, *, floor: int, alerts_before: datetime, audit_before: datetime
) -> None:
    """Step 3 for one detached day of events, in the caller's transaction; `events_kept` must be apart.

    What came after `floor`, the last position that was to go, came while the clock stood back: it is carried over too.
    """
    await open_kept(conn)
    day = date.fromisoformat(checked(name)[-8:])
    bounds = {day, day + timedelta(days=1)} | await kept_bounds(conn)
    columns = (
        await conn.execute(
            text(
                "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute"
                f" WHERE attrelid = '{name}'::regclass AND attnum > 0 AND NOT attisdropped"
            )
        )
    ).scalar_one()
    copied = f"INSERT INTO {KEPT} ({columns}) SELECT {columns} FROM {name} WHERE "
    # Two statements: each finds its rows by an index.
    await conn.execute(text(copied + "position > :floor"), {"floor": floor})
    await conn.execute(
        text(
            copied + "origin = 'authwatch' AND position <= :floor AND received_at >="
            " CASE WHEN kind LIKE 'alert.%' THEN CAST(:alerts AS timestamptz) ELSE :audit END"
        ),
        {"floor": floor, "alerts": alerts_before, "audit": audit_before},
    )
    await conn.execute(text(f"DROP TABLE {name}"))
    await conn.execute(text(f"COMMENT ON TABLE {KEPT} IS 'authwatch: kept {min(bounds)} {max(bounds)}'"))


async def attach_kept(conn: AsyncConnection) -> None:
    """The end of step 3, after the last day: over all days that were ever carried over."""
    await open_kept(conn)
    if bounds := await kept_bounds(conn):
        first, last = min(bounds), max(bounds)
        await conn.execute(
            text(
                f"ALTER TABLE events ATTACH PARTITION {KEPT} FOR VALUES FROM ('{first} 00:00:00+00') TO ('{last} 00:00:00+00')"
            )
        )


async def ensure_at_start(engine: AsyncEngine) -> None:
    """After a week off the first request finds its day; a database that is away gets it from the first commit."""
    try:
        async with begin(engine) as conn:
            await log.ensure_partitions(conn)
    except (Unavailable, DBAPIError) as exc:
        logger.warning("partitions.not_made_at_start", error=type(exc).__name__)


def checked(name: str) -> str:
    """A name that goes into SQL as it is: ours, or a mistake of ours."""
    if not DAY_NAME.fullmatch(name):
        raise ValueError("not the name of a day's partition")
    return name
