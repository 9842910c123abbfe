"""`authwatch rules backtest` before it reads anything: what it refuses, and how it says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.cli import authwatch
from tests.unit.rule_texts import GOOD, with_change

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(authwatch, ["rules", "backtest", *map(str, words)], env={"DATABASE_URL": NOWHERE})


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "a.yml").write_text(GOOD)
    return folder


def test_where_there_is_nothing_to_judge_by_it_says_so(rules: Path) -> None:
    (rules / "a.yml").unlink()
    for path, said in ((rules, "holds no rule file"), (rules / "a.yml", "is not there")):
        result = run(path)
        assert (result.exit_code, said in result.stderr) == (2, True), result.output
    (rules / "a.yml").write_text(with_change("  severity", "  enabled: false\n  severity"))
    for path in (rules, rules / "a.yml"):
        result = run(path)
        assert (result.exit_code, "every rule in it is switched off" in result.stderr) == (2, True), result.output


def test_a_mistake_is_named_with_its_file_and_place(rules: Path) -> None:
    (rules / "b.yml").write_text(GOOD)
    result = run(rules)
    assert result.exit_code == 1
    assert f'{rules}/b.yml:3:7: rule id "failing" is already used in {rules}/a.yml' in result.stderr


def test_a_time_still_to_come_is_no_past(rules: Path) -> None:
    soon, lately = (f"{datetime.now(UTC) + timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}" for hours in (1, -1))
    for since in (soon, "0d"):
        result = run("--since", since, rules)
        assert (result.exit_code, "no time before now" in result.stderr) == (2, True), result.output
    reached = run("--since", lately, rules)
    assert "the database cannot be read" in str(reached.exception or reached.output)
