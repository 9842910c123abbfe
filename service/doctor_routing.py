"""What `authwatch doctor` says about who hears what: alerts that nobody hears of, notifiers that hear of nothing, routes
that are never taken. By the config file and the rules alone; pure.

A mistake that cannot be meant stops the start already; what is here may be meant, so it is a hint. Only where no rule's
alerts reach anybody, nothing is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from service.finding import Finding
from service.routing.labels import OURS
from service.routing.matchers import Matcher
from service.routing.tree import Node, Routing
from service.rules import Rule
from service.rules.triggers.gauge import METRICS

ROUTING = "routing"
NAMED_MAX = 5  # rules in one hint
OF_OUR_OWN = ("about",)  # the label of alerts about ourselves (service/own_alerts.py)


def of_routing(routing: Routing, notifiers: Sequence[str], rules: Sequence[Rule]) -> list[Finding]:
    """`notifiers`: the names of all that are configured; `rules`: those of the folder here."""
    found = [*unheard(routing, rules), *deaf(routing, notifiers), *never_asked(routing.root), *misspelt(routing, rules)]
    if any(finding.ok is False for finding in found):
        return found
    if not routing.configured:
        said = (
            f"no route in the config file: every notifier hears every alert ({', '.join(notifiers) or 'there is none'})"
        )
    else:
        routes = sum(1 for _ in routing.root.walk())
        said = (
            f"{counted(routes, 'route')} to {counted(len(routing.receivers), 'receiver')}; see `authwatch routes show`"
        )
    return [Finding(True, ROUTING, said), *found]


def unheard(routing: Routing, rules: Sequence[Rule]) -> Iterator[Finding]:
    """By what is known of a rule's alerts before they fire: its own labels, its id and its severity."""
    told = [rule for rule in rules if not rule.shadow]
    nobody = [rule.id for rule in told if not hears(routing, labels_of(rule))]
    if not nobody:
        return
    mend = (
        "give its receiver a notifier, or add a route for it; `authwatch routes test rule_id=...` shows where it goes"
    )
    if len(nobody) == len(told) and not any(routing.notifiers_of(node.receiver) for _, node in routing.root.walk()):
        yield Finding(False, ROUTING, f"no route leads to a notifier: nobody hears of any alert; {mend}")
        return
    names = ", ".join(nobody[:NAMED_MAX]) + (f" and {len(nobody) - NAMED_MAX} more" if len(nobody) > NAMED_MAX else "")
    yield Finding(
        None,
        ROUTING,
        f"nobody hears of {names}, unless a label of the account routes it elsewhere; if not meant, {mend}",
    )


def hears(routing: Routing, labels: Mapping[str, str]) -> bool:
    return any(routing.notifiers_of(node.receiver) for node in routing.root.match(labels))


def labels_of(rule: Rule) -> dict[str, str]:
    return {**rule.labels, "alertname": rule.id, "rule_id": rule.id, "severity": rule.severity}


def deaf(routing: Routing, notifiers: Sequence[str]) -> Iterator[Finding]:
    """Notifiers that neither a route nor an escalation leads to."""
    nodes = [node for _, node in routing.root.walk()]
    receivers = {name for node in nodes for name in (node.receiver, *(step.to for step in node.escalate))}
    reached = {name for receiver in receivers for name in routing.notifiers_of(receiver)}
    known = {name for names in routing.receivers.values() for name in names}
    for name in notifiers:
        if name in reached:
            continue
        rest = (
            "it hears only of others that take no message"
            if name in known
            else "no receiver names it, so it hears of nothing"
        )
        yield Finding(None, ROUTING, f"no route leads to the notifier {name}: {rest}")


def never_asked(node: Node) -> Iterator[Finding]:
    """Routes after one that takes everything and does not go on."""
    taken: Node | None = None
    for child in node.children:
        if taken is not None:
            said = f"{child.path} is never asked: {taken.path} before it takes everything; move it up, or say continue: true"
            yield Finding(None, ROUTING, said)
            continue
        yield from never_asked(child)
        if not child.matchers and not child.goes_on:
            taken = child


def misspelt(routing: Routing, rules: Sequence[Rule]) -> Iterator[Finding]:
    """Matchers that ask for a value of a label which no alert has: a misspelt name is no mistake to Alertmanager either."""
    known = {*OURS, *OF_OUR_OWN, *(name for _, names in METRICS.values() for name in names)}
    known |= {name for rule in rules for name in (*rule.labels, *rule.group_by)}
    for path, matchers in asked(routing):
        for name in dict.fromkeys(one.name for one in matchers if one.name not in known and not one.matches({})):
            said = f"{path} asks for the label {name}, which no rule here gives its alerts: it matches nothing"
            yield Finding(None, ROUTING, f"{said}; write it as the rules do, or add it to their `labels`")


def asked(routing: Routing) -> Iterable[tuple[str, Sequence[Matcher]]]:
    for _, node in routing.root.walk():
        yield node.path, node.matchers
    for number, rule in enumerate(routing.inhibitors):
        yield f"inhibit_rules.{number}", (*rule.source, *rule.target)
    for number, silence in enumerate(routing.silences):
        yield f"silences.{number}", silence.matchers


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
