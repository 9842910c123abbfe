"""`GET /v1/siem/events?limit=1000` asked by one client, page after page: items a second from a receiver held to one core.

The bare handler takes its turn in each round. Postgres and the client share the other core. NDJSON is asked for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import psycopg

from bench import backlog, cores
from bench.figure import Figure, ratio_of, shown
from bench.house import BenchFailed, House, Server, cpu_seconds, say
from bench.siem_feed import PATH
from bench.siem_fetch import LINES, Poller
from bench.siem_judge import judged
from bench.siem_push import Taken, keep_family

ROUNDS, ROUNDS_SHORT = 3, 1
ITEMS, ITEMS_SHORT = 30_000, 3_000
LIMIT = 1000
PER_SECOND_MIN = 5_000
PATHS = {"ours": f"/v1/siem/events?limit={LIMIT}", "feed": f"{PATH}?limit={LIMIT}"}


@dataclass(slots=True)
class Fetched:
    """Of one turn."""

    seconds: float
    cpu_us: float
    bytes_each: float
    kind: str


def measure(house: House) -> list[Figure]:
    rounds, items = (ROUNDS_SHORT, ITEMS_SHORT) if house.short else (ROUNDS, ITEMS)
    url = house.database("siem_pull")
    backlog.fill(url, items, accounts=max(items // 20, 1), seconds=3600)
    with psycopg.connect(url, autocommit=True) as conn:
        positions = [row[0] for row in conn.execute("SELECT position FROM events ORDER BY position")]
    servers = {kind: house.server(kind, url, f"{kind}-siem") for kind in PATHS}
    core, postgres = cores.pair(), house.postgres.process
    taken = {kind: Taken() for kind in PATHS}
    last = None
    if core:
        for server in servers.values():
            cores.keep(server.process.pid, core[0])
    with cores.kept(core[1] if core else None):
        for kind, server in servers.items():  # each has its connections and its plans by then
            fetch(house, server, PATHS[kind], positions[: 2 * LIMIT])
        if core and postgres is not None:
            keep_family(postgres.pid, core[1])
        for number in range(rounds):
            for kind, server in servers.items():
                one = fetch(house, server, PATHS[kind], positions)
                taken[kind].per_second.append(items / one.seconds)
                taken[kind].cpu_us.append(one.cpu_us)
                last = one if kind == "ours" else last
            say(
                f"round {number + 1}/{rounds}: "
                + "; ".join(
                    f"{kind} {each.per_second[-1]:,.0f} items/s, {each.cpu_us[-1]:.0f} us each"
                    for kind, each in taken.items()
                )
            )
    if core and postgres is not None:
        keep_family(postgres.pid, *core)
    for server in servers.values():
        house.stop(server.process)
    assert last is not None
    return [figure(taken["ours"], taken["feed"], items, last, held=core is not None)]


def fetch(house: House, server: Server, path: str, positions: list[int]) -> Fetched:
    """From the beginning, at least so many. Raises BenchFailed unless they came once and in order."""
    poller = Poller(server.port, house.token, path)
    cpu, began = cpu_seconds(server.process.pid), time.monotonic()
    while len(poller.positions) < len(positions):
        if not poller.page():
            raise BenchFailed(f"the feed ended after {len(poller.positions):,} of {len(positions):,} items")
    seconds, cpu = time.monotonic() - began, cpu_seconds(server.process.pid) - cpu
    poller.close()
    came = judged(positions, poller.positions)
    if not came.whole or came.again:
        raise BenchFailed(f"of {len(positions):,} items fetched: {came.said()}")
    return Fetched(seconds, cpu / len(positions) * 1e6, poller.bytes / len(positions), poller.kind)


def figure(ours: Taken, bare: Taken, items: int, last: Fetched, *, held: bool) -> Figure:
    form = "NDJSON" if last.kind == LINES else "JSON, since it has no NDJSON"
    core = "one core" if held else "no core of its own: this system cannot hold it to one"
    return Figure(
        name=f"items fetched by one client, {form}",
        unit="items/s",
        ours=ours.per_second,
        control_name="bare handler: one SELECT, a line of JSON each",
        control=bare.per_second,
        ratio=ratio_of(ours.per_second, bare.per_second),
        reach=f"at least {PER_SECOND_MIN:,} on one core",
        met=median(ours.per_second) >= PER_SECOND_MIN,
        notes=[
            f"{items:,} items a round in pages of {LIMIT}, OCSF, {last.bytes_each:,.0f} bytes each, no gzip asked for; held to"
            f" {core}, Postgres and the client on the other; all came once and in order",
            f"processor time an item: {shown(ours.cpu_us, 0)} us, the bare handler {shown(bare.cpu_us, 0)} us",
        ],
    )
