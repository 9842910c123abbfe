"""What came of a log at its other end: what is missing, what came again, what came out of order. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Came:
    """`again`: how often something came that had come before. `disordered`: how often something came for the first time
    after a later one had. `strange`: what is not in the log at all."""

    missing: int
    again: int
    disordered: int
    strange: int

    @property
    def whole(self) -> bool:
        """All of it, in order, and perhaps some of it more than once."""
        return not (self.missing or self.disordered or self.strange)

    def said(self) -> str:
        return f"{self.missing:,} missing, {self.again:,} again, {self.disordered:,} out of order, {self.strange:,} unknown"


def judged(log: Sequence[int], came: Sequence[int]) -> Came:
    """`log`: its positions, ascending. `came`: positions in the order in which they came."""
    wanted = set(log)
    seen: set[int] = set()
    again = disordered = 0
    greatest: int | None = None
    for position in came:
        if position in seen:
            again += 1
            continue
        seen.add(position)
        if greatest is not None and position < greatest:
            disordered += 1
        greatest = position if greatest is None else max(greatest, position)
    return Came(len(wanted - seen), again, disordered, len(seen - wanted))


def writers_in_order(rows: Sequence[tuple[int, int]]) -> bool:
    """`rows`: in the log's order, whose each is and its number of its own, from 0: no writer's went astray or was turned
    round, whatever stood between them."""
    due: Counter[int] = Counter()
    for writer, number in rows:
        if number != due[writer]:
            return False
        due[writer] += 1
    return True
