"""One dead destination delays no other: from due to done at the healthy ones, with a dead one beside them and without.

Dead in three ways: it accepts and never answers, nobody listens, it answers 500. The dead one has a pile that waits for it
and gets as much as the healthy one meanwhile; both a Slack workspace and an orchestrator are dead, and both healthy.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import psycopg
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.effects_fill import Broken, fill, message, open_all, opened, pause
from bench.figure import Figure, quantile
from bench.house import HOST, BenchFailed, House, say
from bench.slack import CHANNEL, start_slack
from service import children, queue
from service.queue import Nudger
from service.signatures import make_secret
from service.store.actions import NOTIFY, PAUSE, NewAction
from service.store.session import begin, open_engine

WAYS = {"hangs": "accepts and never answers", "refuses": "nobody listens", "fails": "answers 500"}
COUNT, COUNT_SHORT = 400, 40
PILE, PILE_SHORT = 500, 80
PER_SECOND = 50.0  # to the healthy, half messages and half pauses, and as many to the dead
TIMES_MAX, SLACK_SECONDS = 1.5, 0.1
SETTLE_SECONDS_MAX = 60.0
KINDS = {NOTIFY: "messages", PAUSE: "pauses"}
TOOK = """
SELECT extract(epoch FROM finished_at - created_at)::float8 FROM actions
WHERE destination = 'well' AND kind = %s AND created_at >= %s AND state = 'done'
"""
LEFT = "SELECT count(*) FROM actions WHERE destination = 'well' AND state IN ('pending', 'running')"
RUNNING = "SELECT count(*) FROM actions WHERE state = 'running'"
GIVE_UP = "UPDATE actions SET state = 'failed', finished_at = now() WHERE destination <> 'well' AND state = 'pending'"


@dataclass(slots=True)
class Scene:
    house: House
    url: str
    engine: AsyncEngine
    nudger: Nudger
    count: int
    pile: int


def measure(house: House) -> list[Figure]:
    return uvloop.run(measured(house))


async def measured(house: House) -> list[Figure]:
    async with open_scene(house) as scene:
        await one_way(scene, None)  # the worker's first messages take longer, with nothing dead and with anything
        without = await one_way(scene, None)
        took = {way: await one_way(scene, way) for way in WAYS}
        again = await one_way(scene, None)
    for kind, seconds in again.items():
        without[kind] += seconds
    return [figure(kind, way, took[way][kind], without[kind], scene.pile) for kind in KINDS for way in WAYS]


@asynccontextmanager
async def open_scene(house: House) -> AsyncIterator[Scene]:
    url = house.database("effects_dead")
    async with AsyncExitStack() as stack:
        stand_in, port = start_slack(house, url)
        stack.callback(house.stop, stand_in)
        ports = {"well": port, "refuses": children.choose_port(HOST)}
        for way, answer in (("hangs", never), ("fails", failure)):
            server = await asyncio.start_server(answer, HOST, 0)
            stack.callback(server.close)
            ports[way] = server.sockets[0].getsockname()[1]
        config = house.folder / "effects-dead.yml"
        config.write_text(json.dumps(sections(ports)))
        worker = house.worker(url, "worker-effects-dead", {"AUTHWATCH_CONFIG": str(config)})
        stack.callback(house.stop, worker)
        engine = open_engine(url, connections_max=2)
        stack.push_async_callback(engine.dispose)
        nudger = Nudger(house.redis.url)
        running = asyncio.create_task(nudger.run())
        stack.callback(running.cancel)
        count, pile = (COUNT_SHORT, PILE_SHORT) if house.short else (COUNT, PILE)
        yield Scene(house, url, engine, nudger, count, pile)


def sections(ports: dict[str, int]) -> dict[str, object]:
    """Nobody is told of anything by a route: what is told is what is measured."""
    slack = {"kind": "slack", "token": "xoxb-bench-token", "channel": CHANNEL}
    hook = {"kind": "webhook", "secret": make_secret()}
    return {
        "notifiers": {name: {**slack, "api_url": f"http://{HOST}:{port}/api/"} for name, port in ports.items()},
        "orchestrators": {name: {**hook, "url": f"http://{HOST}:{port}/hooks/flows"} for name, port in ports.items()},
        "receivers": [{"name": "nobody", "notifiers": []}],
        "route": {"receiver": "nobody"},
    }


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65_536):
        pass
    writer.close()


async def failure(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65_536)
    writer.write(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def one_way(scene: Scene, way: str | None) -> dict[str, list[float]]:
    """Seconds from due to done at the healthy destinations, by kind; `way`: how another one is dead meanwhile."""
    name = way or "none"
    prefix = f"{name}_{asyncio.get_running_loop().time():.0f}"
    well = await fill(scene.engine, f"well_{prefix}", scene.count, orchestrator="well")
    dead: list[Broken] = []
    if way is not None:
        dead = await fill(scene.engine, f"dead_{prefix}", scene.count + scene.pile, orchestrator=way)
        pile = dead[scene.count :]
        await open_all(scene.engine, [both(each, way, number) for number, each in enumerate(pile)])
        scene.nudger.nudge(queue.ACT)
        await asyncio.sleep(1.0)  # it has claimed of the pile as many as there is room for
    began = await send(scene, well, dead, way)
    await until_none(scene, LEFT, "the healthy destinations' actions are not done")
    found = await took(scene, began)
    await give_up(scene)
    p95 = ", ".join(f"{KINDS[kind]} p95 {quantile(seconds, 0.95):.3f} s" for kind, seconds in found.items())
    say(f"{f'one {WAYS[way]}' if way else 'none is dead'}: {p95}")
    return found


async def send(scene: Scene, well: list[Broken], dead: list[Broken], way: str | None) -> datetime:
    """One after the other, at a steady rate; when the first was due."""
    loop = asyncio.get_running_loop()
    start, first = loop.time(), None
    for number, each in enumerate(well):
        await asyncio.sleep(max(0.0, start + number / PER_SECOND - loop.time()))
        new = [both(each, "well", number)]
        if way is not None:
            new.append(both(dead[number], way, number))
        async with begin(scene.engine) as conn:
            at = await opened(conn, new)
        first = first or at
        scene.nudger.nudge(queue.ACT)
    assert first is not None
    return first


def both(broken: Broken, destination: str, number: int) -> NewAction:
    """Every other one is a pause."""
    return pause(broken, destination) if number % 2 else message(broken, destination)


async def took(scene: Scene, began: datetime) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    async with await psycopg.AsyncConnection.connect(scene.url, autocommit=True) as conn:
        for kind in KINDS:
            rows = await (await conn.execute(TOOK.encode(), (kind, began))).fetchall()
            found[kind] = [float(row[0]) for row in rows]
    if sum(map(len, found.values())) != scene.count:
        raise BenchFailed(f"{scene.count} actions at the healthy destinations, and {found} done")
    return found


async def give_up(scene: Scene) -> None:
    """Nothing waits any more for what is dead, and nothing hangs on it: the next is measured from a standing start."""
    async with await psycopg.AsyncConnection.connect(scene.url, autocommit=True) as conn:
        until = asyncio.get_running_loop().time() + SETTLE_SECONDS_MAX
        while asyncio.get_running_loop().time() < until:
            await conn.execute(GIVE_UP.encode())
            row = await (await conn.execute(RUNNING.encode())).fetchone()
            if row is not None and row[0] == 0:
                return
            await asyncio.sleep(0.2)
    raise BenchFailed(f"something hangs for more than {SETTLE_SECONDS_MAX:.0f} s")


async def until_none(scene: Scene, statement: str, what: str) -> None:
    until = asyncio.get_running_loop().time() + SETTLE_SECONDS_MAX
    async with await psycopg.AsyncConnection.connect(scene.url, autocommit=True) as conn:
        while True:
            row = await (await conn.execute(statement.encode())).fetchone()
            if row is not None and row[0] == 0:
                return
            if asyncio.get_running_loop().time() > until:
                raise BenchFailed(f"{what} after {SETTLE_SECONDS_MAX:.0f} s")
            await asyncio.sleep(0.1)


def figure(kind: str, way: str, with_dead: list[float], without: list[float], pile: int) -> Figure:
    ours, control = quantile(with_dead, 0.95), quantile(without, 0.95)
    limit = TIMES_MAX * control + SLACK_SECONDS
    return Figure(
        name=f"{KINDS[kind]} from due to done, p95, beside a dead destination ({WAYS[way]})",
        unit="s",
        ours=[ours],
        control_name="the same with no dead destination",
        control=[control],
        ratio=ours / control,
        reach=f"at most {limit:.2f} s: {TIMES_MAX} times the control and {SLACK_SECONDS} s",
        met=ours <= limit,
        digits=3,
        notes=[
            f"{len(with_dead)} at {PER_SECOND / 2:.0f}/s, as many to the dead one, where a pile of {pile} waits besides;"
            " by the database's clock"
        ],
    )
