"""Many actions at once: together where that is cheaper, and never in each other's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import DeliveryFailed, Unavailable
from service.event import AccountKey, new_id
from service.notify.base import AlertView, MessageRef
from service.store import actions, alerts, readers
from service.store.actions import NOTIFY, NewAction, Outcome
from service.store.session import begin
from tests.workers.house import House
from workers import act as act_module
from workers import outcomes
from workers.act import PLACES_MAX, Acting, act
from workers.attempt import Ended

WAIT_SECONDS_MAX = 15
STATEMENTS_A_BATCH_MAX = 6
STATEMENTS_AN_ALERT_MAX = 15  # from its news to its message, with what is written down after it


@dataclass
class Fake:
    """A notifier in this process. `stuck`: the posts about these alerts wait until `go`; `said` is raised by the next."""

    name: str = "fake"
    kind: str = "fake"
    idempotent: bool = False
    one_incident: bool = False
    threads: bool = False
    stuck: set[str] = field(default_factory=set)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    said: list[DeliveryFailed] = field(default_factory=list)
    ts: str = "1"
    posts: list[str] = field(default_factory=list)

    async def post(self, view: AlertView, *, delivery_id: str, possible_repeat: bool) -> MessageRef:
        self.posts.append(view.id)
        self.began.set()
        if self.said:
            raise self.said.pop()
        if view.id in self.stuck:
            await self.go.wait()
        return MessageRef("C1", self.ts)

    async def update(self, view: AlertView, ref: MessageRef) -> MessageRef:
        return ref

    async def find(self, delivery_id: str, *, since: datetime | None = None) -> MessageRef | None:
        return MessageRef("C1", "found") if delivery_id.split(":")[0] in self.posts else None

    async def check(self) -> str:
        return ""


def fake(house: House, name: str) -> Fake:
    made = Fake(name)
    house.runtime.notifiers[name] = made
    return made


async def alerted(house: House, count: int, *destinations: str) -> list[str]:
    """Ids of as many alerts, about each of which each of these is to be told."""
    house.runtime.caught_up.set()  # nobody else is to hear of these
    now = datetime.now(UTC)
    made = [
        alerts.Alert(
            id=new_id(),
            rule_id="r",
            rule_version="1",
            severity="P2",
            account=AccountKey("scalekit", "env_1", f"ca_{number}"),
            connection_id="conn_1",
            group={},
            group_key=new_id(),
            episode=1,
            dedup_key=new_id(),
            state="firing",
            summary="An account is broken",
            what_to_do=None,
            opened_at=now,
            fired_at=now,
        )
        for number in range(count)
    ]
    new = [
        NewAction(kind=NOTIFY, destination=name, lane=f"{NOTIFY}:{name}:{alert.id}", alert_id=alert.id)
        for alert in made
        for name in destinations
    ]
    async with begin(house.runtime.engine) as conn:
        await alerts.save(conn, made)
        await actions.add(conn, new, await readers.clock(conn))
    return [alert.id for alert in made]


@asynccontextmanager
async def working(house: House) -> AsyncIterator[Acting]:
    """The story as the worker runs it: a step whenever something has changed."""
    news = asyncio.Event()
    acting = Acting(house.runtime, news.set)

    async def go_on() -> None:
        while True:
            await acting.step()
            await news.wait()
            news.clear()

    going = asyncio.create_task(go_on())
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            yield acting
    finally:
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        await acting.close()


async def states(house: House, destination: str) -> dict[str, int]:
    rows = await house.rows(
        f"SELECT state, count(*) AS times FROM actions WHERE destination = '{destination}' GROUP BY state"
    )
    return {row["state"]: row["times"] for row in rows}


async def until(house: House, destination: str, wanted: dict[str, int]) -> None:
    while await states(house, destination) != wanted:  # noqa: ASYNC110 - a row of the database is no event here
        await asyncio.sleep(0.02)


async def test_many_messages_take_a_few_statements_for_all_of_them(house: House) -> None:
    there = fake(house, "fake")
    told = await alerted(house, 3 * PLACES_MAX, "fake")
    statements: list[str] = []
    event.listen(
        house.runtime.engine.sync_engine,
        "before_cursor_execute",
        lambda _conn, _cursor, statement, *_: statements.append(statement),
    )
    await act(house.runtime)
    assert sorted(there.posts) == sorted(told)
    assert await states(house, "fake") == {"done": len(told)}
    assert len(statements) <= STATEMENTS_A_BATCH_MAX * 3 * 2  # a batch may be written down in two parts
    rows = await house.rows("SELECT count(*) AS kept FROM messages WHERE destination = 'fake'")
    assert rows[0]["kept"] == len(told)


async def test_one_alert_is_decided_and_told_in_a_few_statements(house: House) -> None:
    await act(house.runtime)  # the first in its process also asks what stood before
    await house.put(account_ids=["ca_1"])
    await house.told("DISCONNECTED")
    statements: list[str] = []
    event.listen(
        house.runtime.engine.sync_engine,
        "before_cursor_execute",
        lambda _conn, _cursor, statement, *_: statements.append(statement),
    )
    await act(house.runtime)
    assert house.posts() == 1
    assert len(statements) <= STATEMENTS_AN_ALERT_MAX


async def test_a_destination_that_answers_nobody_delays_no_other(house: House) -> None:
    slow, quick = fake(house, "slow"), fake(house, "quick")
    slow.stuck.update(await alerted(house, PLACES_MAX + 10, "slow"))
    async with working(house) as acting:
        await until(house, "slow", {"running": PLACES_MAX, "pending": 10})
        await alerted(house, 5, "quick")
        await acting.step()
        await until(house, "quick", {"done": 5})
        assert (len(slow.posts), len(quick.posts)) == (PLACES_MAX, 5)
        slow.go.set()
        await until(house, "slow", {"done": PLACES_MAX + 10})


async def test_one_that_takes_its_time_holds_up_none_behind_it(house: House) -> None:
    there = fake(house, "fake")
    told = await alerted(house, 2 * PLACES_MAX, "fake")
    there.stuck.add(told[0])
    async with working(house):
        await until(house, "fake", {"running": 1, "done": 2 * PLACES_MAX - 1})
        there.go.set()
        await until(house, "fake", {"done": 2 * PLACES_MAX})


async def test_a_destination_that_asks_for_quiet_is_asked_nothing_more_until_then(house: House) -> None:
    there, other = fake(house, "fake"), fake(house, "other")
    there.said = [DeliveryFailed("too many", code="rate_limited", retry_after_seconds=30)] * PLACES_MAX
    await alerted(house, 3 * PLACES_MAX, "fake", "other")
    async with working(house):
        await until(house, "other", {"done": 3 * PLACES_MAX})
        await until(house, "fake", {"pending": 3 * PLACES_MAX})
    assert (len(there.posts), len(set(other.posts))) == (PLACES_MAX, 3 * PLACES_MAX)


def test_after_it_a_destination_is_tried_with_one_and_then_with_more() -> None:
    def ended(outcome: str, retry_after_seconds: float | None = None) -> Any:
        return Ended(action=None, outcome=outcome, retry_after_seconds=retry_after_seconds)  # type: ignore[arg-type]

    places = act_module.Places()
    assert places.free(0.0) == PLACES_MAX
    places.heard(ended("retry", 5.0), 10.0)
    assert (places.free(14.9), places.free(15.0)) == (0, 1)
    places.heard(ended("done"), 16.0)
    assert places.free(16.0) == 2
    places.heard(ended("retry", 1e9), 20.0)
    assert places.free(20.0 + act_module.QUIET_SECONDS_MAX) == 1


def test_a_destination_that_seems_dead_is_tried_with_one_at_a_time_until_one_goes_well() -> None:
    def heard(number: int, outcome: str, code: str | None = None) -> None:
        action: Any = SimpleNamespace(id=str(number))
        places.heard(Ended(action=action, outcome=outcome, code=code), 10.0)

    places = act_module.Places()
    for number in range(act_module.DEAD_AFTER - 1):
        heard(number, "retry", "connect_failed")
    for _ in range(50):
        heard(0, "ambiguous", "timeout")  # one action alone says little of the place
        heard(77, "retry", "database_unavailable")
        heard(78, "failed", "http_404")  # an answer, if not the one we wanted
    assert places.free(10.0) == PLACES_MAX
    heard(99, "retry", "http_500")
    assert (places.free(10.9), places.free(11.0), places.free(11.0, 0)) == (0, 1, 0)
    heard(100, "done")
    assert places.free(11.0) == 2
    heard(101, "retry", "http_500")
    assert places.free(11.0) == 2


async def test_of_a_pile_at_who_answers_500_few_are_tried(house: House) -> None:
    there = fake(house, "fake")
    fake(house, "other")
    there.said = [DeliveryFailed("broken", code="http_500", status=500)] * (4 * PLACES_MAX)
    await alerted(house, 4 * PLACES_MAX, "fake", "other")
    async with working(house):
        await until(house, "other", {"done": 4 * PLACES_MAX})
    assert len(there.posts) < 2 * PLACES_MAX


async def test_an_outcome_that_cannot_be_written_keeps_no_other_from_it(house: House) -> None:
    there = fake(house, "fake")
    told = await alerted(house, 3, "fake")
    post = there.post

    async def posting(view: AlertView, *, delivery_id: str, possible_repeat: bool) -> MessageRef:
        await post(view, delivery_id=delivery_id, possible_repeat=possible_repeat)
        return MessageRef("C1", "no\0text" if view.id == told[1] else "1")

    there.post = posting  # type: ignore[method-assign]
    await act(house.runtime)
    rows = await house.rows("SELECT alert_id::text, state FROM actions")
    assert {row["alert_id"]: row["state"] for row in rows} == {told[0]: "done", told[1]: "running", told[2]: "done"}


async def test_a_message_and_its_actions_end_are_written_together_or_not_at_all(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = fake(house, "fake")
    [told] = await alerted(house, 1, "fake")

    async def failing(_conn: AsyncConnection, _outcomes: Sequence[Outcome], _now: datetime) -> set[str]:
        raise ValueError("died here")

    with monkeypatch.context() as patch:
        patch.setattr(actions, "conclude_many", failing)
        await act(house.runtime)
    assert await house.rows("SELECT * FROM messages") == []
    await house.run("UPDATE actions SET lease_until = now(), next_attempt_at = now()")
    await act(house.runtime)
    assert there.posts == [told]  # it was looked for, and found
    [row] = await house.rows("SELECT ts FROM messages")
    assert row["ts"] == "found"


async def test_what_was_done_while_the_database_is_away_is_written_when_it_is_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = fake(house, "fake")
    await alerted(house, 2, "fake")
    really, failures = outcomes.write, 3

    async def away(*words: Any) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Unavailable("away", code="database_unavailable", retry_after_seconds=1)
        await really(*words)

    monkeypatch.setattr(outcomes, "RECORD_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(outcomes, "write", away)
    await act(house.runtime)
    assert (len(there.posts), await states(house, "fake"), failures < 0) == (2, {"done": 2}, True)


async def test_a_stop_writes_down_what_has_ended_and_leaves_the_rest_of_unknown_fate(house: House) -> None:
    there = fake(house, "fake")
    told = await alerted(house, 2, "fake")
    there.stuck.add(told[1])
    ended = asyncio.Event()
    really = outcomes.Outcomes.record

    async def recording(self: outcomes.Outcomes, one: Any) -> None:
        ended.set()
        await really(self, one)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcomes.Outcomes, "record", recording)
        acting = Acting(house.runtime, asyncio.Event().set)
        await acting.step()
        await ended.wait()
        await acting.close()
    rows = await house.rows("SELECT alert_id::text, state FROM actions")
    assert {row["alert_id"]: row["state"] for row in rows} == {told[0]: "done", told[1]: "running"}


async def test_a_claim_takes_what_there_is_room_for_and_the_oldest_first(house: House) -> None:
    first = await alerted(house, 4, "fake", "other")
    await alerted(house, 4, "fake", "other", "third")
    async with begin(house.runtime.engine) as conn:
        now = await readers.clock(conn)
        rooms = {("fake", NOTIFY): 0, ("other", NOTIFY): 3, ("gone", NOTIFY): 5}
        claimed = await actions.claim(conn, now, lease=timedelta(seconds=60), limit=2, rooms=rooms)
        assert sorted(action.destination for action, _ in claimed) == ["other"] * 3 + ["third"] * 2
        assert {action.alert_id for action, _ in claimed if action.destination == "other"} <= set(first)
        attempts = await actions.attempts_of(conn, [action.id for action, _ in claimed])
        assert all([row.outcome for row in rows] == [None] for rows in attempts.values())
