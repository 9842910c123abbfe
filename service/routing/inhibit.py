"""Inhibition: while one alert stands, others that only follow from it are not told. Alertmanager's semantics. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.routing.matchers import Labels, Matcher, all_match


@dataclass(frozen=True, slots=True)
class Inhibitor:
    source: tuple[Matcher, ...]
    target: tuple[Matcher, ...]
    equal: tuple[str, ...] = ()

    def may_concern(self, labels: Labels) -> bool:
        return all_match(self.target, labels)

    def inhibits(self, standing: Labels, labels: Labels) -> bool:
        """Whether an alert that stands keeps the other quiet. A label that neither has is equal.

        As Alertmanager: one that is both a source and a target is not kept quiet by another that is both, itself
        included, or the two would keep each other quiet.
        """
        if not all_match(self.target, labels) or not all_match(self.source, standing):
            return False
        if all_match(self.source, labels) and all_match(self.target, standing):
            return False
        return all(standing.get(name, "") == labels.get(name, "") for name in self.equal)


def inhibited_by(
    inhibitors: tuple[Inhibitor, ...], alert_id: str, labels: Labels, standing: Mapping[str, Labels]
) -> tuple[str, ...]:
    """The ids of the alerts that keep this one quiet. `standing`: the labels of all that are not resolved, by id."""
    concerned = [inhibitor for inhibitor in inhibitors if inhibitor.may_concern(labels)]
    if not concerned:
        return ()
    return tuple(
        other
        for other, theirs in standing.items()
        if other != alert_id and any(inhibitor.inhibits(theirs, labels) for inhibitor in concerned)
    )
