"""The way out that every plug-in uses: bounded, and telling apart what may have arrived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx
import pytest

from service.errors import DeliveryFailed
from service.outbound import RESPONSE_BYTES_MAX, RETRY_AFTER_SECONDS_MAX, open_client, post, retry_after_seconds
from tests.fakes import serve
from tests.fakes.hec import FakeHec, Scripted


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with open_client() as opened:
        yield opened


@pytest.fixture
def fake() -> FakeHec:
    return FakeHec("b5ca1d7e-THE-HEC-TOKEN-9f3a")


@pytest.fixture
async def url(fake: FakeHec) -> AsyncIterator[str]:
    async with serve(fake.app) as base:
        yield base


async def answering(raw: bytes, *, drip_seconds: float = 0.0) -> asyncio.Server:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for part in [raw[n : n + 1] for n in range(len(raw))] if drip_seconds else [raw]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(drip_seconds)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as it may
        finally:
            writer.close()

    return await asyncio.start_server(talk, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("raw", "drip_seconds", "code"),
    [
        (b"", 0.0, "disconnected"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", 0.0, "disconnected"),
        (b"not HTTP at all\r\n\r\n", 0.0, "disconnected"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n" + b"x" * 500, 0.05, "timeout"),
    ],
)
async def test_an_answer_that_never_completes_is_ambiguous(
    client: httpx.AsyncClient, raw: bytes, drip_seconds: float, code: str
) -> None:
    server = await answering(raw, drip_seconds=drip_seconds)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(DeliveryFailed) as caught:
            await post(client, f"http://127.0.0.1:{port}", content=b"x", headers={}, timeout_seconds=1)
    assert (caught.value.code, caught.value.permanent, caught.value.ambiguous) == (code, False, True)


async def test_a_huge_answer_is_read_no_further_than_its_bound(client: httpx.AsyncClient) -> None:
    server = await answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5000000\r\n\r\n" + b"x" * 5_000_000)
    async with server:
        port = server.sockets[0].getsockname()[1]
        response = await post(client, f"http://127.0.0.1:{port}", content=b"", headers={}, timeout_seconds=5)
    assert len(response.body) == RESPONSE_BYTES_MAX


async def test_an_excerpt_holds_nothing_that_was_sent_in_confidence(
    fake: FakeHec, url: str, client: httpx.AsyncClient
) -> None:
    target = f"{url}/services/collector/event?sig=QUERY-SECRET".replace("//", "//user:PASS-SECRET@")
    fake.always = Scripted(200, f"you sent {target} with opaque-value-123 and eyJhbGciOiJIUzI1NiJ9.e30.x".encode())
    response = await post(client, target, content=b"x", headers={"x-custom": "opaque-value-123"})
    assert "you sent" in response.excerpt
    for secret in ("QUERY-SECRET", "PASS-SECRET", "opaque-value-123", "eyJhbGci"):
        assert secret not in response.excerpt
        assert secret not in repr(response)


@pytest.mark.parametrize("bad", ["nothing", "ftp://h/x", "http://", "http://[::1"])
async def test_an_address_that_is_none_is_a_permanent_failure(client: httpx.AsyncClient, bad: str) -> None:
    with pytest.raises(DeliveryFailed) as caught:
        await post(client, bad, content=b"", headers={})
    assert (caught.value.code, caught.value.permanent) == ("request_invalid", True)


async def test_a_header_that_is_none_is_a_permanent_failure_and_is_not_quoted(
    client: httpx.AsyncClient, url: str
) -> None:
    for value in ("to\nken-SECRET", "tökenß\u2603-SECRET"):
        with pytest.raises(DeliveryFailed) as caught:
            await post(client, url, content=b"", headers={"authorization": value})
        assert (caught.value.code, caught.value.permanent) == ("request_invalid", True)
        assert "SECRET" not in str(caught.value)


def test_retry_after_is_never_negative_and_never_a_surprise() -> None:
    now = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
    cases: dict[str, float | None] = {
        "0": 0,
        "120": 120,
        "Fri, 20 Nov 2026 10:01:00 GMT": 60,
        "Fri, 20 Nov 2026 09:00:00 GMT": 0,
        "Fri, 20 Nov 2099 09:00:00 GMT": RETRY_AFTER_SECONDS_MAX,
        "-5": None,
        "1.5": None,
        "٣": None,
        "": None,
        "9" * 400: RETRY_AFTER_SECONDS_MAX,
    }
    assert {value: retry_after_seconds({"retry-after": value}, now) for value in cases} == cases
    assert retry_after_seconds({}, now) is None


async def test_the_environment_does_not_decide_where_our_tokens_go(
    monkeypatch: pytest.MonkeyPatch, url: str, fake: FakeHec
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with open_client() as client:
        answer = await post(client, f"{url}/services/collector/event", content=b"", headers={})
    assert answer.status == 401
