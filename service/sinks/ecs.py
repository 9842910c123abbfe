"""An event in the words of the Elastic Common Schema, as one nested document. What is not known is left out, never null."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.event import Event, rfc3339
from service.sinks.actions import Act, act_of
from service.sinks.severity import security_severity

VERSION = "9.0.0"
ECS = {"version": VERSION}
API, AUTHENTICATION, CONFIGURATION, IAM, WEB = "api", "authentication", "configuration", "iam", "web"


@dataclass(frozen=True, slots=True)
class Category:
    """`category` and `types` are ECS's closed words; none fits where `category` is None. `outcome` None: what the
    event's own `outcome` says."""

    category: str | None
    types: tuple[str, ...]
    outcome: str | None = "success"


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
    "tool_call.completed": Category(API, ("access",), None),
    "other": Category(None, ("info",), "unknown"),
    "alert.firing": Category(IAM, ("info",), "unknown"),
    "alert.acknowledged": Category(IAM, ("info",), "unknown"),
    "alert.resolved": Category(IAM, ("info",), "unknown"),
    "workflow.paused": Category(CONFIGURATION, ("change",)),
    "workflow.resumed": Category(CONFIGURATION, ("change",)),
    "quarantine": Category(WEB, ("error",), "failure"),
}
UNKNOWN = CATEGORIES["other"]
DEEDS = {"create": "creation", "delete": "deletion", "other": "info"}  # any other deed is a change
OUTCOMES = {"success": "success", "error": "failure"}


def audit_category(act: Act) -> Category:
    kind = DEEDS.get(act.deed, "change")
    outcome = "failure" if act.failed else "success"
    return Category(IAM, ("admin", kind), outcome) if act.access else Category(CONFIGURATION, (kind,), outcome)


def to_ecs(event: Event) -> dict[str, Any]:
    """One ECS document, not yet redacted: callers go through `formats.FORMATS`."""
    details = event.details or {}
    kind = event.kind
    alert = kind.startswith("alert.")
    words = audit_category(act_of(details)) if kind == "audit" else CATEGORIES.get(kind, UNKNOWN)
    document: dict[str, Any] = {
        "@timestamp": rfc3339(event.occurred_at),
        "ecs": ECS,
        "message": _message(event, details),
        "event": _event(event, details, words, alert),
        "labels": _labels(event, details),
        "authwatch": _ours(event, details),
    }
    _say_who(document, event, details)
    code = _text(details.get("error_code")) or _text(details.get("error")) or _text(details.get("error_class"))
    said = _text(details.get("error_description"))
    if code or said:
        document["error"] = {name: value for name, value in (("code", code), ("message", said)) if value}
    if alert:
        if rule := _text(details.get("rule_id")):
            document["rule"] = {"id": rule, "name": rule}
        document["authwatch"]["alert_id"] = _text(details.get("alert_id")) or event.event_id or event.id
    return document


def _event(event: Event, details: Mapping[str, Any], words: Category, alert: bool) -> dict[str, Any]:
    outcome = words.outcome
    if outcome is None:
        said = details.get("outcome")
        outcome = OUTCOMES.get(said, "unknown") if isinstance(said, str) else "unknown"
    action = _text(details.get("action")) if event.kind == "audit" else None
    found: dict[str, Any] = {
        "id": event.id,
        "kind": "alert" if alert else "event",
        "type": list(words.types),
        "action": action or event.kind,
        "code": event.type,
        "outcome": outcome,
        "severity": security_severity(event),
        "created": rfc3339(event.received_at),
        "module": "authwatch",
        "dataset": "authwatch.alert" if alert else "authwatch.event",
        "provider": event.source,
    }
    if words.category is not None:
        found["category"] = [words.category]
    if reason := _text(details.get("reason")):
        found["reason"] = reason
    took_ms = details.get("latency_ms", details.get("duration_ms"))
    if isinstance(took_ms, int) and not isinstance(took_ms, bool) and took_ms >= 0:
        found["duration"] = took_ms * 1_000_000  # ECS counts nanoseconds
    return found


def _say_who(document: dict[str, Any], event: Event, details: Mapping[str, Any]) -> None:
    """Of an audit entry `user` is who acted; of everything else whose account it is."""
    actor = _text(details.get("actor")) if event.kind == "audit" else None
    if actor:
        document["user"], names = {"name": actor}, [actor]
    else:
        user = {name: value for name, value in (("id", event.account_id), ("name", event.identifier)) if value}
        if user:
            document["user"] = user
        names = sorted(set(user.values()))
    if names:
        document["related"] = {"user": names}
    if event.organization_id:
        document["organization"] = {"id": event.organization_id}
    if event.provider:
        document["service"] = {"name": event.provider}


def _labels(event: Event, details: Mapping[str, Any]) -> dict[str, str]:
    """Keywords: strings, so that one index mapping fits every event."""
    labels = {"origin": event.origin, "clock_suspect": "true" if event.clock_suspect else "false"}
    for name, value in (
        ("environment_id", event.environment_id),
        ("connection_id", event.connection_id),
        ("status", event.status),
        ("old_status", event.old_status),
        ("workflow_id", _text(details.get("workflow_id"))),
        ("subject", _text(details.get("subject")) if event.kind == "audit" else None),
    ):
        if value:
            labels[name] = value
    return labels


def _ours(event: Event, details: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"position": event.position, "kind": event.kind}
    if event.lag_seconds is not None:
        found["lag_seconds"] = event.lag_seconds
    if event.event_id:
        found["provider_event_id"] = event.event_id
    if event.account_status:
        found["account_status"] = event.account_status
    if details:
        found["details"] = details
    return found


def _message(event: Event, details: Mapping[str, Any]) -> str:
    if summary := _text(details.get("summary")):
        return summary
    if event.kind == "audit":
        action, subject = _text(details.get("action")), _text(details.get("subject"))
        if action and subject:
            return f"{action}: {subject}"
    return f"{event.kind}: {event.account_id or event.connection_id or event.source}"


def _text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else str(value)
