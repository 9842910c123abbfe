"""Days of the log leave a real Postgres: whole, interrupted, with readers and writers at it, and nothing else leaves."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service import migrate, own_alerts
from service.errors import Unavailable
from service.own_alerts import OwnAlert
from service.retain import Done, look, remove, retain
from service.retention import Plan
from service.settings import RetentionSettings
from service.store import alerts, log, prune, readers
from service.store import events as event_store
from service.store import retention as store
from service.store.log import Decision
from service.store.session import begin
from tests.make import make_receipt

KEEP = RetentionSettings()
NOW = datetime.now(UTC)
numbers = itertools.count(1)
TODAY = NOW.date()


OWN = """
    SELECT count(*) FROM events WHERE origin = 'authwatch' AND details->>'action' IS DISTINCT FROM 'retention.run'
"""
OWN_LOCKS = """
    SELECT count(*) FROM pg_locks JOIN pg_database AS d ON d.oid = database
    WHERE locktype = 'advisory' AND datname = current_database()
"""


def day(ago: int) -> date:
    return TODAY - timedelta(days=ago)


def name(ago: int, parent: str = "events") -> str:
    return f"{parent}_{day(ago):%Y%m%d}"


async def run(engine: AsyncEngine, sinks: Sequence[str] = (), **more: Any) -> Plan:
    done = await retain(engine, KEEP, sinks, ["console"], **more)
    assert done is not None
    return done.plan


async def write(engine: AsyncEngine, ago: int, *, provider: int = 3, own: int = 2) -> None:
    """A day as it would have been written then: the test puts received_at in, not a clock into Postgres."""
    at = datetime.combine(day(ago), datetime.min.time(), UTC) + timedelta(hours=12) if ago else NOW
    async with begin(engine) as conn:
        await conn.execute(text("SELECT ensure_partitions(CAST(:day AS date), 1)"), {"day": day(ago)})
        for n in range(provider + own):
            origin = "webhook" if n < provider else "authwatch"
            kind = "account.updated" if n < provider else ("alert.firing" if n % 2 else "audit")
            row = (
                await conn.execute(
                    text(
                        "INSERT INTO events (id, source, origin, event_id, type, kind, occurred_at, received_at)"
                        " VALUES (gen_random_uuid(), 'scalekit', :origin, :event, :kind, :kind, :at, :at) RETURNING id"
                    ),
                    {"origin": origin, "kind": kind, "at": at, "event": (event := f"evt_{ago}_{next(numbers)}")},
                )
            ).scalar_one()
            if origin == "webhook":
                await conn.execute(
                    text(
                        "INSERT INTO receipts (event_row_id, received_at, source, headers, body, body_sha256)"
                        " VALUES (:id, :at, 'scalekit', '{}', '\\x01', '\\x02')"
                    ),
                    {"id": row, "at": at},
                )
                await conn.execute(
                    text("INSERT INTO dedup VALUES ('scalekit', '', :event, 't', :id, '\\x02', :at)"),
                    {"event": event, "id": row, "at": at},
                )


async def value(engine: AsyncEngine, sql: str, **values: Any) -> Any:
    async with begin(engine) as conn:
        return (await conn.execute(text(sql), values)).scalar_one()


async def caught_up(engine: AsyncEngine) -> None:
    """The evaluator has read all there is."""
    async with begin(engine) as conn:
        await readers.move(conn, readers.EVALUATOR, (await log.head(conn))[0])


async def tables(engine: AsyncEngine) -> set[str]:
    async with begin(engine) as conn:
        return {row[0] for row in await conn.execute(text("SELECT relname FROM pg_class WHERE relkind = 'r'"))}


@pytest.fixture
async def old(engine: AsyncEngine) -> AsyncEngine:
    for ago in (93, 92, 40, 0):
        await write(engine, ago)
    await caught_up(engine)
    return engine


async def test_days_that_are_over_go_and_what_was_decided_here_stays_readable(old: AsyncEngine) -> None:
    before = await value(old, OWN)
    done = await run(old)
    assert [drop.day.name for drop in done.drops] == [
        name(93), name(92), name(93, "receipts"), name(92, "receipts"), name(40, "receipts"),
    ]  # fmt: skip
    there = await tables(old)
    assert not {drop.day.name for drop in done.drops} & there
    assert {name(40), name(0), name(0, "receipts"), "events_kept"} <= there
    assert await value(old, OWN) == before
    ran = "SELECT details->>'reason' FROM events WHERE details->>'action' = 'retention.run'"
    assert await value(old, ran) == "5 partitions are over", "the run itself is an entry of the audit log"
    assert await value(old, "SELECT count(*) FROM events WHERE origin = 'webhook'") == 6
    async with begin(old) as conn:
        found = await event_store.search(conn, kind="audit", until=NOW - timedelta(days=80), limit=10)
    assert {event.received_at.date() for event in found} == {day(93), day(92)}
    assert (await run(old)).drops == ()
    # The next day is carried into the same table, and the range is wide enough for both.
    await write(old, 91)
    await value(old, "UPDATE readers SET position = 10000 WHERE name = 'evaluator' RETURNING 1")
    assert await run(old) is not None
    assert name(91) in await tables(old), "its rows came after those of the days that stay"
    async with begin(old) as conn:
        await conn.execute(text(f"DELETE FROM {name(91)}"))
    await run(old)
    assert name(91) not in await tables(old)
    assert await value(old, OWN) == before
    assert await value(old, "SELECT count(*) FROM events_kept") == 4


async def test_what_is_kept_goes_when_its_own_time_is_over(old: AsyncEngine) -> None:
    await run(old)
    later = NOW + timedelta(days=315)
    kinds = "SELECT string_agg(DISTINCT kind, ',' ORDER BY kind) FROM events_kept"
    async with begin(old) as conn:
        floor = await readers.position(conn, readers.RETENTION)
        times = {"events": later, "alerts": NOW - timedelta(days=50), "audit": NOW - timedelta(days=400)}
        await prune.kept(conn, floor=floor, **times)
    assert await value(old, kinds) == "audit"
    async with begin(old) as conn:
        await prune.kept(conn, floor=floor, **times | {"audit": NOW})
    assert await value(old, kinds) is None


async def test_dedup_lives_longer_than_its_events(engine: AsyncEngine) -> None:
    for ago in (96, 94, 92, 0):
        await write(engine, ago)
    known = (
        "SELECT string_agg(DISTINCT split_part(event_id, '_', 2), ' ' ORDER BY split_part(event_id, '_', 2)) FROM dedup"
    )
    await run(engine)  # the evaluator has read nothing: all events stay, and so does what is known of them
    assert await value(engine, known) == "0 92 94 96"
    await caught_up(engine)
    await run(engine)
    assert not {name(ago) for ago in (96, 94, 92)} & await tables(engine)
    assert await value(engine, known) == "0 92", "72 hours more than the events"


async def test_the_index_of_dedup_serves_the_cut(engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        await conn.execute(
            text(
                "INSERT INTO dedup SELECT 's', '', n::text, 't', gen_random_uuid(), '\\x02',"
                " now() - (200000 - n) * interval '1 minute' FROM generate_series(1, 200000) AS n"
            )
        )
        await conn.execute(text("SELECT brin_summarize_new_values('ix_dedup_received_at')"))
        await conn.execute(text("ANALYZE dedup"))
        before = NOW - timedelta(days=135)
        plan_text = "\n".join(
            row[0]
            for row in await conn.execute(
                text("EXPLAIN (ANALYZE, BUFFERS) " + prune.OLD_DEDUP.text), {"before": before}
            )
        )
    assert "Bitmap Index Scan on ix_dedup_received_at" in plan_text
    async with begin(engine) as conn:
        while await prune.dedup(conn, before):
            pass
    assert await value(engine, "SELECT count(*) FROM dedup WHERE received_at < :before", before=before) == 0


async def test_a_lagging_sink_is_waited_for_then_its_loss_is_said_once_and_recorded(engine: AsyncEngine) -> None:
    for ago in (99, 96, 0):
        await write(engine, ago, provider=4, own=1)
    await caught_up(engine)
    async with begin(engine) as conn:
        await readers.lease(conn, "sink:splunk", NOW, timedelta(0))
        await readers.lease(conn, "sink:gone", NOW, timedelta(0))  # no longer configured: it holds nothing
        first = (await conn.execute(text("SELECT min(position) FROM events"))).scalar_one()
        await conn.execute(text("UPDATE readers SET position = :at WHERE name = 'sink:splunk'"), {"at": first})
    done = await run(engine, ["splunk"])
    assert [drop.day.name for drop in done.drops if drop.day.parent == "events"] == [name(99)]
    assert [(held.day.name, held.by) for held in done.held] == [(name(96), "not yet shipped by splunk")]
    async with begin(engine) as conn:
        opened = await alerts.open_of_group(conn, "sink-events-lost", f"splunk:{day(99)}")
        assert opened is not None
        assert (opened.severity, opened.state) == ("P1", "firing")
        assert "splunk did not take 4 events in time" in opened.summary
        assert f"from {day(99)}" in opened.summary
        events = await log.read_after(conn, 0, 1000)
        audit = [event for event in events if event.kind == "audit" and event.event_id == "sink:splunk"]
        assert [(event.details or {})["events"] for event in audit] == [4]
        assert [event.kind for event in events[-2:]] == ["audit", "alert.firing"]
        # It reads on after what it lost: the first row of the day that is kept for it.
        position = await readers.position(conn, "sink:splunk")
        assert (await log.read_after(conn, position, 1))[0].received_at.date() == day(96)
    assert name(99) not in await tables(engine)
    await run(engine, ["splunk"])
    assert await value(engine, "SELECT count(*) FROM alerts WHERE rule_id = 'sink-events-lost'") == 1
    assert await value(engine, "SELECT count(*) FROM events WHERE event_id = 'sink:splunk'") == 1


async def test_a_clock_that_jumps_a_year_ahead_and_back_loses_nothing(old: AsyncEngine) -> None:
    rows = "SELECT count(*) FROM events WHERE origin = 'webhook'"
    before = await tables(old), await value(old, rows), await value(old, "SELECT count(*) FROM dedup")
    for _ in range(2):
        ahead = await run(old, now=NOW + timedelta(days=365))
        assert ahead.refused is not None
    assert (await tables(old), await value(old, rows), await value(old, "SELECT count(*) FROM dedup")) == before
    async with begin(old) as conn:
        opened = await alerts.open_of_group(conn, "retention-refused", "retention")
    assert opened is not None
    assert "after the last run" in opened.summary
    back = await run(old)
    assert back.refused is None
    async with begin(old) as conn:
        assert await alerts.open_of_group(conn, "retention-refused", "retention") is None
    assert name(40) in await tables(old)
    # A person may mean it.
    assert (await run(old, now=NOW + timedelta(days=365), confirmed=True)).refused is None
    assert name(40) not in await tables(old)


async def test_what_is_not_ours_is_never_dropped(old: AsyncEngine) -> None:
    async with begin(old) as conn:
        await conn.execute(text("CREATE TABLE events_20200101 (mine text)"))
        await conn.execute(text("CREATE TABLE receipts_backup (mine text)"))
        await conn.execute(text(f"COMMENT ON TABLE receipts_backup IS '{store.MARK}'"))
        await conn.execute(text("CREATE TABLE receipts_20200101 (mine text)"))
        await conn.execute(text("COMMENT ON TABLE receipts_20200101 IS 'authwatch: to be looked at'"))
    await run(old)
    assert {"events_20200101", "receipts_backup", "receipts_20200101"} <= await tables(old)


async def test_two_runs_at_once_are_one(old: AsyncEngine) -> None:
    done = await asyncio.gather(*(retain(old, KEEP, [], []) for _ in range(3)))
    assert sum(1 for each in done if each is not None and each.plan.drops) == 1
    assert await value(old, OWN_LOCKS) == 0


async def test_an_interrupted_detach_is_finished_at_the_next_run(
    old: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader holds the log, the detach waits for it, and its backend is killed: the partition is left pending."""
    own = await value(old, OWN)
    with psycopg.connect(database_url) as reader, psycopg.connect(database_url, autocommit=True) as other:
        reader.execute("SELECT count(*) FROM events").fetchone()
        going = asyncio.create_task(retain(old, KEEP, [], []))
        pid = None
        for _ in range(100):
            row = other.execute(
                "SELECT pid FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE events DETACH%' AND state = 'active'"
                " AND wait_event_type = 'Lock' AND EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)"
            ).fetchone()
            if row is not None:
                pid = row[0]
                break
            await asyncio.sleep(0.05)
        assert pid is not None
        # Written and read meanwhile, as if nothing were going on.
        async with begin(old) as conn:
            assert (await log.accept(conn, [make_receipt()]))[0].accepted
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        with pytest.raises(Unavailable):
            await going
        assert other.execute("SELECT count(*) FROM pg_inherits WHERE inhdetachpending").fetchone() == (1,)
        # The reader is still there: the run gives up in time, and finishes nothing it may not.
        monkeypatch.setattr(store, "LOCK_TIMEOUT_MS", 200)
        monkeypatch.setattr(store, "DETACH_ATTEMPTS_MAX", 1)
        await run(old)
        assert name(93) in await tables(old)
    await run(old)
    there = await tables(old)
    assert not {name(93), name(92), name(93, "receipts")} & there
    assert await value(old, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 0
    assert await value(old, OWN) == own
    async with begin(old) as conn:
        assert (await log.accept(conn, [make_receipt()]))[0].accepted


@pytest.mark.parametrize("died_after", ["mark", "detach", "kept apart"])
async def test_a_run_that_died_is_found_again(old: AsyncEngine, died_after: str, database_url: str) -> None:
    await run(old)  # so that there is something kept
    await write(old, 91, provider=0, own=0)
    async with begin(old) as conn:
        await conn.execute(text(f"COMMENT ON TABLE {name(91)} IS '{store.MARK}'"))
    with psycopg.connect(database_url, autocommit=True) as other:
        if died_after != "mark":
            other.execute(f"ALTER TABLE events DETACH PARTITION {name(91)} CONCURRENTLY")
        if died_after == "kept apart":
            other.execute("ALTER TABLE events DETACH PARTITION events_kept CONCURRENTLY")
            other.execute(f"DROP TABLE {name(91)}")
    await run(old)
    assert name(91) not in await tables(old)
    assert await value(old, "SELECT count(*) FROM events WHERE received_at < :at", at=NOW - timedelta(days=80)) == 4


async def test_writers_and_readers_go_on_while_days_leave(old: AsyncEngine) -> None:
    stop = asyncio.Event()
    written = 0

    async def writing() -> None:
        nonlocal written
        while not stop.is_set():
            async with begin(old) as conn:
                written += sum(kept.accepted for kept in await log.accept(conn, [make_receipt(), make_receipt()]))

    async def reading() -> int:
        position = await value(old, "SELECT max(position) FROM events")
        seen = 0
        ready.set()
        while not ended.is_set() or seen < written:
            async with begin(old) as conn:
                page = await log.read_after(conn, position, 100)
            if page:
                position = page[-1].position
                seen += sum(event.origin != "authwatch" for event in page)  # the run itself is an entry
            await asyncio.sleep(0.01)
        return seen

    ready, ended = asyncio.Event(), asyncio.Event()
    reader = asyncio.create_task(reading())
    await ready.wait()
    writer = asyncio.create_task(writing())
    done = await run(old)
    stop.set()
    await writer
    ended.set()
    assert len(done.drops) == 5
    assert await asyncio.wait_for(reader, 20) == written > 0


async def test_reading_on_opens_only_the_days_since(engine: AsyncEngine) -> None:
    for ago in range(20, -1, -1):
        await write(engine, ago, provider=1, own=0)
    async with begin(engine) as conn:
        await log.mark(conn)
        position, _ = await log.head(conn)
    async with begin(engine) as conn:
        await log.accept(conn, [make_receipt()])
    queries: list[str] = []

    async with begin(engine) as conn:
        floor = await log.received_since(conn, position)
        assert floor is not None
        await conn.execute(text("SET LOCAL plan_cache_mode = force_custom_plan"))
        raw = (await conn.get_raw_connection()).driver_connection
        assert raw is not None
        seen = await raw.execute(
            "EXPLAIN SELECT * FROM events WHERE position > %s AND received_at >= %s ORDER BY position LIMIT 500",
            (position, floor),
        )
        queries = [row[0] for row in await seen.fetchall()]
        opened = set(re.findall(r"events_[0-9]{8}", "\n".join(queries)))
        assert opened
        assert min(opened) >= name(1), queries
        # And it is what read_after does: a table that is locked away is not opened.
        assert len(await log.read_after(conn, position, 10)) == 1
        locked = await conn.execute(
            text(
                "SELECT relname FROM pg_locks JOIN pg_class c ON c.oid = relation WHERE pid = pg_backend_pid()"
                " AND relname ~ '^events_[0-9]{8}$'"
            )
        )
        assert name(5) not in {row[0] for row in locked}
        assert await log.oldest_after(conn, position) is not None
        assert (await log.lag_after(conn, position))[0] == 1


async def test_a_clock_that_was_put_back_hides_nothing_from_a_reader(engine: AsyncEngine) -> None:
    """Marks and rows of a time ahead; then rows that came later are dated earlier."""
    await write(engine, -5, provider=2, own=0)
    async with begin(engine) as conn:
        await log.mark(conn)
        head, _ = await log.head(conn)
    await write(engine, 0, provider=3, own=0)
    async with begin(engine) as conn:
        assert len(await log.read_after(conn, head, 10)) == 3
        assert len(await log.read_after(conn, head, 2)) == 2
        assert await log.oldest_after(conn, head) is not None
        assert (await log.lag_after(conn, head))[0] == 3
    await write(engine, -5, provider=1, own=0)  # and ahead once more: rows before it must not be skipped
    async with begin(engine) as conn:
        page = await log.read_after(conn, head, 10)
        assert [event.position for event in page] == [head + n for n in range(1, 5)]
        await log.mark(conn)
        assert [event.position for event in await log.read_after(conn, head, 10)] == [event.position for event in page]


async def test_positions_of_an_aborted_transaction_stop_no_reader(engine: AsyncEngine) -> None:
    await write(engine, 0, provider=1, own=0)
    async with begin(engine) as conn:
        await log.mark(conn)
        head, _ = await log.head(conn)
        await conn.execute(text("SELECT nextval('log_position')"))
    async with begin(engine) as conn:
        assert await log.read_after(conn, head, 10) == []
        assert await log.oldest_after(conn, head) is None
    await write(engine, 0, provider=0, own=1)
    async with begin(engine) as conn:
        assert [event.position for event in await log.read_after(conn, head, 10)] == [head + 2]


async def test_a_day_that_is_carried_over_already_takes_rows_and_needs_no_partition(old: AsyncEngine) -> None:
    """The database's clock stands 93 days back for a moment: the row is taken, and is not taken for an old one."""
    await run(old)
    made = await value(old, "SELECT ensure_partitions(CAST(:day AS date), 1)", day=day(93))
    assert made == 1  # of receipts
    await write(old, 93, provider=1, own=0)
    await caught_up(old)
    await run(old)
    assert await value(old, "SELECT count(*) FROM events_kept WHERE origin = 'webhook'") == 1


async def test_a_row_written_into_a_day_that_is_going_is_carried_over(old: AsyncEngine, database_url: str) -> None:
    """Between the decision and the detach, by a clock that stands back: it came after what was to go."""
    async with begin(old) as conn:
        await conn.execute(text(f"COMMENT ON TABLE {name(93)} IS '{store.MARK}'"))
        gone = (await conn.execute(text(f"SELECT max(position) FROM {name(93)}"))).scalar_one()
        await readers.pass_over(conn, readers.RETENTION, gone)
    await write(old, 93, provider=1, own=0)
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute(f"ALTER TABLE events DETACH PARTITION {name(93)} CONCURRENTLY")
    async with store.alone(old) as alone:
        assert alone is not None
        await remove(old, alone, Done(replace((await peek(old)), drops=())))
    assert name(93) not in await tables(old)
    assert (
        await value(
            old,
            "SELECT count(*) FROM events WHERE origin = 'webhook' AND received_at < :at",
            at=NOW - timedelta(days=92.5),
        )
        == 1
    )


async def peek(engine: AsyncEngine) -> Plan:
    async with begin(engine) as conn:
        return (await look(conn, KEEP, [])).plan


async def test_old_alerts_go_with_all_that_is_theirs_and_open_ones_stay(engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        wanted = [
            OwnAlert(rule_id="r", about=about, summary="s", what_to_do="w")
            for about in ("over", "held", "waiting", "open")
        ]
        out = await own_alerts.open_own(conn, wanted, now=NOW - timedelta(days=500), notifiers=["console"])
        await own_alerts.close_own(conn, "r", keep=["open"], now=NOW - timedelta(days=450), notifiers=[])
        ids = {decision.details["dedup_key"]: decision.subject_id for decision in out.decisions}
        await conn.execute(
            text(
                "INSERT INTO actions (id, kind, destination, lane, alert_id, state, created_at, next_attempt_at, finished_at)"
                " SELECT gen_random_uuid(), 'notify', 'slack', id::text, id, 'done', now(), now(), now() FROM alerts"
            )
        )
        await conn.execute(text("INSERT INTO attempts SELECT id, 1, now() FROM actions"))
        await conn.execute(text("INSERT INTO messages SELECT id, 'slack', 'C1', '1.1', now() FROM alerts"))
        of = {row.group_key: str(row.id) for row in await conn.execute(text("SELECT id, group_key FROM alerts"))}
        assert len(ids) == len(of) == 4
        for about, released in (("over", NOW), ("held", None)):
            await conn.execute(
                text(
                    "INSERT INTO holds (id, workflow_id, alert_id, scope, reason, placed_at, released_at)"
                    " VALUES (gen_random_uuid(), :about, :alert, 'workflow', 'r', now(), :released)"
                ),
                {"about": about, "alert": of[about], "released": released},
            )
        await conn.execute(
            text("UPDATE actions SET state = 'pending' WHERE alert_id = CAST(:id AS uuid)"), {"id": of["waiting"]}
        )
    await run(engine)
    async with begin(engine) as conn:
        left = {row[0] for row in await conn.execute(text("SELECT group_key FROM alerts"))}
        assert left == {"held", "waiting", "open"}
        for table in ("actions", "messages"):
            counted = await conn.execute(
                text(f"SELECT count(DISTINCT alert_id) FROM {table} WHERE alert_id <> CAST(:id AS uuid)"),
                {"id": of["over"]},
            )
            assert counted.scalar_one() == 3
        assert (await conn.execute(text("SELECT count(*) FROM attempts"))).scalar_one() == 3
        assert (await conn.execute(text("SELECT count(*) FROM holds"))).scalar_one() == 1


async def test_what_a_resume_has_to_put_back_stays_as_long_as_we_have_it_paused(engine: AsyncEngine) -> None:
    long_ago = NOW - timedelta(days=500)
    async with begin(engine) as conn:
        wanted = [OwnAlert(rule_id="r", about=about, summary="s", what_to_do="w") for about in ("held", "free")]
        await own_alerts.open_own(conn, wanted, now=long_ago, notifiers=[])
        await own_alerts.close_own(conn, "r", keep=[], now=long_ago + timedelta(days=1), notifiers=[])
        await conn.execute(
            text(
                "INSERT INTO workflows (workflow_id, account_ids, connection_ids, active, pause, resume, orchestrator_held,"
                " created_at, updated_at) SELECT about, '{}', '{}', true, 'workflow', 'auto', about = 'held', now(), now()"
                " FROM unnest(ARRAY['held', 'free']) AS about"
            )
        )
        of_alerts = "SELECT id, group_key AS about FROM alerts UNION ALL SELECT NULL, workflow_id FROM workflows"
        await conn.execute(
            text(
                "INSERT INTO actions (id, kind, destination, lane, workflow_id, alert_id, state, created_at, next_attempt_at,"
                " finished_at) SELECT gen_random_uuid(), 'orchestrator.pause', 'prod', about, about, id, 'done', :at, :at, :at"
                f" FROM ({of_alerts}) AS of_alerts"
            ),
            {"at": long_ago},
        )
    await run(engine)
    asked = "SELECT count(*) FROM actions WHERE kind = 'orchestrator.pause' AND workflow_id = :of"
    assert (await value(engine, asked, of="held"), await value(engine, asked, of="free")) == (2, 0)
    async with begin(engine) as conn:
        await conn.execute(text("UPDATE workflows SET orchestrator_held = false"))
    await run(engine)
    assert await value(engine, asked, of="held") == 0


async def test_what_a_resume_has_to_put_back_stays_for_as_long_as_the_resume_waits(engine: AsyncEngine) -> None:
    """Nothing is held any more, and the orchestrator is down; the workflow may even be deleted here by now."""
    ask = (
        "INSERT INTO actions (id, kind, destination, lane, workflow_id, state, created_at, next_attempt_at, finished_at)"
        " VALUES (gen_random_uuid(), :kind, 'prod', 'workflow:w', 'w', :state, :at, :at, :finished_at)"
    )
    long_ago, paused = NOW - timedelta(days=500), "orchestrator.pause"
    async with begin(engine) as conn:
        done = {"kind": paused, "state": "done", "at": long_ago, "finished_at": long_ago}
        waits = {"kind": "orchestrator.resume", "state": "pending", "at": NOW, "finished_at": None}
        for values in (done, waits):
            await conn.execute(text(ask), values)
    await run(engine)
    asked = "SELECT count(*) FROM actions WHERE kind = :kind"
    assert await value(engine, asked, kind=paused) == 1
    async with begin(engine) as conn:
        await conn.execute(
            text("UPDATE actions SET state = 'done', finished_at = :at WHERE state = 'pending'"), {"at": NOW}
        )
    await run(engine)
    assert await value(engine, asked, kind=paused) == 0


async def test_the_migration_goes_down_and_up_with_what_is_kept(old: AsyncEngine, database_url: str) -> None:
    await run(old)
    kept = "SELECT count(*) FROM events WHERE received_at < :at"
    before = await value(old, kept, at=NOW - timedelta(days=80))
    await old.dispose()
    migrate.downgrade(database_url, "0003_rejected")
    assert await value(old, kept, at=NOW - timedelta(days=80)) == before == 4
    await old.dispose()
    migrate.upgrade(database_url)
    assert migrate.pending(database_url) == []
    await run(old)
    assert await value(old, kept, at=NOW - timedelta(days=80)) == 4


async def test_looking_changes_nothing(old: AsyncEngine) -> None:
    async with begin(old) as conn:
        assert len((await look(conn, KEEP, [])).plan.drops) == 5
        await log.append(conn, [Decision(kind="audit", subject_id="x", occurred_at=NOW)])
    assert name(93) in await tables(old)


async def test_partitions_are_counted_ahead(engine: AsyncEngine) -> None:
    async with begin(engine) as conn:
        now = await readers.clock(conn)
        assert await store.days_ahead(conn, now) == 7
        assert await store.days_ahead(conn, now + timedelta(days=30)) == 0
