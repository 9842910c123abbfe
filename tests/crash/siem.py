"""One log and one worker that copies it to sinks, killed with SIGKILL at a chosen step of a batch: what then came.

Both receivers are strict fakes behind a door that holds what comes in. Splunk's has no key by which it would know a batch
again; the webhook's drops a `webhook-id` that it has seen.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from service.store import log
from service.store.session import begin, open_engine
from tests.crash.forked import Worker
from tests.end_to_end.running import until
from tests.fakes import serve
from tests.fakes.batches import PATH, SECRET, FakeBatches
from tests.fakes.door import Door
from tests.fakes.hec import FakeHec
from tests.make import make_receipt
from tests.workers.house import HEC_TOKEN

# By the sink's name, what its batches are called at the door.
CALLS = {"splunk": "event", "batches": PATH.rsplit("/", 1)[-1]}
SINKS = tuple(CALLS)
KEYED = frozenset({"batches"})
# reading: the sink is claimed and its batch is being read. read: it is on its way, and nothing of it was taken. sent: it was
# taken, and the answer has not come. answered: it has, and the position is about to be moved. moved: it is, and the next
# batch is not begun.
POINTS = ("reading", "read", "sent", "answered", "moved")
UNSEEN = ("sent", "answered")  # taken there, and we died without having written it down
BATCH_ITEMS, BATCHES = 4, 3
REACH_SECONDS = 60.0
STATES = "SELECT name, position, in_doubt, sent_again FROM readers WHERE name = ANY(%s) ORDER BY name"
BLOCKED = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'authwatch' AND wait_event_type = 'Lock' AND query ~ %s
"""
END_LEASES = "UPDATE readers SET lease_until = NULL, next_attempt_at = NULL WHERE name LIKE 'sink:%' RETURNING name"


@dataclass(slots=True)
class Scene:
    door: Door
    worker: Worker
    url: str
    hec: FakeHec
    batches: FakeBatches
    log: list[str] = field(default_factory=list)  # ids, in order
    after: int = 0  # of all that came, how much had when it died

    async def connect(self, *, autocommit: bool = True) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        return await psycopg.AsyncConnection.connect(self.url, autocommit=autocommit)

    async def ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        async with await self.connect() as conn:
            return await (await conn.execute(statement.encode(), values or None)).fetchall()

    def came(self, sink: str) -> list[str]:
        """Ids of what the receiver holds, as it came."""
        items = self.hec.events if sink == "splunk" else self.batches.items
        return [item["metadata"]["uid"] for item in items]


def names(sinks: Collection[str]) -> list[str]:
    return [f"sink:{sink}" for sink in sinks]


@asynccontextmanager
async def open_scene(database_url: str, folder: Path, sinks: Collection[str]) -> AsyncIterator[Scene]:
    """The log holds so many batches; no worker yet."""
    door, hec, batches = Door(), FakeHec(HEC_TOKEN), FakeBatches()
    async with AsyncExitStack() as stack:
        for app in (hec.app, batches.app):
            app.add_middleware(door.before)
        hec_url = await stack.enter_async_context(serve(hec.app))
        batches_url = await stack.enter_async_context(serve(batches.app))
        sections = {
            "splunk": {"kind": "splunk_hec", "url": hec_url, "token": HEC_TOKEN},
            "batches": {"kind": "webhook", "url": batches_url + PATH, "secret": SECRET},
        }
        config = folder / "config.yaml"
        given = {sink: {**sections[sink], "batch_items_max": BATCH_ITEMS, "timeout_seconds": 60.0} for sink in sinks}
        config.write_text(json.dumps({"sinks": given}))
        (folder / "rules").mkdir()
        worker = Worker(
            folder,
            {
                "DATABASE_URL": database_url,
                "AUTHWATCH_RULES": str(folder / "rules"),
                "AUTHWATCH_CONFIG": str(config),
            },
        )
        scene = Scene(door, worker, database_url, hec, batches)
        await fill(scene)
        stack.callback(worker.stop)
        stack.callback(door.let_go)
        yield scene


async def fill(scene: Scene) -> None:
    engine = open_engine(scene.url, connections_max=1)
    async with begin(engine) as conn:
        await log.accept(conn, [make_receipt() for _ in range(BATCH_ITEMS * BATCHES)])
        scene.log = [event.id for event in await log.read_after(conn, 0, 1000)]
    await engine.dispose()


async def die(scene: Scene, sinks: Collection[str], point: str) -> None:
    """A worker begins and is killed at this point of each sink's first batch; nothing of it runs any more after that."""
    calls = {CALLS[sink] for sink in sinks}
    if point == "reading":
        async with await scene.connect(autocommit=False) as lock:
            await lock.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            scene.worker.start()
            await blocked(scene, "FROM events", len(sinks))
        await no_lease(scene)
        return
    scene.door.hold.update(dict.fromkeys(calls, "before" if point == "read" else "after"))
    scene.worker.start()

    async def all_held() -> bool:
        return calls <= set(scene.door.held)

    await until(all_held, REACH_SECONDS, scene.worker.logs)
    if point in ("answered", "moved"):
        async with await scene.connect(autocommit=False) as lock:
            if point == "answered":  # the rows to be moved are ours
                await lock.execute("SELECT FROM readers WHERE name = ANY(%s) FOR UPDATE", (names(sinks),))
            else:  # they can be moved, and nothing can be read after that
                await lock.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            scene.door.let_go()
            if point == "moved":
                await moved(scene, sinks)
            await blocked(scene, "UPDATE readers" if point == "answered" else "FROM events", len(sinks))
    else:
        scene.worker.kill()
    scene.after = len(scene.door.came)
    scene.door.let_go()
    await no_lease(scene)


async def moved(scene: Scene, sinks: Collection[str]) -> None:
    async def all_moved() -> bool:
        return all(position > 0 for _, position, *_ in await scene.ask(STATES, names(sinks)))

    await until(all_moved, REACH_SECONDS, scene.worker.logs)


async def blocked(scene: Scene, statement: str, count: int) -> None:
    """Kills it while so many of its transactions wait for what we hold."""

    async def all_wait() -> bool:
        return len(await scene.ask(BLOCKED, statement)) >= count

    await until(all_wait, REACH_SECONDS, scene.worker.logs)
    scene.worker.kill()
    for (pid,) in await scene.ask(BLOCKED, "."):  # Postgres has not heard yet that its client is gone
        await scene.ask("SELECT pg_terminate_backend(%s, 5000)", pid)


async def no_lease(scene: Scene) -> None:
    """Its leases run for two minutes, and nobody holds them: they are not waited for."""
    await scene.ask(END_LEASES)


async def recover(scene: Scene, sinks: Collection[str]) -> None:
    """Another worker copies what is left."""
    scene.worker.start()

    async def all_there() -> bool:
        [(head,)] = await scene.ask("SELECT max(position) FROM events")
        states = await scene.ask(STATES, names(sinks))
        return len(states) == len(sinks) and all(position >= head for _, position, *_ in states)

    await until(all_there, REACH_SECONDS, scene.worker.logs)
    scene.worker.kill()


async def problems(scene: Scene, sinks: Collection[str], point: str) -> list[str]:
    """What is not as it must be; nothing, if all is well."""
    again = {name.removeprefix("sink:"): count for name, _, _, count in await scene.ask(STATES, names(sinks))}
    return [problem for sink in sinks for problem in problems_of(scene, sink, point, again[sink])]


def problems_of(scene: Scene, sink: str, point: str, counted: int) -> list[str]:
    came, found = scene.came(sink), list[str]()
    if list(dict.fromkeys(came)) != scene.log:
        found.append(f"{sink}: of {len(scene.log)} items came, in this order, {came}")
    twice, wanted = len(came) - len(set(came)), 0
    if point in UNSEEN and sink not in KEYED:
        wanted = BATCH_ITEMS
    if twice != wanted:
        found.append(f"{sink}: {twice} items came twice, and not {wanted}")
    # What was on its way may have arrived: it is counted whether it had or not, and nothing else is.
    doubtful = 0 if point in ("reading", "moved") else BATCH_ITEMS
    if counted != doubtful:
        found.append(f"{sink}: {counted} items are counted as perhaps sent twice, and not {doubtful}")
    return found + missed(scene, sink, point)


def missed(scene: Scene, sink: str, point: str) -> list[str]:
    """The blow fell where it was meant to."""
    before = [one.let_in for one in scene.door.came[: scene.after] if one.call == CALLS[sink]]
    wanted = {"reading": [], "read": [False]}.get(point, [True])
    return [] if before == wanted else [f"{sink}: by then the receiver had been asked {before}, and not {wanted}"]
