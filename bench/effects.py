"""`make bench-effects`: how fast open actions drain, and what a dead destination costs the others; each with its control.

How it runs, alone and in short, is told in bench/by_parts.py.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from bench import by_parts, effects_dead, effects_drain
from bench.figure import Figure
from bench.house import House

SECONDS_MAX = 1500
PARTS: dict[str, tuple[str, Callable[[House], list[Figure]]]] = {
    "drain": ("open actions drained by one worker", effects_drain.measure),
    "dead": ("the others beside a dead destination", effects_dead.measure),
}
if importlib.util.find_spec("bench.gate") is not None:
    PARTS["gate"] = ("the gate's answers and its stream", importlib.import_module("bench.gate").measure)


def main() -> None:
    by_parts.run(PARTS, SECONDS_MAX)


if __name__ == "__main__":
    main()
