"""An event in the words of the Elastic Common Schema, as one nested document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.event import Event, rfc3339
from service.sinks.severity import security_severity

VERSION = "9.0.0"
IAM, AUTHENTICATION = "iam", "authentication"


@dataclass(frozen=True, slots=True)
class Category:
    """`category` and `types` are ECS's closed words; none fits where `category` is None."""

    category: str | None
    types: tuple[str, ...]
    outcome: str = "success"


CATEGORIES = {
    "account.created": Category(IAM, ("creation", "user")),
    "account.updated": Category(IAM, ("change", "user")),
    "account.authorized": Category(AUTHENTICATION, ("start", "allowed")),
    "account.reauth_started": Category(AUTHENTICATION, ("start",), "unknown"),
    "account.reauth_required": Category(IAM, ("change", "user")),
    "account.disconnected": Category(IAM, ("deletion", "user")),
    "account.deleted": Category(IAM, ("deletion", "user")),
    "auth.failed": Category(AUTHENTICATION, ("start", "denied"), "failure"),
    "auth.scope_changed": Category(IAM, ("change",)),
    "token.refresh_succeeded": Category(AUTHENTICATION, ("info",)),
    "token.refresh_failed": Category(AUTHENTICATION, ("info",), "failure"),
    "tool_call.completed": Category(None, ("info",), "unknown"),
    "workflow.paused": Category(None, ("change",)),
    "workflow.resumed": Category(None, ("change",)),
    "audit": Category(None, ("change",)),
    "quarantine": Category(None, ("error",), "failure"),
}
UNKNOWN = Category(None, ("info",), "unknown")


def to_ecs(event: Event) -> dict[str, Any]:
    """One ECS document, not yet redacted: callers go through `formats.FORMATS`."""
    details = dict(event.details or {})
    alert = event.kind.startswith("alert.")
    words = CATEGORIES.get(event.kind, UNKNOWN)
    document: dict[str, Any] = {
        "@timestamp": rfc3339(event.occurred_at),
        "ecs": {"version": VERSION},
        "message": _text(details.get("summary"))
        or f"{event.kind}: {event.account_id or event.connection_id or event.source}",
        "event": {
            "id": event.id,
            "kind": "alert" if alert else "event",
            "category": [words.category] if words.category else None,
            "type": list(words.types),
            "action": event.kind,
            "code": event.type,
            "outcome": words.outcome,
            "severity": security_severity(event),
            "created": rfc3339(event.received_at),
            "module": "authwatch",
            "dataset": "authwatch.alert" if alert else "authwatch.event",
            "provider": event.source,
            "reason": _text(details.get("reason")),
        },
        "user": {"id": event.account_id, "name": event.identifier},
        "organization": {"id": event.organization_id},
        "service": {"name": event.provider},
        "related": {"user": sorted({name for name in (event.account_id, event.identifier) if name}) or None},
        "error": {
            "code": _text(details.get("error_code") or details.get("error")),
            "message": _text(details.get("error_description")),
        },
        # Labels are keywords: strings, so that one index mapping fits every event.
        "labels": {
            "environment_id": event.environment_id,
            "connection_id": event.connection_id,
            "status": event.status,
            "old_status": event.old_status,
            "origin": event.origin,
            "clock_suspect": "true" if event.clock_suspect else "false",
            "workflow_id": _text(details.get("workflow_id")),
        },
        "authwatch": {
            "position": event.position,
            "lag_seconds": event.lag_seconds,
            "provider_event_id": event.event_id,
            "account_status": event.account_status,
            "details": details or None,
        },
    }
    if alert:
        rule = _text(details.get("rule_id"))
        document["rule"] = {"id": rule, "name": rule}
        document["authwatch"]["alert_id"] = _text(details.get("alert_id")) or event.event_id or event.id
    return _present(document)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else value if isinstance(value, str) else str(value)


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not known: ECS leaves a field out rather than sending null."""
    kept = {name: _present(value) if isinstance(value, dict) else value for name, value in fields.items()}
    return {name: value for name, value in kept.items() if value is not None and value != {}}
