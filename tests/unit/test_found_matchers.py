"""Found by reading: matchers that were taken and could not be read again, or not be stored."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.routing.matchers import BadMatcher, read_matchers


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('a"\\n{},=~! \n\té'), max_size=12), st.sampled_from(("=", "!=", "=~", "!~")))
def test_whatever_is_read_can_be_stored_and_read_again(value: str, op: str) -> None:
    """A silence that could not be read again would keep everybody from deciding what is told."""
    given = {"name": "a", "value": value, "isRegex": op.endswith("~"), "isEqual": not op.startswith("!")}
    with contextlib.suppress(BadMatcher):
        [one] = read_matchers([given])
        [again] = read_matchers([str(one)])
        assert (again.name, again.op, again.value) == ("a", op, value)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"name": "a", "value": '"' * 1_500}, "longer than 2000 characters when it is quoted"),
        ("a=" + "\\x" * 950, "longer than 2000 characters when it is quoted"),
        ({"name": "a", "value": "b\x00"}, "cannot be stored"),
        ({"name": "a", "value": "\ud800", "isRegex": True}, "cannot be stored"),
    ],
)
def test_a_matcher_that_could_not_be_read_again_is_refused(written: Any, said: str) -> None:
    with pytest.raises(BadMatcher, match=said):
        read_matchers([written])
