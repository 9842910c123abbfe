"""Which sources the credentials of the provider's API can recover for: said by the recovering story with its beat, read by
the watch, perhaps in another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RECOVER = "recover"  # the part that beats


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """A source in neither set is served by no API. `stuck`: why it has not been decided for long, by source."""

    served: frozenset[str] = frozenset()
    undecided: frozenset[str] = frozenset()
    stuck: Mapping[str, str] = field(default_factory=dict)

    def write(self) -> dict[str, Any]:
        return {"served": sorted(self.served), "undecided": sorted(self.undecided), "stuck": dict(self.stuck)}

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Reach:
        return cls(served=frozenset(said["served"]), undecided=frozenset(said["undecided"]), stuck=dict(said["stuck"]))
