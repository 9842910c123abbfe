"""Whom to tell that a notifier refuses everything: others than itself, whatever the routes say. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from service.routing import grouping
from service.routing.tree import Node, Routing

NOTIFIER_REFUSED = "notifier-refused"  # the rule id of that alert; its label `about` is the notifier


def destinations(
    routing: Routing, labels: Mapping[str, str], refusing: Collection[str] = ()
) -> dict[str, tuple[Node, ...]]:
    """Which notifiers hear of it, as `grouping.destinations` says; but that one refuses is told to those that do not: by
    the routes as far as they lead to such, else to all of them. `refusing`: whoever else takes nothing now."""
    found = grouping.destinations(routing, labels)
    if labels.get("alertname") != NOTIFIER_REFUSED:
        return found
    deaf = {labels.get("about", ""), *refusing}
    hearing = {name: nodes for name, nodes in found.items() if name not in deaf}
    if hearing:
        return hearing
    others = dict.fromkeys(name for names in routing.receivers.values() for name in names)
    return {name: (routing.root,) for name in others if name not in deaf}
