"""How many examples, and how they are shown: `make properties` runs many and new ones, `make test` a few and the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

LONG = "AUTHWATCH_PROPERTIES" in os.environ
EXAMPLES = int(os.environ.get("AUTHWATCH_PROPERTIES", "60"))


def profile(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=not LONG,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Progress:
    """A line now and then, so that long work is seen to go on."""

    def __init__(self, name: str, *, every: int) -> None:
        self._name, self._every, self._done = name, every, 0

    def one_more(self) -> None:
        self._done += 1
        if LONG and self._done % self._every == 0:
            print(f"  {self._name}: {self._done} examples", flush=True)
