"""Audit entries and alerts as a SIEM gets them: whoever did it, to what; and whatever an event holds, the item is valid."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.audit import ADOPT, CUT
from service.clicks import links
from service.event import KINDS, ORIGINS, Event
from service.sinks.actions import ACTIONS
from service.sinks.formats import ENCODED, FORMATS
from service.sinks.severity import BY_ACTION, HIGH, INFORMATIONAL, MEDIUM
from tests.ocsf_schema import problems
from tests.unit.test_formats import ALERT, an_event, ecs_problems

CALLS = r"\b(audit|note)\("
ROOT = Path(__file__).parents[2]


def an_entry(action: str, **details: Any) -> Event:
    said = {"actor": "cli", "action": action, "subject": "s1", "reason": "because", **details}
    return an_event("audit", account_id=None, identifier=None, event_id="s1", details=said)


def actions_in(source: str) -> set[str]:
    """The actions that are written where an audit entry is made: `audit(actor, "...")`, `note(conn, "...")`,
    `{"action": "..."}`."""
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("audit", "note"):
                found |= {
                    str(one.value) for one in node.args if isinstance(one, ast.Constant) and "." in str(one.value)
                }
        elif isinstance(node, ast.Dict) and {"actor", "action"} <= {getattr(key, "value", None) for key in node.keys}:
            for key, value in zip(node.keys, node.values, strict=True):
                if getattr(key, "value", None) == "action" and isinstance(value, ast.Constant):
                    found.add(str(value.value))
    return found


def test_every_action_of_an_audit_entry_is_in_the_table() -> None:
    files = [*(ROOT / "service").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]
    sources = (path.read_text() for path in files)
    written = set[str]().union(*(actions_in(one) for one in sources if '"action"' in one or re.search(CALLS, one)))
    assert {"workflow.put", "token.create", "sink.events_lost", "silence.end"} <= written
    # Those that are handed on as they are, and those that stand in a constant.
    handed_on = {"alert.acknowledged", "alert.resolved", links.ACTION, CUT, ADOPT}
    assert written | handed_on == set(ACTIONS)
    assert set(BY_ACTION) <= set(ACTIONS)


@pytest.mark.parametrize("action", [*ACTIONS, "what.tomorrow_brings", "odd"])
def test_every_action_is_valid_in_every_format(action: str) -> None:
    event = an_entry(action)
    item = FORMATS["ocsf"](event)
    assert problems(item) == []
    assert item["class_uid"] == 3004
    assert item["entity"]["uid"] == "s1"
    assert item["comment"] == "because"
    assert item["unmapped"]["details"]["action"] == action
    document = FORMATS["ecs"](event)
    assert ecs_problems(document) == []
    assert (document["event"]["action"], document["user"]["name"]) == (action, "cli")
    assert document["message"] == f"{action}: s1"


@pytest.mark.parametrize(
    ("action", "type_uid", "what", "severity_id", "ecs"),
    [
        ("workflow.pause", 300412, "Workflow", 1, ["configuration", "change"]),
        ("workflow.delete", 300404, "Workflow", 2, ["configuration", "deletion"]),
        ("token.create", 300401, "API Token", 3, ["iam", "admin", "creation"]),
        ("token.revoke", 300409, "API Token", 2, ["iam", "admin", "change"]),
        ("secret.remove", 300404, "Signing Secret", 3, ["iam", "admin", "deletion"]),
        ("silence.create", 300401, "Silence", 2, ["configuration", "creation"]),
        ("silence.end", 300411, "Silence", 1, ["configuration", "change"]),
        ("rules.publish", 300403, "Rule Set", 2, ["configuration", "change"]),
        ("sink.events_lost", 300499, "Sink", 4, ["configuration", "info"]),
        ("audit.adopt", 300499, "Audit Log", 4, ["configuration", "info"]),
    ],
)
def test_an_entry_says_what_was_done_to_what(
    action: str, type_uid: int, what: str, severity_id: int, ecs: list[str]
) -> None:
    item = FORMATS["ocsf"](an_entry(action))
    assert (item["type_uid"], item["entity"]["type"], item["severity_id"]) == (type_uid, what, severity_id)
    event = FORMATS["ecs"](an_entry(action))["event"]
    assert {*event["category"], *event["type"]} == set(ecs)


def test_what_was_lost_is_a_failure() -> None:
    assert FORMATS["ocsf"](an_entry("sink.events_lost"))["status"] == "Failure"
    assert FORMATS["ecs"](an_entry("sink.events_lost"))["event"]["outcome"] == "failure"


@pytest.mark.parametrize(
    ("actor", "said"),
    [
        ("slack:U7 (dana)", {"app_name": "Slack", "user": {"uid": "U7", "name": "dana"}}),
        ("slack:U7", {"app_name": "Slack", "user": {"uid": "U7"}}),
        ("slack:", {"app_name": "slack:"}),
        ("slack: (dana)", {"app_name": "slack: (dana)"}),
        ("the config file", {"app_name": "the config file"}),
        ("ci-deploy", {"app_name": "ci-deploy"}),
    ],
)
def test_who_did_it_is_a_user_only_where_it_was_a_person(actor: str, said: dict[str, Any]) -> None:
    item = FORMATS["ocsf"](an_entry("workflow.pause", actor=actor))
    assert problems(item) == []
    assert item["actor"] == said


def test_an_alert_names_what_it_concerns() -> None:
    details = {**ALERT, "opened_at": "2026-11-20T09:59:00Z", "workflow_ids": ["w1", "w2"]}
    item = FORMATS["ocsf"](an_event("alert.firing", details=details))
    assert problems(item) == []
    assert item["finding_info"]["created_time"] == item["time"] - 60_123
    assert [(one["type"], one["uid"]) for one in item["resources"]] == [
        ("Connected Account", "ca_1"),
        ("Workflow", "w1"),
        ("Workflow", "w2"),
    ]


def test_an_alert_of_our_own_names_what_it_is_about() -> None:
    details = {**ALERT, "group": {"about": "splunk"}, "workflow_ids": []}
    event = an_event("alert.firing", account_id=None, connection_id=None, identifier=None, details=details)
    item = FORMATS["ocsf"](event)
    assert problems(item) == []
    assert [one["uid"] for one in item["resources"]] == ["splunk"]


def test_the_same_thing_is_graver_for_operations_than_for_security_and_the_other_way_round() -> None:
    """A disconnection is a P2 for operations and medium for security; a drill is of no concern to it."""
    assert FORMATS["ocsf"](an_event("alert.firing", details=ALERT))["severity_id"] == MEDIUM
    assert FORMATS["ocsf"](an_event("alert.firing", details={**ALERT, "severity": "P1"}))["severity_id"] == HIGH
    drill = FORMATS["ocsf"](an_event("alert.firing", details={**ALERT, "severity": "P1", "drill": True}))
    assert (drill["severity_id"], drill["metadata"]["labels"]) == (INFORMATIONAL, ["drill"])
    assert FORMATS["ecs"](an_event("alert.firing", details={**ALERT, "drill": True}))["event"]["severity"] == 1


@pytest.mark.parametrize(
    ("details", "code", "detail"),
    [
        ({"error_code": "invalid_grant", "error_description": "expired"}, "invalid_grant", "expired"),
        ({"error": "invalid_grant"}, "invalid_grant", None),
        ({"error": "the token was refused", "http_status": 401}, "401", "the token was refused"),
        ({"error": "it said no to us", "error_class": "auth"}, "auth", "it said no to us"),
        ({"reason": "no consent"}, None, "no consent"),
    ],
)
def test_a_failure_says_the_code_and_the_sentence_apart(
    details: dict[str, Any], code: str | None, detail: str | None
) -> None:
    item = FORMATS["ocsf"](an_event("auth.failed", details=details))
    assert problems(item) == []
    assert (item.get("status_code"), item.get("status_detail")) == (code, detail)


@pytest.mark.parametrize(("outcome", "status"), [("success", "Success"), ("error", "Failure"), ("odd", "Unknown")])
def test_a_tool_call_says_how_it_went_and_how_long_it_took(outcome: str, status: str) -> None:
    item = FORMATS["ocsf"](an_event("tool_call.completed", details={"outcome": outcome, "latency_ms": 321}))
    assert problems(item) == []
    assert (item["status"], item["duration"]) == (status, 321)


EARLIEST = datetime(2000, 1, 2, tzinfo=UTC)
INSTANTS = st.timedeltas(timedelta(0), timedelta(days=72_900)).map(lambda since: EARLIEST + since)  # to 2199
# Postgres keeps no NUL and no half of a surrogate pair.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
MAYBE = st.none() | TEXTS
NAMES = (
    *("alert_id", "rule_id", "severity", "summary", "state", "reason", "group", "workflow_ids", "workflow_id"),
    *("actor", "action", "subject", "error", "error_code", "error_class", "error_description", "http_status"),
    *("outcome", "latency_ms", "duration_ms", "opened_at", "drill", "access_token", "name", "value"),
)
WORDS = st.sampled_from(NAMES)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = (
    st.none() | st.booleans() | NUMBERS | TEXTS | st.sampled_from([*ACTIONS, "P1", "firing", "success", "slack:U (d)"])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | TEXTS, inner, max_size=3), max_leaves=6
)
EVENTS = st.builds(
    Event,
    id=st.uuids().map(str),
    position=st.integers(1, 2**53),
    source=TEXTS,
    origin=st.sampled_from(ORIGINS),
    event_id=MAYBE,
    type=TEXTS,
    kind=st.sampled_from(KINDS) | TEXTS,
    account_id=MAYBE,
    connection_id=MAYBE,
    provider=MAYBE,
    identifier=MAYBE,
    organization_id=MAYBE,
    environment_id=MAYBE,
    status=MAYBE,
    old_status=MAYBE,
    occurred_at=INSTANTS,
    received_at=INSTANTS,
    lag_seconds=st.none() | st.floats(-1e6, 1e6),
    clock_suspect=st.booleans(),
    account_status=MAYBE,
    details=st.none() | st.dictionaries(WORDS | TEXTS, VALUES, max_size=6),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_detail_of_an_unforeseen_type_spoils_no_item(kind: str) -> None:
    odds: tuple[Any, ...] = ([], ["x"], {}, {"about": []}, "", "x", 0, 7, 1.5, True, None)
    for name in NAMES:
        for odd in odds:
            event = an_event(kind, details={**(an_event(kind).details or {}), name: odd})
            assert problems(FORMATS["ocsf"](event)) == []
            assert ecs_problems(FORMATS["ecs"](event)) == []


@settings(max_examples=150, deadline=None)
@given(EVENTS)
def test_whatever_an_event_holds_it_leaves_as_a_valid_item(event: Event) -> None:
    item = FORMATS["ocsf"](event)
    assert problems(item) == []
    assert item["metadata"]["uid"] == event.id
    assert ecs_problems(FORMATS["ecs"](event)) == []
    for name, shape in FORMATS.items():
        assert json.loads(ENCODED[name](event)) == json.loads(json.dumps(shape(event), allow_nan=False))


@settings(max_examples=50, deadline=None)
@given(EVENTS)
def test_shaping_changes_nothing_of_the_event(event: Event) -> None:
    before = replace(event, details=None if event.details is None else json.loads(json.dumps(event.details)))
    for shape in FORMATS.values():
        shape(event)
    assert event == before
