"""The rules in force, as the evaluator asks for them: by the kind of an event, by how they are judged. Immutable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import cached_property
from operator import itemgetter
from typing import Any

from service.rules.match import reader
from service.rules.model import ZERO, Rule
from service.rules.story import Step


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
        self._told_by_value: dict[str, ByValue] = {}
        self._grouped_by_value: dict[str, ByValue] = {}
        self._opening_by_value: dict[str, ByValue] = {}

    @cached_property
    def version(self) -> str:
        return hashlib.sha256("".join(rule.id + rule.version for rule in self.rules).encode()).hexdigest()[:16]

    @cached_property
    def lookback(self) -> timedelta:
        return max((rule.lookback for rule in self.told), default=ZERO)

    @cached_property
    def grouped_kinds(self) -> tuple[str, ...] | None:
        """The event kinds that concern any group but those of one account; None when it may be any."""
        found: set[str] = set()
        for rule in self.grouped:
            if rule.of_account:
                continue
            if rule.kinds is None:
                return None
            found |= rule.kinds
        return tuple(sorted(found))

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

    def told_for(self, step: Step) -> Sequence[Rule]:
        """Of `told_of` those that this event can meet by the values that they ask for, in the same order."""
        kind = step.event.kind
        found = self._told_by_value.get(kind)
        if found is None:
            found = self._told_by_value[kind] = ByValue(self.told_of(kind), kind)
        return found.of(step)

    def opening_for(self, step: Step) -> Sequence[Rule]:
        """Of `told_for` those for which this event may begin something: a window it fills, a deadline it moves. What it
        could only end is left out."""
        kind = step.event.kind
        found = self._opening_by_value.get(kind)
        if found is None:
            opening = tuple(rule for rule in self.told_of(kind) if rule.kind == "absence" or rule.can_match(kind))
            found = self._opening_by_value[kind] = ByValue(opening, kind)
        return found.of(step)

    def grouped_for(self, step: Step) -> Sequence[Rule]:
        kind = step.event.kind
        found = self._grouped_by_value.get(kind)
        if found is None:
            found = self._grouped_by_value[kind] = ByValue(self.grouped_of(kind), kind)
        return found.of(step)


class ByValue:
    """The rules of one event kind by a value that each asks for: a thousand rules, each of one provider, cost an event
    of that provider no more than its own do."""

    def __init__(self, rules: Sequence[Rule], kind: str) -> None:
        self._all = rules
        self._anyway: list[tuple[int, Rule]] = []  # with the rule's place, which is kept
        self._by: dict[str, dict[Any, list[tuple[int, Rule]]]] = {}
        for place, rule in enumerate(rules):
            pinned = pin(rule, kind)
            if pinned is None:
                self._anyway.append((place, rule))
                continue
            of_field = self._by.setdefault(pinned[0], {})
            for value in pinned[1]:
                of_field.setdefault(value, []).append((place, rule))
        self._fields = [(reader(name), values) for name, values in self._by.items()]

    def of(self, step: Step) -> Sequence[Rule]:
        if not self._fields:
            return self._all
        found = self._anyway
        for read, values in self._fields:
            if more := values.get(read(step)):
                found = found + more
        return [rule for _, rule in sorted(found, key=PLACE)]


PLACE = itemgetter(0)


def pin(rule: Rule, kind: str) -> tuple[str, frozenset[Any]] | None:
    """The field, of all that such an event needs for any role in this rule, that asks for the fewest values."""
    roles = [matcher for _, matcher in rule.matchers if matcher.kinds is None or kind in matcher.kinds]
    names = set.intersection(*(set(matcher.pins) for matcher in roles)) if roles else set()
    asked = [(name, frozenset[Any]().union(*(matcher.pins[name] for matcher in roles))) for name in sorted(names)]
    return min(asked, key=lambda of: len(of[1]), default=None)


def concerned(rules: Iterable[Rule], kind: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if rule.matchers and (rule.kinds is None or kind in rule.kinds))
