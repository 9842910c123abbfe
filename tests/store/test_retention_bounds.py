"""Retention with a day too large for a common time-out, with more rows than one run cuts, with readers in the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service import retain as story
from service.retain import Done, retain
from service.store import alerts, prune, readers, retention_state, session
from service.store import retention as store
from service.store.session import begin, open_engine
from tests.store.test_retention import KEEP, NOW, caught_up, day, name, tables, value, write

OWN = """
    SELECT count(*) FROM events WHERE origin = 'authwatch' AND details->>'action' IS DISTINCT FROM 'retention.run'
"""


async def run(engine: AsyncEngine, *sinks: str) -> Done:
    done = await retain(engine, KEEP, sinks, ["console"])
    assert done is not None
    return done


async def completed(engine: AsyncEngine) -> bool:
    return bool(await value(engine, "SELECT completed_at > now() - interval '1 minute' FROM retention_state"))


async def never_completed(engine: AsyncEngine) -> None:
    await value(engine, "UPDATE retention_state SET completed_at = now() - interval '1 day' RETURNING 1")


@pytest.fixture
async def hurried(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncEngine]:
    """Every statement and transaction is cut off after a second, and every row that is carried over takes longer."""
    monkeypatch.setattr(session, "TRANSACTION_SECONDS_MAX", 1.0)
    monkeypatch.setattr(session, "STATEMENT_TIMEOUT_MS", 1000)
    engine = open_engine(database_url, connections_max=5)
    for ago in (97, 93, 92, 0):
        await write(engine, ago, provider=1, own=1)
    await caught_up(engine)
    async with begin(engine) as conn:
        await conn.execute(text(f"DELETE FROM {name(93)}; DELETE FROM {name(92)}"))
    await run(engine)
    for ago in (91,):
        await write(engine, ago, provider=1, own=2)
    async with begin(engine) as conn:
        await conn.execute(text(f"UPDATE {name(91)} SET position = position - 1000000"))
        await conn.execute(
            text(
                "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS"
                " 'BEGIN PERFORM pg_sleep(0.8); RETURN new; END'"
            )
        )
        await conn.execute(
            text("CREATE TRIGGER slowly BEFORE INSERT ON events_kept FOR EACH ROW EXECUTE FUNCTION slowly()")
        )
    await never_completed(engine)
    yield engine
    await engine.dispose()


async def test_a_day_that_takes_longer_than_any_time_out_is_carried_over(hurried: AsyncEngine) -> None:
    assert await value(hurried, OWN) == 4
    done = await run(hurried)
    assert (done.unfinished, name(91) in await tables(hurried)) == ([], False)
    assert await value(hurried, OWN) == 4
    assert await completed(hurried)


async def test_what_cannot_be_carried_over_in_time_is_told_and_hides_nothing_else(
    hurried: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FOLD_SECONDS_MAX", 1.2)
    done = await run(hurried)
    assert done.unfinished == [f"{name(91)} cannot be carried over"]
    assert not await completed(hurried)
    assert await value(hurried, "SELECT unfinished FROM retention_state") == done.unfinished[0]
    assert await value(hurried, OWN) == 2, "what was carried over before is there"
    monkeypatch.undo()
    assert (await run(hurried)).unfinished == []
    assert await value(hurried, OWN) == 4
    assert await value(hurried, "SELECT unfinished FROM retention_state") is None


async def test_new_days_have_the_index_that_finds_what_is_carried_over(engine: AsyncEngine) -> None:
    await write(engine, 40)
    async with begin(engine) as conn:
        await conn.execute(text("SET LOCAL enable_seqscan = off"))
        plan_text = "\n".join(
            row[0]
            for row in await conn.execute(
                text(f"EXPLAIN SELECT * FROM {name(40)} WHERE origin = 'authwatch' AND received_at >= now()")
            )
        )
    assert "authwatch" not in plan_text.partition("Index Cond")[2], plan_text
    assert "Index Scan" in plan_text or "Bitmap Index Scan" in plan_text


async def test_losses_are_counted_up_to_a_bound(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOST_COUNTED_MAX", 2)
    await write(engine, 99)
    await caught_up(engine)
    async with begin(engine) as conn:
        await readers.lease(conn, "sink:splunk", NOW, timedelta(0))
    await run(engine, "splunk")
    async with begin(engine) as conn:
        opened = await alerts.open_of_group(conn, "sink-events-lost", f"splunk:{day(99)}")
    assert opened is not None
    assert "did not take at least 2 events in time" in opened.summary
    assert str(day(99)) in opened.summary


async def test_a_later_loss_is_told_beside_an_open_one(engine: AsyncEngine) -> None:
    """And each is a message to the on-call."""
    for ago in (98, 97):
        await write(engine, ago)
    await caught_up(engine)
    async with begin(engine) as conn:
        await readers.lease(conn, "sink:splunk", NOW, timedelta(0))
    for keep in (KEEP, KEEP.model_copy(update={"sink_backlog_max": timedelta(days=6)})):
        assert await retain(engine, keep, ["splunk"], ["console"]) is not None
    assert await value(engine, "SELECT count(*) FROM alerts WHERE rule_id = 'sink-events-lost'") == 2
    queued = await value(
        engine,
        "SELECT count(*) FROM alert_news n JOIN alerts a ON a.id = n.alert_id WHERE a.severity = 'P1'",
    )
    assert queued == 2


async def test_a_sink_put_back_loses_once_what_went_without_it_and_once_what_goes_now(engine: AsyncEngine) -> None:
    for ago in (98, 97, 0):
        await write(engine, ago)
    await caught_up(engine)
    async with begin(engine) as conn:
        await readers.lease(conn, "sink:splunk", NOW, timedelta(0))
    first_day = KEEP.model_copy(update={"events": timedelta(days=97)})
    assert await retain(engine, first_day, [], ["console"]) is not None
    assert await value(engine, "SELECT count(*) FROM alerts WHERE rule_id = 'sink-events-lost'") == 0
    hurried = KEEP.model_copy(update={"sink_backlog_max": timedelta(days=6)})
    assert await retain(engine, hurried, ["splunk"], ["console"]) is not None
    told = "SELECT string_agg(substring(summary from '(at most [0-9]+|take [0-9]+) events'), ', ' ORDER BY summary)"
    assert await value(engine, told + " FROM alerts WHERE rule_id = 'sink-events-lost'") == "take 5, at most 5"
    counted = "SELECT count(*) FROM events WHERE event_id = 'sink:splunk' AND details->>'action' = 'sink.events_lost'"
    assert await value(engine, counted) == 2


async def test_a_loss_that_a_person_resolved_is_over(engine: AsyncEngine) -> None:
    await write(engine, 99)
    await caught_up(engine)
    async with begin(engine) as conn:
        await readers.lease(conn, "sink:splunk", NOW, timedelta(0))
    await run(engine, "splunk")
    ended = "SELECT condition_ended_at IS NOT NULL FROM alerts WHERE rule_id = 'sink-events-lost'"
    await run(engine, "splunk")
    assert not await value(engine, ended)
    await value(engine, "UPDATE alerts SET state = 'resolved', resolved_at = now() RETURNING 1")
    await run(engine, "splunk")
    assert await value(engine, ended)


async def test_more_than_one_run_cuts_is_told(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "BATCHES_MAX", 1)
    monkeypatch.setattr(prune, "BATCH_ROWS_MAX", 2)
    monkeypatch.setattr(prune, "OLD_DEDUP", text(prune.OLD_DEDUP.text.replace("LIMIT 10000", "LIMIT 2")))
    await write(engine, 99)
    await caught_up(engine)
    await never_completed(engine)
    assert (await run(engine)).unfinished == ["more of dedup than one run cuts"]
    assert not await completed(engine)
    assert (await run(engine)).unfinished == []
    assert await completed(engine)


async def test_a_detach_that_gave_up_is_unfinished(
    engine: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(store, "STATEMENT_TIMEOUT_MS", 300)
    monkeypatch.setattr(store, "DETACH_ATTEMPTS_MAX", 1)
    await write(engine, 93)
    await caught_up(engine)
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM events").fetchone()
        done = await run(engine)
        assert done.unfinished == [f"{name(93)} cannot be detached while somebody reads it"]
    assert (await run(engine)).unfinished == []
    assert name(93) not in await tables(engine)


async def test_dedup_is_never_known_further_back_than_it_was_cut(engine: AsyncEngine) -> None:
    """Less was kept once; more is configured now, and does not bring back what is forgotten."""
    short = KEEP.model_copy(update={"events": timedelta(days=10)})
    assert await retain(engine, short, [], []) is not None
    await run(engine)
    async with begin(engine) as conn:
        now = datetime.now(UTC)  # the run's own, by the database's clock, was a moment ago
        floor = await retention_state.recover_floor(conn, now, KEEP)
    assert abs(floor - (now - timedelta(days=13) + timedelta(hours=1))) < timedelta(minutes=5)


@pytest.mark.parametrize("back", [93, 40])
async def test_receipts_written_while_the_clock_stood_back_stay(engine: AsyncEngine, back: int) -> None:
    """Whether the events of that day are there, or carried over already."""
    for ago in (93, 0):
        await write(engine, ago)
    await caught_up(engine)
    await run(engine)
    await write(engine, back, provider=1, own=0)
    await caught_up(engine)
    await run(engine)
    assert name(back, "receipts") in await tables(engine)


async def test_small_tables_are_cut(engine: AsyncEngine) -> None:
    """Conflicts with the receipts, replays and recoveries with the dedup, poison and marks with the log."""
    await write(engine, 99)
    await write(engine, 0)
    await caught_up(engine)
    old, young = NOW - timedelta(days=97), NOW - timedelta(days=20)
    async with begin(engine) as conn:
        for at, number in ((old, 1), (young, 2)):
            values = {"at": at, "n": number}
            await conn.execute(
                text(
                    "INSERT INTO conflicts VALUES (gen_random_uuid(), '\\x02', :at, 'scalekit', '{}', '\\x01', 's', :at)"
                ),
                values,
            )
            await conn.execute(text("INSERT INTO replays VALUES (gen_random_uuid(), gen_random_uuid(), :at)"), values)
            for state in ("done", "left", "waiting"):
                await conn.execute(
                    text(
                        "INSERT INTO recoveries (id, source, reason, since, until, state, created_at, next_attempt_at,"
                        " finished_at) VALUES (gen_random_uuid(), 's', 'outage', :at, :at, :state, :at, :at, :at)"
                    ),
                    values | {"state": state},
                )
            await conn.execute(
                text(
                    "INSERT INTO recoveries (id, source, environment_id, reason, since, until, state, created_at,"
                    " next_attempt_at, finished_at) VALUES (gen_random_uuid(), 's', CAST(:n AS text), 'listing', :at,"
                    " :at, 'done', :at, :at, :at)"
                ),
                values,
            )
        rows = (await conn.execute(text("SELECT min(position), max(position) FROM events"))).one()
        for position, at in ((rows[0], old), (rows[1], NOW)):
            await conn.execute(
                text("INSERT INTO poison VALUES ('sink:splunk', :position, gen_random_uuid(), 'r', :at)"),
                {"position": position, "at": at},
            )
        for position in (rows[0], rows[0] + 1, rows[1]):
            await conn.execute(text("INSERT INTO log_marks VALUES (:position, now())"), {"position": position})
    await run(engine)
    assert await value(engine, "SELECT count(*) FROM conflicts") == 1
    assert await value(engine, "SELECT count(*) FROM replays") == 1
    kinds = "SELECT string_agg(reason || ' ' || state, ',' ORDER BY reason, state, since) FROM recoveries"
    assert (
        await value(engine, kinds) == "listing done,listing done,outage done,outage left,outage waiting,outage waiting"
    )
    assert await value(engine, "SELECT count(*) FROM poison") == 1
    assert await value(engine, "SELECT count(*) FROM log_marks") == 2, "the last one before what stays is needed"
