"""Whatever arrives at the front door of a real receiver: a documented answer, nothing unsigned kept, nothing signed lost.

AUTHWATCH_FUZZ_EXAMPLES makes it longer (`make fuzz`); the short form is the same every time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import standardwebhooks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.signatures import make_secret
from tests.conftest import ADMIN_TOKEN, SECRET, Servers, drop_database, with_database
from tests.end_to_end.running import RULES, Running
from tests.make_requests import event_body, signed

EXAMPLES = int(os.environ.get("AUTHWATCH_FUZZ_EXAMPLES", "60"))
LONG = "AUTHWATCH_FUZZ_EXAMPLES" in os.environ
DOOR = "/webhooks/scalekit"
DOCUMENTED = {200, 202, 400, 401, 404, 405, 408, 413, 503}
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
seen: Counter[int] = Counter()


@pytest.fixture(scope="module")
def door(servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    name = f"authwatch_fuzz_{os.getpid()}"
    folder: Path = tmp_path_factory.mktemp("fuzz")
    (folder / "rules").mkdir()
    (folder / "rules" / "all.yml").write_text(RULES)
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
        running = Running(
            folder,
            {
                "DATABASE_URL": with_database(servers.database_url, name),
                "SCALEKIT_WEBHOOK_SECRET": SECRET,
                "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
                "AUTHWATCH_RULES": str(folder / "rules"),
            },
        )
        running.start("serve")
        began = time.monotonic()
        try:
            asyncio.run(running.ready())
            yield running
            print(
                f"\nfuzz: {sum(seen.values())} requests, {dict(sorted(seen.items()))}, {time.monotonic() - began:.0f} s"
            )
        finally:
            running.stop()
            drop_database(conn, name)


@pytest.fixture(scope="module")
def client(door: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=door.url, trust_env=False, timeout=20) as opened:
        yield opened


@pytest.fixture(scope="module")
def database(door: Running) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(door.environment["DATABASE_URL"], autocommit=True) as conn:
        yield conn


def genuine(headers: dict[str, str], body: bytes) -> bool:
    """The specification's own library as referee; its undocumented exceptions mean no."""
    try:
        standardwebhooks.Webhook(SECRET).verify(body, headers, json_parse=False)
    except Exception:  # noqa: BLE001 - whatever the library makes of it, it is not a yes
        return False
    return True


def judged(answer: httpx.Response) -> None:
    seen[answer.status_code] += 1
    assert answer.status_code in DOCUMENTED, answer.text
    said = answer.json()
    if answer.status_code in (200, 202):
        assert said["status"] in ("accepted", "duplicate", "quarantined")
    else:
        assert answer.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "detail", "code"} <= set(said)


def stored(database: psycopg.Connection[Any], body: bytes) -> int:
    row = database.execute("SELECT count(*) FROM receipts WHERE body = %s", (body,)).fetchone()
    assert row is not None
    return int(row[0])


def still_good(client: httpx.Client) -> None:
    body = event_body()
    assert client.post(DOOR, content=body, headers=signed(body, SECRET)).status_code == 202


any_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
headers_text = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60)
b64 = st.binary(max_size=70).map(lambda raw: base64.b64encode(raw).decode())
signatures = st.one_of(
    headers_text,
    b64.map(lambda text: f"v1,{text}"),
    st.lists(b64.map(lambda text: f"v1,{text}") | b64.map(lambda text: f"v1a,{text}") | headers_text, max_size=20).map(
        " ".join
    ),
)
timestamps = st.one_of(
    st.integers(-400, 400).map(lambda off: str(int(time.time()) + off)),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", " ", "1e9", "0x10", "1_7", "+1", "-0", "9" * 400]),
    headers_text,
)


@FUZZ
@given(id_=headers_text, timestamp=timestamps, signature=signatures, body=st.binary(max_size=300), svix=st.booleans())
def test_what_is_not_signed_is_refused_and_not_kept(
    client: httpx.Client,
    database: psycopg.Connection[Any],
    id_: str,
    timestamp: str,
    signature: str,
    body: bytes,
    svix: bool,
) -> None:
    prefix = "svix-" if svix else "webhook-"
    headers = {f"{prefix}id": id_, f"{prefix}timestamp": timestamp.strip(), f"{prefix}signature": signature}
    body = b"unsigned" + body
    answer = client.post(DOOR, content=body, headers=headers)
    judged(answer)
    assert answer.status_code == 401
    assert stored(database, body) == 0


@FUZZ
@given(
    body=st.binary(max_size=400) | any_json.map(lambda value: json.dumps(value).encode()),
    off=st.sampled_from([-300, -299, 0, 299, 300, -302, 302]),
    extra=st.lists(st.sampled_from(["v1,AAAA", "v1a,xyz", "v2,", "v1,"]), max_size=3),
)
def test_what_is_signed_is_kept_once_byte_for_byte_whatever_it_is(
    client: httpx.Client, database: psycopg.Connection[Any], body: bytes, off: int, extra: list[str]
) -> None:
    before = stored(database, body)
    headers = signed(body, SECRET, at=int(time.time()) + off)
    headers["webhook-signature"] = " ".join([*extra, headers["webhook-signature"]])
    answer = client.post(DOOR, content=body, headers=headers)
    judged(answer)
    if abs(off) < 300:
        assert answer.status_code == 202
    elif abs(off) > 300:
        assert answer.status_code == 401
    assert stored(database, body) - before == (1 if answer.status_code == 202 else 0)


fields = st.sampled_from(
    ["spec_version", "id", "type", "object", "occurred_at", "environment_id", "organization_id", "data"]
)
data_fields = st.sampled_from(
    ["id", "connection_id", "identifier", "provider", "status", "old_status", "token_expires_at"]
)


@FUZZ
@given(field=fields, value=any_json, inner=data_fields, inner_value=any_json)
def test_any_field_may_hold_anything(
    client: httpx.Client, database: psycopg.Connection[Any], field: str, value: Any, inner: str, inner_value: Any
) -> None:
    event = json.loads(event_body("connected_account.status_updated"))
    event["data"][inner] = inner_value
    event[field] = value
    body = json.dumps(event).encode()
    answer = client.post(DOOR, content=body, headers=signed(body, SECRET))
    judged(answer)
    assert answer.status_code in (200, 202)
    assert stored(database, body) == (1 if answer.status_code == 202 else 0)


@FUZZ
@given(seed=st.integers(0, 2**32), flip=st.integers(0, 10_000))
def test_one_changed_bit_is_a_forgery_and_the_referee_agrees(
    client: httpx.Client, database: psycopg.Connection[Any], seed: int, flip: int
) -> None:
    body = event_body(data={"id": f"ca_{seed}"})
    headers = signed(body, SECRET)
    bits = bytearray(body)
    bits[flip % len(bits)] ^= 1 << (flip % 8)
    changed = bytes(bits)
    assert genuine(headers, body)
    assert not genuine(headers, changed)
    answer = client.post(DOOR, content=changed, headers=headers)
    judged(answer)
    assert (answer.status_code, stored(database, changed)) == (401, 0)
    other = signed(body, make_secret())
    assert not genuine(other, body)
    assert client.post(DOOR, content=body, headers=other).status_code == 401


raw_parts = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"content-length: 10\r\n",
            b"content-length: -1\r\n",
            b"content-length: 99999999999999999999\r\n",
            b"content-length: 1\r\ncontent-length: 2\r\n",
            b"transfer-encoding: chunked\r\n",
            b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
            b"transfer-encoding: identity\r\n",
            b"expect: 100-continue\r\n",
            b"connection: close\r\n",
            b"webhook-id: a\r\nwebhook-id: b\r\n",
            b"webhook-signature: v1,\xff\xfe\r\n",
            b"\r\n",
            b"5\r\nhello\r\n0\r\n\r\n",
            b"ffffffffffffffff\r\n",
        ]
    ),
)


@FUZZ
@given(parts=st.lists(raw_parts, max_size=8), finish=st.booleans())
def test_raw_bytes_never_stop_it(door: Running, client: httpx.Client, parts: list[bytes], finish: bool) -> None:
    async def send() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        said = b""
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(
                b"POST /webhooks/scalekit HTTP/1.1\r\nhost: x\r\n" + b"".join(parts) + (b"\r\n" if finish else b"")
            )
            writer.write_eof()
            async with asyncio.timeout(2):
                said = await reader.read(4096)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return said

    said = asyncio.run(send())
    status = re.match(rb"HTTP/1\.1 (\d{3})", said)
    if status is not None:
        assert int(status[1]) in DOCUMENTED | {100}, said
    still_good(client)
