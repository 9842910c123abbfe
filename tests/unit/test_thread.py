"""The lines of a thread: each told once, several of one kind as one, and never more than a thread takes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from service import slack_page, thread
from service.store.changes import NOTHING
from service.thread import Line

AT = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
LINES = st.lists(
    st.builds(
        Line,
        at=st.integers(0, 100).map(lambda seconds: AT + timedelta(seconds=seconds)),
        key=st.integers(0, 400).map(str),
        said=st.sampled_from(["Paused", "Resumed", "Acknowledged by dana", "Snoozed by <!channel>"]),
        whose=st.sampled_from(["", "a", "b", "c"]),
    ),
    max_size=300,
    unique_by=lambda line: line.key,
)


@given(LINES)
def test_every_line_is_told_once_and_what_is_told_fits(known: list[Line]) -> None:
    told: set[str] = set()
    for _ in range(3):
        new = thread.untold(known, told, AT)
        lines, keys = thread.tell(new, len(told))
        assert not told & set(keys)
        assert bool(lines) == bool(keys)
        assert len(lines) <= thread.LINES_MAX + 2
        told |= set(keys)
    assert len(told) == min(len(known), thread.TOLD_MAX)


def test_what_says_the_same_of_several_is_one_line() -> None:
    same = [Line(AT, str(number), "Paused", f"w{number}") for number in range(3)]
    assert thread.tell([*same, Line(AT, "x", "Resolved")], 0)[0] == (
        "12:00:00 UTC · Paused: w0, w1 and w2.",
        "12:00:00 UTC · Resolved.",
    )


def test_of_a_message_from_before_what_is_older_is_not_told() -> None:
    older, newer = Line(AT - timedelta(seconds=1), "1", "Paused"), Line(AT + timedelta(seconds=1), "2", "Resumed")
    assert thread.untold([older, newer], None, AT) == [newer]
    assert thread.untold([older, newer], set(), AT) == [older, newer]


def test_keys_are_of_the_row_and_not_of_what_is_said_about_it() -> None:
    """A name that changes must not make a line new."""
    parts = slack_page.manual().parts.lead
    renamed = replace(parts, workflows={"wf_payouts": replace(parts.workflows["wf_payouts"], name="Another name")})
    keys = [
        [line.key for line in thread.lines([one], NOTHING, message_id="m", notification_id=None, several=False)]
        for one in (parts, renamed)
    ]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == len(keys[0])


def test_outside_names_are_one_clean_line_each() -> None:
    parts = slack_page.revoked().parts.lead
    hostile = "w\nResolved by nobody\u202e https://evil.example/login"
    renamed = replace(parts, workflows={name: replace(shown, name=hostile) for name, shown in parts.workflows.items()})
    known = thread.lines([renamed], NOTHING, message_id="m", notification_id=None, several=False)
    for line in thread.tell(known, 0)[0]:
        assert "\n" not in line
        assert "\u202e" not in line
        assert "evil" not in line
