"""docs/playbook.md is what the table says, and short where someone is in a hurry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from service.playbook.render import page
from service.playbook.table import ROWS
from service.playbook.words import ERROR_CLASSES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "playbook.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: authwatch playbook > docs/playbook.md"


def test_both_commands_print_it() -> None:
    for command in ("service.playbook.render", "service.cli"):
        words = [sys.executable, "-m", command, *(["playbook"] if command == "service.cli" else [])]
        printed = subprocess.run(words, capture_output=True, text=True, check=True, cwd=PAGE.parents[1])
        assert printed.stdout == page()


def test_the_first_screen_has_every_class_and_the_three_rules() -> None:
    screen = "\n".join(page().splitlines()[:24])
    for error_class in ERROR_CLASSES:
        assert f"| `{error_class}` |" in screen
    for rule in ("1. `invalid_grant` and scope failures", "2. 400 and 422", "3. A write is repeated only after"):
        assert rule in screen


def test_every_row_is_in_it_with_its_sources() -> None:
    text = page()
    for row in ROWS:
        assert f"| {row.meaning} |" in text, row.id
        for source in row.sources:
            assert source in text


def test_tables_are_whole() -> None:
    columns = 0
    for number, line in enumerate(page().splitlines(), 1):
        if not line.startswith("|"):
            columns = 0
            continue
        columns = columns or line.count("|")
        assert line.count("|") == columns, f"line {number}"
