"""A dead orchestrator has a pile of pauses waiting for it; the healthy one beside it is told at once all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from service.orchestrators.webhook import WebhookConfig, open_webhook
from service.outbound import CONNECTIONS_MAX
from service.store import actions, readers
from service.store.actions import PAUSE, NewAction
from service.store.session import begin
from tests.fakes.asked_first import FakeAskedFirst
from tests.fakes.orchestrator import SECRET
from tests.workers.house import House
from tests.workers.test_act_many import until, working
from workers.act import act

SECONDS_MAX = 4.0  # the dead one's calls run into their time-out much later


@asynccontextmanager
async def never_answers() -> AsyncIterator[str]:
    """Takes every connection and says nothing."""
    taken: list[asyncio.StreamWriter] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)
        while await reader.read(65_536):
            pass

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hooks"
    finally:
        server.close()
        for writer in taken:
            writer.transport.abort()


async def test_an_orchestrator_that_never_answers_keeps_no_other_from_being_told(house: House) -> None:
    async with never_answers() as url:
        config = WebhookConfig(name="dead", url=url, secret=SecretStr(SECRET))
        house.runtime.orchestrators["dead"] = open_webhook(config, house.runtime.http)
        await ask(house, "dead", CONNECTIONS_MAX + 10)
        async with working(house) as acting:
            while len(await running(house)) < CONNECTIONS_MAX + 10:  # noqa: ASYNC110 - rows of the database are no event
                await asyncio.sleep(0.02)
            began = time.monotonic()
            await ask(house, "flows", 3)
            await acting.step()
            await until(house, "flows", {"done": 3})
            assert time.monotonic() - began < SECONDS_MAX
    assert len(house.orchestrator.pauses) == 3


async def test_one_that_takes_few_at_a_time_is_begun_with_no_more(house: House) -> None:
    """What would wait inside it for its turn is not claimed yet: the wait would count as a silence of the orchestrator."""
    fake = FakeAskedFirst("few", *(f"ref_{number}" for number in range(24)))
    fake.at_once = 4
    now, most = 0, 0

    async def count(_verb: str) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1

    fake.before = count
    house.runtime.orchestrators["few"] = fake
    await ask(house, "few", len(fake.flows))
    await act(house.runtime)
    assert all(flow.paused for flow in fake.flows.values())
    assert most == 4


async def ask(house: House, destination: str, count: int) -> None:
    new = [
        NewAction(
            kind=PAUSE,
            destination=destination,
            lane=f"workflow:{destination}_{number}",
            workflow_id=f"{destination}_{number}",
            payload={"ref": f"ref_{number}", "reason": "an account is broken"},
        )
        for number in range(count)
    ]
    async with begin(house.runtime.engine) as conn:
        await actions.add(conn, new, await readers.clock(conn))


async def running(house: House) -> list[str]:
    return [row["id"] for row in await house.rows("SELECT id::text FROM actions WHERE state = 'running'")]
