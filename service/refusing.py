"""What this process knows of notifiers that refuse everything: nothing here is truth, the rows are."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from service.store.refusals import Refusal

LOOKS_MAX = 3


@dataclass(slots=True)
class Refusing:
    """`known` once the rows have been read in the life of this process."""

    known: bool = False
    _rows: dict[str, Refusal] = field(default_factory=dict)
    _probes: set[str] = field(default_factory=set)
    _own: dict[str, int] = field(default_factory=dict)  # refused here: looks until the rows must say so

    def learn(self, rows: Iterable[Refusal]) -> None:
        self.known = True
        self._rows = {row.destination: row for row in rows}
        self._probes |= {row.destination for row in self._rows.values() if row.may_probe}
        self._probes &= {row.destination for row in self._rows.values() if row.taken_at is None}
        # What was refused here may have been written after these were read.
        own = {name: left - 1 for name, left in self._own.items() if left > 1}
        self._own = {name: left for name, left in own.items() if name not in self._rows_standing()}

    def refused(self, destination: str) -> None:
        """Nothing more is tried there from this moment on, and not only once it is written."""
        self._own[destination] = LOOKS_MAX
        self._probes.discard(destination)

    def taken(self, destination: str) -> None:
        """A message was taken: all of them may be tried again."""
        self._own.pop(destination, None)
        self._probes.discard(destination)
        if (row := self._rows.get(destination)) is not None:
            self._rows[destination] = replace(row, taken_at=datetime.now(UTC))  # until the row says so itself

    @property
    def standing(self) -> frozenset[str]:
        return frozenset(self._rows_standing() | self._own.keys())

    def _rows_standing(self) -> set[str]:
        return {row.destination for row in self._rows.values() if row.taken_at is None}

    def room(self, destination: str, free: int) -> int:
        """How many messages may be tried there: none, or one now and then."""
        if destination not in self.standing:
            return free
        return min(1, free) if destination in self._probes else 0

    def probed(self, destinations: Collection[str]) -> None:
        """Those were given the one message that they may be tried with."""
        self._probes -= set(destinations)

    def unused(self, destination: str) -> None:
        """That message had nothing to say there: the next one may be tried."""
        if destination in self.standing:
            self._probes.add(destination)

    def waited(self, destination: str, created_at: datetime) -> bool:
        """Whether what was decided then, and is told only now, lay there while nothing was taken."""
        row = self._rows.get(destination)
        if row is None:
            return destination in self._own
        return row.taken_at is None or created_at <= row.taken_at
