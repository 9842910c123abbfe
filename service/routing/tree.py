"""The route tree in force: which receivers an alert with these labels goes to, first match first. Pure.

As Alertmanager: children are asked in order, the first that matches takes the alert unless it says `continue`, and a node
none of whose children match takes it itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from service.routing.inhibit import Inhibitor
from service.routing.intervals import Clock
from service.routing.matchers import Labels, Matcher, all_match
from service.routing.model import ROUTE_DEPTH_MAX, ROUTES_MAX, DeclaredSilence, Escalate, Receiver, Route, RoutingKeys

GROUP_WAIT = timedelta(0)
GROUP_INTERVAL = timedelta(seconds=30)  # contract.md: heard within 30 s
REPEAT_INTERVAL = timedelta(hours=4)  # Alertmanager's own
# Of who names no group_by: what breaks together because one connector broke is one message.
GROUP_BY = ("rule_id", "source", "environment_id", "connection_id")
EVERYBODY = "(every notifier)"


class BadRouting(ValueError):
    """Sections that are each well-formed and do not fit together. `path` leads to the part that is wrong."""

    def __init__(self, path: Sequence[str | int], message: str) -> None:
        super().__init__(message)
        self.path = tuple(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A route with everything inherited. `path`: where it is in the tree, as `route.routes.0`."""

    path: str
    receiver: str
    matchers: tuple[Matcher, ...] = ()
    group_by: tuple[str, ...] | None = None  # None: GROUP_BY, and each alert without a connection by itself
    group_wait: timedelta = GROUP_WAIT
    group_interval: timedelta = GROUP_INTERVAL
    repeat_interval: timedelta | None = REPEAT_INTERVAL  # None: never
    mute: tuple[str, ...] = ()
    active: tuple[str, ...] = ()
    escalate: tuple[Escalate, ...] = ()
    goes_on: bool = False
    children: tuple[Node, ...] = ()

    def match(self, labels: Labels) -> tuple[Node, ...]:
        """The nodes that take it, in order; nothing where this node's own matchers do not."""
        if not all_match(self.matchers, labels):
            return ()
        found: list[Node] = []
        for child in self.children:
            of_child = child.match(labels)
            found += of_child
            if of_child and not child.goes_on:
                break
        return tuple(found) or (self,)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Everything of routing that the config file says. `configured`: it has a route; else every notifier hears all."""

    root: Node
    receivers: Mapping[str, tuple[str, ...]]
    inhibitors: tuple[Inhibitor, ...] = ()
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    silences: tuple[DeclaredSilence, ...] = ()
    configured: bool = True

    def notifiers_of(self, receiver: str) -> tuple[str, ...]:
        return self.receivers.get(receiver, ())


def routing_in_force(keys: RoutingKeys, notifiers: Sequence[str]) -> Routing:
    """Raises BadRouting. `notifiers`: the names of those that are configured."""
    clocks: dict[str, Clock] = {}
    for number, interval in enumerate(keys.time_intervals):
        if interval.name in clocks:
            raise BadRouting(("time_intervals", number, "name"), f'a second time interval "{interval.name}"')
        clocks[interval.name] = Clock(interval.time_intervals)
    for number, silence in enumerate(keys.silences):
        known_intervals(("silences", number, "time_intervals"), silence.time_intervals, clocks)
    inhibitors = tuple(Inhibitor(rule.source_matchers, rule.target_matchers, rule.equal) for rule in keys.inhibit_rules)
    if keys.route is None:
        if keys.receivers:
            raise BadRouting(("receivers",), "receivers without a route: say in `route:` what goes to whom")
        return replace(everybody(notifiers), inhibitors=inhibitors, clocks=clocks, silences=keys.silences)
    receivers = read_receivers(keys.receivers, notifiers)
    check_root(keys.route)
    top = Node(path="route", receiver="")
    root = inherit(keys.route, top, ("route",), receivers, clocks, [ROUTES_MAX], 1)
    return Routing(root=root, receivers=receivers, inhibitors=inhibitors, clocks=clocks, silences=keys.silences)


def everybody(notifiers: Sequence[str]) -> Routing:
    """Without a route: every notifier hears every alert at once, and once."""
    root = Node(path="route", receiver=EVERYBODY, group_interval=timedelta(0), repeat_interval=None)
    return Routing(root=root, receivers={EVERYBODY: tuple(notifiers)}, configured=False)


def read_receivers(given: Sequence[Receiver], notifiers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """With none given, each notifier is a receiver of its own name."""
    found: dict[str, tuple[str, ...]] = {}
    for number, receiver in enumerate(given):
        if receiver.name in found:
            raise BadRouting(("receivers", number, "name"), f'a second receiver "{receiver.name}"')
        named = (receiver.name,) if receiver.notifiers is None else receiver.notifiers
        for name in named:
            if name not in notifiers:
                known = ", ".join(notifiers) or "none is configured"
                raise BadRouting(("receivers", number), f'no notifier named "{name}"; known: {known}')
        found[receiver.name] = tuple(dict.fromkeys(named))
    return found or {name: (name,) for name in notifiers}


def check_root(route: Route) -> None:
    """What Alertmanager refuses of the root: it takes whatever nobody else takes, at any time."""
    if route.receiver is None:
        raise BadRouting(("route",), "the root route needs a receiver: it takes what no other route takes")
    if route.matchers:
        raise BadRouting(("route", "matchers"), "the root route has no matchers: it takes what no other route takes")
    for name in ("mute_time_intervals", "active_time_intervals"):
        if getattr(route, name):
            raise BadRouting(("route", name), "the root route is never muted; put it on a route below")
    if route.continue_:
        raise BadRouting(("route", "continue"), "nothing comes after the root route")


def inherit(
    route: Route,
    parent: Node,
    path: tuple[str | int, ...],
    receivers: Mapping[str, object],
    clocks: Mapping[str, Clock],
    left: list[int],
    depth: int,
) -> Node:
    left[0] -= 1
    if left[0] < 0 or depth > ROUTE_DEPTH_MAX:
        raise BadRouting(path, f"more than {ROUTES_MAX} routes, or deeper than {ROUTE_DEPTH_MAX}")
    receiver = route.receiver or parent.receiver
    escalate = parent.escalate if route.escalate is None else route.escalate
    for part, name in (("receiver", receiver), *(("escalate", step.to) for step in escalate)):
        if name not in receivers:
            known = ", ".join(receivers) or "none"
            raise BadRouting((*path, part), f'no receiver named "{name}"; known: {known}')
    known_intervals((*path, "mute_time_intervals"), route.mute_time_intervals, clocks)
    known_intervals((*path, "active_time_intervals"), route.active_time_intervals, clocks)

    node = Node(
        path=".".join(map(str, path)),
        receiver=receiver,
        matchers=route.matchers,
        group_by=parent.group_by if route.group_by is None else route.group_by,
        group_wait=parent.group_wait if route.group_wait is None else route.group_wait,
        group_interval=parent.group_interval if route.group_interval is None else route.group_interval,
        repeat_interval=parent.repeat_interval if route.repeat_interval is None else route.repeat_interval,
        mute=route.mute_time_intervals,
        active=route.active_time_intervals,
        escalate=tuple(sorted(escalate, key=lambda step: step.after)),
        goes_on=route.continue_,
    )
    children = tuple(
        inherit(child, node, (*path, "routes", number), receivers, clocks, left, depth + 1)
        for number, child in enumerate(route.routes)
    )
    return replace(node, children=children)


def known_intervals(path: Sequence[str | int], names: Sequence[str], clocks: Mapping[str, Clock]) -> None:
    for number, name in enumerate(names):
        if name not in clocks:
            raise BadRouting((*path, number), f'no time interval named "{name}"; known: {", ".join(clocks) or "none"}')


def picture(routing: Routing) -> str:
    """The tree as text, a line a route."""
    lines = []
    for depth, node in routing.root.walk():
        what = "{" + ",".join(map(str, node.matchers)) + "}" if depth else "everything else"
        notes = [f"continue: {str(node.goes_on).lower()}"] if depth else []
        notes += [f"group_by: [{', '.join(node.group_by)}]"] if node.group_by is not None else []
        notes += [f"muted in {', '.join(node.mute)}"] if node.mute else []
        notes += [f"only in {', '.join(node.active)}"] if node.active else []
        notes += [f"{step.to} after {step.after} unless acknowledged" for step in node.escalate]
        told = ", ".join(routing.notifiers_of(node.receiver)) or "nobody"
        whom = f"{node.receiver} ({told})"
        lines.append(f"{'    ' * depth}{what}  ->  {whom}" + (f"  {'; '.join(notes)}" if notes else ""))
    return "\n".join(lines)
