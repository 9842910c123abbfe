"""Too much at once, too slowly, or from somebody else: shed early, cut off, and never at the cost of who signs."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service import connections
from service.children import choose_port
from service.connections import BoundedProtocol
from service.store.log import LOG_LOCK
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import COMMAND, RULES, Running, post, until
from tests.make_requests import event_body, signed

MIB = 1024 * 1024
FLOOD_SENDERS = 100  # 64 of them fill the queue, a dozen are on their way to the database
PAUSE_SECONDS_MAX = 3.0  # without Redis the worker looks once a second, and the flood is made on the same processor
CUT_SECONDS_MAX = 20
PATIENCE_SECONDS = 3  # in the place of ten
IMPATIENT = f"""\
from service import cli, connections, serve
connections.HEAD_SECONDS_MAX = serve.KEEP_ALIVE_SECONDS = {PATIENCE_SECONDS}
cli.main()
"""
SHED_PAUSE_SECONDS, PROBES = 2.0, 16
DOOR = "/webhooks/scalekit"


@asynccontextmanager
async def receiver(
    folder: Path,
    database_url: str,
    config: str = "",
    parts: Sequence[str] = ("serve",),
    program: tuple[str, ...] = (COMMAND,),
) -> AsyncIterator[Running]:
    (folder / "rules").mkdir()
    (folder / "rules" / "all.yml").write_text(RULES)
    environment = {
        "DATABASE_URL": database_url,
        "SCALEKIT_WEBHOOK_SECRET": SECRET,
        "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
        "AUTHWATCH_RULES": str(folder / "rules"),
    }
    if config:
        (folder / "config.yml").write_text(config)
        environment["AUTHWATCH_CONFIG"] = str(folder / "config.yml")
    running = Running(folder, environment, program=program)
    running.start(*parts)
    try:
        await running.ready()
        yield running
    finally:
        running.stop()


async def raw_post(port: int, body: bytes) -> bytes:
    """One request by socket, which is many times quicker than a client library; the whole answer."""
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(body, SECRET).items())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST {DOOR} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode() + body)
    try:
        return await reader.readuntil(b"}")
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_a_full_queue_sheds_at_once_and_what_it_took_is_committed(tmp_path: Path, database_url: str) -> None:
    """The queue is filled by its bytes: bodies of nearly a mebibyte while the log's lock is held."""
    async with receiver(tmp_path, database_url) as running:
        bodies = [event_body(data={"id": f"ca_{n}"}, padding="x" * (MIB - 4096)) for n in range(100)]
        with psycopg.connect(database_url) as holder:
            holder.execute(f"SELECT pg_advisory_xact_lock({LOG_LOCK})".encode())
            sending = [asyncio.create_task(raw_post(running.port, body)) for body in bodies]
            await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)  # the first to be shed: it is full
            seconds: list[float] = []
            more: list[bytes] = []
            for number in range(5):
                body = event_body(data={"id": f"ca_more_{number}"}, padding="x" * (MIB - 4096))
                began = time.monotonic()
                more.append(await raw_post(running.port, body))
                seconds.append(time.monotonic() - began)
        answers = await asyncio.gather(*sending)
    kept = [answer for answer in answers if answer.startswith(b"HTTP/1.1 202")]
    shed = [answer for answer in (*answers, *more) if answer.startswith(b"HTTP/1.1 503")]
    assert len(kept) >= 60
    assert len(kept) + len(shed) == 105
    assert all(b"retry-after: 2" in answer and b'"queue_full"' in answer for answer in shed), shed[0]
    assert set(more) <= set(shed)
    assert sorted(seconds)[2] < 0.05
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT count(*) FROM events").fetchone() == (len(kept),)


class Flood:
    """More large receipts than the queue takes: while the log's lock is held none is committed, then they go on coming."""

    def __init__(self, running: Running, database_url: str) -> None:
        self.shed = 0
        self.kept: set[str] = set()
        self._running, self._database_url = running, database_url
        self._released, self._stop = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Entered once the queue is full, with the lock held until `release`."""
        holding = asyncio.create_task(self._hold())
        senders = [asyncio.create_task(self._send(number)) for number in range(FLOOD_SENDERS)]

        async def full() -> bool:
            return self.shed > 0

        try:
            await until(full, 30, self._running.logs)
            yield
        finally:
            self._stop.set()
            self.release()
            await asyncio.gather(holding, *senders)

    def release(self) -> datetime:
        self._released.set()
        return datetime.now(UTC)

    async def _hold(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._database_url) as conn:
            await conn.execute(f"SELECT pg_advisory_xact_lock({LOG_LOCK})".encode())
            await self._released.wait()

    async def _send(self, number: int) -> None:
        sent = 0
        while not self._stop.is_set():
            body = event_body(data={"id": f"ca_flood_{number}_{sent}"}, padding="x" * (MIB - 4096))
            answer = await raw_post(self._running.port, body)
            sent += 1
            if answer.startswith(b"HTTP/1.1 202"):
                self.kept.add(json.loads(body)["id"])
            else:
                assert answer.startswith(b"HTTP/1.1 503"), answer
                self.shed += b'"queue_full"' in answer
                await asyncio.sleep(SHED_PAUSE_SECONDS)

    async def seconds_to_shed(self) -> list[float]:
        """Of some large requests, one after the other, those that found the queue full; the quickest first."""
        seconds: list[float] = []
        for number in range(PROBES):
            body = event_body(data={"id": f"ca_flood_probe_{number}"}, padding="x" * (MIB - 4096))
            began = time.monotonic()
            if b'"queue_full"' in await raw_post(self._running.port, body):
                seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.1)
        return sorted(seconds)


async def test_a_flood_delays_no_alert_of_what_is_in(tmp_path: Path, database_url: str) -> None:
    """One account breaks while the queue is full and one while it is worked off, with more coming all the time."""
    async with (
        receiver(tmp_path, database_url, parts=("serve", "worker")) as running,
        running.client() as client,
    ):
        flood = Flood(running, database_url)

        async def alive() -> bool:
            return bool((await running.get("/v1/health"))["evaluator"]["alive"])

        async def break_account(account: str) -> tuple[datetime, datetime]:
            """When it came in and when its workflow was paused, by the service's clock: ours waits for the senders."""
            body = event_body("connected_account.status_updated", data={"id": account, "status": "DISCONNECTED"})
            for _ in range(100):
                answer = await post(client, body)
                if answer.status_code in (200, 202):
                    break
                assert answer.status_code == 503, answer.text
                await asyncio.sleep(0.1)

            async def paused() -> bool:
                return bool((await running.get(f"/v1/workflows/{account}"))["state"] == "paused")

            await until(paused, 30, running.logs)
            [event] = (await running.get(f"/v1/events?account_id={account}&kind=account.disconnected"))["items"]
            paused_at = (await running.get(f"/v1/workflows/{account}"))["paused_at"]
            return datetime.fromisoformat(event["received_at"]), datetime.fromisoformat(paused_at)

        await until(alive, 30, running.logs)
        for account in ("ca_within", "ca_after"):
            await client.put(f"/v1/workflows/{account}", json={"account_ids": [account]})
        async with flood.open():
            within = asyncio.create_task(break_account("ca_within"))
            shed_seconds = await flood.seconds_to_shed()
            released = flood.release()
            pauses = await asyncio.gather(within, break_account("ca_after"))
        for received_at, paused_at in pauses:
            assert (paused_at - max(received_at, released)).total_seconds() < PAUSE_SECONDS_MAX
        assert len(shed_seconds) >= PROBES // 2
        assert shed_seconds[len(shed_seconds) // 2] < 0.05, shed_seconds
        with psycopg.connect(database_url) as conn:
            rows = conn.execute("SELECT event_id FROM events WHERE account_id LIKE 'ca_flood%'").fetchall()
        assert flood.kept <= {str(row[0]) for row in rows}
        assert len(rows) == len(set(rows))


async def seconds_open(port: int, first: bytes, then: bytes = b"") -> float:
    """How long after the last answer, or after its opening, a connection lives that sends `then` every second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    since = time.monotonic()

    async def dribble() -> None:
        while then:
            await asyncio.sleep(1)
            writer.write(then)

    writer.write(first)
    dribbling = asyncio.create_task(dribble())
    try:
        with suppress(ConnectionError):
            async with asyncio.timeout(CUT_SECONDS_MAX):
                while await reader.read(4096):
                    since = time.monotonic()
        return time.monotonic() - since
    finally:
        dribbling.cancel()
        await asyncio.gather(dribbling, return_exceptions=True)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_the_real_receiver_cuts_slow_heads_and_idle_connections(tmp_path: Path, database_url: str) -> None:
    request = f"POST {DOOR} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n".encode()
    program = (sys.executable, "-c", IMPATIENT)
    async with receiver(tmp_path, database_url, program=program) as running, running.client() as client:
        silent, slow_head, idle = await asyncio.gather(
            seconds_open(running.port, b""),
            seconds_open(running.port, request, b"x-a: b\r\n"),
            seconds_open(running.port, request + b"\r\n{}"),
        )
        assert (await post(client, event_body())).status_code == 202
    for lived in (silent, slow_head):
        assert PATIENCE_SECONDS - 1 < lived < 2 * PATIENCE_SECONDS + 5
    assert PATIENCE_SECONDS - 1 < idle < PATIENCE_SECONDS + 5


async def test_the_rate_of_a_source_is_used_up_only_by_who_can_sign(tmp_path: Path, database_url: str) -> None:
    config = f"sources:\n  scalekit:\n    secrets: ['{SECRET}']\n    rate_limit_per_second: 4\n"
    async with receiver(tmp_path, database_url, config) as running, running.client() as client:
        await asyncio.sleep(1.1)
        forged = [client.post(DOOR, content=b"{}", headers=signed(b"other", SECRET)) for _ in range(30)]
        assert {answer.status_code for answer in await asyncio.gather(*forged)} == {401}
        answers = await asyncio.gather(*(post(client, event_body(data={"id": f"ca_{n}"})) for n in range(12)))
    statuses = [answer.status_code for answer in answers]
    assert 4 <= statuses.count(202) <= 8
    assert statuses.count(202) + statuses.count(429) == 12
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert (refused.headers["retry-after"], refused.json()["code"]) == ("1", "rate_limited")


@pytest.fixture
async def quick_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The protocol of the receiver around a small app, with patience for half a second."""
    monkeypatch.setattr(connections, "HEAD_SECONDS_MAX", 0.5)

    async def slow(request: Request) -> Response:
        await asyncio.sleep(1.5)
        return Response(await request.body())

    port = choose_port("127.0.0.1")
    app = Starlette(routes=[Route("/", slow, methods=["POST"])])
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, http=BoundedProtocol, log_config=None, access_log=False, timeout_keep_alive=5)
    )
    task = asyncio.create_task(server.serve())
    for _ in range(500):
        if server.started:
            break
        await asyncio.sleep(0.01)
    yield port
    server.should_exit = True
    await task


async def seconds_until_cut(port: int, *parts: bytes, pause_seconds: float = 0.3) -> float:
    """How long a connection lives that sends these parts and then nothing; 4 s means it was not cut."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    for part in parts:
        writer.write(part)
        await asyncio.sleep(pause_seconds)
    try:
        async with asyncio.timeout(4):
            await reader.read()
    except TimeoutError:
        return 4.0
    except OSError:
        pass  # cut in the middle of our writing
    finally:
        took = time.monotonic() - began
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return took


async def test_silence_and_slow_heads_are_cut_and_slow_answers_are_not(quick_server: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", quick_server)
    try:
        writer.write(head + b"ok")
        silent, dribbling = await asyncio.gather(
            seconds_until_cut(quick_server),
            seconds_until_cut(quick_server, *[head[at : at + 1] for at in range(6)]),
        )
        async with asyncio.timeout(4):
            answered = await reader.readuntil(b"ok")
        assert answered.startswith(b"HTTP/1.1 200")  # 1.5 s of our own work is no reason to cut
        writer.write(head + b"ok")  # and the connection lives on between two requests
        async with asyncio.timeout(4):
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    assert silent < 1.5
    assert dribbling < 3.5
