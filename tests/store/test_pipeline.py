"""The connection of the front door: when it is lost, the next one is as good as new."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import psycopg
import pytest
import uvloop

from service.store.pipeline import Outcome, Pipeline, open_pipeline
from service.store.wire import encode_row
from tests.end_to_end.running import until
from tests.make import make_receipt

ANSWER_SECONDS_MAX = 5


async def kept(pipeline: Pipeline) -> Outcome:
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pipeline.send([encode_row(make_receipt())], done.set_result)
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        return await done


async def lost_and_opened_again(database_url: str) -> None:
    for _ in range(3):
        pipeline = await open_pipeline(database_url)
        assert (await kept(pipeline)).error is None
        with psycopg.connect(database_url, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND datname = current_database()"
            )

        async def noticed(lost: Pipeline = pipeline) -> bool:
            return lost.broken

        await until(noticed, ANSWER_SECONDS_MAX)
    pipeline = await open_pipeline(database_url)
    assert (await kept(pipeline)).error is None
    pipeline.fail("the end")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_lost_connection_leaves_nothing_that_troubles_the_next(
    database_url: str, run: Callable[[Coroutine[None, None, None]], None]
) -> None:
    """On the loop of the receiver too, which holds on to a socket's number until it is told otherwise."""
    run(lost_and_opened_again(database_url))
