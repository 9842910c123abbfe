"""A load of signed webhooks over loopback: N kept-alive connections, each sending its next request on its last answer,
or a steady rate. Requests are built before the clock starts, so that the generator takes little of the two cores.

Run as a process of its own, `python -m bench.load --help`; it prints one JSON line. The signing secret is in BENCH_SECRET.
It refuses any host but loopback.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import select
import socket
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator

from bench.figure import quantile
from service.signatures import Secret, parse_secret, sign

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SECONDS_MAX = 1200
REQUESTS_MAX = 2_000_000
ACCOUNTS = 1000
PATH = "/webhooks/scalekit"
POLL_SECONDS, WAIT_SECONDS = 0.001, 0.05
ANSWERS_AT_ONCE = 256
READ_BYTES = 65_536


def build(
    count: int, secret: Secret, host: str, path: str, accounts: int = ACCOUNTS, rate: float | None = None
) -> Iterator[bytes]:
    """Unique, signed token refreshes of about 450 bytes, over so many accounts, each a little later than the one before;
    at a rate each occurs when it is due, so that it is as old at its arrival as in life."""
    began = time.time()
    step_seconds = 1 / rate if rate else 1e-6
    run = uuid.uuid4().hex[:10]
    body = json.dumps(
        {
            "spec_version": "1",
            "id": "evt_%s",
            "type": "connected_account.token_refresh_succeeded",
            "object": "ConnectedAccount",
            "occurred_at": "%s",
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
        account, at = number % accounts, began + number * step_seconds
        unique = f"{run}{number:08d}"
        raw = (body % (unique, occurred(at), account, account)).encode()
        yield request(host, path, "msg_" + unique, int(at), sign(secret, "msg_" + unique, int(at), raw), raw)


def occurred(at: float) -> str:
    """As the provider writes it, in nanoseconds; never later than it is."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1e9):09d}Z"


def request(host: str, path: str, message_id: str, at: int, signature: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"user-agent: bench\r\nwebhook-id: {message_id}\r\nwebhook-timestamp: {at}\r\nwebhook-signature: {signature}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    """Every connection of the load in one loop over epoll: a framework's objects for each request would take from the
    two cores what is to be measured."""

    def __init__(self, requests: list[bytes], rate: float | None) -> None:
        self._requests = requests
        self._next = 0
        self._rate = rate
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        # In turn, so that none is idle for as long as a server cuts idle connections.
        self._idle: deque[int] = deque()
        self._sent_at: dict[int, float] = {}
        self._begun: dict[int, bytes] = {}  # answers that did not come whole
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.lost = 0
        self.late = 0

    def open(self, host: str, port: int, count: int) -> None:
        for _ in range(count):
            connection = socket.create_connection((host, port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            self._sockets[connection.fileno()] = connection
            self._poll.register(connection.fileno(), select.EPOLLIN)
            self._idle.append(connection.fileno())

    def run(self, seconds_max: float) -> float:
        """Until every request is answered or its connection lost, or the time is over; how many seconds it took."""
        began = time.perf_counter()
        everything = len(self._requests)
        late_until = 0  # requests before this number were due while there was no free connection
        while len(self.seconds) + self.lost < everything and time.perf_counter() - began < seconds_max:
            due = everything if self._rate is None else int((time.perf_counter() - began) * self._rate) + 1
            while self._next < min(due, everything) and self._idle:
                due_at = began + self._next / self._rate if self._rate and self._next < late_until else None
                self._send(self._idle.popleft(), due_at)
            if self._rate is not None and self._next < min(due, everything):
                self.late += max(0, min(due, everything) - max(late_until, self._next))
                late_until = min(due, everything)
            if not self._sockets:
                break
            waiting = self._next < everything and bool(self._idle)
            for descriptor, _ in self._poll.poll(POLL_SECONDS if waiting else WAIT_SECONDS, ANSWERS_AT_ONCE):
                self._hear(descriptor)
        return time.perf_counter() - began

    def close(self) -> None:
        for connection in self._sockets.values():
            connection.close()
        self._poll.close()

    def _send(self, descriptor: int, due_at: float | None) -> None:
        """A request that waited for a free connection counts from when it was due: a server that stalls is not spared
        those that wait for it meanwhile."""
        raw = self._requests[self._next]
        self._requests[self._next] = b""
        self._next += 1
        self._sent_at[descriptor] = time.perf_counter() if due_at is None else due_at
        try:
            if os.write(descriptor, raw) != len(raw):
                raise BrokenPipeError("a request did not fit into the socket's buffer")
        except OSError:
            self._lose(descriptor)

    def _hear(self, descriptor: int) -> None:
        """An answer is complete when its headers and announced body are there."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self._lose(descriptor)
            return
        if self._begun:
            data = self._begun.pop(descriptor, b"") + data
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            at = data.find(b"content-length: ")
            length = int(data[at + 16 : data.find(b"\r", at)]) if 0 <= at < end else 0
            if len(data) >= end + 4 + length:
                self.seconds.append(time.perf_counter() - self._sent_at.pop(descriptor))
                self.statuses[data[9:12].decode()] += 1
                self._idle.append(descriptor)
                return
        self._begun[descriptor] = data

    def _lose(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._sockets.pop(descriptor).close()
        if self._sent_at.pop(descriptor, None) is not None:
            self.lost += 1
        else:
            self._idle.remove(descriptor)


def run(arguments: argparse.Namespace) -> dict[str, object]:
    secret = parse_secret(os.environ["BENCH_SECRET"], name="bench")
    host = f"{arguments.host}:{arguments.port}"
    load = Load(
        list(build(arguments.count, secret, host, arguments.path, arguments.accounts, arguments.rate)),
        arguments.rate,
    )
    if arguments.wait:  # they are dated from now on
        print("built", flush=True)
        sys.stdin.readline()
    load.open(arguments.host, arguments.port, arguments.connections)
    gc.disable()
    cpu_began = time.process_time()
    took = load.run(SECONDS_MAX)
    cpu = time.process_time() - cpu_began
    load.close()
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
        "lost": load.lost,
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
    print(json.dumps(run(arguments)))


if __name__ == "__main__":
    main()
