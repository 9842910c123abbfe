"""docs/slack-clicks.md says nothing that is not so: its config loads, and its numbers and names are the code's."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from service.cli import authwatch
from service.clicks import PATH, links, people
from service.clicks.people import clickable
from service.interactions import SNOOZE
from service.settings import load_settings
from tests.fakes.slack import TOKEN
from tests.fakes.slack_clicks import SIGNING_SECRET

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "slack-clicks.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_config_shown_loads(tmp_path: Path) -> None:
    [shown] = [block for language, block in BLOCKS if language == "yaml"]
    (tmp_path / "config.yaml").write_text(shown)
    settings = load_settings(
        {
            "DATABASE_URL": "postgresql://h/d",
            "AUTHWATCH_CONFIG": str(tmp_path / "config.yaml"),
            "SLACK_BOT_TOKEN": TOKEN,
            "SLACK_SIGNING_SECRET": SIGNING_SECRET,
        }
    )
    [config] = clickable(settings)
    assert config.may_act is not None
    assert config.may_act.groups == ("S012AB3CDE",)


def test_the_command_shown_is_one() -> None:
    [shown] = [block for language, block in BLOCKS if language == "console"]
    for line in shown.splitlines():
        assert CliRunner().invoke(authwatch, [*line.split()[1:], "--help"]).exit_code == 0


def test_its_numbers_are_the_codes() -> None:
    assert f"`{PATH}`" in TEXT
    assert SNOOZE.total_seconds() == 3600
    assert f"believed for {people.MEMBERS_SECONDS:.0f} s" in TEXT
    assert f"within {links.AGAIN_AFTER.seconds} s makes no" in " ".join(TEXT.split())
