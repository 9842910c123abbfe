"""The backtest's progress: a bar where a person looks at it, plain lines elsewhere."""

from __future__ import annotations

import io
import re

import pytest

from service import backtest_command
from service.backtest_command import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def bars(drawn: str) -> list[tuple[str, str]]:
    """Each state of the bar that was drawn: its signs, and how far it says that it has come."""
    return re.findall(r"\[([#-]*)\]\s+([0-9]+/[0-9]+)", drawn)


def test_the_second_pass_is_not_done_because_the_first_was(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress_bar() as progress:
        for done, about in ((2_000, 4_000), (4_000, 4_000), (2_000, 8_000), (6_000, 8_000)):
            progress(done, about)
    states = bars(terminal.getvalue())
    assert [said for _, said in states if said != "0/1"] == ["2000/4000", "4000/4000", "2000/8000", "6000/8000"]
    shares = [signs.count("#") / len(signs) for signs, said in states if said != "0/1"]
    assert shares == pytest.approx([0.5, 1.0, 0.25, 0.75], abs=0.05)


def test_a_pipe_gets_whole_lines_now_and_then_and_nothing_that_steers(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    with progress_bar() as progress:
        progress(2_000, 4_000)
        monkeypatch.setattr(backtest_command, "LINE_EVERY_SECONDS", 0.0)
        progress(4_000, 4_000)
    assert re.fullmatch(r"4000 of about 4000 events, [0-9]+ s\n", pipe.getvalue())
