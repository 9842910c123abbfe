"""The same on a real Postgres, by the evaluator itself: duplicates posted, batches of any size, crashes at any statement."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event as hooks

from service.event import Event, new_id
from service.rules import Rule
from service.store import readers
from service.store.log import Receipt
from service.store.session import begin
from tests.make import make_receipt
from tests.properties import histories as by_chance
from tests.properties import reference
from tests.properties.histories import SIGNALS, STATES, History, arrivals, build, stories, to_yaml
from tests.properties.running import EXAMPLES, Progress, profile
from tests.unit.told import BEGAN
from tests.workers.house import House, open_house
from workers import evaluate as evaluating
from workers.evaluate import evaluate
from workers.rules import keep_rules

# The kinds that are proved here; taking one out is how to find out which of them fails.
KINDS: dict[str, Any] = {
    "count": by_chance.counts,
    "state": by_chance.states,
    "absence": by_chance.absences,
    "distinct": by_chance.distincts,
    "ratio": by_chance.ratios,
    "quantile": by_chance.quantiles,
}
SHARE = 20  # one example here for so many of the pure ones
CALLS = ("called", "called", "called_badly", "called_badly", "failed", "succeeded")
WORDS = (SIGNALS, CALLS, STATES)  # an example has one of these vocabularies, or too little would happen in it
STATEMENTS_MAX = 40  # a crash comes before one of so many, or not at all
AGO = timedelta(seconds=3000)  # all of a story lies in the past, and less than `allowed_lateness` ago
NOTHING_WAITS = ("DELETE FROM deadlines", "DELETE FROM armed", "UPDATE groups SET due_at = NULL")
numbers = itertools.count(1)


class Crash(Exception):
    """The process died here, as far as the database can tell."""


@contextmanager
def crashing(house: House, before: int) -> Iterator[None]:
    """The next transactions die before their so-manieth statement."""
    left = before

    def die(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Crash

    engine = house.runtime.engine.sync_engine
    hooks.listen(engine, "before_cursor_execute", die)
    try:
        yield
    except Crash:
        pass
    finally:
        hooks.remove(engine, "before_cursor_execute", die)


def receipt_of(event: Event) -> Receipt:
    names = make_receipt().event.__slots__
    fields = {name: getattr(event, name) for name in names}
    return replace(make_receipt(**fields), id=new_id())


def renamed(events: Sequence[Event], number: int, began: datetime) -> list[Event]:
    """Accounts, connections and ids that no other example has, at times before now."""
    return [
        replace(
            event,
            id=f"{number}_{event.id}",
            event_id=f"{number}_{event.event_id}",
            account_id=f"{event.account_id}_{number}",
            connection_id=f"{event.connection_id}_{number}",
            occurred_at=began + (event.occurred_at - BEGAN),
        )
        for event in events
    ]


async def clock(house: House) -> datetime:
    async with begin(house.runtime.engine) as conn:
        return await readers.clock(conn)


async def live(house: House, history: History, random: Random) -> tuple[datetime, datetime]:
    """All of it arrives and is evaluated; the instants between which the last verdict fell."""
    await house.put("depends", account_ids=sorted({str(event.account_id) for event in history.events}))
    # With pages of one or two the shards come apart, and are read on side by side.
    evaluating.BATCH_EVENTS_MAX = random.choice((1, 2, 2000))
    for arrival in history.arrivals:
        await house.accept(*map(receipt_of, arrival.events))
        if random.random() < 0.3:
            with crashing(house, random.randint(1, STATEMENTS_MAX)):
                await evaluate(house.runtime)
        if random.random() < 0.8:
            await asyncio.gather(*(evaluate(house.runtime) for _ in range(random.randint(1, 2))))
    earliest = await clock(house)
    await evaluate(house.runtime)
    return earliest, await clock(house)


async def found_in(house: House, rule: Rule, groups: Any) -> dict[Any, list[Any]]:
    """Episodes as stored; one of no length is what a late event showed never to have been."""
    column = rule.group_by[0]
    found: dict[Any, list[Any]] = {}
    for alert in await house.rows("SELECT * FROM alerts ORDER BY opened_at, condition_ended_at NULLS LAST"):
        group = (alert[column],)
        if alert["rule_id"] == rule.id and group in groups and alert["opened_at"] != alert["condition_ended_at"]:
            found.setdefault(group, []).append((alert["opened_at"], alert["condition_ended_at"]))
    return found


def expected_of(rule: Rule, events: Sequence[Event], now: datetime) -> dict[Any, list[Any]]:
    episodes = reference.episodes(rule, events, now)
    return {
        group: [(span.opened, span.ended) for span in spans if span.opened != span.ended]
        for group, spans in episodes.items()
    }


def describe(raw: dict[str, Any], history: History, began: datetime) -> str:
    lines = [to_yaml(raw)]
    for arrival in history.arrivals:
        lines.append("batch:")
        lines += [
            f"  {one.id} {one.kind} {one.account_status} {one.account_id} {one.connection_id} "
            f"at {(one.occurred_at - began).total_seconds()} {dict(one.details or {})}"
            for one in arrival.events
        ]
    return "\n".join(lines)


def seconds(found: dict[Any, list[Any]], began: datetime) -> dict[Any, list[Any]]:
    return {
        group: [tuple(None if at is None else (at - began).total_seconds() for at in span) for span in spans]
        for group, spans in sorted(found.items())
        if spans
    }


async def check(
    house: House, rules_file: Path, raws: Sequence[dict[str, Any]], events: Sequence[Event], chance: int
) -> None:
    number, random = next(numbers), Random(chance)
    began = (datetime.now(UTC) - AGO).replace(microsecond=0)
    mine = renamed(events, number, began)
    history = arrivals(mine, random)
    raws = [raw | {"id": f"{name}-{number}", "allowed_lateness": "1h"} for name, raw in zip(KINDS, raws, strict=True)]
    rules_file.write_text("version: 1\nrules:\n" + "".join(map(to_yaml, raws)))  # noqa: ASYNC240 - nothing else runs
    settled = time.time() - 1  # a file that has just been written may be half of it, and is looked at later
    os.utime(rules_file, (settled, settled))
    assert not house.runtime.rules.reload()
    await keep_rules(house.runtime)
    earliest, latest = await live(house, history, random)
    for raw in raws:
        rule = build(raw)
        expected = expected_of(rule, mine, earliest)
        if expected_of(rule, mine, latest) != expected:
            continue  # a timer ran out while the last verdict fell: either may be seen
        found = await found_in(house, rule, expected)
        if seconds(found, began) != seconds(expected, began):
            raise AssertionError(
                f"{describe(raw, history, began)}\n  expected {seconds(expected, began)}\n"
                f"  got      {seconds(found, began)}"
            )
    for statement in NOTHING_WAITS:
        await house.run(statement)


@pytest.mark.timeout(1200)
def test_the_evaluator_gives_the_episodes_of_the_reference(database_url: str, tmp_path: Path) -> None:
    progress = Progress("on Postgres", every=20)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        house = runner.run(stack.enter_async_context(open_house(database_url, tmp_path / "house")))
        rules_file = tmp_path / "house" / "rules" / "rules.yml"

        @profile(max(EXAMPLES // SHARE, 2))
        @given(
            st.tuples(*KINDS.values()),
            st.one_of([stories(words, promises=True, tight=True) for words in WORDS]),
            st.integers(0, 2**20),
        )
        def prove(rules: Any, events: list[Event], chance: int) -> None:
            progress.one_more()
            runner.run(check(house, rules_file, rules, events, chance))

        pages = evaluating.BATCH_EVENTS_MAX
        try:
            prove()
        finally:
            evaluating.BATCH_EVENTS_MAX = pages
            runner.run(stack.aclose())
