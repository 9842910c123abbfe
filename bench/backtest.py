"""A backtest of a million events by every shipped rule: how long it takes, and whether its memory stays flat.

The control reads the same rows in the same two orders and judges nothing. Run as a process of its own it prints one JSON
line: `python -m bench.backtest judge|read`, the database from DATABASE_URL.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench.backlog import fill
from bench.figure import Figure
from bench.house import ROOT, BenchFailed, House, say
from service import backtest
from service.rules import RuleBook, Ruleset
from service.store.backlog import account_events, clock, events_in_time, snapshot

EVENTS, EVENTS_SHORT = 1_000_000, 20_000
ACCOUNTS_SHARE = 100  # events of each account
DAYS = 30
SECONDS_MAX, SECONDS_REACH = 600, 240.0
FLAT_MIB = 32.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def measure(house: House) -> list[Figure]:
    events = EVENTS_SHORT if house.short else EVENTS
    url = house.database("backtest")
    fill(url, events, accounts=events // ACCOUNTS_SHARE, seconds=DAYS * 86_400)
    read = run_alone(house, url, "read")
    say(f"reading alone took {read['seconds']:.1f} s")
    said = run_alone(house, url, "judge")
    say(f"the backtest took {said['seconds']:.1f} s, {said['mib_at_tenth']:.0f} to {said['mib_max']:.0f} MiB")
    if said["rows"] < events:
        raise BenchFailed(f"{events} events are stored, and the backtest read {said['rows']}")
    grown = said["mib_max"] - said["mib_at_tenth"]
    return [
        Figure(
            name=f"backtest of {events:,} events, all shipped rules",
            unit="s",
            ours=[said["seconds"]],
            control_name="reading the same rows and judging nothing",
            control=[read["seconds"]],
            ratio=said["seconds"] / read["seconds"],
            reach=f"below {SECONDS_REACH:.0f} s",
            met=said["seconds"] < SECONDS_REACH,
            digits=1,
            notes=[
                f"{DAYS} days, {events // ACCOUNTS_SHARE:,} accounts; {said['rows']:,} rows judged, account by account and"
                f" then by time; {said['episodes']:,} episodes; processor time {said['cpu']:.0f} s"
            ],
        ),
        Figure(
            name="its memory, from a tenth of the way on",
            unit="MiB",
            ours=[said["mib_max"]],
            control_name="at a tenth of the way",
            control=[said["mib_at_tenth"]],
            ratio=said["mib_max"] / said["mib_at_tenth"],
            reach=f"flat: at most {FLAT_MIB:.0f} MiB more",
            met=grown <= FLAT_MIB,
            notes=[f"the greatest of a look every {backtest.EVERY_ROWS:,} rows; at the end {said['mib_end']:.0f} MiB"],
        ),
    ]


def run_alone(house: House, url: str, what: str) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-m", "bench.backtest", what],
        env=house.environment(url),
        cwd=house.folder,
        stdout=subprocess.PIPE,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    if process.returncode != 0:
        raise BenchFailed(f"the backtest ({what}) ended with {process.returncode}")
    said: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return said


def rss() -> float:
    """MiB of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def judge(url: str, ruleset: Ruleset) -> dict[str, float]:
    seen: list[tuple[float, float]] = []

    def progress(done: int, of: int) -> None:
        seen.append((done / max(of, 1), rss()))

    began = time.monotonic()
    result = backtest.run(url, ruleset, lambda now: now - timedelta(days=DAYS), progress=progress)
    took = time.monotonic() - began
    first = next((number for number, (share, _) in enumerate(seen) if share >= 0.1), 0)
    return {
        "seconds": took,
        "rows": result.rows,
        "episodes": sum(tally.episodes for tally in result.tallies),
        "mib_at_tenth": seen[first][1],
        "mib_max": max(mib for _, mib in seen[first:]),
        "mib_end": rss(),
        "cpu": time.process_time(),
    }


def read(url: str, ruleset: Ruleset) -> dict[str, float]:
    """The same statements to their last row."""
    began = time.monotonic()
    with snapshot(url) as conn:
        told, grouped = ruleset.told, ruleset.grouped
        _, rows = account_events(conn, kinds=backtest.kinds_of(told), details=backtest.reads_details(told))
        deque(rows, maxlen=0)
        if grouped:
            floor = clock(conn) - timedelta(days=DAYS) - max(rule.lookback for rule in grouped)
            kinds, details = backtest.kinds_of(grouped), backtest.reads_details(grouped)
            _, rows = events_in_time(conn, kinds=kinds, since=floor, details=details)
            deque(rows, maxlen=0)
    return {"seconds": time.monotonic() - began, "mib_max": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("judge", "read"))
    arguments = parser.parse_args()
    book = RuleBook(ROOT / "alert_rules")
    if mistakes := book.reload():
        sys.exit(f"bench: {mistakes[0]}")
    run = judge if arguments.what == "judge" else read
    print(json.dumps(run(os.environ["DATABASE_URL"], book.ruleset)))


if __name__ == "__main__":
    main()
