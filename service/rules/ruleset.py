"""The rules in force, as the evaluator asks for them: by the kind of an event, by how they are judged. Immutable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import timedelta
from functools import cached_property

from service.rules.model import ZERO, Rule


class Ruleset:
    """`told`: judged from one account's story. `grouped`: from the samples kept for a group. `gauges`: from what we measure."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        rules = tuple(rules)
        self.known_ids = frozenset(rule.id for rule in rules)  # those of disabled rules too: there somebody said no
        self.rules = tuple(rule for rule in rules if rule.enabled is not False)
        self.by_id = {rule.id: rule for rule in self.rules}
        self.told = tuple(rule for rule in self.rules if rule.told)
        self.grouped = tuple(rule for rule in self.rules if not rule.told and rule.kind != "gauge")
        self.gauges = tuple(rule for rule in self.rules if rule.kind == "gauge")
        self.states = tuple(rule for rule in self.told if rule.kind == "state")
        self.absences = tuple(rule for rule in self.told if rule.kind == "absence")
        # With nothing open, only these may be about to open by time alone.
        self.pending = tuple(rule for rule in self.told if rule.for_ and rule.kind != "state")
        self._told_by_kind: dict[str, tuple[Rule, ...]] = {}
        self._grouped_by_kind: dict[str, tuple[Rule, ...]] = {}

    @cached_property
    def version(self) -> str:
        return hashlib.sha256("".join(rule.id + rule.version for rule in self.rules).encode()).hexdigest()[:16]

    @cached_property
    def lookback(self) -> timedelta:
        return max((rule.lookback for rule in self.told), default=ZERO)

    def told_of(self, kind: str) -> tuple[Rule, ...]:
        """The rules whose samples an event of this kind may be, and no others: most events concern few rules."""
        found = self._told_by_kind.get(kind)
        if found is None:
            found = self._told_by_kind[kind] = concerned(self.told, kind)
        return found

    def grouped_of(self, kind: str) -> tuple[Rule, ...]:
        found = self._grouped_by_kind.get(kind)
        if found is None:
            found = self._grouped_by_kind[kind] = concerned(self.grouped, kind)
        return found


def concerned(rules: Iterable[Rule], kind: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if rule.matchers and (rule.kinds is None or kind in rule.kinds))
