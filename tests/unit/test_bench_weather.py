"""What judges the weather sees what is wrong, and its plan has weather for everybody."""

from __future__ import annotations

import random

import pytest

from bench.sky import state_of
from bench.weather import how_much_faster, steps_of
from bench.weather_judge import SHOWN_MAX, Heard, asked_too_early, delays, problems
from service.notify.wording import SIGN_RESOLVED, SIGNS


def heard(*told: str, alert_id: str = "a", marked: bool = False) -> list[Heard]:
    """`told`: states in their order, the first of them a message and the others its edits; `+firing`: a message too."""
    return [
        Heard(alert_id, float(number), one.lstrip("+"), number == 0 or one[0] == "+", marked and number == 0)
        for number, one in enumerate(told)
    ]


def test_a_message_once_and_its_edits_in_order_are_well() -> None:
    assert problems("slack", ["a"], heard("firing", "acknowledged", "acknowledged", "resolved")) == []
    assert problems("slack", ["a"], heard("resolved")) == []


@pytest.mark.parametrize(
    ("came", "said"),
    [
        ([], "0 messages"),
        (heard("firing", "+firing", "resolved"), "2 messages"),
        (heard("acknowledged", "firing", "resolved"), "went back"),
        (heard("firing", "acknowledged"), "stands there as acknowledged"),
        (heard("firing", "resolved", marked=True), "possible repeat"),
        ([Heard("a", 1.0, "firing", False), Heard("a", 2.0, "resolved", True)], "before it was posted"),
    ],
)
def test_what_is_wrong_is_named(came: list[Heard], said: str) -> None:
    [problem] = problems("slack", ["a"], came)
    assert problem.startswith("slack: ")
    assert said in problem


def test_under_a_key_the_same_again_is_once_and_an_end_alone_will_do() -> None:
    again = [*heard("firing"), *heard("firing"), *heard("firing", "resolved")]
    assert problems("pager", ["a"], again, keyed=True) == []
    assert problems("pager", ["a"], [Heard("a", 1.0, "resolved", False)], keyed=True) == []
    [problem] = problems("pager", ["a"], heard("firing"), keyed=True)
    assert "stands there as firing" in problem


def test_a_long_list_is_cut_and_says_so() -> None:
    found = problems("slack", [str(number) for number in range(20)], [])
    assert len(found) == SHOWN_MAX + 1
    assert found[-1] == f"... and {20 - SHOWN_MAX} more"


def test_who_is_asked_while_it_wants_quiet_counts_them() -> None:
    assert asked_too_early([10.0], [9.9, 10.1, 10.7, 11.0, 11.5], 1.0) == 1
    assert asked_too_early([], [1.0], 1.0) == 0


def test_a_delay_is_to_the_first_message_of_what_fired_then() -> None:
    came = [Heard("a", 5.0, "firing", True), Heard("a", 9.0, "resolved", False), Heard("b", 7.0, "firing", True)]
    assert delays({"a": 4.0, "b": 1.0, "c": 4.5}, came, since=4.0, until=5.0) == [1.0]


def test_everybody_breaks_and_heals_twice_in_order_and_in_time() -> None:
    steps = steps_of(7, 120.0, random.Random(1))
    for name in {step.account for step in steps}:
        mine = [step for step in steps if step.account == name]
        assert [s.what for s in mine if s.what != "acknowledge"] == ["DISCONNECTED", "ACTIVE"] * 2
        assert all(0.0 <= step.at < 120.0 for step in mine)
    assert any(step.what == "acknowledge" for step in steps)


def test_a_state_is_read_from_the_sign_a_message_begins_with() -> None:
    signs = {**SIGNS, "resolved": SIGN_RESOLVED}
    for state, sign in signs.items():
        assert state_of(f"{sign} Account of Clark {signs['firing']}") == state


@pytest.mark.parametrize(("word", "faster"), [("", 30.0), ("full", 1.0), ("10", 10.0)])
def test_how_fast_is_said_by_a_word(word: str, faster: float) -> None:
    assert how_much_faster(word) == faster


@pytest.mark.parametrize("word", ["0", "-1", "fast", "1000", "nan"])
def test_a_word_that_says_nothing_is_refused(word: str) -> None:
    with pytest.raises(SystemExit, match="WEATHER is"):
        how_much_faster(word)
