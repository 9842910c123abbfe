"""A load of signed webhooks over loopback: N kept-alive connections, each sending its next request on its last answer,
or a steady rate. Requests are built before the clock starts, so that the generator takes little of the two cores.

Run as a process of its own, `python -m bench.load --help`; it prints one JSON line. The signing secret is in BENCH_SECRET.
It refuses any host but loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from typing import cast

import uvloop

from bench.figure import quantile
from service.signatures import Secret, parse_secret, sign

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SECONDS_MAX = 1200
REQUESTS_MAX = 2_000_000
ACCOUNTS = 1000
PATH = "/webhooks/scalekit"


def build(count: int, secret: Secret, host: str, path: str, accounts: int = ACCOUNTS) -> Iterator[bytes]:
    """Unique, signed token refreshes of about 450 bytes, over so many accounts."""
    at = int(time.time())
    run = uuid.uuid4().hex[:10]
    body = json.dumps(
        {
            "spec_version": "1",
            "id": "evt_%s",
            "type": "connected_account.token_refresh_succeeded",
            "object": "ConnectedAccount",
            "occurred_at": occurred(at),
            "environment_id": "env_58345499215204356",
            "data": {
                "authorization_type": "OAUTH",
                "connection_id": "conn_58345499215204357",
                "connection_name": "gmail",
                "id": "ca_%s",
                "identifier": "user-%s@example.com",
                "provider": "GMAIL",
                "status": "ACTIVE",
                "token_expires_at": "2026-12-31T00:00:00Z",
            },
        }
    )
    for number in range(count):
        account = number % accounts
        unique = f"{run}{number:08d}"
        raw = (body % (unique, account, account)).encode()
        yield request(host, path, "msg_" + unique, at, sign(secret, "msg_" + unique, at, raw), raw)


def occurred(at: float) -> str:
    """As the provider writes it, in nanoseconds; never later than it is."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1e9):09d}Z"


def request(host: str, path: str, message_id: str, at: int, signature: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"user-agent: bench\r\nwebhook-id: {message_id}\r\nwebhook-timestamp: {at}\r\nwebhook-signature: {signature}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One kept-alive connection. An answer is complete when its headers and announced body are there."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._sent_at = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class

    def send(self, raw: bytes, due_at: float | None = None) -> None:
        assert self.transport is not None
        self._sent_at = time.perf_counter() if due_at is None else due_at
        self.transport.write(raw)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            at = data.find(b"content-length: ")
            length = int(data[at + 16 : data.find(b"\r", at)]) if 0 <= at < end else 0
            if len(data) >= end + 4 + length:
                self._buffer = b""
                self._load.answered(self, data[9:12], time.perf_counter() - self._sent_at)
                return
        self._buffer = data

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self)


class Load:
    def __init__(self, requests: list[bytes], rate: float | None) -> None:
        self._requests = requests
        self._next = 0
        self._rate = rate
        # In turn, so that none is idle for as long as a server cuts idle connections.
        self._idle: deque[Connection] = deque()
        self._open = 0
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.lost_count = 0
        self.late = 0
        self.done = asyncio.Event()

    def start(self, connections: list[Connection]) -> None:
        self._open = len(connections)
        if self._rate is None:
            for connection in connections:
                self._go_on(connection)
        else:
            self._idle.extend(connections)
            asyncio.get_running_loop().create_task(self._pace(self._rate))

    async def _pace(self, rate: float) -> None:
        """Sends by the clock, whatever the answers. A request that finds no free connection is late, and its latency
        counts from when it was due: a server that stalls is not spared the requests that wait for it meanwhile."""
        began = time.perf_counter()
        late_until = 0  # requests before this number were due while there was no free connection
        while self._next < len(self._requests):
            due = int((time.perf_counter() - began) * rate) + 1
            while self._next < min(due, len(self._requests)):
                if not self._idle:
                    self.late += max(0, min(due, len(self._requests)) - max(late_until, self._next))
                    late_until = min(due, len(self._requests))
                    break
                due_at = began + self._next / rate if self._next < late_until else None
                self._send_next(self._idle.popleft(), due_at)
            await asyncio.sleep(0.001)

    def _send_next(self, connection: Connection, due_at: float | None = None) -> None:
        raw = self._requests[self._next]
        self._requests[self._next] = b""
        self._next += 1
        connection.send(raw, due_at)

    def _go_on(self, connection: Connection) -> None:
        if self._next < len(self._requests):
            self._send_next(connection)

    def answered(self, connection: Connection, status: bytes, seconds: float) -> None:
        self.statuses[status.decode()] += 1
        self.seconds.append(seconds)
        if len(self.seconds) + self.lost_count >= len(self._requests):
            self.done.set()
        elif self._rate is None:
            self._go_on(connection)
        else:
            self._idle.append(connection)

    def lost(self, _connection: Connection) -> None:
        self._open -= 1
        self.lost_count += 1
        if self._open == 0:
            self.done.set()


async def run(arguments: argparse.Namespace) -> dict[str, object]:
    secret = parse_secret(os.environ["BENCH_SECRET"], name="bench")
    host = f"{arguments.host}:{arguments.port}"
    requests = list(build(arguments.count, secret, host, arguments.path, arguments.accounts))
    load = Load(requests, arguments.rate)
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(lambda: Connection(load), arguments.host, arguments.port))[1]
        for _ in range(arguments.connections)
    ]
    if arguments.wait:
        print("built", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
    began, cpu_began = time.perf_counter(), time.process_time()
    load.start(connections)
    async with asyncio.timeout(SECONDS_MAX):
        await load.done.wait()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    for connection in connections:
        if connection.transport is not None:
            connection.transport.close()
    answered = len(load.seconds)
    if not answered:
        raise ConnectionError("no request was answered")
    return {
        "per_second": answered / took,
        "seconds": took,
        "statuses": dict(load.statuses),
        "p50_ms": quantile(load.seconds, 0.5) * 1000,
        "p99_ms": quantile(load.seconds, 0.99) * 1000,
        "max_ms": max(load.seconds) * 1000,
        "lost": load.lost_count,
        "late": load.late,
        "generator_cpu_us": cpu / answered * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", choices=LOOPBACK)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default=PATH)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--accounts", type=int, default=ACCOUNTS)
    parser.add_argument("--rate", type=float, help="requests a second; without it, as fast as answers come")
    parser.add_argument("--wait", action="store_true", help="print `built`, then wait for a line on stdin")
    arguments = parser.parse_args()
    if not 0 < arguments.count <= REQUESTS_MAX:
        parser.error(f"--count is 1 to {REQUESTS_MAX}")
    print(json.dumps(uvloop.run(run(arguments))))


if __name__ == "__main__":
    main()
