"""`authwatch rules test`: what it runs, what it says when something is not as expected, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.rules import load_text
from service.rules.cli import rules

SHIPPED = Path(__file__).resolve().parents[2] / "alert_rules"
RULE = """\
version: 1
rules:
- id: failing
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 3}
  resolve: {event: {kind: token.refresh_succeeded}}
  annotations: {summary: It fails}
  tests:
  - name: three fire
    events:
    - {at: 0s, kind: token.refresh_failed, repeat: 3, every: 1m}
    - {at: 1m30s, arrives: 10m, kind: token.refresh_succeeded}
    - {at: 1m, kind: token.refresh_failed, account_id: ca_other}
    expect:
    - {at: 2m, state: firing, group: {account_id: ca_1}, value: 3, episodes: 1}
    - {at: 10m, state: resolved, reason: late_arrival}
"""


def run(*words: str) -> Result:
    return CliRunner().invoke(rules, ["test", *words])


def test_all_the_shipped_rules_pass_and_each_has_tests() -> None:
    result = run(str(SHIPPED))
    assert result.exit_code == 0, result.output
    assert "FAILED" not in result.output
    assert "without tests" not in result.output


def test_a_test_that_is_met_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(RULE)
    result = run(str(tmp_path))
    assert (result.exit_code, result.output) == (0, "ok      failing: three fire\n1 of 1 test of 1 rule passed\n")


def test_a_test_that_is_not_met_says_what_was_expected_what_was_seen_and_what_happened_to_that_group(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.yml").write_text(RULE.replace("state: firing, group", "state: resolved, group"))
    result = run(str(tmp_path / "a.yml"))
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "FAILED  failing: three fire",
        "        at 2m: expected resolved, value 3, episodes 1 of account_id=ca_1; seen firing, value 3, episodes 1",
        "               0s  token.refresh_failed ca_1",
        "               1m  token.refresh_failed ca_1",
        "               2m  token.refresh_failed ca_1",
        "               2m  -> firing account_id=ca_1, value 3",
        "              10m  token.refresh_succeeded ca_1 ACTIVE (happened at 1m30s)",
        "              10m  -> resolved account_id=ca_1: late_arrival (2m)",
        "0 of 1 test of 1 rule passed",
    ]


@pytest.mark.parametrize("wrong", ["value: 4", "episodes: 2", "reason: recovered"])
def test_a_wrong_number_or_reason_is_not_met(tmp_path: Path, wrong: str) -> None:
    name = wrong.split(":")[0]
    text = (
        RULE.replace("reason: late_arrival", wrong)
        if name == "reason"
        else RULE.replace({"value": "value: 3", "episodes": "episodes: 1"}[name], wrong)
    )
    (tmp_path / "a.yml").write_text(text)
    assert run(str(tmp_path)).exit_code == 1


def test_a_file_with_a_mistake_is_2_and_the_others_are_tested_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(RULE)
    (tmp_path / "b.yml").write_text("version: 1\nrules: {}\n")
    result = run(str(tmp_path))
    assert result.exit_code == 2
    assert "ok      failing: three fire" in result.output
    assert result.output.splitlines()[1:] == [
        f"{tmp_path}/b.yml:2:8: error: rules is a list, and this has keys of its own",
        "    rules: {}",
        "           ^^",
        "    mend: write rules: [...]",
        "1 of 1 test of 1 rule passed",
        f"not run: 1 mistake in {tmp_path}/b.yml",
    ]


def test_when_no_file_is_good_no_test_is_counted(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text(RULE.replace("gte: 3", "gt: 3"))
    result = run(str(tmp_path))
    assert result.exit_code == 2
    assert "    mend: more than 3 is gte: 4" in result.output
    assert "passed" not in result.output


GROUPED = """\
version: 1
rules:
- id: organization-failing
  severity: P3
  count: {match: {kind: token.refresh_failed, provider: GMAIL}, within: 1h, gte: 2}
  group_by: [organization_id]
  annotations: {summary: It fails}
  tests:
  - name: quiet
    events:
    - {at: 0s, kind: token.refresh_failed, provider: GMAIL, organization_id: a, repeat: 3, every: 1m}
    - {at: 30s, kind: token.refresh_failed, provider: GMAIL}
    - {at: 40s, kind: token.refresh_failed, provider: SLACK, organization_id: a}
    expect: {at: 5m, state: inactive}
"""


def test_the_trace_says_which_group_an_event_fed_and_what_the_value_was_when_it_fired(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(GROUPED)
    assert run(str(tmp_path)).output.splitlines()[1:-1] == [
        "        at 5m: expected inactive; seen firing, value 3 of organization_id=a",
        "               0s  token.refresh_failed ca_1 provider=GMAIL organization_id=a",
        "              30s  token.refresh_failed ca_1 provider=GMAIL (no organization_id: in no group)",
        "              40s  token.refresh_failed ca_1 provider=SLACK organization_id=a",
        "               1m  token.refresh_failed ca_1 provider=GMAIL organization_id=a",
        "               1m  -> firing organization_id=a, value 2",
        "               2m  token.refresh_failed ca_1 provider=GMAIL organization_id=a",
    ]


def test_one_alert_for_all_has_no_group_to_name(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(GROUPED.replace("[organization_id]", "[]"))
    output = run(str(tmp_path)).output
    assert "-> firing, value 2" in output
    assert "seen firing, value 4\n" in output


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no such folder", "is not there"),
        ("empty", "holds no rule file"),
        ("no tests", "no tests in 1 rule"),
        ("no rules", "no rule in 1 file"),
    ],
)
def test_nothing_to_test_is_2_and_says_so(tmp_path: Path, what: str, said: str) -> None:
    if what == "no tests":
        (tmp_path / "a.yml").write_text(RULE.split("  tests:")[0])
    if what == "no rules":
        (tmp_path / "a.yml").write_text("version: 1\nrules: []\n")
    result = run(str(tmp_path / "nowhere") if what == "no such folder" else str(tmp_path))
    assert result.exit_code == 2
    assert said in result.output


GAUGE = """\
version: 1
rules:
- id: lag
  severity: P2
  gauge: {metric: delivery_lag_seconds, gt: 30}
  for: 5s
  keep_firing_for: 10s
  annotations: {summary: Late}
  tests:
  - name: it fires after five seconds and ends ten after it is over
    readings:
    - {at: 0s, value: 30, labels: {source: scalekit}}
    - {at: 10s, value: 31, labels: {source: scalekit}}
    - {at: 20s, value: 0, labels: {source: scalekit}}
    expect:
    - {at: 14s, state: pending}
    - {at: 15s, state: firing, group: {source: scalekit}, value: 31}
    - {at: 29s, state: firing}
    - {at: 30s, state: resolved, episodes: 1}
"""


def test_a_gauge_is_tested_by_its_readings(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(GAUGE)
    result = run(str(tmp_path))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("enabled", ["false", "shadow"])
def test_a_rule_that_is_not_in_force_is_tested_like_any_other(tmp_path: Path, enabled: str) -> None:
    (tmp_path / "a.yml").write_text(RULE.replace("  severity", f"  enabled: {enabled}\n  severity"))
    assert run(str(tmp_path)).exit_code == 0


def test_a_duration_under_a_name_that_ends_in_at_is_an_instant(tmp_path: Path) -> None:
    text = RULE.split("  count:")[0] + (
        "  count: {match: {details.token_expires_at: '2026-01-05T12:10:00Z', details.took: 10m}, within: 1m, gte: 1}\n"
        "  annotations: {summary: x}\n"
        "  tests:\n"
        "  - name: n\n"
        "    events: [{at: 0s, kind: other, details: {token_expires_at: 10m, took: 10m}}]\n"
        "    expect: {at: 0s, state: firing}\n"
    )
    (tmp_path / "a.yml").write_text(text)
    result = run(str(tmp_path))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "kind: token.refresh_failed, repeat",
            "kind: token.refresh_faild, repeat",
            'did you mean "token.refresh_failed"?',
        ),
        ("at: 1m30s", "at: soon", "write how long after the test's begin, such as 0s, 10m or 1h5m30s"),
        (", every: 1m", "", "repeat: say how far apart with every"),
        ("{account_id: ca_1}", "{provider: X}", 'it groups by account_id, not by "provider"'),
        ("    expect:\n", "    readings: [{at: 0s, value: 1}]\n    expect:\n", "readings go with gauge"),
    ],
)
def test_a_mistake_in_a_test_says_how_to_mend_it(old: str, new: str, said: str) -> None:
    assert old in RULE
    problems = load_text(RULE.replace(old, new, 1).encode(), "a.yml").problems
    assert any(said in problem.message for problem in problems), problems
