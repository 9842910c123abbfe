"""`authwatch rules check` and `diff`, as an admin and a CI job see them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.cli import authwatch
from tests.unit.rule_texts import GOOD, with_change


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(authwatch, ["rules", *map(str, words)], prog_name="authwatch")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of rules that is the one in force, and a data dir that is not there."""
    monkeypatch.setenv("AUTHWATCH_DATA_DIR", str(tmp_path / "data"))
    rules = tmp_path / "rules"
    rules.mkdir()
    monkeypatch.setenv("AUTHWATCH_RULES", str(rules))
    (rules / "a.yml").write_text(GOOD)
    return rules


def test_good_rules_are_counted(folder: Path) -> None:
    for words in ([], [folder], [folder / "a.yml"]):
        result = run("check", *words)
        assert (result.exit_code, result.output) == (0, "1 rule in 1 file: good\n")


def test_a_mistake_is_shown_with_its_line_the_words_meant_and_the_mend(folder: Path) -> None:
    (folder / "a.yml").write_text(with_change("token.refresh_failed", "token.refresh_faild"))
    result = run("check")
    assert result.exit_code == 1
    assert result.output == (
        f'{folder}/a.yml:6:19: error: unknown kind "token.refresh_faild"\n'
        "        match: {kind: token.refresh_faild}\n"
        "                      ^^^^^^^^^^^^^^^^^^^\n"
        '    mend: did you mean "token.refresh_failed"?\n'
        "1 problem in 1 file\n"
    )


def test_a_warning_is_shown_and_counts_only_when_asked_to(folder: Path) -> None:
    (folder / "a.yml").write_text(with_change("  annotations", "  group_by: [connection_id]\n  annotations"))
    result = run("check")
    assert result.exit_code == 0
    assert f"{folder}/a.yml:9:14: warning: it averages over users" in result.output
    assert "warning: identifier is empty: this rule has one alert for each connection_id" in result.output
    assert result.output.endswith("1 rule in 1 file: good, 2 warnings\n")
    assert run("check", "--strict").exit_code == 1


def test_an_id_of_two_files_is_a_mistake_of_the_second(folder: Path) -> None:
    (folder / "b.yaml").write_text(GOOD)
    result = run("check")
    assert result.exit_code == 1
    assert f'{folder}/b.yaml:3:7: error: rule id "failing" is already used in {folder}/a.yml' in result.output


def test_what_nobody_reads_is_said(folder: Path) -> None:
    """It lies there as if it were in force."""
    (folder / "team").mkdir()
    (folder / "team" / "b.yml").write_text(GOOD)
    (folder / "docs").mkdir()
    (folder / ".git").mkdir()
    (folder / "C.YML").write_text(GOOD)
    (folder / "d.yml").symlink_to(folder / "nowhere")
    result = run("check")
    assert (result.exit_code, run("check", "--strict").exit_code) == (0, 1)
    assert (
        f"{folder}/C.YML:1:1: warning: not read: rule files end in .yml or .yaml\n    mend: name it C.yml"
        in result.output
    )
    assert (
        f"{folder}/team:1:1: warning: a folder in the folder is not read\n    mend: move its files up" in result.output
    )
    assert f"{folder}/d.yml:1:1: warning: a link that leads nowhere" in result.output
    assert result.output.endswith("1 rule in 1 file: good, 3 warnings\n")


@pytest.mark.parametrize("command", ["check", "test"])
def test_several_files_are_read_as_one_as_a_shell_names_them(folder: Path, command: str) -> None:
    (folder / "b.yml").write_text(with_change("failing", "another"))
    (folder / "c.yml").write_text(GOOD)
    both = run(command, folder / "a.yml", folder / "b.yml", folder / "a.yml")
    assert "another" in both.output or "2 rules in 2 files: good" in both.output
    assert "already used" not in both.output, "a file that is named twice is read once"
    clash = run(command, folder / "a.yml", folder / "c.yml")
    assert clash.exit_code == (1 if command == "check" else 2)
    assert "already used in" in clash.output
    assert run(command, folder / "a.yml", folder / "nowhere.yml").exit_code == 2


def test_nothing_to_read_is_another_exit_status(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, said in ((tmp_path / "nowhere", "is not there"), (tmp_path / "empty", "holds no rule file")):
        result = run("check", path)
        assert result.exit_code == 2
        assert said in result.output
    (folder / "a.yml").unlink()
    assert run("check").exit_code == 2


def test_the_same_rules_written_otherwise_are_no_difference(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.yml"
    old.write_text("# a comment\n" + with_change("15m", "900s") + "  group_by: [account_id]\n")
    result = run("diff", old)
    assert (result.exit_code, result.output) == (0, "no difference: 1 rules say the same\n")


EDITS = [
    # An edit, what it shows as, and what becomes of open alerts.
    ("gte: 3", "gte: 4", "count.gte: 3 -> 4", "condition changed: open alerts close as rule_changed"),
    ("15m", "20m", "count.within: 15m -> 20m", "condition changed: open alerts close as rule_changed"),
    ("kind: token.refresh_failed", "kind: [other, audit]", "count.match.kind: token.refresh_failed -> [other, audit]", "condition changed"),
    ("  severity", "  for: 90s\n  severity", "for: - -> 90s", "condition changed"),
    ("  severity", "  resolve: {event: {kind: other}}\n  severity", "resolve.event.kind: - -> other", "condition changed"),
    ("severity: P2", "severity: P1", "severity: P2 -> P1", "condition unchanged: open alerts go on"),
    ("It fails", "It broke", "annotations.summary: It fails", "condition unchanged: open alerts go on"),
    ("  severity", "  enabled: shadow\n  severity", "enabled: - -> shadow", "condition unchanged: open alerts go on and are told to their end"),
    ("  severity", "  enabled: false\n  severity", "enabled: - -> false", "no longer in force: open alerts close"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "shown", "consequence"), EDITS)
def test_an_edit_is_shown_with_what_becomes_of_open_alerts(
    folder: Path, tmp_path: Path, old: str, new: str, shown: str, consequence: str
) -> None:
    edited = tmp_path / "new.yml"
    edited.write_text(with_change(old, new))
    result = run("diff", folder, edited)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0] == "~ failing: changed"
    assert lines[1].startswith(f"    {shown}")
    assert lines[2].startswith(f"    {consequence}")
    assert lines[3] == "0 added, 0 removed, 1 changed"


def test_a_rule_that_leaves_the_shadow_is_heard(folder: Path, tmp_path: Path) -> None:
    """rule_changes.py ends what it recorded, and judges anew."""
    edited = tmp_path / "new.yml"
    edited.write_text(with_change("  severity", "  enabled: shadow\n  severity"))
    result = run("diff", edited, folder)
    assert result.exit_code == 1
    assert result.output.splitlines()[1:3] == [
        "    enabled: shadow -> -",
        "    no longer in shadow: what it recorded so far ends there, and what still holds fires anew, to be heard",
    ]


def test_rules_come_and_go(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yml"
    other.write_text(with_change("failing", "another"))
    result = run("diff", other, folder)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "- another: removed",
        "    open alerts close as rule_changed",
        "+ failing: added",
        "    in force from now on",
        "1 added, 1 removed, 0 changed",
    ]


def test_what_does_not_load_cannot_be_compared(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text(with_change("P2", "P9"))
    for words in ((bad,), (folder, bad), (tmp_path / "nowhere",)):
        result = run("diff", *words)
        assert result.exit_code == 2
    assert f"{bad}:4:13: " in run("diff", bad).output
