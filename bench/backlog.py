"""A backlog of 200,000 events read by real worker processes: one, two beside each other, one with 1,000 rules, and a
bare loop over the same rows.

Each has a database of its own, all copies of one that was filled on the server, and they take turns by chunks. Between
its turns nobody runs: whoever measures holds the evaluator's row lock, starts the workers, and lets go of it. The clock
runs from the first step of the positions to the first look that finds the chunk read; of the shards' positions, which
each go their own way, the mean says how many events have been read.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from bench.figure import Figure, ratio_of, shown
from bench.house import ROOT, BenchFailed, House, cpu_seconds, say
from service.store.shards import OF_ACCOUNTS

ROUNDS, ROUNDS_SHORT = 3, 1
EVENTS, EVENTS_SHORT = 200_000, 5_000
TWO_SHARE = 0.5  # of a chunk that two workers get: enough to tell what they cost
ACCOUNTS, CONNECTIONS, MINUTES = 10_000, 40, 40
RULES, PROVIDERS = 1000, 100
PAGE_EVENTS = 2000
LOOK_EVERY_SECONDS = 0.02
CHUNK_SECONDS = 16.0  # then it is as many events as were read, and the figure says so
WAIT_SECONDS_MAX = 60.0
PER_SECOND_MIN, RULES_SHARE_MIN, SECOND_COSTS_MAX = 5_000, 0.6, 1.15
KINDS = (
    "token.refresh_succeeded",
    "token.refresh_failed",
    "account.updated",
    "account.disconnected",
    "account.reauth_required",
    "account.authorized",
)
FILL = """
INSERT INTO events (
    id, source, origin, event_id, type, kind, account_id, connection_id, provider, identifier, environment_id, status,
    account_status, occurred_at, received_at, attempted_at, lag_seconds, clock_suspect, details)
SELECT gen_random_uuid(), 'scalekit', 'webhook', 'evt_' || n, 'connected_account.' || kind, kind, 'ca_' || account,
    'conn_' || account %% %(connections)s, 'PROVIDER_' || account %% %(providers)s, 'user-' || account || '@example.com',
    'env_1', status, CASE WHEN kind <> 'token.refresh_failed' THEN status END, at, at + interval '1 second', at, 1, false,
    jsonb_build_object('token_expires_at', to_char(at + interval '1 hour', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
FROM (
    SELECT n, at, account,
        CASE WHEN r < 0.900 THEN 'token.refresh_succeeded' WHEN r < 0.940 THEN 'account.updated'
            WHEN r < 0.970 THEN 'token.refresh_failed' WHEN r < 0.980 THEN 'account.disconnected'
            WHEN r < 0.985 THEN 'account.reauth_required' ELSE 'account.authorized' END AS kind,
        CASE WHEN r >= 0.970 AND r < 0.980 THEN 'DISCONNECTED' WHEN r >= 0.980 AND r < 0.985 THEN 'EXPIRED'
            ELSE 'ACTIVE' END AS status
    FROM (
        SELECT n, now() - make_interval(secs => %(seconds)s) + n * make_interval(secs => %(seconds)s::float8 / %(events)s) AS at,
            (random() * (%(accounts)s - 1))::int AS account, random() AS r
        FROM generate_series(1, %(events)s) AS n) AS drawn) AS e
ORDER BY n
"""


@dataclass(slots=True)
class Way:
    """One way of reading the backlog, and what its chunks took."""

    name: str
    workers: int
    rules: Path
    share: float = 1.0
    url: str = ""
    read: int = 0
    per_second: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)  # an event, all worker processes together
    backends_us: list[float] = field(default_factory=list)


def measure(house: House) -> list[Figure]:
    rounds, events = (ROUNDS_SHORT, EVENTS_SHORT) if house.short else (ROUNDS, EVENTS)
    filled = house.database("backlog")
    fill(filled, events, accounts=max(events // 20, 1), seconds=MINUTES * 60)
    many = thousand_rules(house.folder / "thousand-rules")
    ways = [
        Way("one", 1, ROOT / "alert_rules"),
        Way("two", 2, ROOT / "alert_rules", TWO_SHARE),
        Way("rules", 1, many),
        Way("bare", 0, ROOT / "alert_rules"),
    ]
    for way in ways:
        way.url = copy(house, filled, f"backlog_{way.name}")
    for number in range(rounds):
        for way in ways:
            one_chunk(house, way, int(events / rounds * way.share))
        say(
            f"backlog {number + 1}/{rounds}: "
            + "; ".join(f"{way.name} {way.per_second[-1]:,.0f}/s, {way.cpu_us[-1]:.0f} us" for way in ways)
        )
    one, two, rules, bare = ways
    return figures(one, two, rules, bare, wanted=events)


def fill(url: str, events: int, *, accounts: int, seconds: float) -> None:
    """The mix of a quiet day: nine of ten are refreshes that went well, and 1 in 65 moves an account out of ACTIVE."""
    began = time.monotonic()
    values = {"events": events, "accounts": accounts, "connections": CONNECTIONS, "seconds": seconds}
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        days = int(seconds // 86_400) + 2
        conn.execute("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - %s::int, %s)", (days, days + 3))
        conn.execute("SELECT setseed(0.4)")
        conn.execute(FILL, {**values, "providers": PROVIDERS})
        conn.execute("VACUUM ANALYZE")
    say(f"{events:,} events of {accounts:,} accounts stored in {time.monotonic() - began:.0f} s")


def copy(house: House, url: str, name: str) -> str:
    """A database with the same content; nobody may be connected to the first."""
    base, _, source = url.rpartition("/")
    with psycopg.connect(house.postgres.url, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}" TEMPLATE "{source}"'.encode())
    return f"{base}/{name}"


def thousand_rules(folder: Path) -> Path:
    """The shipped ones and 1,000 more: of each of 100 providers ten, which its every event meets and which hardly ever
    fire."""
    shutil.copytree(ROOT / "alert_rules", folder)
    each = RULES // PROVIDERS
    for provider in range(PROVIDERS):
        lines = ["version: 1", "rules:"]
        for number in range(each):
            lines += [
                f"- id: provider-{provider}-busy-{number}",
                "  severity: P4",
                "  count:",
                f"    match: {{kind: [{', '.join(KINDS)}], provider: PROVIDER_{provider}}}",
                f"    within: {number + 1}m",
                f"    gte: {100 + number}",
                "  group_by: [account_id]",
                '  annotations: {summary: "An account is told of very often"}',
            ]
        (folder / f"provider-{provider}.yml").write_text("\n".join(lines) + "\n")
    return folder


def one_chunk(house: House, way: Way, events: int) -> None:
    """Reads on by so many events, or a little more."""
    if way.workers == 0:
        bare_chunk(house, way, events)
        return
    environment = {"AUTHWATCH_RULES": str(way.rules)}
    with evaluator_held(way.url) as holding:
        workers = [
            house.worker(way.url, f"worker-{way.name}-{len(way.per_second)}-{number}", environment)
            for number in range(way.workers)
        ]
        settled(way.url, way.rules)
        holding.rollback()
        with psycopg.connect(way.url, autocommit=True) as conn:
            began, first, cpu, backends = until(house, conn, workers, way.read + 1, WAIT_SECONDS_MAX)
            if first <= way.read:
                raise BenchFailed(f"{way.name}: the evaluator read nothing in {WAIT_SECONDS_MAX:.0f} s")
            wanted = min(way.read + events, last_of(conn))
            ended, last, cpu_end, backends_end = until(house, conn, workers, wanted, CHUNK_SECONDS * way.share)
        # Those who evaluate share the row all the time, and nobody else would get it before they rest.
        for worker in workers:
            house.stop(worker)
        take(holding)
    read = last - first
    if read <= 0:
        raise BenchFailed(f"{way.name}: no second step of the evaluator was seen in {WAIT_SECONDS_MAX:.0f} s")
    way.read = last
    way.per_second.append(read / (ended - began))
    way.cpu_us.append((cpu_end - cpu) / read * 1e6)
    way.backends_us.append((backends_end - backends) / read * 1e6)


@contextmanager
def evaluator_held(url: str) -> Iterator[psycopg.Connection[Any]]:
    """While its row is ours, no worker evaluates. In its middle it may be let go of, by a rollback."""
    with psycopg.connect(url) as conn:
        take(conn)
        yield conn
        conn.rollback()


def take(conn: psycopg.Connection[Any]) -> None:
    conn.execute("SELECT position FROM readers WHERE name = 'evaluator' FOR UPDATE")


def settled(url: str, rules: Path) -> None:
    """Waits until the rules in force are those of the folder: a worker puts them there soon after its start."""
    wanted = sum(path.read_text().count("\n- id: ") for path in rules.glob("*.yml"))
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    with psycopg.connect(url, autocommit=True) as conn:
        while time.monotonic() < deadline:
            row = conn.execute("SELECT count(*) FROM rule_versions").fetchone()
            if row is not None and row[0] >= wanted:
                return
            time.sleep(LOOK_EVERY_SECONDS)
    raise BenchFailed(f"the {wanted} rules of {rules.name} are not in force after {WAIT_SECONDS_MAX:.0f} s")


def last_of(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT max(position) FROM events WHERE origin = 'webhook'").fetchone()
    return int(row[0]) if row and row[0] is not None else 0


STANDS = """
    SELECT avg(greatest(s.position, e.position)) FROM readers s, readers e
    WHERE e.name = 'evaluator' AND s.name = ANY(%s)
"""


def until(
    house: House, conn: psycopg.Connection[Any], workers: list[Any], wanted: int, seconds: float
) -> tuple[float, int, float, float]:
    """(when, the position, processor time of the workers and of Postgres) at `wanted` or beyond; after so many seconds
    wherever it then is, if it has moved, and after `WAIT_SECONDS_MAX` in any case."""
    began, first = time.monotonic(), None
    postgres = house.postgres.process
    assert postgres is not None
    while True:
        row = conn.execute(STANDS, (list(OF_ACCOUNTS),)).fetchone()
        position, now = int(row[0]) if row and row[0] is not None else 0, time.monotonic()
        first = position if first is None else first
        moved = position > first
        if position >= wanted or now - began >= (seconds if moved else WAIT_SECONDS_MAX):
            cpu = sum(cpu_seconds(worker.pid) for worker in workers)
            return now, position, cpu, cpu_seconds(postgres.pid, family=True)
        time.sleep(LOOK_EVERY_SECONDS)


def bare_chunk(house: House, way: Way, events: int) -> None:
    """The least an evaluator could do: read a page, write a row for each event, NOTIFY, and commit."""
    postgres = house.postgres.process
    assert postgres is not None
    with psycopg.connect(way.url) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS bare (position bigint PRIMARY KEY, account_id text, kind text)")
        conn.commit()
        cpu, backends = time.process_time(), cpu_seconds(postgres.pid, family=True)
        began, first = time.monotonic(), way.read
        while way.read - first < events:
            page = conn.execute(
                "SELECT position, account_id, kind, status, occurred_at, details FROM events"
                " WHERE position > %s ORDER BY position LIMIT %s",
                (way.read, PAGE_EVENTS),
            ).fetchall()
            if not page:
                break
            with conn.cursor() as cursor, cursor.copy("COPY bare FROM STDIN") as rows:
                for row in page:
                    rows.write_row(row[:3])
            conn.execute("SELECT pg_notify('bare', %s)", (str(page[-1][0]),))
            conn.commit()
            way.read = page[-1][0]
        read = way.read - first
        way.per_second.append(read / (time.monotonic() - began))
        way.cpu_us.append((time.process_time() - cpu) / read * 1e6)
    way.backends_us.append((cpu_seconds(postgres.pid, family=True) - backends) / read * 1e6)


def figures(one: Way, two: Way, rules: Way, bare: Way, *, wanted: int) -> list[Figure]:
    def costs(way: Way) -> str:
        return (
            f"processor time an event: workers {median(way.cpu_us):.0f} us, Postgres {median(way.backends_us):.0f} us"
        )

    mix = (
        f"filled on the server: {ACCOUNTS:,} accounts of {CONNECTIONS} connections over {MINUTES} minutes; 90 % refreshes "
        "that went well, 4 % updates, 3 % failed refreshes, 1 % disconnections, 0.5 % re-authorizations, 1.5 % authorized"
    )
    share, second = ratio_of(rules.per_second, one.per_second), ratio_of(two.cpu_us, one.cpu_us)
    speed = median(one.per_second)
    return [
        Figure(
            name=f"backlog of {wanted:,} events, shipped rules, one worker process",
            unit="events/s",
            ours=one.per_second,
            control_name="bare loop: read a page, COPY a row each, NOTIFY, COMMIT",
            control=bare.per_second,
            ratio=ratio_of(one.per_second, bare.per_second),
            reach=f"at least {PER_SECOND_MIN:,}",
            met=speed >= PER_SECOND_MIN and one.read >= wanted,
            notes=[mix, *unread(one, wanted), costs(one), f"the bare loop: {costs(bare)}"],
        ),
        Figure(
            name="the same, processor time an event with a second worker beside it",
            unit="us",
            ours=two.cpu_us,
            control_name="one worker",
            control=one.cpu_us,
            ratio=second,
            reach=f"at most {SECOND_COSTS_MAX} times it",
            met=second <= SECOND_COSTS_MAX,
            notes=[
                f"both processes together, {shown(two.per_second, 0)} events/s; Postgres: {median(two.backends_us):.0f}"
                f" us against {median(one.backends_us):.0f} us"
            ],
        ),
        Figure(
            name=f"the same, {RULES:,} rules more, {RULES // PROVIDERS} of which each event meets",
            unit="events/s",
            ours=rules.per_second,
            control_name="shipped rules alone",
            control=one.per_second,
            ratio=share,
            reach=f"at least {RULES_SHARE_MIN} of it",
            met=share >= RULES_SHARE_MIN,
            notes=[
                f"count of six kinds of one of {PROVIDERS} providers, by account, in 1 to 10 minutes; {costs(rules)}"
            ],
        ),
    ]


def unread(way: Way, wanted: int) -> list[str]:
    if way.read >= wanted:
        return []
    return [f"only {way.read:,} of them were read in {len(way.per_second)} chunks of {CHUNK_SECONDS:.0f} s"]
