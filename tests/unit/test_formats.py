"""Every kind of event leaves as a valid OCSF item and a sound ECS document, whatever the provider left out, without tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from service.event import DECISION_KINDS, KINDS, Event
from service.sinks.ecs import CATEGORIES
from service.sinks.formats import ENCODED, FORMATS, TEXT_FIELDS
from service.sinks.ocsf_words import CHANGES, FINDINGS
from service.sinks.severity import BY_KIND
from tests.ocsf_schema import problems

OCCURRED = datetime(2026, 11, 20, 10, 0, 0, 123_456, tzinfo=UTC)
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"
ALERT = {
    "alert_id": "al_7",
    "rule_id": "account-disconnected-active-workflow",
    "severity": "P2",
    "summary": "ca_1 is disconnected and w1 depends on it",
    "state": "firing",
    "workflow_ids": ["w1"],
    "reason": "disconnected",
    "discovered_late": False,
}
HOLD = {"workflow_id": "w1", "alert_ids": ["al_7"], "reason": "account_disconnected", "scope": "workflow"}

AUDIT = {"actor": "slack:U7 (dana)", "action": "workflow.resume", "subject": "w1", "reason": "mended at the customer's"}
CALL = {
    "tool": "GMAIL_SEND",
    "operation": "write",
    "outcome": "error",
    "http_status": 401,
    "error_class": "auth",
    "error": "the token was refused",
    "latency_ms": 321,
    "workflow_id": "w1",
}


def an_event(kind: str, **changes: Any) -> Event:
    details: dict[str, Any] = {"token_expires_at": "2026-11-20T11:00:00Z", "error_code": "invalid_grant"}
    if kind.startswith("alert."):
        details = {**ALERT, "state": kind.removeprefix("alert.")}
    elif kind.startswith("workflow."):
        details = dict(HOLD)
    elif kind == "audit":
        details = dict(AUDIT)
    elif kind == "tool_call.completed":
        details = dict(CALL)
    full = Event(
        id="019357f0-0000-7000-8000-000000000001",
        position=42,
        source="scalekit",
        origin="authwatch" if kind in DECISION_KINDS else "webhook",
        event_id="al_7" if kind.startswith("alert.") else "evt_1",
        type=kind if kind in DECISION_KINDS else "connected_account.status_updated",
        kind=kind,
        account_id="ca_1",
        connection_id="conn_1",
        provider="SALESFORCE",
        identifier="john@acmecorp.com",
        organization_id="org_1",
        environment_id="env_1",
        status="DISCONNECTED",
        old_status="ACTIVE",
        occurred_at=OCCURRED,
        received_at=OCCURRED,
        lag_seconds=1.5,
        clock_suspect=False,
        account_status="DISCONNECTED",
        details=details,
    )
    return replace(full, **changes)


def bare(kind: str) -> Event:
    """Everything optional left out."""
    return an_event(
        kind,
        event_id=None,
        account_id=None,
        connection_id=None,
        provider=None,
        identifier=None,
        organization_id=None,
        environment_id=None,
        status=None,
        old_status=None,
        lag_seconds=None,
        account_status=None,
        details=None,
    )


OPTIONAL = ("event_id", "account_id", "connection_id", "provider", "identifier", "organization_id", "status", "details")


@pytest.mark.parametrize("kind", [*KINDS, "a.kind.of.tomorrow"])
def test_every_kind_is_valid_ocsf_however_much_is_known(kind: str) -> None:
    events = [an_event(kind), bare(kind), an_event(kind, details={})]
    events += [an_event(kind, **{name: None}) for name in OPTIONAL]
    events += [replace(bare(kind), **{name: getattr(an_event(kind), name)}) for name in OPTIONAL]
    for event in events:
        item = FORMATS["ocsf"](event)
        assert json.loads(ENCODED["ocsf"](event)) == item
        assert problems(item) == []
        assert item["metadata"]["uid"] == event.id
        assert item["metadata"]["version"] == "1.8.0"
        assert item["metadata"]["event_code"] == event.type
        assert item["metadata"]["log_name"] == "scalekit"
        assert item["metadata"]["original_time"] == "2026-11-20T10:00:00.123456Z"
        assert item["time"] == 1_795_168_800_123
        assert item["unmapped"]["position"] == 42
        assert item["unmapped"]["origin"] == event.origin
        assert item["unmapped"]["clock_suspect"] is False
        json.dumps(item, allow_nan=False)


@pytest.mark.parametrize(
    ("kind", "type_uid", "status_id"),
    [
        ("account.created", 300401, 1),
        ("account.updated", 300403, 1),
        ("account.authorized", 300201, 1),
        ("account.reauth_started", 300499, 1),
        ("account.reauth_required", 300412, 1),
        ("account.disconnected", 300404, 1),
        ("account.deleted", 300404, 1),
        ("auth.failed", 300201, 2),
        ("auth.scope_changed", 300403, 1),
        ("token.refresh_succeeded", 300299, 1),
        ("token.refresh_failed", 300299, 2),
        ("tool_call.completed", 300499, 2),
        ("other", 300499, 0),
        ("alert.firing", 200401, 1),
        ("alert.acknowledged", 200402, 2),
        ("alert.resolved", 200403, 4),
        ("workflow.paused", 300412, 1),
        ("workflow.resumed", 300413, 1),
        ("audit", 300413, 1),
        ("quarantine", 300499, 2),
    ],
)
def test_each_kind_has_its_class_activity_and_status(kind: str, type_uid: int, status_id: int) -> None:
    item = FORMATS["ocsf"](an_event(kind))
    assert (item["type_uid"], item["status_id"]) == (type_uid, status_id)


@pytest.mark.parametrize("kind", ["account.authorized", "auth.failed", "token.refresh_failed"])
def test_without_a_user_no_user_is_invented(kind: str) -> None:
    item = FORMATS["ocsf"](an_event(kind, identifier=None))
    assert item["class_uid"] == 3004
    assert "user" not in item


def test_an_alert_is_one_finding_from_create_to_close() -> None:
    items = [FORMATS["ocsf"](an_event(f"alert.{state}")) for state in ("firing", "acknowledged", "resolved")]
    assert {item["finding_info"]["uid"] for item in items} == {"al_7"}
    assert [item["activity_id"] for item in items] == [1, 2, 3]
    assert all(item["is_alert"] for item in items)
    assert items[0]["finding_info"]["analytic"]["uid"] == "account-disconnected-active-workflow"
    assert items[0]["resources"][0]["uid"] == "ca_1"


def test_a_paused_workflow_is_the_entity_and_the_account_stays_findable() -> None:
    item = FORMATS["ocsf"](an_event("workflow.paused"))
    assert item["entity"] == {"type_id": 99, "type": "Workflow", "uid": "w1"}
    assert item["comment"] == "account_disconnected"
    assert item["unmapped"]["account_id"] == "ca_1"


@pytest.mark.parametrize(
    ("priority", "severity_id"), [("P1", 4), ("P2", 3), ("P3", 2), ("P4", 1), ("P9", 3), (None, 3)]
)
def test_security_severity_is_apart_from_operations_priority(priority: str | None, severity_id: int) -> None:
    event = an_event("alert.firing", details={**ALERT, "severity": priority})
    assert FORMATS["ocsf"](event)["severity_id"] == severity_id


def test_an_ordinary_disconnection_is_of_medium_severity_and_a_refresh_is_informational() -> None:
    assert FORMATS["ocsf"](an_event("account.disconnected"))["severity_id"] == 3
    assert FORMATS["ocsf"](an_event("token.refresh_succeeded"))["severity_id"] == 1


def test_raw_is_the_event_of_the_api() -> None:
    event = an_event("account.updated")
    assert FORMATS["raw"](event) == event.to_json()


ALL_ECS_TYPES = {
    *("access", "admin", "allowed", "change", "connection", "creation", "deletion", "denied", "device", "end", "error"),
    *("group", "indicator", "info", "installation", "protocol", "start", "user"),
}
# ECS 9.0, "expected event types for category": those of the categories that we use. `start` of an authentication says
# beside it whether it was allowed, as the facts have it.
ECS_CATEGORIES = {
    "api": {"access", "admin", "allowed", "change", "creation", "deletion", "denied", "end", "info", "start", "user"},
    "authentication": {"start", "end", "info", "allowed", "denied"},
    "configuration": {"access", "change", "creation", "deletion", "info"},
    "iam": {"admin", "change", "creation", "deletion", "group", "info", "user"},
    "web": {"access", "error", "info"},
}


def ecs_problems(document: dict[str, Any]) -> list[str]:
    event = document["event"]
    types, categories = set(event["type"]), event.get("category", [])
    found = [f"type {name}" for name in types - ALL_ECS_TYPES]
    found += [f"category {name}" for name in categories if name not in ECS_CATEGORIES]
    found += [f"{name} does not go with {types}" for name in categories if types - ECS_CATEGORIES.get(name, set())]
    if event["kind"] not in ("alert", "event"):
        found.append("kind")
    if event["outcome"] not in ("success", "failure", "unknown"):
        found.append("outcome")
    if not all(isinstance(label, str) for label in document["labels"].values()):
        found.append("labels")
    if isinstance(event["severity"], bool) or not isinstance(event["severity"], int):
        found.append("severity")
    return found


@pytest.mark.parametrize("kind", [*KINDS, "a.kind.of.tomorrow"])
def test_every_kind_is_sound_ecs(kind: str) -> None:
    for event in (an_event(kind), bare(kind)):
        document = FORMATS["ecs"](event)
        assert ecs_problems(document) == []
        assert document["@timestamp"] == "2026-11-20T10:00:00.123456Z"
        assert document["ecs"]["version"] == "9.0.0"
        assert document["event"]["id"] == event.id
        assert document["event"]["kind"] == ("alert" if kind.startswith("alert.") else "event")
        assert document["event"]["code"] == event.type
        assert "null" not in json.dumps(document, allow_nan=False)


@pytest.mark.parametrize(
    ("kind", "category", "types", "outcome"),
    [
        ("account.created", ["iam"], ["creation", "user"], "success"),
        ("account.disconnected", ["iam"], ["deletion", "user"], "success"),
        ("auth.failed", ["authentication"], ["start", "denied"], "failure"),
        ("auth.scope_changed", ["iam"], ["change"], "success"),
        ("token.refresh_succeeded", ["authentication"], ["info"], "success"),
        ("token.refresh_failed", ["authentication"], ["info"], "failure"),
        ("tool_call.completed", ["api"], ["access"], "failure"),
        ("workflow.paused", ["configuration"], ["change"], "success"),
        ("alert.firing", ["iam"], ["info"], "unknown"),
        ("quarantine", ["web"], ["error"], "failure"),
    ],
)
def test_ecs_words_fit_the_kind(kind: str, category: list[str], types: list[str], outcome: str) -> None:
    event = FORMATS["ecs"](an_event(kind))["event"]
    assert (event["category"], event["type"], event["outcome"]) == (category, types, outcome)


def test_a_kind_without_a_mapping_of_its_own_is_noticed_here() -> None:
    """Whoever adds a kind to the log says what it is to a SIEM."""
    assert set(KINDS) == {*CHANGES, *FINDINGS, "audit"}
    assert set(KINDS) == {*CATEGORIES, "audit"}
    assert set(KINDS) == {*BY_KIND, *FINDINGS, "audit"}


def test_an_ecs_alert_names_its_rule() -> None:
    document = FORMATS["ecs"](an_event("alert.firing"))
    assert document["rule"]["id"] == "account-disconnected-active-workflow"
    assert document["authwatch"]["alert_id"] == "al_7"


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_format_lets_a_token_out(kind: str, format_name: Any) -> None:
    event = an_event(kind)
    details = {
        **(event.details or {}),
        "access_token": "S3CRET-1",
        "nested": [{"clientSecret": "S3CRET-2"}],
        "summary": "failed with Bearer S3CRET-3",
        "reason": f"jwt {JWT}",
        "error": "client_secret=S3CRET-7",
        "error_description": "https://user:S3CRET-4@host/?code=S3CRET-5",
        **{name: f"{name} {JWT}" for name in ("actor", "subject", "workflow_id", "rule_id", "alert_id", "group")},
    }
    leaky = replace(event, details=details)
    # Whatever the field.
    planted: dict[str, Any] = {name: f"{name} {JWT} token=S3CRET-{name}" for name in TEXT_FIELDS}
    for one in (leaky, replace(leaky, **planted)):
        for text in (json.dumps(FORMATS[format_name](one)), ENCODED[format_name](one).decode()):
            assert "S3CRET" not in text
            assert JWT not in text
            assert event.id in text


def _drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(item: dict[str, Any]) -> None:
        for step in path[:-1]:
            item = item[step]
        del item[path[-1]]

    return change


def _put(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(item: dict[str, Any]) -> None:
        for step in path[:-1]:
            item = item[step]
        item[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("kind", "break_it"),
    [
        ("account.created", _drop("entity")),
        ("account.created", _drop("metadata")),
        ("account.created", _drop("metadata", "version")),
        ("account.created", _drop("metadata", "product")),
        ("account.created", _drop("time")),
        ("account.created", _put({"type": "x"}, "entity")),  # neither name nor uid
        ("account.created", _put(3001, "class_uid")),
        ("account.created", _put(300402, "type_uid")),
        ("account.created", _put(7, "severity_id")),
        ("account.created", _put("1", "status_id")),
        ("account.created", _put(True, "severity_id")),
        ("account.created", _put(1_795_168_800.123, "time")),
        ("account.created", _put(1_795_168_800, "time")),  # seconds
        ("account.created", _put("x", "nonsense")),
        ("account.created", _put(None, "comment")),
        ("account.created", _put(42, "comment")),
        ("account.created", _put(True, "is_alert")),  # of a profile that is not declared
        ("account.created", _put(55, "entity", "type_id")),
        ("auth.failed", _drop("user")),
        ("auth.failed", _drop("service")),
        ("auth.failed", _put({}, "user")),
        ("token.refresh_failed", _drop("activity_name")),
        ("token.refresh_failed", _put("Success", "status")),  # beside 2
        ("account.created", _put("Entity", "class_name")),
        ("account.created", _drop("entity", "type")),  # beside 99
        ("account.created", _put("DISCONNECTED", "status")),
        ("audit", _drop("metadata", "profiles")),  # which bring the actor
        ("audit", _put({"idp": {}}, "actor")),  # nobody
        ("alert.firing", _drop("finding_info")),
        ("alert.firing", _drop("finding_info", "uid")),
        ("alert.firing", _drop("metadata", "profiles")),
        ("alert.firing", _put({"uid": "ca_1"}, "resources")),  # not an array
        ("alert.firing", _put([{"name": "no evidence"}], "evidences")),
    ],
)
def test_the_validator_itself_refuses_a_broken_item(kind: str, break_it: Callable[[dict[str, Any]], None]) -> None:
    item = copy.deepcopy(FORMATS["ocsf"](an_event(kind)))
    assert problems(item) == []
    break_it(item)
    assert problems(item) != []
