"""Too much at once, too slowly, or from somebody else: shed early, cut off, and never at the cost of who signs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
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
from tests.end_to_end.running import RULES, Running, post
from tests.make_requests import event_body, signed

MIB = 1024 * 1024
DOOR = "/webhooks/scalekit"


@asynccontextmanager
async def receiver(folder: Path, database_url: str, config: str = "") -> AsyncIterator[Running]:
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
    running = Running(folder, environment)
    running.start("serve")
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
    writer.close()
    await writer.wait_closed()
    assert silent < 1.5
    assert dribbling < 3.5
