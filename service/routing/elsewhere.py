"""Whom to tell that a notifier refuses everything, or takes nothing: others than itself, whatever the routes say. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from service.routing import grouping
from service.routing.tree import Node, Routing

# The rule ids of such alerts, and the label that names the notifier.
NOTIFIER_REFUSED, NOTIFIER_STALLED = "notifier-refused", "notifier-stalled"
NAMED_BY = {NOTIFIER_REFUSED: "about", NOTIFIER_STALLED: "notifier"}


def destinations(
    routing: Routing, labels: Mapping[str, str], refusing: Collection[str] = ()
) -> dict[str, tuple[Node, ...]]:
    """Which notifiers hear of it, as `grouping.destinations` says; but that one takes no message is told to those that do:
    by the routes as far as they lead to such, else to all of them. One that is only slow may hear of itself as well: it
    gets there in the end. `refusing`: whoever else takes nothing now."""
    found = grouping.destinations(routing, labels)
    alertname = labels.get("alertname", "")
    if alertname not in NAMED_BY:
        return found
    deaf = {labels.get(NAMED_BY[alertname], ""), *refusing}
    hearing = {name: nodes for name, nodes in found.items() if name not in deaf}
    if not hearing:
        others = dict.fromkeys(name for names in routing.receivers.values() for name in names)
        hearing = {name: (routing.root,) for name in others if name not in deaf}
    return hearing if alertname == NOTIFIER_REFUSED else found | hearing
