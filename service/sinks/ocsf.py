"""An event in the words of OCSF 1.8.0: Authentication (3002), Entity Management (3004) or Detection Finding (2004).

Account Change (3001) and User Access (3005) are left out on purpose: OCSF 1.9 deprecates them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.event import Event, rfc3339
from service.sinks.severity import security_severity

VERSION = "1.8.0"
PRODUCT = {"name": "Authwatch", "vendor_name": "Authwatch"}
AUTHENTICATION, ENTITY_MANAGEMENT, DETECTION_FINDING = 3002, 3004, 2004
CATEGORIES = {AUTHENTICATION: 3, ENTITY_MANAGEMENT: 3, DETECTION_FINDING: 2}
SUCCESS, FAILURE, OTHER = 1, 2, 99
OAUTH_2 = 6  # auth_protocol_id
RULE = 1  # analytic.type_id

# finding status_id: 1 New, 2 In Progress, 3 Suppressed, 4 Resolved
FINDING_STATUS = {"firing": 1, "acknowledged": 2, "snoozed": 3, "resolved": 4}
FINDING_ACTIVITY = {"alert.firing": 1, "alert.acknowledged": 2, "alert.resolved": 3}
FINDING_STATE = {"alert.firing": "firing", "alert.acknowledged": "acknowledged", "alert.resolved": "resolved"}


@dataclass(frozen=True, slots=True)
class Change:
    """How a kind reads as Entity Management. `label` is the activity's name where OCSF has no number for it."""

    activity_id: int
    label: str | None = None
    status_id: int = SUCCESS


CHANGES = {
    "account.created": Change(1),
    "account.updated": Change(3),
    "account.authorized": Change(10),
    "account.reauth_started": Change(OTHER, "Reauthorization Started"),
    "account.reauth_required": Change(12),
    "account.disconnected": Change(4),
    "account.deleted": Change(4),
    "auth.failed": Change(OTHER, "Authorization Failed", FAILURE),
    "auth.scope_changed": Change(3),
    "token.refresh_succeeded": Change(OTHER, "Token Refresh"),
    "token.refresh_failed": Change(OTHER, "Token Refresh", FAILURE),
    "tool_call.completed": Change(OTHER, "Tool Call"),
    "workflow.paused": Change(12),
    "workflow.resumed": Change(13),
    "audit": Change(3),
    "quarantine": Change(OTHER, "Quarantined", FAILURE),
}
# Authentication says more where a user is known. Its activity 5, Service Ticket Renew, is Kerberos and no token refresh.
LOGONS = {
    "account.authorized": Change(1),
    "auth.failed": Change(1, None, FAILURE),
    "token.refresh_succeeded": Change(OTHER, "Token Refresh"),
    "token.refresh_failed": Change(OTHER, "Token Refresh", FAILURE),
}


def to_ocsf(event: Event) -> dict[str, Any]:
    """One OCSF object, not yet redacted: callers go through `formats.FORMATS`."""
    details = dict(event.details or {})
    if event.kind in FINDING_ACTIVITY:
        item = _finding(event, details)
    elif event.kind in LOGONS and event.identifier and (event.provider or event.connection_id):
        item = _authentication(event, LOGONS[event.kind])
    else:
        item = _entity_management(
            event, CHANGES.get(event.kind, Change(OTHER, event.type or event.kind, OTHER)), details
        )
    item["unmapped"] = _present(
        {
            "position": event.position,
            "origin": event.origin,
            "kind": event.kind,
            "source": event.source,
            "provider_event_id": event.event_id,
            "account_id": event.account_id,
            "connection_id": event.connection_id,
            "environment_id": event.environment_id,
            "account_status": event.account_status,
            "status": event.status,
            "old_status": event.old_status,
            "lag_seconds": event.lag_seconds,
            "clock_suspect": event.clock_suspect,
            "details": details or None,
        }
    )
    return item


def _base(event: Event, class_uid: int, activity_id: int, message: str) -> dict[str, Any]:
    return {
        "class_uid": class_uid,
        "category_uid": CATEGORIES[class_uid],
        "activity_id": activity_id,
        "type_uid": class_uid * 100 + activity_id,
        "time": milliseconds(event.occurred_at),
        "severity_id": security_severity(event),
        "message": message,
        "metadata": _present(
            {
                "version": VERSION,
                "product": PRODUCT,
                "uid": event.id,  # stable across repeats: the SIEM's key to drop duplicates
                "correlation_uid": _text(event.account_id),
                "event_code": event.type,
                "log_name": event.source,
                "original_time": rfc3339(event.occurred_at),
                "logged_time": milliseconds(event.received_at),
                "tenant_uid": _text(event.organization_id),
            }
        ),
    }


def _authentication(event: Event, change: Change) -> dict[str, Any]:
    item = _base(event, AUTHENTICATION, change.activity_id, _message(event, change))
    details = event.details or {}
    return item | _present(
        {
            "activity_name": change.label,
            "status_id": change.status_id,
            "status": _text(event.status),
            "status_code": _text(details.get("error_code") or details.get("error")),
            "status_detail": _text(details.get("error_description") or details.get("reason")),
            "auth_protocol_id": OAUTH_2,
            "auth_protocol": "OAUTH 2.0",
            "user": _user(event),
            "service": _present({"name": _text(event.provider), "uid": _text(event.connection_id)}),
        }
    )


def _entity_management(event: Event, change: Change, details: Mapping[str, Any]) -> dict[str, Any]:
    item = _base(event, ENTITY_MANAGEMENT, change.activity_id, _message(event, change))
    entity = _workflow(details) if event.kind.startswith("workflow.") else None
    entity = entity or _account(event)
    return item | _present(
        {
            "activity_name": change.label,
            "status_id": change.status_id,
            "status": _text(event.status),
            "status_code": _text(details.get("error_code") or details.get("error")),
            "status_detail": _text(details.get("error_description")),
            "comment": _text(details.get("reason")),
            "entity": entity,
            # The portable way to say what an update led to, valid in every OCSF version.
            "updated_entity": entity if change.activity_id == 3 else None,
        }
    )


def _finding(event: Event, details: Mapping[str, Any]) -> dict[str, Any]:
    uid = _text(details.get("alert_id")) or _text(event.event_id) or event.id
    rule = _text(details.get("rule_id"))
    title = _text(details.get("summary")) or rule or event.kind
    state = details.get("state")
    at = milliseconds(event.occurred_at)
    item = _base(event, DETECTION_FINDING, FINDING_ACTIVITY[event.kind], title)
    item["metadata"]["correlation_uid"] = uid
    item["metadata"]["profiles"] = ["security_control"]  # the profile that brings `is_alert`
    account = _account(event)
    return item | _present(
        {
            "is_alert": True,
            "status_id": FINDING_STATUS.get(
                state if isinstance(state, str) else "", FINDING_STATUS[FINDING_STATE[event.kind]]
            ),
            "comment": _text(details.get("reason")),
            "finding_info": _present(
                {
                    "uid": uid,  # the same through create, update and close
                    "title": title,
                    "created_time": at if event.kind == "alert.firing" else None,
                    "modified_time": at,
                    "analytic": {"type_id": RULE, "type": "Rule", "uid": rule} if rule else None,
                    "data_sources": [event.source],
                }
            ),
            "resources": [
                {
                    "type": account["type"],
                    "role_id": 3,
                    **_present({"uid": account.get("uid"), "name": account.get("name")}),
                }
            ],
            "evidences": [{"data": dict(details)}] if details else None,
        }
    )


def _account(event: Event) -> dict[str, Any]:
    """What the event is about, from the one account outward to the source it came through: something is always known."""
    data = _present(
        {
            "provider": event.provider,
            "connection_id": event.connection_id,
            "status": event.status,
            "old_status": event.old_status,
        }
    )
    if event.account_id:
        kind, uid, name = "Connected Account", event.account_id, event.identifier
    elif event.connection_id:
        kind, uid, name = "Connection", event.connection_id, None
    else:
        kind, uid, name = "Source", event.source, event.source
    organization = {"uid": event.organization_id} if event.organization_id else None
    return _present(
        {"type_id": OTHER, "type": kind, "uid": uid, "name": name, "org": organization, "data": data or None}
    )


def _workflow(details: Mapping[str, Any]) -> dict[str, Any] | None:
    uid = _text(details.get("workflow_id"))
    return {"type_id": OTHER, "type": "Workflow", "uid": uid} if uid else None


def _user(event: Event) -> dict[str, Any]:
    organization = {"uid": event.organization_id} if event.organization_id else None
    return _present({"name": event.identifier, "uid": _text(event.account_id), "org": organization})


def _message(event: Event, change: Change) -> str:
    about = event.account_id or event.connection_id or event.source
    return f"{change.label or event.kind}: {about}"


def milliseconds(at: datetime) -> int:
    """Epoch milliseconds, in whole numbers: a float would round the last one."""
    return int(at.timestamp()) * 1000 + at.microsecond // 1000


def _text(value: Any) -> str | None:
    """OCSF wants a string or nothing."""
    return None if value is None or value == "" else value if isinstance(value, str) else str(value)


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
