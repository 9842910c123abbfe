"""What an audit entry's `action` is to a SIEM: what its subject is, and what was done to it. One table for all formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from service.event import Event

Deed = Literal["create", "update", "delete", "disable", "deactivate", "suspend", "resume", "other"]


@dataclass(frozen=True, slots=True)
class Act:
    """`subject`: what the entry's subject is called. `label`: the deed's name where no closed word fits. `failed`: it
    tells of something that went wrong. `access`: it changes who may do something, and is no mere setting."""

    subject: str
    deed: Deed
    label: str | None = None
    failed: bool = False
    access: bool = False


ACTIONS: dict[str, Act] = {
    "workflow.put": Act("Workflow", "update"),
    "workflow.delete": Act("Workflow", "delete"),
    "workflow.pause": Act("Workflow", "suspend"),
    "workflow.resume": Act("Workflow", "resume"),
    "workflow.hold_expired": Act("Workflow", "resume"),
    "alert.acknowledged": Act("Alert", "update"),
    "alert.resolved": Act("Alert", "update"),
    "alert.snooze": Act("Alert", "update"),
    "alert.reauthorize": Act("Alert", "other", "Reauthorization Link Given"),
    "rule.drill": Act("Rule", "other", "Drill"),
    "rules.publish": Act("Rule Set", "update"),
    "silence.create": Act("Silence", "create"),
    "silence.end": Act("Silence", "deactivate"),
    "token.create": Act("API Token", "create", access=True),
    "token.revoke": Act("API Token", "disable", access=True),
    "secret.add": Act("Signing Secret", "create", access=True),
    "secret.remove": Act("Signing Secret", "delete", access=True),
    "retention.run": Act("Event Log", "other", "Retention Run"),
    "sink.events_lost": Act("Sink", "other", "Events Lost", failed=True),
    "sink.replay": Act("Sink", "other", "Replay"),
    "audit.cut": Act("Audit Log", "other", "Retention Run"),
    "audit.adopt": Act("Audit Log", "other", "Unsealed Entries Adopted"),
}


def act_of(details: Mapping[str, Any]) -> Act:
    """An action that is not in the table, as of a release that comes, is named as it is written."""
    action = details.get("action")
    if not isinstance(action, str) or not action:
        return Act("Audit Log", "other", "Audit Entry")
    known = ACTIONS.get(action)
    return known if known is not None else Act(action.partition(".")[0] or action, "other", action)


def is_drill(event: Event) -> bool:
    return event.details is not None and event.details.get("drill") is True
