"""`make bench-effects`: how fast open actions drain, and what a dead destination costs the others; each with its control.

Exit status 0 when everything ran, whether or not a figure was met; 1 when something broke. BENCH=short tries it in less
than a minute. `python -m bench.effects drain` measures that part alone. It writes no file.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable

from bench import effects_dead, effects_drain, machine, results
from bench.figure import Figure
from bench.house import BenchFailed, House, open_house, say

SECONDS_MAX = 1500
PARTS: dict[str, tuple[str, Callable[[House], list[Figure]]]] = {
    "drain": ("open actions drained by one worker", effects_drain.measure),
    "dead": ("the others beside a dead destination", effects_dead.measure),
}
if importlib.util.find_spec("bench.gate") is not None:
    PARTS["gate"] = ("the gate's answers and its stream", importlib.import_module("bench.gate").measure)


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
            for name in alone or PARTS:
                title, measure = PARTS[name]
                say(title)
                figures += measure(house)
            described = machine.describe(house, cores, [])
    except BenchFailed as error:
        print(results.table(figures))  # what was measured until then
        sys.exit(f"bench: {error}")
    print("\n" + "\n".join(f"{name}: {value}" for name, value in described) + "\n")
    print(results.table(figures))
    print("\n" + "\n".join(f"{figure.name}: {'; '.join(figure.notes)}." for figure in figures if figure.notes))
    print(f"\ntook {(time.monotonic() - began) / 60:.1f} minutes")
    if short:
        print("the short form's figures say that it runs, and no more")


def stopped(number: int, _frame: object) -> None:
    raise BenchFailed(f"stopped by {signal.Signals(number).name}")


if __name__ == "__main__":
    main()
