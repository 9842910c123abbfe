"""An event in the words of OCSF 1.8.0: Authentication (3002), Entity Management (3004) or Detection Finding (2004).

Every item of a batch passes here, so that what is the same for all of a kind is made once, and fields are set rather
than filtered.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any

from service.event import YEAR_MAX, YEAR_MIN, Event, rfc3339
from service.sinks.actions import Act, act_of, is_drill
from service.sinks.ocsf_words import (
    AFFECTED,
    AUTHENTICATION,
    CHANGES,
    DEEDS,
    DETECTION_FINDING,
    ENTITY_MANAGEMENT,
    FAILURE,
    FINDING_STATUSES,
    FINDINGS,
    HEADS,
    HOST,
    LOGONS,
    OAUTH_2,
    OTHER,
    OUTCOMES,
    RULE,
    SECURITY_CONTROL,
    STATUSES,
    SUCCESS,
    UNKNOWN,
    UPDATE,
    VERSION,
    Change,
)
from service.sinks.severity import CAPTIONS, security_severity

PRODUCT = {"name": "Authwatch", "vendor_name": "Authwatch"}
RESOURCES_MAX = 100  # workflows named as resources of one finding
CODE_CHARS_MAX = 64  # an error longer than this, or with a blank in it, is a sentence and no code
KEPT = (  # of the event, where OCSF has no place of its own
    "position",
    "origin",
    "kind",
    "source",
    "event_id",
    "account_id",
    "connection_id",
    "environment_id",
    "account_status",
    "status",
    "old_status",
    "lag_seconds",
    "clock_suspect",
)
KEPT_AS = tuple("provider_event_id" if name == "event_id" else name for name in KEPT)
kept = attrgetter(*KEPT)


def to_ocsf(event: Event) -> dict[str, Any]:
    """One OCSF object, not yet redacted: callers go through `formats.FORMATS`."""
    details = event.details or {}
    kind = event.kind
    if kind in FINDINGS:
        return _finding(event, details)
    if kind == "audit":
        item = _audit(event, details, act_of(details))
    elif kind in LOGONS and event.identifier and (event.provider or event.connection_id):
        item = _authentication(event, details, LOGONS[kind])
    else:
        item = _entity_management(event, details, CHANGES.get(kind, CHANGES["other"]))
    item["unmapped"] = _unmapped(event)
    if details:
        item["unmapped"]["details"] = details
    return item


def _base(event: Event, class_uid: int, activity_id: int, label: str | None, message: str) -> dict[str, Any]:
    item: dict[str, Any] = HEADS[class_uid, activity_id].copy()
    if label:
        item["activity_name"] = label
    at, severity_id = milliseconds(event.occurred_at), security_severity(event)
    item["time"] = at
    item["severity_id"] = severity_id
    item["severity"] = CAPTIONS[severity_id]
    item["message"] = message
    metadata: dict[str, Any] = {
        "version": VERSION,
        "product": PRODUCT,
        "uid": event.id,  # stable across repeats: the SIEM's key to drop duplicates
        "original_time": rfc3339(event.occurred_at),
        "logged_time": milliseconds(event.received_at),
    }
    if event.type:
        metadata["event_code"] = event.type
    if event.source:
        metadata["log_name"] = event.source
    if event.account_id:
        metadata["correlation_uid"] = event.account_id
    if event.organization_id:
        metadata["tenant_uid"] = event.organization_id
    if is_drill(event):
        metadata["labels"] = ["drill"]
    item["metadata"] = metadata
    return item


def _say_outcome(item: dict[str, Any], status_id: int, details: Mapping[str, Any]) -> None:
    item["status_id"] = status_id
    item["status"] = STATUSES[status_id]
    if not details:
        return
    error = _text(details.get("error"))
    is_code = error is not None and len(error) <= CODE_CHARS_MAX and " " not in error
    code = _text(details.get("error_code")) or (error if is_code else None) or _text(details.get("error_class"))
    code = code or _text(details.get("http_status"))
    said = _text(details.get("error_description")) or (None if is_code else error)
    if code:
        item["status_code"] = code
    if said:
        item["status_detail"] = said
    took_ms = details.get("latency_ms", details.get("duration_ms"))
    if isinstance(took_ms, int) and not isinstance(took_ms, bool) and took_ms >= 0:
        item["duration"] = took_ms


def _authentication(event: Event, details: Mapping[str, Any], change: Change) -> dict[str, Any]:
    item = _base(event, AUTHENTICATION, change.activity_id, change.label, _message(event, change.label))
    _say_outcome(item, change.status_id or SUCCESS, details)
    if "status_detail" not in item and (reason := _text(details.get("reason"))):
        item["status_detail"] = reason
    item["auth_protocol_id"] = OAUTH_2
    item["auth_protocol"] = "OAUTH 2.0"
    user: dict[str, Any] = {"name": event.identifier}
    if event.account_id:
        user["uid"] = event.account_id
    if event.organization_id:
        user["org"] = {"uid": event.organization_id}
    item["user"] = user
    service: dict[str, Any] = {}
    if event.provider:
        service["name"] = event.provider
    if event.connection_id:
        service["uid"] = event.connection_id
    item["service"] = service
    return item


def _entity_management(event: Event, details: Mapping[str, Any], change: Change) -> dict[str, Any]:
    label = change.label
    if label is None and change.activity_id == OTHER:
        label = event.type or event.kind or "Other"
    item = _base(event, ENTITY_MANAGEMENT, change.activity_id, label, _message(event, change.label))
    status_id = change.status_id
    if status_id is None:
        outcome = details.get("outcome")
        status_id = OUTCOMES.get(outcome, UNKNOWN) if isinstance(outcome, str) else UNKNOWN
    _say_outcome(item, status_id, details)
    if reason := _text(details.get("reason")):
        item["comment"] = reason
    workflow = _text(details.get("workflow_id")) if event.kind.startswith("workflow.") else None
    entity = {"type_id": OTHER, "type": "Workflow", "uid": workflow} if workflow else _about(event)
    item["entity"] = entity
    if change.activity_id == UPDATE:
        item["updated_entity"] = entity  # the portable way to say what an update led to, valid in every OCSF version
    return item


def _audit(event: Event, details: Mapping[str, Any], act: Act) -> dict[str, Any]:
    """The entity is what the entry is about, and the actor who did it: a person where Slack says so, else the name of
    the token or of the part of ours that acted, which is no user."""
    action, subject = _text(details.get("action")) or "audit", _text(details.get("subject")) or event.event_id
    subject = subject or event.source or event.id
    activity_id = DEEDS[act.deed]
    item = _base(event, ENTITY_MANAGEMENT, activity_id, act.label, f"{action}: {subject}")
    status_id = FAILURE if act.failed else SUCCESS
    item["status_id"] = status_id
    item["status"] = STATUSES[status_id]
    if reason := _text(details.get("reason")):
        item["comment"] = reason
    entity = {"type_id": OTHER, "type": act.subject, "uid": subject}
    item["entity"] = entity
    if activity_id == UPDATE:
        item["updated_entity"] = entity
    if actor := _text(details.get("actor")):
        item["metadata"]["profiles"] = HOST
        item["actor"] = _actor(actor)
    return item


def _actor(actor: str) -> dict[str, Any]:
    """`slack:U123 (dana)` is how a click is signed (service/clicks/payload.py)."""
    where, colon, who = actor.partition(":")
    if where != "slack" or not colon or not who:
        return {"app_name": actor}
    uid, _, name = who.partition(" (")
    name = name.removesuffix(")")
    if not uid:
        return {"app_name": actor}
    return {"app_name": "Slack", "user": {"uid": uid, "name": name} if name else {"uid": uid}}


def _finding(event: Event, details: Mapping[str, Any]) -> dict[str, Any]:
    """One finding from open to close: its uid is the alert's id throughout."""
    activity_id, state = FINDINGS[event.kind]
    uid = _text(details.get("alert_id")) or event.event_id or event.id
    rule = _text(details.get("rule_id"))
    title = _text(details.get("summary")) or rule or event.kind
    item = _base(event, DETECTION_FINDING, activity_id, None, title)
    item["metadata"]["correlation_uid"] = uid
    item["metadata"]["profiles"] = SECURITY_CONTROL
    item["is_alert"] = True
    said = details.get("state")
    item["status_id"], item["status"] = FINDING_STATUSES[
        said if isinstance(said, str) and said in FINDING_STATUSES else state
    ]
    if reason := _text(details.get("reason")):
        item["comment"] = reason
    opened = _read_milliseconds(details.get("opened_at"))
    info: dict[str, Any] = {"uid": uid, "title": title, "modified_time": item["time"]}
    if opened is not None:
        info["created_time"] = info["first_seen_time"] = opened
    if rule:
        info["analytic"] = {"type_id": RULE, "type": "Rule", "uid": rule}
    if event.source:
        info["data_sources"] = [event.source]
    item["finding_info"] = info
    item["resources"] = _resources(event, details)
    if details:
        item["evidences"] = [{"data": details}]
    item["unmapped"] = _unmapped(event)
    return item


def _resources(event: Event, details: Mapping[str, Any]) -> list[dict[str, Any]]:
    about = _about(event)
    group = details.get("group")
    if not event.account_id and not event.connection_id and isinstance(group, Mapping):
        # An alert of our own says what it is about.
        about = {"type": "Authwatch", "uid": _text(group.get("about")) or about["uid"]}
    first: dict[str, Any] = {"type": about["type"], "uid": about["uid"], "role_id": AFFECTED, "role": "Affected"}
    if "name" in about:
        first["name"] = about["name"]
    found = [first]
    workflows = details.get("workflow_ids")
    if isinstance(workflows, list):
        for workflow in workflows[:RESOURCES_MAX]:
            if workflow and isinstance(workflow, str):
                found.append({"type": "Workflow", "uid": workflow, "role_id": AFFECTED, "role": "Affected"})
    return found


def _about(event: Event) -> dict[str, Any]:
    """What the event is about, from the one account outward to the source it came through: something is always known."""
    entity: dict[str, Any] = {"type_id": OTHER}
    if event.account_id:
        entity["type"], entity["uid"] = "Connected Account", event.account_id
        if event.identifier:
            entity["name"] = event.identifier
    elif event.connection_id:
        entity["type"], entity["uid"] = "Connection", event.connection_id
    else:
        entity["type"], entity["uid"] = "Source", event.source or event.id
    if event.organization_id:
        entity["org"] = {"uid": event.organization_id}
    data = {
        name: value
        for name, value in (
            ("provider", event.provider),
            ("connection_id", event.connection_id),
            ("status", event.status),
            ("old_status", event.old_status),
        )
        if value is not None
    }
    if data:
        entity["data"] = data
    return entity


def _unmapped(event: Event) -> dict[str, Any]:
    return {name: value for name, value in zip(KEPT_AS, kept(event), strict=True) if value is not None}


def _message(event: Event, label: str | None) -> str:
    return f"{label or event.kind}: {event.account_id or event.connection_id or event.source}"


def milliseconds(at: datetime) -> int:
    """Epoch milliseconds, in whole numbers: a float would round the last one."""
    return int(at.timestamp()) * 1000 + at.microsecond // 1000


def _read_milliseconds(written: Any) -> int | None:
    """Of an RFC 3339 text among the details; None where it is none."""
    if not isinstance(written, str):
        return None
    try:
        at = datetime.fromisoformat(written)
    except ValueError:
        return None
    return milliseconds(at) if at.tzinfo is not None and YEAR_MIN < at.year < YEAR_MAX - 1 else None


def _text(value: Any) -> str | None:
    """OCSF wants a string or nothing."""
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else str(value)
