"""Events read back by account, from a large log and from a small one; and what a receiver's memory does."""

from __future__ import annotations

import http.client
import json
import random
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg

from bench.load import build
from bench.parts import TOKEN, Bench, Part
from service.signatures import parse_secret
from service.store.log import LOG_LOCK

EVENTS_EACH = 100
CHUNK = 250_000
FILL = """
INSERT INTO events (id, source, origin, event_id, type, kind, account_id, connection_id, provider, identifier,
    environment_id, status, account_status, occurred_at, received_at, lag_seconds, clock_suspect)
SELECT gen_random_uuid(), 'scalekit', 'webhook', 'evt_' || n, 'connected_account.token_refresh_succeeded',
    'token.refresh_succeeded', 'ca_' || (n %% %(accounts)s), 'conn_1', 'GMAIL', 'user-' || (n %% %(accounts)s), 'env_1', 'ACTIVE',
    'ACTIVE', at, at, 0.1, false
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n,
    LATERAL (SELECT date_trunc('day', now()) - interval '1 day' + (n %% 691200) * interval '1 second') AS s (at)
"""
ACCOUNTS = """
INSERT INTO accounts (source, environment_id, account_id, connection_id, provider, status, first_seen_at)
SELECT 'scalekit', 'env_1', 'ca_' || n, 'conn_1', 'GMAIL', 'ACTIVE', now() FROM generate_series(0, %s - 1) AS n
"""


def fill(database_url: str, events: int, say: Callable[[str], None]) -> int:
    """The same hundred events for each account, over the eight days there are partitions for; how many accounts."""
    accounts = max(1, events // EVENTS_EACH)
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(ACCOUNTS, (accounts,))
        for first in range(0, events, CHUNK):
            conn.execute(FILL, {"first": first, "last": min(first + CHUNK, events) - 1, "accounts": accounts})
            if (first // CHUNK) % 4 == 3:
                say(f"filling: {first + CHUNK} of {events} events")
        conn.execute("VACUUM ANALYZE events")
    return accounts


def read_back(
    bench: Bench, sizes: Sequence[int], rounds: int, requests: int, say: Callable[[str], None]
) -> list[list[float]]:
    """p99 seconds of `GET /v1/events?account_id=` for each size, one for each round; the sizes take turns."""
    places: list[tuple[Part, int]] = []
    for size in sizes:
        database_url = bench.database(f"reading_{size}")
        accounts = fill(database_url, size, say)
        places.append((bench.receiver(database_url), accounts))
    p99s: list[list[float]] = [[] for _ in sizes]
    for number in range(rounds + 1):
        for place, (part, accounts) in enumerate(places):
            seconds = sorted(ask(part, accounts, requests))
            if number:  # the first is to warm up
                p99s[place].append(seconds[int(requests * 0.99)])
    say("reading: " + ", ".join(f"{size} events p99 {p99s[n][-1] * 1e3:.1f} ms" for n, size in enumerate(sizes)))
    bench.stop(*(part for part, _ in places))
    return p99s


def ask(part: Part, accounts: int, requests: int) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", part.port, timeout=20)
    seconds = []
    for _ in range(requests):
        account = f"ca_{random.randrange(accounts)}"
        began = time.perf_counter()
        connection.request(
            "GET", f"/v1/events?account_id={account}&limit=100", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        answer = json.loads(connection.getresponse().read())
        seconds.append(time.perf_counter() - began)
        if len(answer["items"]) != EVENTS_EACH:
            raise RuntimeError(f"{account} has {len(answer['items'])} events and should have {EVENTS_EACH}")
    connection.close()
    return seconds


def memory(bench: Bench, events: int, deep: int, say: Callable[[str], None]) -> dict[str, float]:
    """RSS in MiB: at the start, after so many events, with a queue so deep, and after it."""
    database_url = bench.database("memory")
    ours = bench.receiver(database_url)
    bench.load(ours, 2000)
    seen = {"start_mib": ours.rss_mib()}
    sent = 0
    while sent < events:
        run = bench.load(ours, min(100_000, events - sent))
        sent += sum(run["statuses"].values())
        say(f"memory: {sent} of {events} events, {ours.rss_mib():.0f} MiB")
    seen["events"] = sent
    seen["after_events_mib"] = ours.rss_mib()
    seen |= deep_queue(ours, bench.secret, database_url, deep)
    say(f"memory: with {deep} waiting {seen['deep_mib']:.0f} MiB")
    bench.stop(ours)
    return seen


def deep_queue(part: Part, secret: str, database_url: str, deep: int) -> dict[str, float]:
    """`deep` connections with one event each, while somebody else holds the log's lock."""
    requests = list(build(deep, parse_secret(secret, name="bench"), "127.0.0.1", "/webhooks/scalekit"))
    connections = []
    with psycopg.connect(database_url) as holder:
        for _ in requests:
            connections.append(socket.create_connection(("127.0.0.1", part.port), timeout=30))
        holder.execute(f"SELECT pg_advisory_xact_lock({LOG_LOCK})".encode())
        for connection, raw in zip(connections, requests, strict=True):
            connection.sendall(raw)
        time.sleep(1.5)
        deepest = part.rss_mib()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda connection: connection.recv(4096)[9:12], connections))
    for connection in connections:
        connection.close()
    time.sleep(1)
    return {
        "deep_mib": deepest,
        "after_deep_mib": part.rss_mib(),
        "deep_202": float(answers.count(b"202")),
        "deep_503": float(answers.count(b"503")),
    }
