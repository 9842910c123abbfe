"""Figures of the front door: durably accepted events a second, and latency at half of that load."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from bench.parts import Bench, Part, cpu_seconds

COMMITS = 500


@dataclass
class Rates:
    """One entry for each round: requests a second of each, and their ratios to the no-op of the same round."""

    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, name: str, run: dict[str, Any]) -> None:
        self.runs.setdefault(name, []).append(run)

    def values(self, name: str, key: str) -> list[float]:
        return [float(run[key]) for run in self.runs[name]]

    def median(self, name: str, key: str) -> float:
        return statistics.median(self.values(name, key))

    def ratios(self, name: str, control: str) -> list[float]:
        mine, theirs = self.values(name, "per_second"), self.values(control, "per_second")
        return [one / other for one, other in zip(mine, theirs, strict=True)]


def counted(bench: Bench, database_url: str, part: Part, count: int, **load: Any) -> dict[str, Any]:
    """A load whose every 202 is then looked for in the database."""
    with psycopg.connect(database_url) as conn:
        before = conn.execute("SELECT count(*) FROM receipts").fetchone()
        run = bench.load(part, count, **load)
        after = conn.execute("SELECT count(*) FROM receipts").fetchone()
    assert before is not None
    assert after is not None
    accepted = run["statuses"].get("202", 0)
    if after[0] - before[0] != accepted or run["statuses"] != {"202": count}:
        raise RuntimeError(
            f"{accepted} were answered 202 of {count}, and {after[0] - before[0]} are there: {run['statuses']}"
        )
    return run


def throughput(bench: Bench, rounds: int, count: int, say: Callable[[str], None]) -> Rates:
    """No-op, ours, ours beside a worker that evaluates, and one commit for each request; in turn, round after round."""
    rates = Rates()
    database_url = bench.database("throughput")
    control, ours, plain = bench.control(), bench.receiver(database_url), bench.plain(database_url)
    for part in (control, ours, plain):
        bench.load(part, 500)  # warm
    for number in range(1, rounds + 1):
        rates.add("no-op", bench.load(control, count))
        rates.add("ours", counted(bench, database_url, ours, count))
        rates.add("plain", counted(bench, database_url, plain, max(500, count // 10)))
        worker = bench.worker(database_url)
        time.sleep(2)
        began = cpu_seconds(worker.process.pid)
        run = counted(bench, database_url, ours, count)
        run["worker_cpu_us"] = (cpu_seconds(worker.process.pid) - began) / count * 1e6
        rates.add("ours, worker beside it", run)
        bench.stop(worker)
        say(
            f"throughput, round {number} of {rounds}: "
            + ", ".join(f"{n} {r[-1]['per_second']:.0f}/s" for n, r in rates.runs.items())
        )
    bench.stop(control, ours, plain)
    return rates


def latency(bench: Bench, rounds: int, rate: float, seconds: float, say: Callable[[str], None]) -> Rates:
    """p99 of ours and of the no-op at the same steady rate, in turn; and of a lone one-row commit on that disk."""
    rates = Rates()
    database_url = bench.database("latency")
    control, ours = bench.control(), bench.receiver(database_url)
    count = int(rate * seconds)
    for number in range(1, rounds + 1):
        rates.add("no-op", bench.load(control, count, rate=rate))
        rates.add("ours", counted(bench, database_url, ours, count, rate=rate))
        rates.add("commit", lone_commits(database_url))
        say(
            f"latency at {rate:.0f}/s, round {number} of {rounds}: "
            + ", ".join(f"{n} p99 {r[-1]['p99_ms']:.1f} ms" for n, r in rates.runs.items())
        )
    bench.stop(control, ours)
    return rates


def lone_commits(database_url: str) -> dict[str, Any]:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS lone (n int)")
        seconds = []
        for number in range(COMMITS):
            began = time.perf_counter()
            conn.execute("INSERT INTO lone VALUES (%s)", (number,))
            seconds.append(time.perf_counter() - began)
    seconds.sort()
    return {
        "per_second": COMMITS / sum(seconds),
        "p50_ms": seconds[COMMITS // 2] * 1e3,
        "p99_ms": seconds[int(COMMITS * 0.99)] * 1e3,
    }
