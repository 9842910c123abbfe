"""What docs/siem.md shows is what the code takes and gives; its commands run in tests/end_to_end/test_siem_pollers.py."""

from __future__ import annotations

import configparser
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from ruamel.yaml import YAML

from service import siem_feed
from service.api import siem
from service.api.siem import FeedQuery
from service.cli import authwatch
from service.event import Event
from service.settings import load_settings
from service.sinks import SINKS
from service.sinks.formats import ENCODED, FormatName
from service.store import pollers

TEXT = (Path(__file__).parents[2] / "docs" / "siem.md").read_text()
AT = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)
SHOWN = Event(
    id="01975e9a-0000-7000-8000-000000000001",
    position=4711,
    source="scalekit",
    origin="webhook",
    event_id="evt_1",
    type="connected_account.status_updated",
    kind="account.disconnected",
    account_id="ca_1",
    connection_id="conn_1",
    provider="SALESFORCE",
    identifier="ada@example.com",
    organization_id="org_1",
    environment_id="env_1",
    status="DISCONNECTED",
    old_status="ACTIVE",
    occurred_at=AT,
    received_at=AT + timedelta(seconds=2),
    lag_seconds=2.0,
    clock_suspect=False,
    account_status="DISCONNECTED",
)


def blocks(language: str, heading: str) -> list[str]:
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", without_code(TEXT), re.DOTALL | re.MULTILINE)
    assert section is not None, heading
    start, end = section.span(1)
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[start:end], re.DOTALL | re.MULTILINE)


def without_code(text: str) -> str:
    """With a `#` of a code block blanked, which begins no heading."""
    return re.sub(r"^```.*?^```", lambda block: block[0].replace("#", " "), text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", get_args(FormatName))
def test_the_item_that_is_shown_is_what_is_given(name: FormatName) -> None:
    [shown] = blocks("json", name)
    assert json.loads(shown) == json.loads(ENCODED[name](SHOWN))


def test_the_sinks_that_are_shown_are_taken(tmp_path: Path) -> None:
    [config] = blocks("yaml", "Push")
    (tmp_path / "config.yaml").write_text(config)
    settings = load_settings(
        {
            "DATABASE_URL": "postgresql://u@h/d",
            "AUTHWATCH_CONFIG": str(tmp_path / "config.yaml"),
            "HEC_TOKEN": "6f4e0e0e-0000-4000-8000-000000000000",
            "SIEM_WEBHOOK_SECRET": "whsec_" + "QXV0aHdhdGNoIHRlc3Qgc2VjcmV0IDAwMDAwMDAwMDE=",
        }
    )
    for name, section in settings.sinks.items():
        SINKS[section["kind"]].Config.model_validate({**section, "name": name})
    assert len(settings.sinks) == 2


def test_every_sink_there_is_has_its_row_in_the_table() -> None:
    [head] = re.findall(r"^\| sink \| .*$", TEXT, re.MULTILINE)
    assert head == "| sink | proven against the real thing | against a fake |"
    rows = re.findall(r"^\| `(\w+)` \| .+ \| .+ \|$", TEXT, re.MULTILINE)
    assert set(SINKS) <= set(rows)


def test_the_commands_of_ours_are_there() -> None:
    context = click.Context(authwatch)
    for group, name in re.findall(r"^authwatch (\w+) (\w+)", TEXT, re.MULTILINE):
        command = authwatch.get_command(context, group)
        assert isinstance(command, click.Group)
        assert name in command.list_commands(context), (group, name)


def test_the_filebeat_inputs_ask_only_what_the_feed_knows() -> None:
    [httpjson] = blocks("yaml", "Elastic: httpjson")
    [entry] = YAML(typ="safe", pure=True).load(httpjson)["filebeat.inputs"]
    assert entry["type"] == "httpjson"
    asked = {
        step["set"]["target"].removeprefix("url.params.")
        for steps in (entry["request.transforms"], entry["response.pagination"])
        for step in steps
        if step["set"]["target"].startswith("url.params.")
    }
    assert asked == {"cursor", "limit", "format"} <= set(FeedQuery.model_fields)
    given = json.loads(blocks("json", "Pull")[0])
    named = set(re.findall(r"last_response\.body\.(\w+)", httpjson)) | {
        entry["response.split"]["target"].removeprefix("body.")
    }
    assert named == set(given) == {"items", "next_cursor", "has_more"}


def test_the_sentinel_connection_asks_only_what_the_feed_knows() -> None:
    [shown] = blocks("json", "Microsoft Sentinel")
    properties: dict[str, Any] = json.loads(shown)["properties"]
    paging, request = properties["paging"], properties["request"]
    asked = {paging["NextPageParaName"], paging["pageSizeParameterName"], *request["queryParameters"]}
    assert asked == {"cursor", "limit", "format"} <= set(FeedQuery.model_fields)
    FeedQuery.model_validate({"limit": str(paging["pageSize"]), **request["queryParameters"]})
    assert paging["nextPageTokenJsonPath"] == "$.next_cursor"
    assert paging["hasNextFlagJsonPath"] == "$.has_more"
    assert properties["response"]["eventsJsonPaths"] == ["$.items"]
    assert properties["auth"]["ApiKeyIdentifier"] == "Bearer"  # by itself it would be "token"


def test_the_splunk_input_is_one() -> None:
    [inputs] = blocks("ini", "Splunk: scripted input")
    read = configparser.ConfigParser(interpolation=None)
    read.read_string(inputs)
    [section] = read.sections()
    assert section.startswith("script://")
    [script] = blocks("python", "Splunk: scripted input")
    compile(script, "authwatch_pull.py", "exec")


def test_the_numbers_are_the_codes() -> None:
    assert f"at most `{siem.WAIT_MAX.total_seconds():.0f}s`" in TEXT
    assert f"{siem_feed.WAITING_MAX} requests" in TEXT
    assert f"ends at {siem.PAGE_BYTES_MAX // 1024 // 1024} MiB" in TEXT
    assert f"`{siem.CURSOR_HEADER}`" in TEXT
    assert f"`{siem.MORE_HEADER}`" in TEXT
    assert f"at least {pollers.SILENT_AFTER_MIN.total_seconds() / 60:.0f} minutes" in TEXT
    for code in ("cursor_expired", "cursor_ahead", "cursor_mismatch", "invalid_cursor", "feed_busy"):
        assert f"`{code}`" in TEXT
