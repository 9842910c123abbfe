"""The JSON Schema an editor reads: it takes what the loader takes, and refuses what the loader refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from service.rules import load_text
from service.rules.document import Document, read_document
from service.rules.json_schema import rule_file_schema
from service.rules.schema_command import as_text
from tests.unit.rule_texts import CONDITIONS, GOOD, HEAD, MATCH, rule, with_change

SHIPPED = Path(__file__).resolve().parents[2] / "alert_rules"
EDITOR_LINE = "# yaml-language-server: $schema=./rule.schema.json\n"
SCHEMA = rule_file_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def plain(text: str) -> Any:
    document = read_document(text.encode(), "t.yml")
    assert isinstance(document, Document)
    return document.plain()


def test_it_is_a_schema_of_its_draft() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_committed_schema_is_the_one_the_command_prints() -> None:
    said = "write it anew: authwatch rules schema > alert_rules/rule.schema.json"
    assert (SHIPPED / "rule.schema.json").read_text() == as_text(), said


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yml")), ids=lambda path: path.name)
def test_every_shipped_file_is_valid_and_tells_editors_where_the_schema_is(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(EDITOR_LINE)
    assert list(VALIDATOR.iter_errors(plain(text))) == []


GOOD_ONES = [
    GOOD,
    *(rule(name) for name in CONDITIONS),
    rule("count", "  resolve: {event: {kind: other}}\n  group_by: [details.team, source]\n"),
    rule("count", "  resolve: {event: [{kind: other}], after: 5m}\n  enabled: shadow\n  labels: {team: x}\n"),
    rule("count", of="{match: [{lag_seconds: {gt: 3}}, {details.n: 3}, {provider: {glob: 'G*'}}], within: 5m, gte: 1}"),
    rule("count", of="{match: {kind: [other, audit], status: {ne: [A, B]}}, within: 5m, gte: 1, distinct: details.x}"),
    rule("gauge", "  resolve: {lt: 10}\n  for: 2m\n  keep_firing_for: 1m\n  group_by: []\n"),
    rule("ratio", "  resolve: {gte: 0.95}\n  objective: {detect_within: 30s}\n"),
    rule("state", of="{of: account, match: [{status: [EXPIRED], active_workflows: {gte: 1}, for: 10s}]}"),
    rule("absence", of="{after: {kind: other}, expect: [{kind: other}], deadline: details.x, grace: 1m, unless: []}"),
    with_change("{{ identifier }}", "{x} {{ value }} }{ {{status}}"),
]


@pytest.mark.parametrize("text", GOOD_ONES)
def test_what_the_loader_takes_the_schema_takes(text: str) -> None:
    assert load_text(text.encode(), "t.yml").problems == ()
    assert [error.message for error in VALIDATOR.iter_errors(plain(text))] == []


BAD_ONES = [
    with_change("P2", "P9"),
    with_change("P2", "2"),
    "version: 1\nrules:\n- {id: a, severity: P1, annotations: {summary: x}}\n",
    with_change("15m", "5 minutes"),
    with_change("within", "witin"),
    rule("absence", of="{after: {kind: other}, expect: {kind: other}}"),
    rule("absence", of="{after: {kind: other}, expect: {kind: other}, within: 5m, deadline: details.x}"),
    rule("count", f"  state: {CONDITIONS['state']}\n"),
    with_change("gte: 3", "gte: '3'"),
    with_change("gte: 3", "gte: 0"),
    with_change("gte: 3", "gte: 3\n    distinct: acount_id"),
    with_change(MATCH, "{}"),
    with_change(MATCH, "[]"),
    with_change(MATCH, "{kind: othr}"),
    with_change(MATCH, "{knd: other}"),
    with_change(MATCH, "{lag_seconds: {gtee: 3}}"),
    with_change(MATCH, "{provider: {gt: 3}}"),
    with_change(MATCH, "{provider: 3}"),
    with_change(MATCH, "{provider: }"),
    with_change("identifier", "identifer"),
    with_change("{{ identifier }}", "{{ identifier }"),
    with_change("version: 1", "version: 2"),
    with_change(HEAD, HEAD + "  enabled: 'yes'\n"),
    with_change(HEAD, HEAD + "  labels: {team: 3}\n"),
    with_change(HEAD, HEAD + "  labels: {Team: x}\n"),
    with_change(HEAD, HEAD + "  for:\n"),
    with_change(HEAD, HEAD + "  resolve: {gte: 3}\n"),
    with_change(HEAD, HEAD + "  group_by: [acount_id]\n"),
    with_change(HEAD, HEAD + "  actions: [pause_workflows]\n"),
    rule("gauge", of="{metric: delivery_lag_secs, gt: 3}"),
    rule("gauge", of="{metric: delivery_lag_seconds}"),
    rule("state", "  resolve: {manual: true}\n"),
    rule("state", of="{of: account, match: {kind: other}}"),
    rule("quantile", of="{match: {kind: other}, field: provider, q: 0.9, within: 5m, gt: 1, min_total: 1}"),
]


@pytest.mark.parametrize("text", BAD_ONES)
def test_what_the_loader_refuses_the_schema_refuses(text: str) -> None:
    assert load_text(text.encode(), "t.yml").problems
    assert list(VALIDATOR.iter_errors(plain(text)))


def test_every_key_of_a_rule_is_told_in_a_sentence() -> None:
    """Those of a test's event are the fields of an event, and need none."""
    silent = [
        f"{name}.{key}"
        for name, schema in [("RuleFile", SCHEMA), *SCHEMA["$defs"].items()]
        if name not in ("Match", "TestEvent")
        for key, value in schema.get("properties", {}).items()
        if "description" not in value
    ]
    assert silent == []


def test_no_sentence_is_about_a_key_that_is_gone() -> None:
    from service.rules.descriptions import DESCRIPTIONS, FIELD_DESCRIPTIONS

    known = {
        name: set(schema.get("properties", {})) for name, schema in [("RuleFile", SCHEMA), *SCHEMA["$defs"].items()]
    }
    assert [name for name in DESCRIPTIONS if name not in known] == []
    gone = [
        one for one in FIELD_DESCRIPTIONS for name, _, key in [one.partition(".")] if key not in known.get(name, ())
    ]
    assert gone == []
