"""The gate's state in one statement, and the stream of its changes, on a real log: nothing is missed, whoever reads on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service import gate_asking, gate_reader, gate_stream
from service.errors import Conflict, Gone, Unavailable
from service.gate_asking import Asker
from service.gate_stream import Client, Filter, Streams
from service.store import accounts
from service.store.gate import Question
from service.store.session import begin
from tests.workers.house import House
from workers.evaluate import evaluate

TOLD_SECONDS_MAX = 10
QUIET_SECONDS = 0.3  # more than ten looks


@dataclass
class Listener:
    """What a client hears: the data of each answer, and the id after it."""

    client: Client
    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    last_id: int = -1
    came: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self, streams: Streams) -> None:
        async with aclosing(streams.frames(self.client)) as frames:
            async for chunk in frames:
                for block in filter(None, chunk.decode().split("\n\n")):
                    fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
                    self.last_id = int(fields.get("id", self.last_id))
                    if "data" in fields:
                        self.heard.append((fields["event"], json.loads(fields["data"])))
                        self.came.set()
        self.ended.set()

    def answers(self) -> list[tuple[str | None, str | None, str | None]]:
        """(workflow id, account id, reason), in the order told."""
        return [
            (data["workflow_id"], data["account_id"], data["reason"]) for name, data in self.heard if name == "answer"
        ]

    async def until(self, *wanted: tuple[str | None, str | None, str | None]) -> None:
        async with asyncio.timeout(TOLD_SECONDS_MAX):
            while not set(wanted) <= set(self.answers()):
                self.came.clear()
                await self.came.wait()


@dataclass
class Tower:
    engine: AsyncEngine
    asker: Asker
    streams: Streams

    @asynccontextmanager
    async def listener(
        self, *, last_id: int | None = None, workflow_id: str | None = None, account_id: str | None = None
    ) -> AsyncIterator[Listener]:
        async with begin(self.engine) as conn:
            account = await accounts.find(conn, account_id) if account_id else None
        only = Filter(workflow_id, account_id, account.key if account is not None else None)
        client = await self.streams.open(only, last_id)
        listener = Listener(client)
        task = asyncio.create_task(listener.listen(self.streams))
        async with asyncio.timeout(TOLD_SECONDS_MAX):
            await listener.came.wait()
        assert listener.heard.pop(0)[0] == "ready"
        try:
            yield listener
        finally:
            self.streams.leave(client)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def tower(house: House) -> AsyncIterator[Tower]:
    """What a receiver process holds of the gate."""
    engine = house.runtime.engine
    url = house.runtime.settings.database_url.get_secret_value()
    async with gate_asking.opened(engine, url) as asker, gate_stream.opened(engine, asker) as streams:
        yield Tower(engine, asker, streams)


async def test_the_one_statement_answers_as_the_tables_do(house: House) -> None:
    await house.put("broken", account_ids=["ca_1"])
    await house.put("well", account_ids=["ca_2"])
    await house.put("served", connection_ids=["conn_1"])
    await house.put("off", active=False)
    await house.told("DISCONNECTED")
    await house.told("ACTIVE", account="ca_2")
    await house.told("failed", account="ca_silent", connection="conn_2")
    await house.told("PENDING_AUTH", account="ca_3", connection="conn_2")
    await house.told("ACTIVE", account="ca_4", connection="conn_2", environment="a")
    await house.told("ACTIVE", account="ca_4", connection="conn_2", environment="b")
    await evaluate(house.runtime)
    asked = [None, "ca_1", "ca_2", "ca_3", "ca_silent", "ca_nobody", "scalekit:env_1:ca_1", "scalekit:b:ca_4", "a:b"]
    async with tower(house) as ours:
        for workflow_id in (None, "broken", "well", "served", "off", "nobody"):
            for account_id in asked:
                question = Question(workflow_id=workflow_id, account_id=account_id)
                state = await ours.asker.state(question)
                answer = await ours.asker.answer(question, state, "deny")
                assert answer == await house.gate(workflow_id=workflow_id, account_id=account_id), question
        question = Question(account_id="ca_4")
        with pytest.raises(Conflict, match="several accounts"):
            await ours.asker.answer(question, await ours.asker.state(question), "deny")


async def test_it_sees_every_commit_and_how_long_events_wait(house: House) -> None:
    await house.put("w1")
    question = Question(workflow_id="w1")

    async def reason(ours: Tower) -> str | None:
        return (await ours.asker.answer(question, await ours.asker.state(question), "deny")).reason

    async with tower(house) as ours:
        for _ in range(20):
            await house.pause()
            assert await reason(ours) == "workflow_paused"
            await house.resume()
            assert await reason(ours) is None
        await evaluate(house.runtime)
        await house.tell("ACTIVE")
        assert await reason(ours) is None
        await house.run("UPDATE events SET received_at = received_at - interval '15 s' WHERE origin = 'webhook'")
        async with tower(house) as fresh:
            assert await reason(fresh) == "evaluation_behind"
        await evaluate(house.runtime)
        assert await reason(ours) is None
        # A position that no row came of, as after a transaction that was undone.
        await house.rows("SELECT nextval('log_position')")
        assert await reason(ours) is None
        async with tower(house) as fresh:
            assert await reason(fresh) is None


async def test_a_break_and_a_pause_are_told_when_they_are_evaluated(house: House) -> None:
    await house.put(account_ids=["ca_1"])
    await house.told("ACTIVE")
    async with (
        tower(house) as ours,
        ours.listener() as everything,
        ours.listener(workflow_id="w1", account_id="ca_1") as pair,
        ours.listener(workflow_id="w2") as other,
    ):
        await house.tell("DISCONNECTED")
        await asyncio.sleep(QUIET_SECONDS)
        assert everything.answers() == [], "the gate still allows"
        await evaluate(house.runtime)
        await everything.until(("w1", None, "workflow_paused"), (None, "ca_1", "account_disconnected"))
        await pair.until(("w1", "ca_1", "workflow_paused"))
        [alert] = await house.alerts()
        told = [data for _, data in pair.heard if data["reason"] == "workflow_paused"]
        assert told[-1]["alert_ids"] == [alert["id"]]
        gate = await house.gate(workflow_id="w1", account_id="ca_1")
        assert (told[-1]["allow"], told[-1]["detail"]) == (gate.allow, gate.detail)
        assert {answer[:2] for answer in pair.answers()} == {("w1", "ca_1")}
        await house.told("ACTIVE")
        await everything.until((None, "ca_1", None))
        await house.resume()
        await pair.until(("w1", "ca_1", None))
        assert other.answers() == []


async def test_an_account_that_only_repeats_that_it_is_well_is_not_told(house: House) -> None:
    await house.told("ACTIVE", ago=60)
    async with tower(house) as ours, ours.listener() as everything:
        for ago in (30, 20, 10):
            await house.told("ACTIVE", ago=ago)
        await house.told("EXPIRED", account="ca_2")
        await everything.until((None, "ca_2", "account_expired"))
        assert everything.answers() == [(None, "ca_2", "account_expired")]


async def test_who_comes_again_is_told_each_change_since_in_any_process(house: House) -> None:
    await house.put("w1")
    await house.told("ACTIVE", ago=100)
    async with tower(house) as ours, ours.listener(workflow_id="w1") as before:
        await house.pause()
        await before.until(("w1", None, "workflow_paused"))
        last_id = before.last_id
    for _ in range(3):
        await house.resume()
        await house.pause()
    await house.told("EXPIRED", ago=50)
    await house.told("ACTIVE", ago=40)
    await house.told("DISCONNECTED", ago=30)
    missed = [None, "workflow_paused"] * 3
    async with tower(house) as another:
        async with another.listener(last_id=last_id, workflow_id="w1") as after:
            await after.until(("w1", None, None))
            await house.resume()
            async with asyncio.timeout(TOLD_SECONDS_MAX):
                while len(after.answers()) < 7:
                    after.came.clear()
                    await after.came.wait()
            assert [reason for _, _, reason in after.answers()] == [*missed, None]
            assert after.last_id > last_id
        async with another.listener(last_id=last_id) as everything:
            await everything.until((None, "ca_1", "account_disconnected"))
            of_account = [reason for workflow, _, reason in everything.answers() if workflow is None]
            assert of_account == ["account_expired", None, "account_disconnected"]


async def test_who_breaks_off_while_an_event_waits_for_the_evaluator_misses_neither(house: House) -> None:
    """The pause behind it in the log is told at once; the id then stays before what is not told yet."""
    await house.put("w1")
    await house.told("ACTIVE")
    async with tower(house) as ours:
        async with ours.listener() as before:
            await house.tell("EXPIRED")
            await house.pause()
            await before.until(("w1", None, "workflow_paused"))
            assert before.answers() == [("w1", None, "workflow_paused")]
            last_id = before.last_id
        await evaluate(house.runtime)
        async with ours.listener(last_id=last_id) as after:
            await after.until((None, "ca_1", "account_expired"), ("w1", None, "workflow_paused"))


async def test_a_look_whose_connection_is_lost_at_its_end_loses_no_change(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = asyncio.Event()

    @asynccontextmanager
    async def breaking(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        async with begin(engine) as conn:
            yield conn
        if not lost.is_set():
            lost.set()
            raise Unavailable("lost", code="database_unavailable")

    await house.put("w1")
    async with tower(house) as ours, ours.listener() as listener:
        monkeypatch.setattr(gate_stream, "begin", breaking)
        await house.pause()
        await listener.until(("w1", None, "workflow_paused"))
        await asyncio.wait_for(lost.wait(), TOLD_SECONDS_MAX)


async def test_who_comes_again_between_two_pages_of_a_look_misses_nothing_of_the_first(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, between, go_on = [0], asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def slow(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        task = asyncio.current_task()
        if task is not None and task.get_name() == "gate.streams":
            pages[0] += 1
            if pages[0] > 1:
                between.set()
                await go_on.wait()
        async with begin(engine) as conn:
            yield conn

    await house.put(account_ids=["ca_1"])
    await house.told("ACTIVE")
    async with tower(house) as ours, ours.listener() as stays:
        last_id = stays.last_id
        await house.tell("DISCONNECTED")
        for _ in range(1_000):
            if ours.streams._reader is not None and ours.streams._reader.pending:
                break
            await asyncio.sleep(0.01)
        monkeypatch.setattr(gate_reader, "PAGE_ROWS", 1)
        monkeypatch.setattr(gate_stream, "begin", slow)
        await evaluate(house.runtime)
        await asyncio.wait_for(between.wait(), TOLD_SECONDS_MAX)
        assert (None, "ca_1", "account_disconnected") in stays.answers() or stays.client.frames
        async with ours.listener(last_id=last_id) as again:
            await asyncio.sleep(QUIET_SECONDS)
            go_on.set()
            await again.until((None, "ca_1", "account_disconnected"), ("w1", None, "workflow_paused"))


async def test_a_put_tells_what_it_changes(house: House) -> None:
    await house.put(connection_ids=["conn_1"])
    async with tower(house) as ours, ours.listener(workflow_id="w1") as mine:
        await house.told("DISCONNECTED")
        await mine.until(("w1", "ca_1", "account_disconnected"))
        await house.put(connection_ids=["conn_1"], pause="workflow")
        await mine.until(("w1", None, "workflow_paused"), ("w1", "ca_1", "workflow_paused"))
        await house.put(connection_ids=["conn_1"], active=False)
        await mine.until(("w1", None, "workflow_inactive"))
        await house.delete()
        await mine.until(("w1", None, "unknown_workflow"))


async def test_an_account_that_was_not_seen_yet_is_the_one_that_appears(house: House) -> None:
    await house.put(connection_ids=["conn_1"])
    async with tower(house) as ours, ours.listener(workflow_id="w1", account_id="ca_new") as mine:
        await house.told("ACTIVE", account="ca_new", ago=20)
        await mine.until((None, "ca_new", None))
        await house.told("EXPIRED", account="ca_new", ago=10)
        await mine.until(("w1", "ca_new", "account_expired"))
        await house.told("EXPIRED", account="ca_other")
        await house.pause()
        await mine.until(("w1", "ca_new", "workflow_paused"))
        assert "ca_other" not in {account for _, account, _ in mine.answers()}


async def test_an_id_that_the_log_does_not_hold_is_gone(house: House) -> None:
    await house.told("ACTIVE")
    async with tower(house) as ours:
        with pytest.raises(Gone, match="open the stream without it"):
            await ours.streams.open(Filter(), 1_000_000)
        await house.run(
            "INSERT INTO readers (name, position, moved_at) VALUES ('retention', 1, now())"
            " ON CONFLICT (name) DO UPDATE SET position = 1"
        )
        with pytest.raises(Gone) as caught:
            await ours.streams.open(Filter(), 0)
        assert caught.value.code == "last_event_id_expired"
        async with ours.listener(last_id=1):
            pass


async def test_a_client_that_does_not_read_is_closed_and_the_rest_go_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_stream, "QUEUE_FRAMES_MAX", 2)
    await house.put("w1")
    async with tower(house) as ours, ours.listener() as reads:
        stuck = await ours.streams.open(Filter(), None)
        for _ in range(2):
            await house.pause()
            await reads.until(("w1", None, "workflow_paused"))
            reads.heard.clear()
            await house.resume()
            await reads.until(("w1", None, None))
            reads.heard.clear()
        assert stuck.closed
        assert not reads.client.closed
        assert len(stuck.frames) <= 2
        ours.streams.leave(stuck)


async def test_streams_are_bounded_and_end_with_the_process(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_stream, "CLIENTS_MAX", 1)
    async with tower(house) as ours, ours.listener() as only:
        with pytest.raises(Unavailable) as caught:
            await ours.streams.open(Filter(), None)
        assert caught.value.code == "too_many_streams"
        ours.streams.close()
        await asyncio.wait_for(only.ended.wait(), TOLD_SECONDS_MAX)
        with pytest.raises(Unavailable):
            await ours.streams.open(Filter(), None)


async def test_a_stalled_evaluator_is_said_and_its_end_too(house: House) -> None:
    await house.told("ACTIVE")
    async with tower(house) as ours, ours.listener() as listener:

        async def behind(expected: bool) -> None:
            async with asyncio.timeout(TOLD_SECONDS_MAX):
                while not any(name == "behind" and data["behind"] == expected for name, data in listener.heard):
                    listener.came.clear()
                    await listener.came.wait()

        await house.tell("ACTIVE")
        await house.run("UPDATE events SET received_at = received_at - interval '15 s' WHERE origin = 'webhook'")
        await behind(True)
        await evaluate(house.runtime)
        await behind(False)
