"""The front door of a real receiver under bad input: each gets the contract's answer, and it goes on serving."""

from __future__ import annotations

import asyncio
import base64
import json
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service.signatures import make_secret, parse_secret
from service.sources import fingerprint
from service.store.session import begin, open_engine
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import RULES, Running, post
from tests.make_requests import event_body, signed

MIB = 1024 * 1024
OLD_SECRET = make_secret()
DOOR = "/webhooks/scalekit"
RSS_GROWTH_BYTES_MAX = 48 * MIB


@pytest.fixture(scope="module")
def door(database_of_the_file: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One receiver for all of them: that it still answers the next test is part of each test."""
    folder = tmp_path_factory.mktemp("door")
    (folder / "rules").mkdir()
    (folder / "rules" / "all.yml").write_text(RULES)
    running = Running(
        folder,
        {
            "DATABASE_URL": database_of_the_file,
            "SCALEKIT_WEBHOOK_SECRET": f"{SECRET},{OLD_SECRET}",
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
async def engine(database_of_the_file: str) -> AsyncIterator[AsyncEngine]:
    opened = open_engine(database_of_the_file, connections_max=2)
    yield opened
    await opened.dispose()


def rss(running: Running) -> int:
    return int(psutil.Process(running.processes["serve"].pid).memory_info().rss)


@asynccontextmanager
async def connected(running: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def problem_of(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "code"} <= set(body)
    assert body["status"] == status
    if code is not None:
        assert body["code"] == code
    return body


async def test_every_answer_of_the_contract(door: Running, engine: AsyncEngine) -> None:
    async with door.client() as client:
        body = event_body()
        first = await post(client, body)
        assert (first.status_code, first.json()["status"]) == (202, "accepted")
        again = await post(client, body)
        assert (again.status_code, again.json()) == (200, {"status": "duplicate", "id": first.json()["id"]})
        unreadable = b"\xff not json"
        headers = signed(unreadable, SECRET, message_id="msg_unreadable")
        put_aside = await client.post(DOOR, content=unreadable, headers=headers)
        assert (put_aside.status_code, put_aside.json()["status"]) == (202, "quarantined")
        again = await client.post(
            DOOR, content=unreadable, headers=signed(unreadable, SECRET, message_id="msg_unreadable")
        )
        assert (again.status_code, again.json()["id"]) == (200, put_aside.json()["id"])
        problem_of(await client.post("/webhooks/nobody", content=body, headers=signed(body, SECRET)), 404)
        problem_of(await client.get(DOOR), 405)
        problem_of(await client.post(DOOR, content=body), 401, "signature_missing")

        listed = (await client.get("/v1/events?kind=quarantine")).json()["items"]
        assert put_aside.json()["id"] in [item["id"] for item in listed]
        one = (await client.get(f"/v1/events/{first.json()['id']}")).json()
        assert one["payload"]["data"]["id"] == "ca_1"
        metrics = (await client.get("/metrics")).text
        assert 'authwatch_requests_rejected_total{reason="signature_missing",source="scalekit"}' in metrics
        assert 'authwatch_events_accepted_total{kind="quarantine",source="scalekit"}' in metrics
    async with begin(engine) as conn:
        kept = (await conn.execute(text("SELECT body FROM receipts WHERE body = :body"), {"body": unreadable})).all()
    assert len(kept) == 1


async def test_bad_signatures_are_401_with_their_reason(door: Running) -> None:
    body = event_body(data={"id": "ca_never_genuine"})
    good = signed(body, SECRET, message_id="msg_1")
    cases: dict[str, dict[str, str]] = {
        "signature_wrong": good | {"webhook-signature": "v1," + base64.b64encode(b"0" * 32).decode()},
        "signature_malformed": good | {"webhook-signature": "v1,!!!not-base64!!!"},
        "timestamp_too_old": signed(body, SECRET, at=int(good["webhook-timestamp"]) - 400),
        "timestamp_in_future": signed(body, SECRET, at=int(good["webhook-timestamp"]) + 400),
        "timestamp_malformed": good | {"webhook-timestamp": "1e9"},
    }
    async with door.client() as client:
        for code, headers in cases.items():
            problem_of(await client.post(DOOR, content=body, headers=headers), 401, code)
        raw = [(name.encode(), value.encode()) for name, value in good.items()]
        problem_of(await client.post(DOOR, content=body, headers=[*raw, (b"webhook-signature", b"v1,x")]), 401)
        odd = [(name, value) for name, value in raw if name != b"webhook-signature"]
        problem_of(await client.post(DOOR, content=body, headers=[*odd, (b"webhook-signature", b"v1,\xe9\xff")]), 401)
        problem_of(await client.post(DOOR, content=body + b" ", headers=good), 401, "signature_wrong")
        assert (await client.get("/v1/events?account_id=ca_never_genuine")).json()["items"] == []


async def test_svix_headers_and_older_secrets_are_taken(door: Running) -> None:
    async with door.client() as client:
        for secret, prefix in ((SECRET, "svix"), (OLD_SECRET, "webhook"), (OLD_SECRET, "svix")):
            body = event_body()
            answer = await client.post(DOOR, content=body, headers=signed(body, secret, prefix=prefix))
            assert answer.status_code == 202, answer.text


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"type_": "brand.new"}, "accepted"),
        ({"organization_id": None, "extra": {"deep": [1]}}, "accepted"),
        ({"occurred_at": "2026-11-23T10:23:52.702980847Z"}, "accepted"),
        ({"type_": 5}, "quarantined"),
        ({"data": {"identifier": "a\x00b"}}, "quarantined"),
        ({"data": {"identifier": "\ud800"}}, "quarantined"),
        ({"data": {"id": "x" * 10_000}}, "quarantined"),
        ({"data": {"status": "NEVER_SEEN"}}, "accepted"),
        ({"note": "\ud800 \u0000"}, "accepted"),
    ],
)
async def test_unusual_payloads(door: Running, changes: dict[str, Any], status: str) -> None:
    async with door.client() as client:
        body = event_body(**changes)
        answer = await client.post(DOOR, content=body, headers=signed(body, SECRET))
        assert (answer.status_code, answer.json()["status"]) == (202, status)
        assert (await client.get(f"/v1/events/{answer.json()['id']}")).status_code == 200
        assert (await client.get("/v1/siem/events?format=ecs")).status_code == 200


async def test_times_that_cannot_be_right_are_kept_and_marked(door: Running) -> None:
    async with door.client() as client:
        for when in ("1970-01-01T00:00:00Z", "2100-01-01T00:00:00Z", "not a time"):
            body = event_body(occurred_at=when, data={"id": "ca_timeless"})
            assert (await post(client, body)).status_code == 202
        items = (await client.get("/v1/events?account_id=ca_timeless")).json()["items"]
        assert [(item["clock_suspect"], item["lag_seconds"]) for item in items] == [(True, None)] * 3
        assert all(item["occurred_at"] == item["received_at"] for item in items)
        payload = (await client.get(f"/v1/events/{items[-1]['id']}")).json()["payload"]
        assert payload["occurred_at"] == "1970-01-01T00:00:00Z"


async def test_deep_nesting_is_put_aside(door: Running) -> None:
    async with door.client() as client:
        for body in (b"[" * 10_000 + b"]" * 10_000, b'{"type":"x","a":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001):
            answer = await client.post(DOOR, content=body, headers=signed(body, SECRET))
            assert (answer.status_code, answer.json()["status"]) == (202, "quarantined")


async def test_fifty_at_once_are_one_event(door: Running) -> None:
    body = event_body()
    async with door.client() as client:
        answers = await asyncio.gather(*(post(client, body) for _ in range(50)))
        assert sorted(answer.status_code for answer in answers) == [200] * 49 + [202]
        assert len({answer.json()["id"] for answer in answers}) == 1


async def test_bodies_of_one_mebibyte_pass_and_one_byte_more_does_not(door: Running) -> None:
    frame = len(event_body(padding=""))
    async with door.client() as client:
        exact = event_body(padding="x" * (MIB - frame))
        assert len(exact) == MIB
        assert (await post(client, exact)).status_code == 202
        larger = event_body(padding="x" * (MIB - frame + 1))
        problem_of(await post(client, larger), 413, "body_too_large")


@pytest.mark.parametrize("mebibytes", [2, 6])
async def test_a_sender_that_writes_it_all_first_still_hears_413(door: Running, mebibytes: int) -> None:
    async with door.client() as client:
        for _ in range(5):
            problem_of(await client.post(DOOR, content=b"x" * (mebibytes * MIB), headers=signed(b"", SECRET)), 413)


async def test_a_hundred_megabytes_are_not_read_on_and_memory_stays_flat(door: Running) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * MIB

    async with door.client() as client:
        await post(client, event_body())
        before = rss(door)
        for content, extra in ((endless(), {}), (b"x" * (100 * MIB), {})):
            try:
                answer = await client.post(DOOR, content=content, headers=signed(b"", SECRET) | extra)
                assert answer.status_code == 413
            except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
                pass  # hung up on in the middle of it, which is what not reading on looks like
        assert (await post(client, event_body())).status_code == 202
    assert rss(door) - before < RSS_GROWTH_BYTES_MAX


async def test_a_chunked_body_past_the_limit_is_answered_413(door: Running) -> None:
    async with connected(door) as (reader, writer):
        writer.write(f"POST {DOOR} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(17):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
    assert b" 413 " in head.split(b"\r\n")[0]
    assert b"connection: close" in head.lower()


async def test_a_thousand_silent_connections_and_garbage_do_not_stop_it(door: Running) -> None:
    # An ordinary user's soft limit is often 1024; ours are a thousand and the rest of pytest.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)) if soft >= 0 else soft, hard))
    before = rss(door)
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(connected(door)) for _ in range(1000)]
        for _, writer in silent[:50]:
            writer.write(b"\x16\x03\x01\x02\x00 not http at all \x00\xff\r\n\r\n")
        for _, writer in silent[50:100]:
            writer.write(f"POST {DOOR} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nslow".encode())
        async with door.client() as client:
            answers = await asyncio.gather(*(post(client, event_body()) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {202}
        assert rss(door) - before < RSS_GROWTH_BYTES_MAX


async def test_a_body_that_dawdles_is_cut_off(door: Running) -> None:
    async with connected(door) as (reader, writer):
        writer.write(f"POST {DOOR} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode())
        for _ in range(6):
            writer.write(b"x")
            await asyncio.sleep(0.1)
        async with asyncio.timeout(15):
            head = await reader.readuntil(b"\r\n\r\n")
    assert b" 408 " in head.split(b"\r\n")[0]


async def test_credentials_are_not_kept_as_evidence(door: Running, engine: AsyncEngine) -> None:
    body = event_body()
    headers = signed(body, SECRET) | {"authorization": "Bearer s3cret", "cookie": "session=s3cret", "x-odd": "fine"}
    async with httpx.AsyncClient(base_url=door.url, trust_env=False) as client:
        assert (await client.post(DOOR, content=body, headers=headers)).status_code == 202
    async with begin(engine) as conn:
        query = text("SELECT headers, secret_name FROM receipts WHERE body = :body")
        kept = (await conn.execute(query, {"body": body})).one()
    assert "s3cret" not in json.dumps(kept.headers)
    assert kept.headers["x-odd"] == "fine"
    assert kept.secret_name == fingerprint(parse_secret(SECRET, name="").key)


async def test_a_thousand_requests_of_every_sort_leave_memory_flat(door: Running) -> None:
    async with door.client() as client:
        for _ in range(100):
            await post(client, event_body())
        before = rss(door)
        for n in range(1000):
            body = event_body() if n % 3 else b"\xff" * 100
            headers = signed(body, SECRET) if n % 2 else {}
            assert (await client.post(DOOR, content=body, headers=headers)).status_code in (202, 401)
    assert rss(door) - before < RSS_GROWTH_BYTES_MAX
