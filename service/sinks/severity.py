"""How grave an event is for security, which is not how urgent it is for operations: P1..P4 are mapped apart.

A lost connection stops a customer's work at once, and yet is most often a user's own choice: P2 here, medium there.
"""

from __future__ import annotations

from service.event import Event

# OCSF severity_id.
INFORMATIONAL, LOW, MEDIUM, HIGH = 1, 2, 3, 4

BY_KIND = {
    "account.reauth_required": LOW,
    "account.disconnected": MEDIUM,
    "account.deleted": MEDIUM,
    "auth.failed": MEDIUM,
    "auth.scope_changed": MEDIUM,
    "token.refresh_failed": LOW,
    "workflow.paused": LOW,
    "quarantine": MEDIUM,  # signed with our secret and yet unreadable
}
BY_PRIORITY = {"P1": HIGH, "P2": MEDIUM, "P3": LOW, "P4": INFORMATIONAL}


def security_severity(event: Event) -> int:
    if event.kind.startswith("alert."):
        priority = (event.details or {}).get("severity")
        return BY_PRIORITY.get(priority, MEDIUM) if isinstance(priority, str) else MEDIUM
    return BY_KIND.get(event.kind, INFORMATIONAL)
