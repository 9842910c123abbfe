"""What of the log a sink is sent: `match` of its section, the conditions that rules have, over one event. Pure.

    match: {kind: [account.disconnected, alert.firing, alert.resolved]}
    match:
    - {kind: {glob: "alert.*"}, severity: [P1, P2]}
    - {kind: audit}

Fields of one entry are joined by AND, entries by OR. `severity`, `rule_id` and `workflow_id` are those of an alert's or a
workflow's own entries in the log, the same as `details.severity` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from service.event import Event
from service.rules.match import compile_matches
from service.rules.mistake import Mistake
from service.rules.story import Step

Wants = Callable[[Event], bool]
MATCHES_MAX = 50
OF_DETAILS = ("severity", "rule_id", "workflow_id")
NOT_HERE = ("became", "active_workflows")  # what only the story of an account can tell


def read_match(given: Any) -> Wants:
    """Raises ValueError with a sentence for who wrote it; it quotes fields and values, which are no secrets."""
    entries = [given] if isinstance(given, Mapping) else given
    if not isinstance(entries, list | tuple) or not entries or not all(isinstance(one, Mapping) for one in entries):
        raise ValueError("is a mapping of fields, such as {kind: alert.firing}, or a list of such mappings")
    if len(entries) > MATCHES_MAX:
        raise ValueError(f"holds more than {MATCHES_MAX} entries")
    for name in (name for one in entries for name in one):
        if not isinstance(name, str) or name in NOT_HERE:
            raise ValueError(f"{name}: a sink sees single events, and this is known to rules alone")
    try:
        test = compile_matches([renamed(one) for one in entries]).test
    except Mistake as mistake:
        where = ".".join(str(part) for part in mistake.path)
        raise ValueError(f"{where}: {mistake}") from None
    return lambda event: test(Step(event, None, None))


def renamed(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {f"details.{name}" if name in OF_DETAILS else name: condition for name, condition in entry.items()}
