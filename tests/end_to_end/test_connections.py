"""The short way in and uvicorn's own, by hand-written bytes: the same answers, in order, and every one of them true."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import text

from service import connections
from service.store import session
from service.store.log import LOG_LOCK
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import RULES, Running
from tests.end_to_end.test_overload import receiver
from tests.make_requests import event_body, signed

DOOR = "/webhooks/scalekit"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def door(database_of_the_file: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One receiver for all of them: that it still answers the next test is part of each test."""
    folder = tmp_path_factory.mktemp("connections")
    (folder / "rules").mkdir()
    (folder / "rules" / "all.yml").write_text(RULES)
    running = Running(
        folder,
        {
            "DATABASE_URL": database_of_the_file,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_RULES": str(folder / "rules"),
        },
    )
    running.start("serve")
    try:
        asyncio.run(running.ready())
        yield running
    finally:
        running.stop()


@pytest.fixture
def stored(database_of_the_file: str) -> Callable[[], list[str]]:
    """The accounts of what came in since the test began, in the order of the log."""
    before = len(accounts_in(database_of_the_file))
    return lambda: accounts_in(database_of_the_file)[before:]


def webhook(account: str, *extra: str, path: str = DOOR, version: str = "1.1", genuine: bool = True) -> bytes:
    body = event_body(data={"id": account})
    headers = signed(body, SECRET) if genuine else {}
    lines = [f"POST {path} HTTP/{version}", "host: x", f"content-length: {len(body)}", *extra]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + body


async def exchange(port: int, *parts: bytes, answers: int, pause_seconds: float = 0.05) -> list[bytes]:
    """Sends the parts, and reads that many answers, or as many as there are before the other side hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found: list[bytes] = []
    try:
        async with asyncio.timeout(15):
            for part in parts:
                writer.write(part)
                await asyncio.sleep(pause_seconds)
            while len(found) < answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                found.append(head + await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return found


def statuses(answers: list[bytes]) -> list[int]:
    return [int(answer[9:12]) for answer in answers]


def accounts_in(database_url: str) -> list[str]:
    with psycopg.connect(database_url) as conn:
        rows = conn.execute("SELECT account_id FROM events WHERE origin = 'webhook' ORDER BY position").fetchall()
    return [row[0] for row in rows]


async def test_however_it_arrives_it_is_taken(door: Running, stored: Callable[[], list[str]]) -> None:
    whole = webhook("ca_pieces")
    bytes_one_by_one = [whole[at : at + 1] for at in range(60)] + [whole[60:-9], whole[-9:]]
    assert statuses(await exchange(door.port, *bytes_one_by_one, answers=1, pause_seconds=0.005)) == [202]
    assert statuses(await exchange(door.port, webhook("ca_query", path=DOOR + "?a=1"), answers=1)) == [202]
    assert statuses(await exchange(door.port, webhook("ca_escaped", path="/webhooks/scale%6bit"), answers=1)) == [202]
    old = await exchange(door.port, webhook("ca_old", version="1.0"), answers=2)
    assert statuses(old) == [202]
    closing = await exchange(door.port, webhook("ca_closing", "connection: close"), answers=2)
    assert statuses(closing) == [202]
    assert b"connection: close" in closing[0].lower()
    body = event_body(data={"id": "ca_chunked"})
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(body, SECRET).items())
    chunked = (
        f"POST {DOOR} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n{head}\r\n{len(body):x}\r\n".encode()
        + body
        + b"\r\n0\r\nx-trailer: ignored\r\n\r\n"
    )
    assert statuses(await exchange(door.port, chunked, webhook("ca_after"), answers=2)) == [202, 202]
    expecting = webhook("ca_expecting", "expect: 100-continue")
    assert statuses(await exchange(door.port, expecting, answers=1)) == [202]
    assert stored() == [
        f"ca_{name}" for name in ("pieces", "query", "escaped", "old", "closing", "chunked", "after", "expecting")
    ]


async def test_requests_behind_one_that_waits_are_answered_in_order(
    door: Running, stored: Callable[[], list[str]]
) -> None:
    alive = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    refused = webhook("ca_forged", genuine=False)
    many = [webhook("ca_0"), webhook("ca_1"), alive, webhook("ca_2"), refused, webhook("ca_3"), alive]
    answers = await exchange(door.port, b"".join(many), answers=len(many))
    assert statuses(answers) == [202, 202, 200, 202, 401, 202, 200]
    assert stored() == ["ca_0", "ca_1", "ca_2", "ca_3"]
    # And on the connection of one that was refused.
    answers = await exchange(door.port, refused, webhook("ca_4"), answers=2)
    assert statuses(answers) == [401, 202]
    assert json.loads(answers[0].split(b"\r\n\r\n", 1)[1])["code"] == "signature_missing"


async def test_large_requests_behind_each_other_are_no_head_without_end(door: Running) -> None:
    body = event_body(data={"id": "ca_large"}, padding="x" * 30_000)
    many = []
    for number in range(9):
        headers = signed(body.replace(b"ca_large", b"ca_lar%02d" % number), SECRET)
        sent = body.replace(b"ca_large", b"ca_lar%02d" % number)
        lines = [f"POST {DOOR} HTTP/1.1", "host: x", f"content-length: {len(sent)}"]
        many.append(
            "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + sent
        )
    answers = await exchange(door.port, b"".join(many), answers=len(many))
    assert set(statuses(answers)) <= {200, 202}
    assert len(answers) == len(many)


async def test_an_offer_to_upgrade_is_no_forgery(door: Running) -> None:
    offer = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")
    assert statuses(await exchange(door.port, webhook("ca_h2c", *offer), answers=1)) == [400]
    asked = "\r\n".join(["GET /livez HTTP/1.1", "host: x", *offer, "", ""]).encode()
    assert statuses(await exchange(door.port, asked, answers=1)) == [200]


async def test_a_trailer_without_end_is_cut(door: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(f"POST {DOOR} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: ".encode())
    sent = 0
    with suppress(ConnectionError):
        async with asyncio.timeout(8):
            while sent < 64 * MIB:
                writer.write(b"x" * 65_536)
                await writer.drain()
                sent += 65_536
    assert sent < 16 * MIB
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    assert reader is not None


async def test_who_forges_and_hangs_up_is_counted(door: Running) -> None:
    async with door.client() as client:

        async def counted() -> int:
            found = re.search(
                r'reason="signature_missing",source="scalekit"\} (\d+)', (await client.get("/metrics")).text
            )
            return int(found[1]) if found else 0

        before = await counted()
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(webhook("ca_forged", genuine=False))
        writer.close()
        for _ in range(50):
            if await counted() > before:
                break
            await asyncio.sleep(0.05)
        assert await counted() == before + 1


async def test_a_connection_that_asks_too_far_ahead_is_closed_and_no_answer_it_had_was_untrue(
    door: Running, stored: Callable[[], list[str]]
) -> None:
    before = psutil.Process(door.processes["serve"].pid).memory_info().rss
    many = b"".join(webhook(f"ca_{number}") for number in range(5 * connections.PIPELINE_MAX))
    answers = await exchange(door.port, many, answers=5 * connections.PIPELINE_MAX)
    assert set(statuses(answers)) <= {202}
    assert len(answers) <= connections.PIPELINE_MAX + 1
    kept = stored()
    assert kept[: len(answers)] == [f"ca_{number}" for number in range(len(answers))]
    assert statuses(await exchange(door.port, webhook("ca_next"), answers=1)) == [202]
    assert psutil.Process(door.processes["serve"].pid).memory_info().rss - before < 16 * MIB


@pytest.mark.parametrize("endless", [b"GET /" + b"x" * 200, b"GET / HTTP/1.1\r\n"])
async def test_a_head_without_end_is_refused_and_not_kept_in_memory(door: Running, endless: bytes) -> None:
    before = psutil.Process(door.processes["serve"].pid).memory_info().rss
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    sent = 0
    try:
        async with asyncio.timeout(10):
            writer.write(endless)
            while sent < 64 * MIB:
                more = b"x" * 65_536 if b"\r\n" not in endless else b"a:b\r\n" * 10_000
                writer.write(more)
                await writer.drain()
                sent += len(more)
    except ConnectionError:
        pass
    answer = b""
    with suppress(ConnectionError):
        answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    assert sent < 16 * MIB
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert psutil.Process(door.processes["serve"].pid).memory_info().rss - before < 16 * MIB


async def test_ready_is_only_who_can_commit_and_a_stop_waits_for_what_is_under_way(
    tmp_path: Path, database_url: str
) -> None:
    async with receiver(tmp_path, database_url) as running:
        async with running.client() as client:
            assert (await client.get("/readyz")).status_code == 200
            with psycopg.connect(database_url) as holder:
                holder.execute(f"SELECT pg_advisory_xact_lock({LOG_LOCK})".encode())
                assert (await client.get("/readyz", timeout=10)).status_code == 503
                assert (await client.get("/livez")).status_code == 200
            for _ in range(50):
                if (await client.get("/readyz")).status_code == 200:
                    break
            assert (await client.get("/readyz")).status_code == 200
        with psycopg.connect(database_url) as holder:
            holder.execute(f"SELECT pg_advisory_xact_lock({LOG_LOCK})".encode())
            asking = asyncio.create_task(exchange(running.port, webhook("ca_last"), answers=1))
            await asyncio.sleep(0.3)
            running.processes["serve"].send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert not asking.done()
        answers = await asking
    assert statuses(answers) == [202]
    assert b"connection: close" in answers[0].lower()
    assert accounts_in(database_url) == ["ca_last"]


async def test_a_lock_left_behind_by_who_froze_is_taken_away(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the server: such a client's kernel still answers for it."""
    patience_ms = 8000  # of the front door
    assert patience_ms > session.IDLE_IN_TRANSACTION_MS
    monkeypatch.setattr(session, "IDLE_IN_TRANSACTION_MS", 500)
    engine = session.open_engine(database_url, connections_max=1)
    try:
        conn = await engine.connect()
        await conn.execute(text(f"SELECT pg_advisory_xact_lock({LOG_LOCK})"))
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute(f"SET statement_timeout = {patience_ms}".encode())
            other.execute(f"SELECT pg_advisory_lock({LOG_LOCK})".encode())
        await conn.invalidate()
        await conn.close()
    finally:
        await engine.dispose()
