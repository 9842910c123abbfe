"""The gate on real processes: while Postgres is away, frozen and back; its stream over a real socket; docs/gate.md."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from service import migrate
from service.embedded import Postgres, start_postgres
from service.gate import REASONS
from service.gate_asking import ANSWER_SECONDS
from service.gate_stream import CLIENTS_MAX, HEARTBEAT_SECONDS
from service.gate_tokens import KEPT_SECONDS
from service.serve import GRACEFUL_SECONDS
from service.store.tokens import digest, make
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import RULES, Running, post, until
from tests.make_requests import event_body

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "gate.md").read_text(encoding="utf-8")
STATUS = "connected_account.status_updated"
TOLD_SECONDS_MAX = 15
AWAY_SECONDS_MAX = ANSWER_SECONDS + 2.0
ASKED_AT_ONCE = 50
ASKING = "/v1/gate?workflow_id=w1&on_unknown=allow"  # no worker evaluates what a test's own steering puts on the log
STANDS = "nothing stands against it"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = start_postgres(tmp_path_factory.mktemp("gate"))
    migrate.upgrade(server.url)
    yield server
    server.remove()


@pytest.fixture
def house(postgres: Postgres, tmp_path: Path) -> Iterator[Running]:
    """Without Redis: nothing here depends on it."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "all.yml").write_text(RULES)
    running = Running(
        tmp_path,
        {
            "DATABASE_URL": postgres.url,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_RULES": str(tmp_path / "rules"),
        },
    )
    yield running
    running.stop()


async def started_again(server: Postgres) -> None:
    """As `server.start()` does, but from this thread, with which it would end."""
    server.prepare()
    server.spawn()
    await until(lambda: asyncio.to_thread(server.is_ready), 60)


def new_token(postgres: Postgres, token_id: str) -> str:
    text = make()
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO tokens (id, name, token_sha256, scopes, created_at) VALUES (%s, 'agent', %s, '{read}', now())",
            (token_id, digest(text)),
        )
    return text


async def put(client: httpx.AsyncClient, workflow_id: str, **body: Any) -> None:
    answer = await client.put(f"/v1/workflows/{workflow_id}", json=body)
    assert answer.status_code == 200, answer.text


async def steer(client: httpx.AsyncClient, workflow_id: str, what: str) -> None:
    answer = await client.post(f"/v1/workflows/{workflow_id}/{what}", json={})
    assert answer.status_code == 200, answer.text


async def test_while_postgres_is_away_it_answers_by_on_unknown_and_says_so(house: Running, postgres: Postgres) -> None:
    agent, revoked, unused = (new_token(postgres, f"tok_{name}") for name in ("agent", "revoked", "unused"))
    house.start("serve")
    await house.ready()
    async with house.client() as client:

        async def ask(token: str, more: str = "") -> httpx.Response:
            began = time.monotonic()
            answer = await client.get(f"/v1/gate?workflow_id=w1{more}", headers={"Authorization": f"Bearer {token}"})
            assert time.monotonic() - began < AWAY_SECONDS_MAX
            return answer

        await put(client, "w1")
        for token in (agent, revoked):
            assert (await ask(token, "&on_unknown=allow")).json()["detail"] == STANDS
        with psycopg.connect(postgres.url, autocommit=True) as conn:
            conn.execute("UPDATE tokens SET revoked_at = now() WHERE id = 'tok_revoked'")
        assert (await ask(revoked)).status_code == 401, "at once, although it was verified just now"

        await asyncio.to_thread(postgres.stop)
        for token in (ADMIN_TOKEN, agent):
            denied = await ask(token)
            assert denied.status_code == 200
            assert (denied.json()["allow"], denied.json()["reason"]) == (False, "evaluation_behind")
            assert "the database cannot be asked" in denied.json()["detail"]
            allowed = await ask(token, "&on_unknown=allow")
            assert (allowed.json()["allow"], allowed.json()["reason"]) == (True, None)
            assert "the database cannot be asked" in allowed.json()["detail"]
        for token in (revoked, unused):
            answer = await ask(token)
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert (await client.get("/v1/gate")).status_code == 400
        assert agent not in house.whole_logs()

        await started_again(postgres)

        async def back() -> bool:
            return bool((await ask(agent, "&on_unknown=allow")).json()["detail"] == STANDS)

        await until(back, 10, house.logs)
        assert (await ask(unused)).status_code == 200
        assert (await ask(revoked)).status_code == 401


async def test_a_frozen_postgres_holds_nobody_up_for_long(house: Running, postgres: Postgres) -> None:
    house.start("serve")
    await house.ready()
    async with house.client() as client:
        await put(client, "w1")
        assert (await client.get(ASKING)).json()["detail"] == STANDS
        pids = family(postgres)
        for pid in pids:
            pid_signal(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            answers = await asyncio.gather(*(client.get(ASKING) for _ in range(ASKED_AT_ONCE)))
            assert time.monotonic() - began < AWAY_SECONDS_MAX
            took: list[float] = []
            for _ in range(5):
                began = time.monotonic()
                answers.append(await client.get(ASKING))
                took.append(time.monotonic() - began)
            assert min(took) < ANSWER_SECONDS / 2, "once it counts as away nobody waits at all"
            assert all("the database cannot be asked" in answer.json()["detail"] for answer in answers)
        finally:
            for pid in reversed(pids):
                pid_signal(pid, signal.SIGCONT)

        async def back() -> bool:
            return bool((await client.get(ASKING)).json()["detail"] == STANDS)

        await until(back, 15, house.logs)


def family(postgres: Postgres) -> list[int]:
    """The postmaster first, so that it starts nobody who is not stopped."""
    assert postgres.process is not None
    pid = postgres.process.pid
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def pid_signal(pid: int, how: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # one that ended meanwhile
        os.kill(pid, how)


@dataclass
class Heard:
    """What came over one connection."""

    response: httpx.Response
    ids: list[int] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        event = ""
        try:
            async for line in self.response.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    self.ids.append(int(value))
                elif name == "event":
                    event = value
                elif name == "data" and event == "ready":
                    self.ready.set()
                elif name == "data" and event == "answer":
                    self.answers.append(json.loads(value))
                    self.came.set()
        except httpx.TransportError:
            pass
        finally:
            self.ended.set()

    async def reasons(self, workflow_id: str, count: int) -> list[str | None]:
        """Of the first so many answers about it."""
        async with asyncio.timeout(TOLD_SECONDS_MAX):
            while len(found := [one["reason"] for one in self.answers if one["workflow_id"] == workflow_id]) < count:
                self.came.clear()
                await self.came.wait()
        return found[:count]


@asynccontextmanager
async def stream(client: httpx.AsyncClient, query: str = "", last_id: int | None = None) -> AsyncIterator[Heard]:
    headers = {} if last_id is None else {"Last-Event-ID": str(last_id)}
    async with client.stream("GET", f"/v1/gate/stream{query}", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        heard = Heard(response)
        task = asyncio.create_task(heard.listen())
        async with asyncio.timeout(TOLD_SECONDS_MAX):
            await heard.ready.wait()
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_changes_are_told_without_redis_and_go_on_in_the_next_process(house: Running) -> None:
    house.start("serve", "worker")
    await house.ready()
    async with house.client() as client:
        await put(client, "w2", account_ids=["ca_told"])
        async with stream(client, "?workflow_id=w2") as first:
            for what in ("pause", "resume"):
                await steer(client, "w2", what)
            assert await first.reasons("w2", 2) == ["workflow_paused", None]
            body = event_body(STATUS, data={"id": "ca_told", "status": "DISCONNECTED"})
            assert (await post(client, body)).status_code == 202
            assert "workflow_paused" in (await first.reasons("w2", 4))[2:]
            last_id = first.ids[-1]
            # A stop waits for nobody who would listen for ever.
            began = time.monotonic()
            house.kill("serve", signal.SIGTERM)
            assert time.monotonic() - began < GRACEFUL_SECONDS / 2
            assert "Finished server process" in house.whole_logs()
            await asyncio.wait_for(first.ended.wait(), TOLD_SECONDS_MAX)
        house.start("serve")
        await house.ready()
        for what in ("resume", "pause", "resume"):
            await steer(client, "w2", what)
        async with stream(client, "?workflow_id=w2", last_id) as second:

            def of_workflow() -> list[str | None]:
                return [one["reason"] for one in second.answers if one["account_id"] is None]

            async with asyncio.timeout(TOLD_SECONDS_MAX):
                while len(of_workflow()) < 3:
                    second.came.clear()
                    await second.came.wait()
            assert of_workflow()[-3:] == [None, "workflow_paused", None]


async def test_what_is_no_stream_of_ours_is_said(house: Running, postgres: Postgres) -> None:
    house.start("serve")
    await house.ready()
    async with house.client() as client:
        for last_id, status, code in (
            ("twelve", 400, "invalid_last_event_id"),
            ("9" * 18, 410, "last_event_id_expired"),
            ("9" * 30, 400, "invalid_last_event_id"),
        ):
            answer = await client.get("/v1/gate/stream", headers={"Last-Event-ID": last_id})
            assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert (await client.get("/v1/gate/stream?workflow=w1")).json()["code"] == "invalid_query"
        assert (await client.head("/v1/gate/stream")).status_code == 200
        siem = {"Authorization": "Bearer nobody"}
        assert (await client.get("/v1/gate/stream", headers=siem)).status_code == 401


async def test_the_commands_of_the_docs_run(house: Running) -> None:
    house.start("serve")
    await house.ready()
    commands = [line for block in re.findall(r"```console\n(.*?)```", DOCS, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 2
    async with house.client() as client:
        await put(client, "route-tickets")
        for command in commands:
            words = shlex.split(command.replace("$TOKEN", ADMIN_TOKEN))
            assert words[:1] == ["curl"]
            assert words[-2:] == ["-H", f"Authorization: Bearer {ADMIN_TOKEN}"]
            path = words[2].removeprefix("http://127.0.0.1:8080")
            if "stream" in path:
                async with stream(client, path.removeprefix("/v1/gate/stream")):
                    pass
            else:
                assert (await client.get(path)).json()["reason"] == "unknown_account"


def test_the_numbers_and_reasons_of_the_docs_are_the_codes() -> None:
    reasons = set(re.findall(r"`((?:workflow|account|unknown|evaluation)_\w+)`", DOCS)) - {"workflow_id", "account_id"}
    assert reasons == {
        *REASONS.values(),
        "workflow_paused",
        "workflow_inactive",
        "unknown_workflow",
        "unknown_account",
        "evaluation_behind",
    }
    assert f"in the last {KEPT_SECONDS:.0f} s" in DOCS
    assert f"every {HEARTBEAT_SECONDS:.0f} s" in DOCS
    assert f"serves {CLIENTS_MAX} streams" in DOCS
