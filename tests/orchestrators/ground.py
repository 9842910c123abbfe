"""The real Authwatch (receiver, worker, Postgres, Redis) beside a real orchestrator, and the door between the two."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psycopg
from starlette.responses import Response

from tests.conftest import ADMIN_TOKEN, SECRET, Servers
from tests.end_to_end.running import NO_TLS, RULES, Running
from tests.fakes.door import whole
from tests.fakes.front import standing
from tests.make_requests import event_body, signed
from tests.orchestrators.real import LOOK_SECONDS, RealServer

THROUGH, STRAIGHT = "through", "straight"  # the names of the server in our config: by the door, and at its own address
UPDATED = "connected_account.status_updated"
HELD_SECONDS_MAX = 300.0
# Of a machine that does much else besides; nothing of this takes more than seconds by itself.
READY_SECONDS_MAX = 300.0
ANSWER_SECONDS_MAX = 180.0
FORWARD_SECONDS_MAX = 60.0
OF_THE_HOP = ("host", "connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding")
# A lease of one minute that nobody holds is not waited for.
END_LEASES = """
    UPDATE actions SET lease_until = now(), next_attempt_at = now() WHERE state = 'running';
    UPDATE readers SET lease_until = NULL
"""
LEFT_TO_DO = "SELECT count(*) FROM actions WHERE state IN ('pending', 'running') AND kind <> 'notify'"


class Came(NamedTuple):
    method: str
    path: str
    status: int


class Passage:
    """Hands every call on to the server as it came, and writes down what was answered. `hold_next`: the answer of the next call
    that changes something is kept back until `let_go`; `held` is set once the server has done it."""

    def __init__(self, server: RealServer) -> None:
        self._server = server
        self._go = threading.Event()
        self._holding = False
        self.held = threading.Event()
        self.came: list[Came] = []

    def hold_next(self) -> None:
        self.held.clear()
        self._go.clear()
        self._holding = True

    def let_go(self) -> None:
        self._holding = False
        self._go.set()

    def changes(self) -> list[Came]:
        return [one for one in self.came if self._server.is_change(one.method, one.path)]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, method, path = await whole(receive), scope["method"], scope["raw_path"].decode()
        query = scope["query_string"].decode()
        headers = [(name, value) for name, value in scope["headers"] if name.decode() not in OF_THE_HOP]
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS, timeout=FORWARD_SECONDS_MAX) as client:
            url = self._server.url + path + (f"?{query}" if query else "")
            try:
                answer = await client.request(method, url, content=body, headers=headers)
            except httpx.TransportError:
                answer = httpx.Response(502, text="the door found nobody behind it")
        self.came.append(Came(method, path, answer.status_code))
        if self._holding and self._server.is_change(method, path):
            self._holding = False
            self.held.set()
            await asyncio.to_thread(self._go.wait, HELD_SECONDS_MAX)
        said = {name: value for name, value in answer.headers.items() if name.lower() not in OF_THE_HOP}
        await Response(answer.content, answer.status_code, said)(scope, receive, send)


@dataclass
class Ground:
    """`workflow` and `account` are ours; each scenario has its own."""

    server: RealServer
    running: Running
    passage: Passage
    client: httpx.Client
    database_url: str
    accounts: list[str] = field(default_factory=list)

    def is_ready(self) -> bool:
        ended = [part for part, process in self.running.processes.items() if process.poll() is not None]
        assert not ended, f"{ended} ended: {self.running.logs()}"
        try:
            return (
                self.client.get("/readyz").status_code == 200
                and self.client.get("/v1/health").json()["evaluator"]["alive"] is True
            )
        except httpx.TransportError:
            return False

    def put(self, workflow: str, ref: str, *, via: str = THROUGH, account: str | None = None) -> str:
        """Registers it; its account is well. The account's id."""
        account = account or f"ca_{workflow}"
        if account not in self.accounts:
            self.accounts.append(account)
            self.status(account, "ACTIVE")
        body = {"name": workflow, "account_ids": [account], "orchestrator": {"name": via, "ref": ref}}
        answer = self.client.put(f"/v1/workflows/{workflow}", json=body)
        assert answer.status_code == 200, answer.text
        return account

    def status(self, account: str, status: str) -> None:
        """As the provider tells it, signed."""
        body = event_body(UPDATED, data={"id": account, "connection_id": f"conn_{account}", "status": status})
        headers = signed(body, SECRET, message_id=json.loads(body)["id"])
        answer = self.client.post("/webhooks/scalekit", content=body, headers=headers)
        assert answer.status_code == 202, answer.text

    def breaks(self, account: str) -> None:
        self.status(account, "DISCONNECTED")

    def heals(self, account: str) -> None:
        self.status(account, "ACTIVE")

    def look(self, workflow: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/v1/workflows/{workflow}").raise_for_status().json()
        return found

    def gate(self, workflow: str) -> bool:
        answer = self.client.get(f"/v1/gate?workflow_id={workflow}").raise_for_status()
        return bool(answer.json()["allow"])

    def asked(self, workflow: str) -> dict[str, Any]:
        return self.look(workflow)["orchestrator_answer"] or {}

    def answered(self, workflow: str, asked: str, *, seconds: float = ANSWER_SECONDS_MAX) -> dict[str, Any]:
        """What became of this pause or resume, once it is final: `state` done or failed, `answer`, `error`, `attempts`."""

        def final() -> bool:
            now = self.asked(workflow)
            return now.get("asked") == asked and now["state"] in ("done", "failed")

        self.wait(f"{workflow}: {asked} answered", final, seconds, lambda: json.dumps(self.asked(workflow)))
        return self.asked(workflow)

    def pauses(self, workflow: str, ref: str) -> str:
        """Registered, broken, and seen paused there. The account."""
        account = self.put(workflow, ref)
        self.breaks(account)
        said = self.answered(workflow, "pause")
        assert (said["state"], said["answer"]["was_paused"]) == ("done", False), said
        assert self.server.is_paused(ref), said
        return account

    def nothing_to_do(self) -> bool:
        with psycopg.connect(self.database_url, autocommit=True) as conn:
            return conn.execute(LEFT_TO_DO).fetchone() == (0,)

    def kill_worker(self) -> None:
        """Nothing of it runs on, and nobody holds its leases."""
        self.running.kill("worker")
        with psycopg.connect(self.database_url, autocommit=True) as conn:
            conn.execute(END_LEASES)

    def wait(
        self, what: str, condition: Callable[[], bool], seconds: float, explain: Callable[[], str] = lambda: ""
    ) -> float:
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                calls = "\n".join(map(str, self.passage.came[-20:]))
                raise AssertionError(f"not in {seconds:g} s: {what}\n{explain()}\n{calls}\n{self.running.logs()}")
            time.sleep(LOOK_SECONDS)
        return time.monotonic() - began


@contextmanager
def open_ground(server: RealServer, servers: Servers, database_url: str, folder: Path) -> Iterator[Ground]:
    (folder / "rules").mkdir()
    (folder / "rules" / "all.yml").write_text(RULES)
    with standing() as front:
        passage = Passage(server)
        front.app = passage
        sections = {THROUGH: section(server, front.url), STRAIGHT: section(server, server.url)}
        (folder / "config.yml").write_text(json.dumps({"orchestrators": sections}))
        running = Running(
            folder,
            {
                "DATABASE_URL": database_url,
                "REDIS_URL": servers.redis_url,
                "SCALEKIT_WEBHOOK_SECRET": SECRET,
                "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
                "AUTHWATCH_RULES": str(folder / "rules"),
                "AUTHWATCH_CONFIG": str(folder / "config.yml"),
                **server.environment(),
            },
        )
        running.start("serve", "worker")

        try:
            with httpx.Client(
                base_url=running.url,
                headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
                trust_env=False,
                verify=NO_TLS,
                timeout=30,
            ) as client:
                ground = Ground(server, running, passage, client, database_url)
                ground.wait("Authwatch is ready", ground.is_ready, READY_SECONDS_MAX)
                yield ground
        finally:
            passage.let_go()
            running.stop()


def section(server: RealServer, url: str) -> dict[str, Any]:
    return {name: value for name, value in server.section(url).items() if name != "name"}


def all_of(condition: Callable[[str], bool], refs: Sequence[str]) -> Callable[[], bool]:
    """True of every ref; those it was true of are not asked again."""
    left = list(refs)

    def check() -> bool:
        while left and condition(left[-1]):
            left.pop()
        return not left

    return check
