"""The whole house with parts that can be struck: real servers of our own behind wires, real processes, strict fakes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from service import children, migrate
from service.embedded import Postgres, Redis, start_redis
from service.embedded_server import Server
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.crash.disk import Disk, open_disk
from tests.crash.history import CONNECTION_OF_MANY, History, own_workflow
from tests.crash.model import workflow_of
from tests.crash.wire import HOST, Wire, open_wire
from tests.end_to_end.running import RULES, Running, until
from tests.fakes import orchestrator, serve
from tests.fakes.hec import FakeHec
from tests.fakes.orchestrator import FakeOrchestrator
from tests.fakes.slack import CHANNEL, TOKEN, FakeSlack

HEC_TOKEN = "44444444-2222-3333-4444-555555555555"
WORKFLOW_OF_MANY = "wf_many"
BACK_SECONDS_MAX = 60.0
PORT_SECONDS_MAX = 10.0
STARTS_MAX = 100  # of a server that ends again while its disk is full or its predecessor's processes still die
POLL_SECONDS = 0.03
CONNECT_SECONDS = 10  # of a Postgres that is there: the sender, the wires and this share one loop
SLACK_SECONDS = 0.02  # between the post and its answer, so that a kill falls in between now and then
SMALL_DISK = {"max_wal_size": "64MB", "min_wal_size": "32MB", "shared_buffers": "32MB"}
CONFIG = """\
sinks:
  splunk: {{kind: splunk_hec, url: "{hec}", token: "{token}", format: raw}}
orchestrators:
  flows: {{kind: webhook, url: "{orchestrator}", secret: "{secret}"}}
"""


@dataclass(slots=True)
class House:
    disk: Disk
    postgres: Postgres
    redis: Redis
    postgres_wire: Wire
    redis_wire: Wire
    parts: Running
    slack: FakeSlack
    hec: FakeHec
    orchestrator: FakeOrchestrator
    receiver_processes: int = 0  # started by us; those that uvicorn starts in the place of killed ones come on top

    def server(self, name: str) -> Server:
        return self.postgres if name == "postgres" else self.redis

    def pid(self, part: str) -> int:
        process = self.parts.processes[part] if part in ("serve", "worker") else self.server(part).process
        assert process is not None
        return process.pid

    def start_receiver(self, processes: int) -> None:
        self.parts.serve_words = ("--workers", str(processes)) if processes > 1 else ()
        self.parts.start("serve")
        self.receiver_processes += processes

    async def serve_again(self, processes: int) -> None:
        """As a supervisor would, which waits until the killed receiver's processes have left the port."""
        await within(lambda: children.port_is_free(HOST, self.parts.port), "the receiver's port is not free again")
        self.start_receiver(processes)

    async def server_back(self, name: str) -> None:
        """Runs and answers again. One that ends at its start is started anew, as any supervisor does."""
        server, deadline = self.server(name), time.monotonic() + BACK_SECONDS_MAX
        for _ in range(STARTS_MAX):
            if server.process is None or server.process.poll() is not None:
                server.spawn()
            while time.monotonic() < deadline and server.process is not None and server.process.poll() is None:
                if await asyncio.to_thread(server.is_ready):
                    return
                await asyncio.sleep(POLL_SECONDS)
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        raise AssertionError(f"{name} did not come back: {children.last_line(server.log)}")

    async def connect(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        """Straight to Postgres, past the wire."""
        return await psycopg.AsyncConnection.connect(
            self.postgres.url, autocommit=True, connect_timeout=CONNECT_SECONDS, options="-c statement_timeout=5000"
        )

    async def end_leases(self) -> None:
        """A killed worker's leases run for a minute or two. Nobody holds them, so that minute is not waited for.

        Only while no worker runs: its own leases are its own."""
        try:
            async with await self.connect() as conn:
                await conn.execute(
                    "UPDATE actions SET lease_until = now(), next_attempt_at = now() WHERE state = 'running'"
                )
                await conn.execute("UPDATE readers SET lease_until = NULL")
        except psycopg.OperationalError:
            pass  # then it is waited for

    async def leases_held(self) -> int:
        """What the workers have under way right now: actions, and readers that send."""
        async with await self.connect() as conn:
            row = await (await conn.execute(LEASES_HELD)).fetchone()
        assert row is not None
        return int(str(row[0]))

    def disk_was_full(self) -> int:
        """How often Postgres said so."""
        return self.postgres.log.read_text(errors="replace").count("No space left on device")


LEASES_HELD = """
    SELECT (SELECT count(*) FROM actions WHERE state = 'running' AND lease_until > now())
        + (SELECT count(*) FROM readers WHERE lease_until > now())
"""


async def within(condition: Callable[[], bool], what: str, seconds: float = PORT_SECONDS_MAX) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(POLL_SECONDS)


def processes_of(pid: int) -> list[int]:
    """The receivers among the children of a receiver that has several."""
    return [one for one in family(pid)[1:] if "spawn_main" in children.command_line(one)]


def family(pid: int) -> list[int]:
    """A process and all that descend from it, parents first."""
    shown = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in shown.splitlines())}
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent and child not in found]
    return found


def tell_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@asynccontextmanager
async def open_house(folder: Path) -> AsyncIterator[House]:
    """Everything up, no receiver and no worker yet."""
    async with AsyncExitStack() as stack:
        disk = stack.enter_context(open_disk())
        postgres = Postgres(disk.folder, settings=SMALL_DISK)
        postgres.log = folder / "postgres.log"  # what it says of a full disk does not fit on that disk
        postgres.start()
        stack.callback(postgres.remove)
        redis = start_redis(folder)
        stack.callback(redis.remove)
        stack.callback(disk.empty)
        stack.callback(thaw, postgres, redis)
        migrate.upgrade(postgres.url)
        postgres_wire = await stack.enter_async_context(open_wire(postgres.port))
        redis_wire = await stack.enter_async_context(open_wire(redis.port))
        slack, hec, flows = FakeSlack(), FakeHec(HEC_TOKEN), FakeOrchestrator()
        slack.slow_seconds = SLACK_SECONDS
        urls = [await stack.enter_async_context(serve(app)) for app in (slack.app, hec.app, flows.app)]
        (folder / "rules").mkdir()
        (folder / "rules" / "all.yml").write_text(RULES)
        (folder / "config.yml").write_text(
            CONFIG.format(
                hec=urls[1], token=HEC_TOKEN, orchestrator=urls[2] + orchestrator.PATH, secret=orchestrator.SECRET
            )
        )
        parts = Running(
            folder,
            {
                "DATABASE_URL": through(postgres.url, postgres.port, postgres_wire.port),
                "REDIS_URL": through(redis.url, redis.port, redis_wire.port),
                "SCALEKIT_WEBHOOK_SECRET": SECRET,
                "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
                "AUTHWATCH_RULES": str(folder / "rules"),
                "AUTHWATCH_CONFIG": str(folder / "config.yml"),
                "SLACK_BOT_TOKEN": TOKEN,
                "SLACK_CHANNEL": CHANNEL,
                "SLACK_API_URL": f"{urls[0]}/api/",
            },
        )
        stack.callback(parts.stop)
        yield House(disk, postgres, redis, postgres_wire, redis_wire, parts, slack, hec, flows)


def thaw(*servers: Server) -> None:
    for server in servers:
        if server.process is not None and server.process.poll() is None:
            tell_all(family(server.process.pid), signal.SIGCONT)


def through(url: str, port: int, wire_port: int) -> str:
    return url.replace(f":{port}/", f":{wire_port}/")


async def put_workflows(house: House, history: History) -> None:
    """Every other account has a workflow of its own, half of them with an orchestrator; one serves a connection."""
    async with house.parts.client() as client:
        for number, account_id in enumerate(history.accounts):
            if own_workflow(number):
                workflow_id = workflow_of(account_id)
                told = {"name": "flows", "ref": f"ref_{workflow_id}"} if number % 4 == 0 else None
                body = {"account_ids": [account_id], "orchestrator": told}
                answer = await client.put(f"/v1/workflows/{workflow_id}", json=body)
                assert answer.status_code == 200, answer.text
        body = {"connection_ids": [CONNECTION_OF_MANY]}
        answer = await client.put(f"/v1/workflows/{WORKFLOW_OF_MANY}", json=body)
        assert answer.status_code == 200, answer.text


STILL_SECONDS = 2.0  # an alert of our own may be opened by the next sweep
SETTLED = sql.SQL(
    """
    SELECT coalesce((SELECT position FROM readers WHERE name = 'evaluator'), 0) = head.position,
        coalesce((SELECT position FROM readers WHERE name = 'sink:splunk'), 0) = head.position,
        NOT EXISTS (SELECT FROM actions WHERE state IN ('pending', 'running')) AND NOT EXISTS (SELECT FROM alert_news),
        NOT EXISTS (SELECT FROM deadlines)
    FROM (SELECT coalesce(max(position), 0) AS position FROM events) AS head
    """
)


async def settled(house: House, seconds: float) -> None:
    """Everything read, everything done, nothing due, for as long as the stories take to look once more; or what is not."""
    waits, since = "not looked at", 0.0

    async def all_done() -> bool:
        nonlocal waits, since
        async with await house.connect() as conn:
            row = await (await conn.execute(SETTLED)).fetchone()
        assert row is not None
        names = ("events to be evaluated", "events to be shipped", "actions to be done", "deadlines to come")
        waits = ", ".join(name for name, done in zip(names, row, strict=True) if not done)
        since = since if since and not waits else time.monotonic()
        return not waits and time.monotonic() - since > STILL_SECONDS

    def explain() -> str:
        return f"still waiting: {waits}\n{house.parts.logs()}"

    await until(all_done, seconds, explain)
