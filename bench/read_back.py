"""Events read back by account: p99 of `GET /v1/events?account_id=`, 5 million stored against 50,000.

Two databases, 100 events of each account, spread over the day partitions so that an account's events lie far apart, as
they would have come. Filled on the server, the indexes built afterwards on both, then ANALYZE. A receiver on each;
random accounts, one connection, the small and the large in turns.
"""

from __future__ import annotations

import random
import shutil
import time

import psycopg
import uvloop

from bench.ask import Asking
from bench.figure import Figure, quantile, ratio_of, shown
from bench.house import BenchFailed, House, Server, say

EVENTS_EACH = 100
ACCOUNTS_SMALL, ACCOUNTS_LARGE, ACCOUNTS_LARGE_SHORT = 500, 50_000, 1000
ROUNDS, ROUNDS_SHORT = 5, 2
REQUESTS, REQUESTS_SHORT, WARM_REQUESTS = 200, 25, 50
RATIO_MAX = 1.5
CHUNK = 250_000
FILL_SECONDS_MAX = 120  # then it is fewer, and said; the indexes take about as long again
FREE_BYTES_MIN = 8 * 1024**3
INSERT = """
INSERT INTO events (
    id, source, origin, event_id, type, kind, account_id, connection_id, provider, identifier, environment_id, status,
    account_status, occurred_at, received_at, attempted_at, lag_seconds, clock_suspect, details)
SELECT gen_random_uuid(), 'scalekit', 'webhook', 'evt_' || n, 'connected_account.token_refresh_succeeded',
    'token.refresh_succeeded', 'ca_' || n %% %(accounts)s, 'conn_1', 'GMAIL', 'user-' || n %% %(accounts)s || '@example.com',
    'env_1', 'ACTIVE', 'ACTIVE', at, at + interval '1 second', at, 1, false,
    '{"token_expires_at": "2026-12-31T00:00:00Z"}'
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n,
    LATERAL (SELECT %(begin)s::timestamptz + n * (interval '1 day' * %(days)s / %(all)s) AS at) AS t
"""
ACCOUNTS = """
INSERT INTO accounts (source, environment_id, account_id, connection_id, provider, status, first_seen_at)
SELECT 'scalekit', 'env_1', 'ca_' || n, 'conn_1', 'GMAIL', 'ACTIVE', now()
FROM generate_series(0, %(accounts)s - 1) AS n
"""


def measure(house: House) -> Figure:
    wanted = ACCOUNTS_LARGE_SHORT if house.short else ACCOUNTS_LARGE
    if shutil.disk_usage(house.folder).free < FREE_BYTES_MIN:
        wanted = ACCOUNTS_LARGE_SHORT
        say("there is little room on this disk: fewer events")
    servers: dict[str, Server] = {}
    stored: dict[str, int] = {}
    for name, accounts in (("small", ACCOUNTS_SMALL), ("large", wanted)):
        url = house.database(f"read_{name}")
        stored[name] = fill(url, accounts)
        servers[name] = house.server("ours", url, f"ours-{name}")
    taken = uvloop.run(read_all(house, servers, {"small": ACCOUNTS_SMALL, "large": wanted}))
    for server in servers.values():
        house.stop(server.process)
    p99 = {name: [quantile(one, 0.99) for one in rounds] for name, rounds in taken.items()}
    p50 = {name: [quantile(one, 0.5) for one in rounds] for name, rounds in taken.items()}
    ratio = ratio_of(p99["large"], p99["small"])
    notes = [f"p50 {shown(p50['large'], 1)} ms against {shown(p50['small'], 1)} ms"]
    if stored["large"] < ACCOUNTS_LARGE * EVENTS_EACH:
        notes.append(f"fewer than 5 million were stored: {stored['large']:,}")
    return Figure(
        name=f"events read back by account, p99, {stored['large']:,} stored",
        unit="ms",
        ours=p99["large"],
        control_name=f"{stored['small']:,} stored",
        control=p99["small"],
        ratio=ratio,
        reach=f"at most {RATIO_MAX} times it",
        met=ratio <= RATIO_MAX and stored["large"] == wanted * EVENTS_EACH,
        digits=1,
        notes=notes,
    )


def fill(url: str, accounts: int) -> int:
    """How many events are stored then."""
    everything = accounts * EVENTS_EACH
    began = time.monotonic()
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        conn.execute("SET maintenance_work_mem = '256MB'")
        conn.execute("SET max_parallel_maintenance_workers = 0")  # shared memory is small in containers
        found = conn.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'events' AND indexname LIKE 'ix_%'"
        ).fetchall()
        for name, _ in found:
            conn.execute(f"DROP INDEX {name}".encode())
        days = conn.execute(
            "SELECT (now() AT TIME ZONE 'UTC')::date - 1, count(*) FROM pg_inherits "
            "WHERE inhparent = 'events'::regclass"
        ).fetchone()
        assert days is not None
        conn.execute(ACCOUNTS, {"accounts": accounts})
        done = 0
        while done < everything and time.monotonic() - began < FILL_SECONDS_MAX:
            last = min(done + CHUNK, everything)
            values = {"accounts": accounts, "first": done, "last": last - 1, "all": everything}
            conn.execute(INSERT, {**values, "begin": days[0], "days": days[1] - 0.01})
            done = last
            if done % (4 * CHUNK) == 0:
                say(f"{done:,} of {everything:,} events stored after {time.monotonic() - began:.0f} s")
        for name, definition in found:
            # Of a partitioned table's index Postgres says ON ONLY, which would leave the partitions without one.
            conn.execute(definition.replace(" ON ONLY ", " ON ").encode())
            if everything > 4 * CHUNK:
                say(f"{name} built after {time.monotonic() - began:.0f} s")
        conn.execute("VACUUM ANALYZE events")
        conn.execute("VACUUM ANALYZE accounts")
        conn.execute("CHECKPOINT") if can_checkpoint(conn) else None
    say(f"{done:,} events of {accounts:,} accounts stored in {time.monotonic() - began:.0f} s")
    return done


def can_checkpoint(conn: psycopg.Connection[tuple[object, ...]]) -> bool:
    row = conn.execute("SELECT pg_has_role('pg_checkpoint', 'MEMBER')").fetchone()
    return bool(row and row[0])


async def read_all(house: House, servers: dict[str, Server], accounts: dict[str, int]) -> dict[str, list[list[float]]]:
    """Milliseconds of every request, by database and round."""
    chance = random.Random(20_261_124)
    rounds, requests = (ROUNDS_SHORT, REQUESTS_SHORT) if house.short else (ROUNDS, REQUESTS)
    taken: dict[str, list[list[float]]] = {name: [] for name in servers}
    for name, server in servers.items():
        await read(server, house.token, [chance.randrange(accounts[name]) for _ in range(WARM_REQUESTS)])
    for number in range(rounds):
        for name, server in servers.items():
            asked = [chance.randrange(accounts[name]) for _ in range(requests)]
            taken[name].append(await read(server, house.token, asked))
        say(
            f"round {number + 1}/{rounds}: p99 "
            + ", ".join(f"{name} {quantile(of[-1], 0.99):.1f} ms" for name, of in taken.items())
        )
    return taken


async def read(server: Server, token: str, accounts: list[int]) -> list[float]:
    asking = Asking(server.port, token)
    await asking.open()
    milliseconds = []
    for account in accounts:
        began = time.perf_counter()
        status, said = await asking.ask("GET", f"/v1/events?account_id=ca_{account}&limit=100")
        milliseconds.append((time.perf_counter() - began) * 1000)
        if status != 200 or not 0 < len(said["items"]) <= EVENTS_EACH:
            raise BenchFailed(f"reading the events of ca_{account} was answered {status}")
    asking.close()
    return milliseconds
