"""Whatever the bytes of a rule file, the loader answers, soon, with problems that have a place."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.rules import load_text
from service.rules.document import DEPTH_MAX, ITEMS_MAX, LINE_MAX, VALUES_MAX
from service.rules.load import FILE_BYTES_MAX, Loaded
from tests.unit.rule_texts import CONDITIONS, GOOD, rule

SIZE = FILE_BYTES_MAX - 100
# The machine that runs this may be busy; on an idle one each is refused in a tenth of that.
SOON = 2.0
HOSTILE = {
    "open lists": "[" * 20_000,
    "open lists, a line each": "[\n" * 10_000,
    "as many as a file takes": "[\n" * (SIZE // 2),
    "open mappings": "{" * 20_000,
    "open mappings of values": "{a:\n" * (SIZE // 4),
    "both in turn": "[{\n" * 10_000,
    "dashes": "- " * 10_000,
    "question marks": "? " * 10_000,
    "a flow": "[" + "a," * (SIZE // 3) + "]",
    "a flow, a line each": "[" + "a,\n" * (SIZE // 4) + "]",
    "aliases": "a: &a 1\nb: [" + "*a,\n" * (SIZE // 5) + "]",
    "keys of aliases": "a: &a 1\n" + "".join(f"k{n}: *a\n" for n in range(20_000)),
    "anchors": "".join(f"- &a{n} x\n" for n in range(20_000)),
    "a long anchor": f"- &{'a' * (LINE_MAX - 10)} x\n" * 50,
    "a long key": "a" * SIZE + ": b",
    "long keys": "".join(f"{'a' * 900}{n}: b\n" for n in range(250)),
    "tags": "!" * SIZE,
    "directives": "%A\n" * (SIZE // 3),
    "documents": "---\n" * (SIZE // 4),
    "keys": "".join(f"k{n}: b\n" for n in range(20_000)),
    "one key": "a: b\n" * (SIZE // 5),
}


def timed(raw: bytes) -> tuple[Loaded, float]:
    """Processor time, which a neighbour on the machine does not lengthen."""
    began = time.process_time()
    loaded = load_text(raw, "t.yml")
    return loaded, time.process_time() - began


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_soon(name: str) -> None:
    loaded, took = timed(HOSTILE[name].encode())
    assert loaded.problems
    assert took < SOON


def test_a_file_of_a_thousand_rules_is_none() -> None:
    body = GOOD.split("rules:\n")[1]
    text = "version: 1\nrules:\n" + "".join(body.replace("failing", f"r{n}") for n in range(ITEMS_MAX))
    assert len(load_text(text.encode(), "t.yml").rules) == ITEMS_MAX


def test_the_bounds_are_the_bounds() -> None:
    def said(text: str) -> str:
        return load_text(text.encode(), "t.yml").problems[0].message

    assert "nests deeper" not in said("[" * DEPTH_MAX + "]" * DEPTH_MAX)
    assert "nests deeper" in said("[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1))
    assert "a line longer" not in said("#" * LINE_MAX)
    assert "a line longer" in said("#" * (LINE_MAX + 1))
    thousand = "[" + ",\n".join(["x"] * ITEMS_MAX) + "]"
    unfolded = f"a: &a {thousand}\nb: [" + "*a, " * 25 + "]"
    assert "repeats too much" in said(unfolded), VALUES_MAX


def answers(raw: bytes) -> None:
    loaded = load_text(raw, "t.yml")
    assert bool(loaded.problems) != bool(loaded.rules) or (not loaded.rules and not loaded.problems)
    for problem in (*loaded.problems, *loaded.warnings):
        assert problem.line >= 1
        assert problem.column >= 1
        assert problem.message.isprintable()
        assert 0 <= problem.offset <= len(problem.source)
        assert str(problem).startswith(f"t.yml:{problem.line}:{problem.column}: ")


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_answered(raw: bytes) -> None:
    answers(raw)


SIGNS = "[]{}:,-?&*!|>'\"%@`#<\t\n \r\x85\u2028\ufeff\x00\x1b~1a"


@given(st.text(alphabet=SIGNS, max_size=80))
@settings(max_examples=500, deadline=None)
def test_any_signs_of_yaml_are_answered(text: str) -> None:
    answers(text.encode())


@st.composite
def mangled(draw: st.DrawFn) -> str:
    """A good file of any condition, with a few pieces cut, doubled or overwritten."""
    text = rule(draw(st.sampled_from(list(CONDITIONS))), "  for: 1m\n  labels: {team: x}\n  group_by: [account_id]\n")
    scraps = st.sampled_from(
        [
            "",
            "null",
            "[]",
            "{}",
            "true",
            "-1",
            "1.5",
            '"x"',
            "[[x]]",
            "{a: b}",
            "*x",
            "&x",
            "\n",
            "  ",
            "15m",
            "kind",
            "!!int",
        ]
    )
    for _ in range(draw(st.integers(1, 3))):
        words = sorted({(at, at + len(word)) for word in set(text.split()) for at in [text.find(word)]})
        start, end = draw(st.sampled_from(words))
        text = text[:start] + draw(scraps) + text[end:]
        if not text.split():
            break
    return text


@given(mangled())
@settings(max_examples=600, deadline=None)
def test_a_good_file_mangled_is_answered(text: str) -> None:
    answers(text.encode())
