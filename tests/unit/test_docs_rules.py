"""docs/rules.md says nothing that is not so: every rule in it loads, every command in it is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from textwrap import indent

import click
import pytest

from service.command_line import exists
from service.event import DECISION_KINDS, PROVIDER_KINDS
from service.providers import DETAILS
from service.rules import load_text
from service.rules.advice import LATENESS_MIN, STATUSES
from service.rules.cli import COMMANDS, rules
from service.rules.document import Document, read_document
from service.rules.explain_mistakes import keys_of
from service.rules.fields import PLACEHOLDERS
from service.rules.given import EVIDENCE_MAX
from service.rules.latch import FLAPPING_QUIET, FLAPPING_TRANSITIONS, FLAPPING_WITHIN
from service.rules.match import FIELDS, OPERATORS
from service.rules.model import CONDITIONS, GROUP_FIELDS, Rule
from service.rules.triggers.gauge import METRICS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rules.md"
TEXT = PAGE.read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(TEXT.count("\n", 0, found.start()) + 2, found[1], found[2]) for found in BLOCK.finditer(TEXT)]
YAML_BLOCKS = {line: block for line, language, block in BLOCKS if language == "yaml"}
WHOLE = {line: block for line, block in YAML_BLOCKS.items() if re.search(r"^version:", block, re.MULTILINE)}
FRAGMENTS = {line: block for line, block in YAML_BLOCKS.items() if line not in WHOLE}
SHOWN = sorted(
    {*re.findall(r"`(authwatch rules [^`]+)`", TEXT), *re.findall(r"^(authwatch rules .+)$", TEXT, re.MULTILINE)}
)
# What a fragment is shown without: a rule of its own kind, less what the fragment itself says.
MINIMAL = {
    "id": "x",
    "severity": "P3",
    "count": "{match: {kind: other}, within: 5m, gte: 2}",
    "annotations": "{summary: s}",
}


def in_a_rule(fragment: str) -> str:
    """A whole file around a few keys of a rule, or of its condition."""
    document = read_document(fragment.encode(), "fragment")
    assert isinstance(document, Document), document
    keys = set(document.plain())
    parts = dict(MINIMAL)
    if keys == {"match"}:
        parts["count"] = "\n" + indent(fragment + "within: 5m\ngte: 2\n", "    ")
        fragment = ""
    rest = "".join(f"  {key}: {value}\n" for key, value in parts.items() if key not in keys and key != "id")
    return f"version: 1\nrules:\n- id: x\n{rest}{indent(fragment, '  ')}"


@pytest.mark.parametrize("line", WHOLE)
def test_every_rule_file_shown_loads_as_it_stands(line: int) -> None:
    loaded = load_text(WHOLE[line].encode(), f"docs/rules.md from line {line}")
    assert [*map(str, loaded.problems), *map(str, loaded.warnings)] == []
    assert loaded.rules


@pytest.mark.parametrize("line", FRAGMENTS)
def test_every_fragment_shown_loads_within_a_rule(line: int) -> None:
    loaded = load_text(in_a_rule(FRAGMENTS[line]).encode(), f"docs/rules.md at line {line}")
    assert [*map(str, loaded.problems), *map(str, loaded.warnings)] == []


def test_a_fragment_with_a_mistake_would_be_found() -> None:
    for fragment in FRAGMENTS.values():
        key = fragment.split(":", 1)[0]
        assert load_text(in_a_rule(fragment.replace(key, f"{key}x", 1)).encode(), "t.yml").problems


def test_all_rules_shown_can_stand_in_one_folder() -> None:
    ids = [rule.id for block in WHOLE.values() for rule in load_text(block.encode(), "t.yml").rules]
    assert len(set(ids)) == len(ids)
    assert {rule.kind for block in WHOLE.values() for rule in load_text(block.encode(), "t.yml").rules} == set(
        CONDITIONS
    )


@pytest.mark.parametrize("shown", SHOWN)
def test_every_command_shown_is_one(shown: str) -> None:
    words = [word for word in shlex.split(shown.replace("[", "").replace("]", "")) if word][2:]
    name, *arguments = words
    assert name in COMMANDS
    assert exists(COMMANDS[name]), f"{COMMANDS[name]} is not there"
    context = click.Context(rules)
    command = rules.get_command(context, name)
    assert command is not None
    command.make_context(name, arguments, parent=context)


def test_every_command_there_is_is_shown() -> None:
    assert {shown.split()[2] for shown in SHOWN} == set(COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        PROVIDER_KINDS,
        DECISION_KINDS,
        FIELDS,
        OPERATORS,
        tuple(METRICS),
        GROUP_FIELDS,
        PLACEHOLDERS,
        tuple(f"details.{name}" for name in DETAILS),
        STATUSES,
        CONDITIONS,
        tuple(set(keys_of(Rule)) - {"id"}),
    ],
)
def test_every_word_there_is_is_told(words: tuple[str, ...]) -> None:
    assert [word for word in words if f"`{word}`" not in TEXT and f"`{word}:" not in TEXT] == []


def test_the_figures_told_are_those_of_the_code() -> None:
    assert f"write less than `{int(LATENESS_MIN.total_seconds() // 60)}m`" in TEXT.replace("\n", " ")
    numbers = {4: "four", 5: "five"}
    times, minutes = numbers[FLAPPING_TRANSITIONS], int(FLAPPING_WITHIN.total_seconds() // 60)
    assert f"more than {times} times within {minutes} minutes" in TEXT
    assert f"names the events it rests on, up to {EVIDENCE_MAX}:" in TEXT
    assert f"quiet\nfor {numbers[int(FLAPPING_QUIET.total_seconds() // 60)]} minutes" in TEXT
