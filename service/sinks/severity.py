"""How grave an event is for security, which is not how urgent it is for operations: P1..P4 are mapped apart.

A lost connection stops a customer's work at once, and yet is most often a user's own choice: P2 here, medium there.
"""

from __future__ import annotations

from service.event import Event
from service.sinks.actions import is_drill

# OCSF severity_id, and its captions.
INFORMATIONAL, LOW, MEDIUM, HIGH = 1, 2, 3, 4
CAPTIONS = {INFORMATIONAL: "Informational", LOW: "Low", MEDIUM: "Medium", HIGH: "High"}

BY_KIND = {
    "account.created": INFORMATIONAL,
    "account.updated": INFORMATIONAL,
    "account.authorized": INFORMATIONAL,
    "account.reauth_started": INFORMATIONAL,
    "account.reauth_required": LOW,
    "account.disconnected": MEDIUM,
    "account.deleted": MEDIUM,
    "auth.failed": MEDIUM,
    "auth.scope_changed": MEDIUM,
    "token.refresh_succeeded": INFORMATIONAL,
    "token.refresh_failed": LOW,
    "tool_call.completed": INFORMATIONAL,
    "other": INFORMATIONAL,
    "workflow.paused": LOW,
    "workflow.resumed": INFORMATIONAL,
    "quarantine": MEDIUM,  # signed with our secret and yet unreadable
}
# By the priority that the alert has for operations.
BY_PRIORITY = {"P1": HIGH, "P2": MEDIUM, "P3": LOW, "P4": INFORMATIONAL}
ALERT_DEFAULT = MEDIUM
# Of audit entries: who may do what, and what the copies will never show, is graver than a setting.
BY_ACTION = {
    "token.create": MEDIUM,
    "token.revoke": LOW,
    "secret.add": MEDIUM,
    "secret.remove": MEDIUM,
    "rules.publish": LOW,
    "silence.create": LOW,
    "workflow.delete": LOW,
    "alert.reauthorize": LOW,
    "audit.adopt": HIGH,
    "sink.events_lost": HIGH,
    "sink.replay": LOW,
}


def security_severity(event: Event) -> int:
    """An OCSF severity_id. What only practises is of no concern to security."""
    kind = event.kind
    if kind.startswith("alert."):
        if is_drill(event):
            return INFORMATIONAL
        return _by(BY_PRIORITY, event, "severity", ALERT_DEFAULT)
    if kind == "audit":
        return _by(BY_ACTION, event, "action", INFORMATIONAL)
    return BY_KIND.get(kind, INFORMATIONAL)


def _by(table: dict[str, int], event: Event, field: str, default: int) -> int:
    word = event.details.get(field) if event.details else None
    return table.get(word, default) if isinstance(word, str) else default
