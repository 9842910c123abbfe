"""`authwatch routes`, as a person types it, and what a mistake in the config file is answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.cli import authwatch
from service.errors import ConfigError
from service.settings import load_settings

CONFIG = """\
notifiers:
  oncall: {kind: console}
  digest: {kind: console}
receivers:
- {name: oncall}
- {name: team, notifiers: [digest]}
- {name: nobody, notifiers: []}
route:
  receiver: team
  routes:
  - matchers: ["severity=P1"]
    receiver: oncall
    continue: true
    escalate: {after: 10m, to: team}
  - matchers: ["severity=~P1|P2", "team=payments"]
    receiver: team
    group_wait: 30s
"""


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, *words: str) -> Result:
    (tmp_path / "config.yaml").write_text(config)
    monkeypatch.setenv("AUTHWATCH_CONFIG", str(tmp_path / "config.yaml"))
    return CliRunner().invoke(authwatch, ["routes", *words, "--data-dir", str(tmp_path)])


def test_routes_test_names_the_receivers_as_amtool_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run(tmp_path, monkeypatch, CONFIG, "test", "severity=P1", "team=payments").output.splitlines()
    assert said[0] == "oncall,team"
    assert said[1].startswith("  route.routes.0: oncall, ")
    assert "escalates to team after 10m" in said[1]
    assert "group_wait 30s" in said[2]
    assert run(tmp_path, monkeypatch, CONFIG, "test", "severity=P2", "team=x").output.splitlines()[0] == "team"


def test_routes_test_can_be_a_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, CONFIG, "test", "--verify-receivers", "oncall", "severity=P1").exit_code == 0
    assert run(tmp_path, monkeypatch, CONFIG, "test", "--verify-receivers", "team", "severity=P1").exit_code == 1
    assert "write NAME=VALUE" in run(tmp_path, monkeypatch, CONFIG, "test", "P1").output


def test_a_label_is_written_as_in_a_matcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """amtool takes quotes too; they were taken for a part of the value, and the answer was another route's."""
    quoted = run(tmp_path, monkeypatch, CONFIG, "test", 'severity="P1"', 'team="payments"')
    assert quoted.output.splitlines()[0] == "oncall,team"
    for wrong in ("severity=~P1", "severity!=P1", 'severity="P1'):
        asked = run(tmp_path, monkeypatch, CONFIG, "test", wrong)
        assert asked.exit_code == 2
        assert "write NAME=VALUE" in asked.output


def test_routes_show_draws_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run(tmp_path, monkeypatch, CONFIG, "show").output.splitlines()
    assert said[0].startswith("everything else  ->  team (digest)")
    assert said[1].startswith('    {severity="P1"}  ->  oncall (oncall)')


def test_without_a_route_everybody_hears_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = "notifiers: {slack: {kind: console}, pager: {kind: console}}\n"
    assert "slack, pager" in run(tmp_path, monkeypatch, config, "show").output
    assert "slack, pager" in run(tmp_path, monkeypatch, config, "test", "severity=P4").output


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "group_wait: 30s",
            "group_wiat: 30s",
            'config.yaml:17:5: route.routes.1.group_wiat: unknown key; did you mean "group_wait"?',
        ),
        ("group_wait: 30s", "group_wait: soon", "config.yaml:17:5: route.routes.1.group_wait: write a duration"),
        (
            '"severity=P1"',
            '"severity=~(P1"',
            "config.yaml:11:5: route.routes.0.matchers: severity=~: a ( without its )",
        ),
        (
            "receiver: oncall",
            "receiver: onkall",
            'config.yaml:12:5: route.routes.0.receiver: no receiver named "onkall"',
        ),
        ("notifiers: [digest]", "notifiers: [digset]", 'config.yaml:6:3: receivers.1: no notifier named "digset"'),
        ("10m, to: team", "10m, to: nobdoy", "config.yaml:14:5: route.routes.0.escalate: no receiver named"),
    ],
)
def test_a_mistake_is_said_with_its_line_and_stops_the_start(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in CONFIG
    (tmp_path / "config.yaml").write_text(CONFIG.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_settings({"DATABASE_URL": "postgresql://x/y", "AUTHWATCH_CONFIG": str(tmp_path / "config.yaml")})
    assert said in str(caught.value)
