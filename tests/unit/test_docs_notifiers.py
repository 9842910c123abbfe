"""What docs/notifiers.md shows is what the code takes and sends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from service.cli import authwatch
from service.notify import NOTIFIERS, pagerduty, webhook
from service.notify.refusals import PROBE_EVERY, PROBE_GONE_EVERY
from service.routing import grouping
from service.routing.elsewhere import NOTIFIER_REFUSED
from service.settings import load_settings
from tests.fakes.pagerduty import ROUTING_KEY
from tests.fakes.receiver import SECRET
from tests.plug_ins.notifier_cases.views import OPENED, VIEW
from workers.outcomes import GIVE_UP_AFTER

TEXT = (Path(__file__).parents[2] / "docs" / "notifiers.md").read_text()


def block(kind: str) -> str:
    found = re.search(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_config_that_is_shown_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(block("yaml"))
    settings = load_settings(
        {
            "DATABASE_URL": "postgresql://u@h/d",
            "AUTHWATCH_CONFIG": str(tmp_path / "config.yaml"),
            "SLACK_BOT_TOKEN": "xoxb-not-a-real-token",
            "PAGERDUTY_ROUTING_KEY": ROUTING_KEY,
            "OPS_WEBHOOK_URL": "https://ops.example.com/hooks/1",
            "OPS_WEBHOOK_SECRET": SECRET,
        }
    )
    assert set(settings.notifiers) == {"oncall", "pager", "ops"}
    for name, section in settings.notifiers.items():
        NOTIFIERS[section["kind"]].Config.model_validate({**section, "name": name})


def keys(value: Any) -> Any:
    """Which keys there are at every depth."""
    if isinstance(value, dict):
        return {name: keys(item) for name, item in value.items()}
    return [keys(item) for item in value] if isinstance(value, list) else None


def test_the_body_that_is_shown_is_what_is_sent() -> None:
    assert keys(json.loads(block("json"))) == keys(webhook.message(VIEW, "d1", OPENED))
    assert json.loads(block("json"))["version"] == webhook.VERSION


def test_the_commands_that_are_shown_are_there() -> None:
    shown = block("console").splitlines()
    assert [line.split()[1] for line in shown if line.startswith("authwatch ")] == ["doctor"]
    assert "doctor" in authwatch.list_commands(click.Context(authwatch))
    assert any("/v1/health" in line for line in shown)


def test_the_numbers_are_the_codes() -> None:
    assert PROBE_EVERY.total_seconds() == 60
    assert "every minute (after 410 every hour)" in TEXT
    assert PROBE_GONE_EVERY.total_seconds() == 3600
    assert GIVE_UP_AFTER.total_seconds() == 86_400
    assert f"within {grouping.REFUSED_RETRY.seconds // 60} minutes" in TEXT
    assert f"within {webhook.TIMEOUT_SECONDS:.0f} s" in TEXT
    assert f"at most {webhook.BODY_BYTES_MAX // 1024} KiB" in TEXT
    assert f"`{NOTIFIER_REFUSED}`" in TEXT
    assert ", ".join(f"`{name}`" for name in pagerduty.SEVERITIES.values()) in TEXT
