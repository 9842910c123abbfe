"""docs/routing.md says nothing that is not so: its config loads, its commands run, its numbers are the code's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.api.silences import SilenceBody
from service.cli import authwatch
from service.routing import grouping, tree
from service.routing.labels import OURS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "routing.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
[CONFIG] = [block for language, block in BLOCKS if language == "yaml"]
COMMANDS = [line for language, block in BLOCKS if language == "console" for line in block.splitlines()]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("authwatch")])
def test_every_command_runs_on_the_config_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.setenv("AUTHWATCH_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("SLACK_BOT_TOKEN", "xoxb-not-a-real-token-0000")
    ran = CliRunner().invoke(authwatch, [*shlex.split(command)[1:], "--data-dir", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    if " test " in command:
        assert ran.output.splitlines()[0] == "oncall,everybody"


def test_the_silence_shown_is_one() -> None:
    [body] = [found[1] for line in COMMANDS if (found := re.search(r"-d '(.+)'", line))]
    assert SilenceBody.model_validate_json(body).comment == "known, see #42"


def test_its_numbers_are_the_codes() -> None:
    assert f"within {grouping.STORM_GAP.seconds} s of the one before" in TEXT
    assert f"for {grouping.STORM_MAX.seconds // 60} minutes at most" in TEXT
    assert ", ".join(f"{step:,}" for step in grouping.GROWTH_STEPS[:4]) in TEXT
    assert f"still fires {grouping.REJOIN_WAIT.seconds} s later" in TEXT
    assert f"every {grouping.REFUSED_RETRY.seconds // 60} minutes while it stands" in TEXT
    rows = {row[1]: row[2] for row in re.finditer(r"^\| `(\w+)` \| ([^|]+) \|", TEXT, re.MULTILINE)}
    assert rows["group_wait"] == f"{tree.GROUP_WAIT.seconds}s"
    assert rows["group_interval"] == f"{tree.GROUP_INTERVAL.seconds}s"
    assert rows["repeat_interval"] == f"{tree.REPEAT_INTERVAL.seconds // 3600}h"
    for label in OURS:
        assert label in TEXT
