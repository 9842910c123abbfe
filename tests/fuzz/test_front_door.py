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
from collections.abc import Iterator, Sequence
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
from tests.make_requests import event_body, raw_headers, signed

EXAMPLES = int(os.environ.get("AUTHWATCH_FUZZ_EXAMPLES", "60"))
LONG = "AUTHWATCH_FUZZ_EXAMPLES" in os.environ
DOOR = "/webhooks/scalekit"
TAKEN = {200, 202}
DOCUMENTED = {400, 401, 404, 405, 408, 413} | TAKEN  # 503 too, but the database is there all the time
RAW_AT_ONCE = 8
RAW_SECONDS = 0.3
STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3})")
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
seen: Counter[int] = Counter()  # 0: no answer to raw bytes that end nowhere
accepted: dict[str, str] = {}  # the ids answered 202, and as what
duplicates: set[str] = set()  # the ids answered 200


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
        try:
            asyncio.run(running.ready())
            yield running
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


def ask(client: httpx.Client, body: bytes, headers: Sequence[tuple[bytes, bytes]] | dict[str, str]) -> int:
    """The status, of an answer that is one of the contract's; every yes is written down."""
    answer = client.post(DOOR, content=body, headers=headers)
    seen[answer.status_code] += 1
    assert answer.status_code in DOCUMENTED, answer.text
    said = answer.json()
    if answer.status_code == 202:
        assert said["status"] in ("accepted", "quarantined")
        assert said["id"] not in accepted
        accepted[said["id"]] = said["status"]
    elif answer.status_code == 200:
        assert said["status"] == "duplicate"
        duplicates.add(said["id"])
    else:
        assert answer.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "detail", "code"} <= set(said)
    return answer.status_code


def stored(database: psycopg.Connection[Any], body: bytes) -> int:
    row = database.execute("SELECT count(*) FROM receipts WHERE body = %s", (body,)).fetchone()
    assert row is not None
    return int(row[0])


def events(database: psycopg.Connection[Any]) -> int:
    """How many there are that came in by this door."""
    row = database.execute("SELECT count(*) FROM events WHERE origin IN ('webhook', 'probe')").fetchone()
    assert row is not None
    return int(row[0])


def still_good(client: httpx.Client) -> None:
    body = event_body()
    assert ask(client, body, signed(body, SECRET)) == 202


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
        lambda parts: " ".join(parts).strip()  # the client refuses to send space at an end
    ),
)
timestamps = st.one_of(
    st.integers(-400, 400).map(lambda off: str(int(time.time()) + off)),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", " ", "1e9", "0x10", "1_7", "+1", "-0", "9" * 400]),
    headers_text,
)


# Whatever else a request may bring: any byte that HTTP lets into a value, and names that occur more than once.
odd_bytes = st.binary(max_size=60).map(lambda raw: bytes(byte | 0x80 for byte in raw))
header_bytes = (
    headers_text.map(str.encode) | odd_bytes | st.tuples(headers_text.map(str.encode), odd_bytes).map(b"".join)
)
other_names = st.sampled_from(
    [
        b"authorization",
        b"cookie",
        b"content-type",
        b"user-agent",
        b"forwarded",
        b"origin",
        b"accept",
        b"x-odd",
        b"x-odd",
    ]
) | st.from_regex(r"x-[a-z0-9!#$%&'*+.^_`|~-]{1,30}", fullmatch=True).map(str.encode)
other_headers = st.lists(st.tuples(other_names, header_bytes), max_size=6)
signature_names = st.sampled_from(
    [f"{prefix}-{part}".encode() for prefix in ("webhook", "svix") for part in ("id", "timestamp", "signature")]
)


@FUZZ
@given(
    id_=header_bytes,
    timestamp=timestamps.map(lambda text: text.strip().encode()),
    signature=signatures.map(str.encode) | header_bytes,
    body=st.binary(max_size=300),
    prefix=st.sampled_from([b"webhook-", b"svix-"]),
    doubled=st.lists(st.tuples(signature_names, header_bytes), max_size=3),
    more=other_headers,
)
def test_what_is_not_signed_is_refused_and_not_kept(
    client: httpx.Client,
    database: psycopg.Connection[Any],
    id_: bytes,
    timestamp: bytes,
    signature: bytes,
    body: bytes,
    prefix: bytes,
    doubled: list[tuple[bytes, bytes]],
    more: list[tuple[bytes, bytes]],
) -> None:
    triple = [(prefix + b"id", id_), (prefix + b"timestamp", timestamp), (prefix + b"signature", signature)]
    body = b"unsigned" + body
    assert ask(client, body, [*more, *triple, *doubled]) == 401
    assert stored(database, body) == 0


@FUZZ
@given(
    body=st.binary(max_size=400) | any_json.map(lambda value: json.dumps(value).encode()),
    off=st.sampled_from([-300, -290, 0, 299, 300, -302, 302]),
    extra=st.lists(st.sampled_from(["v1,AAAA", "v1a,xyz", "v2,", "v1,"]), max_size=3),
    more=other_headers,
)
def test_what_is_signed_is_kept_once_byte_for_byte_whatever_it_is(
    client: httpx.Client,
    database: psycopg.Connection[Any],
    body: bytes,
    off: int,
    extra: list[str],
    more: list[tuple[bytes, bytes]],
) -> None:
    before = stored(database, body)
    headers = signed(body, SECRET, at=int(time.time()) + off)
    headers["webhook-signature"] = " ".join([*extra, headers["webhook-signature"]])
    order = [*more, *raw_headers(headers), *more]
    status = ask(client, body, order)
    if abs(off) < 300:
        assert (status, ask(client, body, order)) == (202, 200)
    elif abs(off) > 300:
        assert status == 401
    assert stored(database, body) - before == (1 if status == 202 else 0)


@FUZZ
@given(name=signature_names, value=header_bytes, first=st.booleans())
def test_a_doubled_signature_header_makes_even_the_genuine_one_worthless(
    client: httpx.Client, database: psycopg.Connection[Any], name: bytes, value: bytes, first: bool
) -> None:
    body = event_body()
    headers = raw_headers(signed(body, SECRET, prefix=name.partition(b"-")[0].decode()))
    assert ask(client, body, [(name, value), *headers] if first else [*headers, (name, value)]) == 401
    assert stored(database, body) == 0


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
    status = ask(client, body, signed(body, SECRET))
    assert status in TAKEN
    assert stored(database, body) == (1 if status == 202 else 0)


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
    assert (ask(client, changed, headers), stored(database, changed)) == (401, 0)
    other = signed(body, make_secret())
    assert not genuine(other, body)
    assert (ask(client, body, other), stored(database, body)) == (401, 0)


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


raw_requests = st.tuples(st.lists(raw_parts, max_size=8).map(b"".join), st.sampled_from([b"", b"\r\n"])).map(b"".join)


async def exchange(port: int, rest: bytes) -> bytes:
    """Everything that was answered: uvicorn drops what it had to say to somebody who hung up before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = bytearray()

    async def listen() -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(RAW_SECONDS):
                while chunk := await reader.read(4096):
                    said.extend(chunk)

    try:
        writer.write(b"POST /webhooks/scalekit HTTP/1.1\r\nhost: x\r\n" + rest)
        await listen()
        with contextlib.suppress(OSError):
            writer.write_eof()
        await listen()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return bytes(said)


def statuses(said: bytes) -> list[int]:
    return [int(status) for status in STATUS_LINE.findall(said)]


def test_the_raw_exchange_hears_every_answer(door: Running) -> None:
    one = b"content-length: 2\r\n\r\n{}"
    again = b"POST /webhooks/scalekit HTTP/1.1\r\nhost: x\r\n" + one
    assert statuses(asyncio.run(exchange(door.port, one + again))) == [401, 401]
    assert statuses(asyncio.run(exchange(door.port, b"no header at all\r\n\r\n"))) == [400]


@settings(FUZZ, max_examples=max(10, EXAMPLES // RAW_AT_ONCE))
@given(requests=st.lists(raw_requests, min_size=1, max_size=RAW_AT_ONCE))
def test_raw_bytes_never_stop_it_and_none_of_them_is_kept(
    door: Running, client: httpx.Client, database: psycopg.Connection[Any], requests: list[bytes]
) -> None:
    async def all_at_once() -> list[bytes]:
        return await asyncio.gather(*(exchange(door.port, rest) for rest in requests))

    before = events(database)
    for said in asyncio.run(all_at_once()):
        heard = statuses(said)
        seen.update(heard or [0])
        assert not said or STATUS_LINE.match(said), said
        assert set(heard) <= (DOCUMENTED - TAKEN) | {100}, said
    assert events(database) == before
    still_good(client)


def test_at_the_end_every_yes_is_a_row_and_every_row_was_a_yes(database: psycopg.Connection[Any]) -> None:
    rows = database.execute(
        """SELECT e.id::text, CASE e.kind WHEN 'quarantine' THEN 'quarantined' ELSE 'accepted' END, count(r.*)
        FROM events AS e LEFT JOIN receipts AS r ON r.event_row_id = e.id
        WHERE e.origin IN ('webhook', 'probe') GROUP BY e.id, e.kind"""
    ).fetchall()
    assert {id_: word for id_, word, _ in rows} == accepted
    assert {receipts for _, _, receipts in rows} <= {1}
    assert duplicates <= accepted.keys()
    print(f"\nfuzz: {sum(seen.values())} requests, {dict(sorted(seen.items()))}, {len(rows)} rows")
