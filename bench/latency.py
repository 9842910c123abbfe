"""p99 latency at half of our own measured load, beside the no-op's at the same rate and a lone COMMIT's on this disk.

The generator sends by the clock over 64 connections, whatever the answers; a request that found no free connection
counts from when it was due. Ours and the no-op alternate; after each pair a lone connection commits one row at a time.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import psycopg

from bench.figure import Figure, quantile, ratio_of
from bench.house import House, say
from bench.throughput import Front

TIMES_MAX = 3.0
SECONDS, SECONDS_SHORT = 4, 1
ROUNDS, ROUNDS_SHORT = 5, 2
COMMITS, COMMITS_SHORT = 500, 100


def measure(house: House, front: Front, per_second: float) -> tuple[Figure, list[float]]:
    """The figure, and the median milliseconds of each round's lone COMMITs, which describe the disk."""
    rate = per_second / 2
    rounds = ROUNDS_SHORT if house.short else ROUNDS
    count = int(rate * (SECONDS_SHORT if house.short else SECONDS))
    said: dict[str, list[dict[str, Any]]] = {"control": [], "ours": []}
    commits: list[list[float]] = []
    for number in range(rounds):
        for server in (front.control, front.ours):
            said[server.kind].append(house.load(server, count, rate=rate))
            front.taken += count if server is front.ours else 0
        commits.append(lone_commits(front.database_url, COMMITS_SHORT if house.short else COMMITS))
        say(
            f"round {number + 1}/{rounds} at {rate:,.0f}/s: p99 ours {said['ours'][-1]['p99_ms']:.1f} ms, "
            f"control {said['control'][-1]['p99_ms']:.1f} ms, lone commit {quantile(commits[-1], 0.99):.1f} ms"
        )
    ours = [one["p99_ms"] for one in said["ours"]]
    control = [one["p99_ms"] for one in said["control"]]
    commit = [quantile(one, 0.99) for one in commits]
    bounds = [TIMES_MAX * its + its_commit for its, its_commit in zip(control, commit, strict=True)]
    met = median(mine / bound for mine, bound in zip(ours, bounds, strict=True)) <= 1
    late = sum(one["late"] for one in said["ours"])
    figure = Figure(
        name=f"p99 latency at {rate:,.0f} events/s, half of our load",
        unit="ms",
        ours=ours,
        control_name="the no-op at the same rate",
        control=control,
        ratio=ratio_of(ours, control),
        reach=f"at most 3 times it plus a lone COMMIT's p99 ({median(commit):.1f} ms): {median(bounds):.1f} ms",
        met=met,
        digits=1,
        notes=[
            f"p50 {median(one['p50_ms'] for one in said['ours']):.1f} ms, the no-op's {median(one['p50_ms'] for one in said['control']):.1f} ms",
            f"requests of ours that had to wait for a free connection: {late}",
        ],
    )
    return figure, [median(one) for one in commits]


def lone_commits(database_url: str, count: int) -> list[float]:
    """Milliseconds of one-row INSERTs that commit themselves, one connection, nothing else running."""
    milliseconds = []
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS bench_commit (n integer)")
        for number in range(count):
            began = time.perf_counter()
            conn.execute("INSERT INTO bench_commit VALUES (%s)", (number,))
            milliseconds.append((time.perf_counter() - began) * 1000)
    return milliseconds
