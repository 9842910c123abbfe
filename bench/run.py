"""`make bench`: every figure with its control in the same run; a table, and bench/RESULTS.md.

Exit status 0 when everything ran, whether or not a figure was met; 1 when something broke. BENCH=short tries it in
about a minute and writes no file. `python -m bench.run backlog` measures that part alone and writes none either.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from bench import (
    alerting,
    backlog,
    backtest,
    deadlines,
    latency,
    machine,
    memory,
    pause,
    read_back,
    reports,
    results,
    throughput,
)
from bench.figure import Figure
from bench.house import BenchFailed, House, open_house, rss_mib, say

SECONDS_MAX = 2700
PARTS: dict[str, tuple[str, Callable[[House], list[Figure]]]] = {
    "alerting": ("event, recovery and deadline to message; many accounts at once", alerting.measure),
    "deadlines": ("armed deadlines of which none is due", deadlines.measure),
    "backlog": ("a backlog read by one worker, by two, with 1,000 rules", backlog.measure),
    "backtest": ("a backtest of the stored log", backtest.measure),
    "reports": ("reported tool calls; the metrics over 30 days", reports.measure),
}


def main() -> None:
    how = os.environ.get("AUTHWATCH_BENCH", "")
    if how not in ("", "full", "short"):
        sys.exit(f'bench: AUTHWATCH_BENCH is "{how}"; it is full or short')
    short, began, alone = how == "short", time.monotonic(), sys.argv[1:]
    if unknown := [name for name in alone if name not in PARTS]:
        sys.exit(f"bench: there is no part {unknown[0]}; alone run {', '.join(PARTS)}")
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, stopped)
    signal.alarm(SECONDS_MAX)
    cores = machine.keep_to_two_cores()
    figures: list[Figure] = []
    try:
        with open_house(short) as house:
            if machine.file_system(house.folder) == "tmpfs":
                raise BenchFailed("the folder for temporary files is in memory: set TMPDIR to one on a disk")
            commits_ms: list[float] = []
            if not alone:
                commits_ms = receiving(house, figures)
            for name in alone or PARTS:
                title, measure = PARTS[name]
                say(title)
                figures += measure(house)
            described = machine.describe(house, cores, commits_ms) if not alone else []
    except BenchFailed as error:
        print(results.table(figures))  # what was measured until then
        sys.exit(f"bench: {error}")
    took = time.monotonic() - began
    print("\n" + "\n".join(f"{name}: {value}" for name, value in described) + "\n")
    print(results.table(figures))
    print(f"\ntook {took / 60:.1f} minutes")
    if alone:
        print("a part alone writes no file")
    elif short:
        print("the short form writes no file; its figures say that it runs, and no more")
    else:
        results.write(figures, described, took)
        print(f"written: {results.FILE}")


def receiving(house: House, figures: list[Figure]) -> list[float]:
    """The front door, the pause and reading back; the medians of a lone COMMIT, in milliseconds."""
    front = throughput.open_front(house)
    start_mib = rss_mib(front.ours.process.pid)
    # First, so that the rest is measured on tables, log files and a process that have had a life before.
    say("a million events, and the receiver's memory")
    memory_figures = [memory.after_a_million(house, front, start_mib)]
    say("accepted events a second")
    speed, per_second = throughput.measure(house, front)
    figures += speed
    say("latency at half of that load")
    latency_figure, commits_ms = latency.measure(house, front, per_second)
    figures.append(latency_figure)
    memory_figures.append(memory.deep_queue(house, front, start_mib))
    front.stop(house)
    say("receipt to workflow paused")
    figures += pause.measure(house)
    say("events read back by account")
    figures.append(read_back.measure(house))
    figures += memory_figures
    return commits_ms


def stopped(number: int, _frame: object) -> None:
    raise BenchFailed(f"stopped by {signal.Signals(number).name}")


if __name__ == "__main__":
    main()
