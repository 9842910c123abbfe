"""What a person reads: of groups, of flapping, of late judgement, and of a provider's words in a rule file."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.notify.wording import word
from service.rules.cli import rules
from tests.unit.test_wording import NOW, view

OF_A_PROVIDER = {
    "account_id": None,
    "connection_id": None,
    "environment_id": None,
    "provider": None,
    "identifier": None,
    "account_status": None,
    "group": (("provider", "GMAIL"),),
}
RULE = """\
version: 1
rules:
- id: failing
  severity: P3
  count: {{match: {match}, within: 5m, gte: 1}}
  group_by: {group_by}
  annotations: {{summary: "{summary}"}}
"""


def test_of_a_group_it_says_which_and_asks_no_owner_for_anything() -> None:
    said = word(view(**OF_A_PROVIDER), NOW)
    assert said.who == "Who: provider GMAIL"
    assert said.what_to_do is None


def test_a_group_says_nothing_twice() -> None:
    said = word(view(**{**OF_A_PROVIDER, "connection_id": "conn_1", "group": (("connection_id", "conn_1"),)}), NOW)
    assert said.who == "Who: connection conn_1"


def test_flapping_is_said_while_it_lasts() -> None:
    assert "stays open until it has been quiet" in (word(view(flapping=True), NOW).status or "")
    assert "quiet" not in (word(view(flapping=True, state="resolved"), NOW).status or "")


def test_a_deadline_found_long_after_it_passed_says_so() -> None:
    late = view(late_detection=True, fired_at=view().opened_at + timedelta(seconds=85))
    assert word(late, NOW).late == "Its deadline had passed 85 s before it was judged."


@pytest.mark.parametrize(
    ("match", "group_by", "summary", "mend"),
    [
        ("{data.status: EXPIRED}", "[account_id]", "s", 'did you mean "status"?'),
        ("{data.error_class: x}", "[account_id]", "s", 'did you mean "details.error_class"?'),
        ("{kind: auth.failed}", "[data.id]", "s", 'did you mean "account_id"?'),
        ("{kind: auth.failed}", "[id]", "s", 'did you mean "account_id"?'),
        ("{kind: auth.failed}", "[account_id]", "{{ data.identifier }}", 'did you mean "identifier"?'),
    ],
)
def test_the_providers_words_lead_to_ours(tmp_path: Path, match: str, group_by: str, summary: str, mend: str) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(RULE.format(match=match, group_by=group_by, summary=summary))
    result = CliRunner().invoke(rules, ["check", str(path)])
    assert result.exit_code == 1
    assert f"mend: {mend}" in result.output


def test_a_file_without_tests_is_not_said_to_have_passed_them(tmp_path: Path) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(RULE.format(match="{kind: auth.failed}", group_by="[account_id]", summary="s"))
    result = CliRunner().invoke(rules, ["test", str(path)])
    assert result.exit_code == 2
    assert "passed" not in result.output
    assert "no tests in 1 rule" in result.output


def test_the_test_command_tells_the_mend_and_two_files_of_one_id(tmp_path: Path) -> None:
    good = RULE.format(match="{kind: auth.failed}", group_by="[account_id]", summary="s")
    (tmp_path / "a.yml").write_text(good)
    (tmp_path / "b.yml").write_text(good)
    (tmp_path / "c.yml").write_text(good.replace("within", "witin"))
    result = CliRunner().invoke(rules, ["test", str(tmp_path)])
    assert result.exit_code == 2
    assert 'did you mean "within"?' in result.output
    assert "already used in" in result.output
