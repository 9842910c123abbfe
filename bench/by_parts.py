"""A run of figures in parts, each of which can be run alone: `python -m bench.NAME PART`. It prints and writes no file.

Exit status 0 when everything ran, whether or not a figure was met; 1 when something broke. AUTHWATCH_BENCH=short tries it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping

from bench import machine, results
from bench.figure import Figure
from bench.house import BenchFailed, House, open_house, say

Parts = Mapping[str, tuple[str, Callable[[House], list[Figure]]]]  # by name: what it is about, and how it is measured


def run(parts: Parts, seconds_max: int) -> None:
    how = os.environ.get("AUTHWATCH_BENCH", "")
    if how not in ("", "full", "short"):
        sys.exit(f'bench: AUTHWATCH_BENCH is "{how}"; it is full or short')
    short, began, alone = how == "short", time.monotonic(), sys.argv[1:]
    if unknown := [name for name in alone if name not in parts]:
        sys.exit(f"bench: there is no part {unknown[0]}; alone run {', '.join(parts)}")
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, stopped)
    signal.alarm(seconds_max)
    cores = machine.keep_to_two_cores()
    figures: list[Figure] = []
    try:
        with open_house(short) as house:
            if machine.file_system(house.folder) == "tmpfs":
                raise BenchFailed("the folder for temporary files is in memory: set TMPDIR to one on a disk")
            for name in alone or parts:
                title, measure = parts[name]
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
