"""OCSF 1.8.0's closed words that we use, and which of them each kind of event reads as. Tables alone.

Account Change (3001) and User Access (3005) are left out on purpose: OCSF 1.9 deprecates them.
"""

from __future__ import annotations

from dataclasses import dataclass

VERSION = "1.8.0"
AUTHENTICATION, ENTITY_MANAGEMENT, DETECTION_FINDING = 3002, 3004, 2004
CLASSES = {  # class: its name, its category and that one's name
    AUTHENTICATION: ("Authentication", 3, "Identity & Access Management"),
    ENTITY_MANAGEMENT: ("Entity Management", 3, "Identity & Access Management"),
    DETECTION_FINDING: ("Detection Finding", 2, "Findings"),
}
UNKNOWN, SUCCESS, FAILURE, OTHER = 0, 1, 2, 99
STATUSES = {UNKNOWN: "Unknown", SUCCESS: "Success", FAILURE: "Failure"}
CREATE, UPDATE, DELETE, DISABLE, ACTIVATE, DEACTIVATE, SUSPEND, RESUME = 1, 3, 4, 9, 10, 11, 12, 13  # of 3004
LOGON = 1  # of 3002
ACTIVITIES = {
    AUTHENTICATION: {LOGON: "Logon"},
    ENTITY_MANAGEMENT: {
        CREATE: "Create",
        UPDATE: "Update",
        DELETE: "Delete",
        DISABLE: "Disable",
        ACTIVATE: "Activate",
        DEACTIVATE: "Deactivate",
        SUSPEND: "Suspend",
        RESUME: "Resume",
    },
    DETECTION_FINDING: {1: "Create", 2: "Update", 3: "Close"},
}
OAUTH_2 = 6  # auth_protocol_id
RULE = 1  # analytic.type_id
AFFECTED = 3  # resource role_id
# The profiles that bring `is_alert`, and `actor` to Entity Management.
SECURITY_CONTROL, HOST = ["security_control"], ["host"]

# By kind: the activity, and by the alert's state: the status.
FINDINGS = {"alert.firing": (1, "firing"), "alert.acknowledged": (2, "acknowledged"), "alert.resolved": (3, "resolved")}
FINDING_STATUSES = {"firing": (1, "New"), "acknowledged": (2, "In Progress"), "resolved": (4, "Resolved")}


@dataclass(frozen=True, slots=True)
class Change:
    """How a kind reads as an activity. `label` is its name where OCSF has no number for it; `status_id` None: what the
    event's own `outcome` says."""

    activity_id: int
    label: str | None = None
    status_id: int | None = SUCCESS


CHANGES = {
    "account.created": Change(CREATE),
    "account.updated": Change(UPDATE),
    "account.authorized": Change(ACTIVATE),
    "account.reauth_started": Change(OTHER, "Reauthorization Started"),
    "account.reauth_required": Change(SUSPEND),
    "account.disconnected": Change(DELETE),
    "account.deleted": Change(DELETE),
    "auth.failed": Change(OTHER, "Authorization Failed", FAILURE),
    "auth.scope_changed": Change(UPDATE),
    "token.refresh_succeeded": Change(OTHER, "Token Refresh"),
    "token.refresh_failed": Change(OTHER, "Token Refresh", FAILURE),
    "tool_call.completed": Change(OTHER, "Tool Call", None),
    "other": Change(OTHER, None, UNKNOWN),
    "workflow.paused": Change(SUSPEND),
    "workflow.resumed": Change(RESUME),
    "quarantine": Change(OTHER, "Quarantined", FAILURE),
}
# Authentication says more where a user is known. Its activity 5, Service Ticket Renew, is Kerberos and no token refresh.
LOGONS = {
    "account.authorized": Change(LOGON),
    "auth.failed": Change(LOGON, None, FAILURE),
    "token.refresh_succeeded": Change(OTHER, "Token Refresh"),
    "token.refresh_failed": Change(OTHER, "Token Refresh", FAILURE),
}
DEEDS = {
    "create": CREATE,
    "update": UPDATE,
    "delete": DELETE,
    "disable": DISABLE,
    "deactivate": DEACTIVATE,
    "suspend": SUSPEND,
    "resume": RESUME,
    "other": OTHER,
}
OUTCOMES = {"success": SUCCESS, "error": FAILURE}

# What an item of this class and activity always says of itself.
HEADS = {
    (class_uid, activity_id): {
        "class_uid": class_uid,
        "class_name": name,
        "category_uid": category_uid,
        "category_name": category_name,
        "activity_id": activity_id,
        "activity_name": activity,
        "type_uid": class_uid * 100 + activity_id,
    }
    for class_uid, (name, category_uid, category_name) in CLASSES.items()
    for activity_id, activity in {**ACTIVITIES[class_uid], OTHER: "Other"}.items()
}
