"""Faults found by reading the evaluators that work beside each other. Each test says what it should be and is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service import health, rule_sets, steer
from service.judge import judge
from service.observe import log as log_of_ours
from service.steer import Wanted
from service.store import log, pages, readers, shards
from service.store.session import begin
from tests.make import make_receipt
from tests.workers.house import House, make_event, open_house
from workers.evaluate import BATCH_EVENTS_MAX, Evaluated, evaluate, one_transaction, read_on

RATIO_OF_AN_ACCOUNT = """\
version: 1
rules:
- id: success-rate
  severity: P2
  ratio:
    good: {kind: token.refresh_succeeded}
    total: {kind: [token.refresh_succeeded, token.refresh_failed]}
    within: 10m
    lt: 0.5
    min_total: 4
  group_by: [account_id]
  actions:
  - pause_workflows: {stable_for: 1s}
  annotations: {summary: "Refreshes of {{ identifier }} fail"}
"""
TWO_OF_A_KIND = """\
version: 1
rules:
- id: two-failures
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 2}
  annotations: {summary: Failing}
"""


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house") as opened:
        yield opened


@pytest.fixture
async def rated(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house", rules=RATIO_OF_AN_ACCOUNT) as opened:
        yield opened


@pytest.fixture
async def counted(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house", rules=TWO_OF_A_KIND) as opened:
        yield opened


async def done_or_waiting(house: House, task: asyncio.Task[Any]) -> None:
    """Until it has come to its end, or waits for a lock that the caller holds."""
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
    while not (await asyncio.wait({task}, timeout=0.02))[0] and not await house.rows(waiting):
        pass


async def test_two_workers_that_shared_the_last_events_say_that_all_is_evaluated(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker judged some shards, another the rest, each to the end of the log, neither in a lane: the published
    position says so, whether or not another event ever comes."""
    await evaluate(house.runtime)
    names = [f"ca_{number}" for number in range(40)]
    await house.accept(*(make_event("ACTIVE", datetime.now(UTC), account=name) for name in names))
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*args: Any, **kwargs: Any) -> Any:
        if not began.is_set():
            began.set()
            await go_on.wait()
        return await judge(*args, **kwargs)

    monkeypatch.setattr("workers.evaluate.judge", slow)
    async with begin(house.runtime.engine) as conn:  # a third worker, for a moment
        assert await shards.take(conn, shards.ALL[1:], len(shards.ALL)) is not None
        one = asyncio.create_task(evaluate(house.runtime))
        await began.wait()
    other = await evaluate(house.runtime)
    go_on.set()
    assert (await one).read + other.read == len(names)
    for _ in range(3):  # both look again, second by second, and nothing more comes
        await evaluate(house.runtime)
    async with begin(house.runtime.engine) as conn:
        parts = {row.name: row.position for row in await readers.all_readers(conn) if row.name in shards.ALL}
        assert set(parts.values()) == {(await log.head(conn))[0]}, "all of it has been read"
        assert (await health.report(conn, []))["evaluator"]["lag_items"] == 0
        assert await health.evaluation_lag_seconds(conn) == 0.0


async def test_neither_the_groups_lane_nor_a_put_misses_a_break_of_an_account_of_the_connection(rated: House) -> None:
    """The account is known to be of conn_1, its new events do not say so, and a workflow that depends on conn_1 is put
    while a group's rule judges them: one of the two must see both, as the docstring of judge.py promises."""
    await rated.told("ACTIVE", ago=60)
    now = datetime.now(UTC)
    await rated.accept(
        *(
            make_receipt(kind="token.refresh_failed", connection_id=None, occurred_at=now - timedelta(seconds=9 - n))
            for n in range(5)
        )
    )
    # The shards have read all of it, the groups nothing yet.
    await one_transaction(rated.runtime, read_on, Evaluated(), shards.OF_ACCOUNTS, shards.SHARDS)
    wanted = Wanted(
        workflow_id="w1",
        name=None,
        account_ids=(),
        connection_ids=("conn_1",),
        active=True,
        pause="account",
        resume="auto",
        orchestrator_name=None,
        orchestrator_ref=None,
    )
    async with begin(rated.runtime.engine) as conn:
        context = replace(rated.context, ruleset=await rule_sets.in_force(conn, rated.runtime))
        await steer.put_workflow(conn, wanted, context)
        groups = asyncio.create_task(one_transaction(rated.runtime, read_on, Evaluated(), (shards.GROUPS,), 1))
        await done_or_waiting(rated, groups)
    await groups
    await evaluate(rated.runtime)
    assert len(await rated.alerts()) == 1
    assert len(await rated.rows("SELECT 1 FROM holds WHERE workflow_id = 'w1' AND released_at IS NULL")) == 1


async def test_an_alert_of_a_group_names_its_account_though_the_groups_ran_ahead(rated: House) -> None:
    """In one transaction the account's row came first. The groups' lane reads eight times as far, and so gets there
    before the row does: the alert must say the same."""
    now = datetime.now(UTC)
    await rated.accept(
        *(
            make_receipt(
                kind="token.refresh_failed", identifier="ann@example.com", occurred_at=now - timedelta(seconds=9 - n)
            )
            for n in range(5)
        )
    )
    await one_transaction(rated.runtime, read_on, Evaluated(), (shards.GROUPS,), 1)
    await evaluate(rated.runtime)
    [alert] = await rated.alerts()
    assert alert["summary"] == "Refreshes of ann@example.com fail"
    assert alert["connection_id"] == "conn_1"


async def test_what_came_too_late_for_a_window_is_counted_though_it_could_not_fill_it(
    counted: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """design.md, rule 5: later ones count as `too_late`. An operator reads it in the log."""
    said: list[int] = []
    monkeypatch.setattr(log_of_ours, "warning", lambda name, **what: said.append(what["events"]))
    old = datetime.now(UTC) - timedelta(hours=5)
    await counted.accept(replace(make_event("failed", old), attempted_at=None))
    await evaluate(counted.runtime)
    assert said == [1]


async def test_a_hold_is_not_let_go_while_a_break_of_its_account_is_unread_by_the_groups(
    database_url: str, tmp_path: Path
) -> None:
    """evaluate()'s promise: a deadline only once nothing is left to read. Another worker is at the groups, and behind."""
    both = RATIO_OF_AN_ACCOUNT + "\n".join(
        [
            "- id: gone",
            "  severity: P2",
            "  state: {of: account, match: [{status: DISCONNECTED}]}",
            "  actions:",
            "  - pause_workflows: {stable_for: 6s}",
            "  annotations: {summary: Gone}",
            "",
        ]
    )
    async with open_house(database_url, tmp_path / "house", rules=both) as house:
        await house.put("w1", account_ids=["ca_1"])
        await house.told("DISCONNECTED", ago=120)
        await house.tell("ACTIVE", ago=0.1)
        async with begin(house.runtime.engine) as conn:
            assert await shards.take(conn, [shards.GROUPS], 1) is not None
            for _ in range(5):
                await house.tell("failed")
            done = await evaluate(house.runtime)
            assert done.next_due_at is not None
            await asyncio.sleep(max(0.0, (done.next_due_at - datetime.now(UTC)).total_seconds()) + 0.05)
            await evaluate(house.runtime)
        await evaluate(house.runtime)
        assert [alert["rule_id"] for alert in await house.alerts()] == ["gone", "success-rate"]
        said = await house.rows("SELECT kind FROM events WHERE kind LIKE 'workflow%' ORDER BY position")
        assert [row["kind"] for row in said] == ["workflow.paused"], "paused all the time"


async def test_the_groups_lane_takes_no_more_at_once_than_the_others(house: House) -> None:
    """read_page: about `limit` of them. A batch eight times as large takes eight times BATCH_SECONDS, holds the locks of
    all those accounts for so long, and halves the pace that all lanes share."""
    await evaluate(house.runtime)
    await house.accept(*(make_event("failed", datetime.now(UTC), account=f"ca_{n}") for n in range(200)))
    async with begin(house.runtime.engine) as conn:
        held = await shards.take(conn, [shards.GROUPS], 1)
        assert held is not None
        page = await pages.read_page(conn, held, None, 10)
        assert page is not None
        assert len(page.of_groups) <= 20


async def test_two_puts_of_one_broken_account_by_its_connection_and_by_itself_open_one_alert(house: House) -> None:
    """The first judges the accounts of conn_1 under the connection's lock alone, the second the account under its own:
    neither waits for the other before it has read, and the second answers 500."""
    await house.told("DISCONNECTED", ago=60)
    wanted = Wanted(
        workflow_id="w1",
        name=None,
        account_ids=(),
        connection_ids=("conn_1",),
        active=True,
        pause="account",
        resume="auto",
        orchestrator_name=None,
        orchestrator_ref=None,
    )
    async with begin(house.runtime.engine) as conn:
        context = replace(house.context, ruleset=await rule_sets.in_force(conn, house.runtime))
        await steer.put_workflow(conn, wanted, context)
        other = asyncio.create_task(house.put("w2", account_ids=["ca_1"]))
        await done_or_waiting(house, other)
    await other
    assert len(await house.alerts()) == 1
    assert len(await house.rows("SELECT 1 FROM holds WHERE released_at IS NULL")) == 2


async def test_two_puts_never_wait_for_each_other_in_a_circle(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has let go of its workflow's hold and then wants the lock of what follows from verdicts; the other has that
    lock, judges an account of its connection, and wants to let go of the same hold."""
    rules = TWO_OF_A_KIND + "\n".join(
        [
            "- id: gone",
            "  severity: P2",
            "  state: {of: account, match: [{status: DISCONNECTED}]}",
            "  actions:",
            "  - pause_workflows: {stable_for: 1s}",
            "  annotations: {summary: Gone}",
            "",
        ]
    )
    began, go_on, rejudge = asyncio.Event(), asyncio.Event(), steer.rejudge

    async def slow(*args: Any) -> None:
        if not began.is_set():
            began.set()
            await go_on.wait()
        await rejudge(*args)

    async with open_house(database_url, tmp_path / "house", rules=rules) as house:
        await house.put("w2", account_ids=["ca_1"])
        await house.told("DISCONNECTED", ago=120)
        for ago in (4, 3):
            await house.told("failed", ago=ago)
        await house.told("ACTIVE", ago=0.2)  # its hold may go a second later; the failures' alert stays open
        assert len(await house.rows("SELECT 1 FROM holds WHERE released_at IS NULL")) == 1
        await asyncio.sleep(1.2)
        monkeypatch.setattr(steer, "rejudge", slow)
        one = asyncio.create_task(house.put("w2", account_ids=["ca_1"], active=False))
        await began.wait()
        other = asyncio.create_task(house.put("w1", connection_ids=["conn_1"]))
        await done_or_waiting(house, other)
        go_on.set()
        ends = await asyncio.gather(one, other, return_exceptions=True)
        assert [type(end).__name__ for end in ends if isinstance(end, BaseException)] == []


async def test_the_groups_lane_gets_done_with_its_largest_page(rated: House) -> None:
    """At the greatest pace it takes 16,000 events at once; of as many accounts their groups' alerts are asked for pair by
    pair, and Postgres answers "stack depth limit exceeded". Its page also takes 8,000 locks, nearly all a server has."""
    now = datetime.now(UTC)
    for thousand in range(16):
        await rated.accept(
            *(
                make_receipt(kind="token.refresh_failed", account_id=f"ca_{thousand}_{n}", occurred_at=now)
                for n in range(1000)
            )
        )
    rated.runtime.pace.events = BATCH_EVENTS_MAX
    assert await one_transaction(rated.runtime, read_on, Evaluated(), (shards.GROUPS,), 1)
