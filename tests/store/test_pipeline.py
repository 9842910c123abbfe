"""The connection of the front door: when it is lost, the next one is as good as new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial

import psycopg
import pytest
import uvloop
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service.commit import BATCH_RECEIPTS_MAX, Committer, Waiting
from service.runtime import make_partitions
from service.store.pipeline import Outcome, Pipeline, open_pipeline
from service.store.session import begin
from service.store.wire import encode_row
from tests.end_to_end.running import until
from tests.make import make_receipt
from tests.store.servers import END_OURS
from tests.store.test_commit import start

ANSWER_SECONDS_MAX = 5


@asynccontextmanager
async def opened(database_url: str) -> AsyncIterator[Pipeline]:
    pipeline = await open_pipeline(database_url)
    try:
        yield pipeline
    finally:
        pipeline.fail("the end")


async def kept(pipeline: Pipeline) -> Outcome:
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pipeline.send([encode_row(make_receipt())], done.set_result)
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        return await done


async def lost_and_opened_again(database_url: str) -> None:
    for _ in range(3):
        async with opened(database_url) as pipeline:
            assert (await kept(pipeline)).error is None
            with psycopg.connect(database_url, autocommit=True) as conn:
                assert conn.execute(END_OURS).fetchall() == [(True,)]

            async def noticed(lost: Pipeline = pipeline) -> bool:
                return lost.broken

            await until(noticed, ANSWER_SECONDS_MAX)
    async with opened(database_url) as pipeline:
        assert (await kept(pipeline)).error is None


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_lost_connection_leaves_nothing_that_troubles_the_next(
    database_url: str, run: Callable[[Coroutine[None, None, None]], None]
) -> None:
    """On the loop of the receiver too, which holds on to a socket's number until it is told otherwise."""
    run(lost_and_opened_again(database_url))


async def test_what_is_sent_on_a_connection_that_is_lost_is_told_so(database_url: str) -> None:
    """Else its place in the queue of answers would be taken by the next answer: accepted, and never sent."""
    async with opened(database_url) as pipeline:
        pipeline.fail("lost")
        assert (await kept(pipeline)).error == "connection_lost"


async def test_an_answer_is_given_to_those_it_is_about_however_connections_are_lost(
    database_url: str, engine: AsyncEngine
) -> None:
    """The first connection is found lost at its second batch, by the sending itself, while more wait to be sent."""
    opened = 0

    async def connect() -> Pipeline:
        nonlocal opened
        opened += 1
        pipeline = await open_pipeline(database_url)
        return pipeline if opened > 1 else LostAtSecond(pipeline)  # type: ignore[return-value]

    committer = Committer(connect, partial(make_partitions, engine), on_commit=lambda landed: None)
    running = asyncio.create_task(committer.run())
    receipts = [make_receipt() for _ in range(3 * BATCH_RECEIPTS_MAX)]
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            answers = await asyncio.gather(*(start(committer, one) for one in receipts), return_exceptions=True)
            answers += await asyncio.gather(start(committer, make_receipt()), return_exceptions=True)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    accepted = {answer.kept.id for answer in answers if isinstance(answer, Waiting)}
    assert accepted
    async with begin(engine) as conn:
        there = {str(row[0]) for row in await conn.execute(text("SELECT id FROM events"))}
    assert accepted <= there


class LostAtSecond:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._sent = 0

    @property
    def broken(self) -> bool:
        return self._pipeline.broken

    def fail(self, error: str) -> None:
        self._pipeline.fail(error)

    def send(self, rows: Sequence[bytes], done: Callable[[Outcome], None]) -> None:
        self._sent += 1
        if self._sent == 2:
            self._pipeline._pg.finish()  # as libpq does when it finds the server gone
        self._pipeline.send(rows, done)
