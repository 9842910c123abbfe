"""The text of a rule, cut out of its file."""

from __future__ import annotations

import pytest

from service.rule_text import texts
from service.rules import load_text
from tests.unit.rule_texts import GOOD


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\r"], ids=["line separator", "next line", "CRLF"])
def test_a_rule_is_cut_out_where_it_stands_whatever_else_ends_a_line_somewhere(sign: str) -> None:
    """A comment pasted from elsewhere may hold such a sign; it must not move the cut."""
    body = GOOD.split("rules:\n")[1]
    text = f"# pasted{sign}\n" * 9 + GOOD + body.replace("failing", "second")
    if sign == "\r":
        text = (GOOD + body.replace("failing", "second")).replace("\n", "\r\n")
    loaded = load_text(text.encode(), "a.yml")
    assert loaded.problems == ()
    first, second = texts(loaded.rules, loaded.places, text)
    assert first == body
    assert second == body.replace("failing", "second")
