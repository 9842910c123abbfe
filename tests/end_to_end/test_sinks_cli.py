"""`authwatch sinks` on a real database, beside a sink that answers."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from service import sinks_cli
from service.runtime import open_runtime
from service.settings import load_settings
from service.sinks import SINKS
from service.store import log
from service.store.session import begin
from tests.fakes.front import Front, standing
from tests.fakes.hec import FakeHec
from tests.make import make_receipt
from workers.ship import ship

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "sinks.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL) for line in block.splitlines()]
TOKEN = "b5ca1d7e-THE-HEC-TOKEN-9f3a"


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@dataclass
class Desk:
    database_url: str
    environment: dict[str, str]
    hec: FakeHec = field(default_factory=lambda: FakeHec(TOKEN))

    def run(self, *words: str) -> Result:
        done = CliRunner(env=self.environment).invoke(sinks_cli.sinks, words)
        assert TOKEN not in done.output
        return done

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.database_url) as conn:
            done = conn.execute(statement)
            return done.fetchall() if done.description else []

    def ship(self, count: int = 0) -> None:
        async def shipping() -> None:
            async with open_runtime(load_settings(self.environment), connections_max=4) as runtime:
                if count:
                    async with begin(runtime.engine) as conn:
                        await log.accept(conn, [make_receipt() for _ in range(count)])
                await ship(runtime)

        asyncio.run(shipping())


@pytest.fixture
def desk(database_url: str, tmp_path: Path, front: Front) -> Iterator[Desk]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    (tmp_path / "rules").mkdir()
    sections = {
        "siem": {"kind": "splunk_hec", "url": front.url, "token": TOKEN},
        "alerts": {"kind": "splunk_hec", "url": front.url, "token": TOKEN, "format": "ecs", "match": {"kind": "audit"}},
    }
    (tmp_path / "config.yml").write_text(json.dumps({"sinks": sections}))
    environment = {
        "DATABASE_URL": database_url,
        "AUTHWATCH_CONFIG": str(tmp_path / "config.yml"),
        "AUTHWATCH_RULES": str(tmp_path / "rules"),
    }
    made = Desk(database_url, environment)
    front.app = made.hec.app
    yield made
    root.handlers[:] = handlers
    root.setLevel(level)


def test_list_says_where_each_stands(desk: Desk) -> None:
    assert "new" in desk.run("list").output
    desk.ship(3)
    head, siem, alerts = desk.run("list").output.splitlines()
    assert head.split()[:4] == ["name", "kind", "format", "match"]
    assert siem.split() == ["siem", "splunk_hec", "ocsf", "everything", "3", "0", "0", "0", "0", "shipping"]
    assert alerts.split() == [
        "alerts",
        "splunk_hec",
        "ecs",
        '{"kind":',
        '"audit"}',
        "3",
        "0",
        "0",
        "0",
        "0",
        "shipping",
    ]
    desk.hec.enabled = False
    desk.ship(1)
    said = desk.run("list").output
    assert "retrying" in said
    assert "siem: 127.0.0.1 answered 403" in said
    assert "enable it in Splunk" in said


def test_list_does_not_say_that_it_counted_to_the_end_where_it_did_not(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.ship(3)
    desk.execute("UPDATE readers SET position = 0 WHERE name = 'sink:siem'")
    monkeypatch.setattr(log, "LAG_COUNTED_MAX", 3)
    lags = [line.split()[-5] for line in desk.run("list").output.splitlines()[1:]]
    assert lags == ["3+", "0"]
    monkeypatch.undo()
    assert desk.run("list").output.splitlines()[1].split()[-5] == "3"


def test_test_asks_them_and_says_the_mend(desk: Desk) -> None:
    done = desk.run("test")
    assert (done.exit_code, done.output.count("ok  ")) == (0, 2)
    desk.hec.enabled = False
    done = desk.run("test", "siem")
    assert done.exit_code == 1
    assert "BAD  siem" in done.output
    assert "enable it in Splunk" in done.output
    assert desk.hec.envelopes == []
    assert "configured: siem, alerts" in str(desk.run("test", "other").exception)


def test_replay_sends_again_under_the_same_ids_and_is_an_audit_entry(desk: Desk) -> None:
    desk.ship(5)
    first = [event["metadata"]["uid"] for event in desk.hec.events]
    dry = desk.run("replay", "siem", "--from", "4", "--dry-run")
    assert "up to 2 items from position 4 on would be sent again to siem" in dry.output
    done = desk.run("replay", "siem", "--from", "4")
    assert (done.exit_code, "up to 2 items from position 4 on are sent again" in done.output) == (0, True)
    [(action, subject, reason)] = desk.execute(
        "SELECT details->>'action', details->>'subject', details->>'reason' FROM events WHERE kind = 'audit'"
    )
    assert (action, subject, reason) == ("sink.replay", "siem", "from position 4: 2 items")
    desk.ship()
    again = [event["metadata"]["uid"] for event in desk.hec.events if "metadata" in event]
    assert again[5:7] == first[3:]
    assert desk.run("list").output.splitlines()[1].split()[8] == "2"


def test_replay_from_a_time_begins_with_what_came_then(desk: Desk) -> None:
    desk.ship(4)
    desk.execute("UPDATE events SET received_at = received_at - interval '2 hours' WHERE position <= 3")
    since = f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    assert "up to 1 items from position 4 on" in desk.run("replay", "siem", "--from", since, "--dry-run").output


def test_replay_is_bounded_by_what_the_log_holds_and_by_where_the_sink_stands(desk: Desk) -> None:
    assert "has not been sent anything" in str(desk.run("replay", "siem", "--from", "1").exception)
    desk.ship(5)
    assert "stands at position 5" in str(desk.run("replay", "siem", "--from", "6").exception)
    desk.execute("INSERT INTO readers (name, position, moved_at) VALUES ('retention', 2, now())"
                 " ON CONFLICT (name) DO UPDATE SET position = 2")  # fmt: skip
    done = desk.run("replay", "siem", "--from", "1")
    assert "the log no longer holds what came before" in done.output
    assert "up to 3 items from position 3 on" in done.output


def test_poison_is_shown_with_its_reason(desk: Desk) -> None:
    assert "nothing is put aside" in desk.run("poison").output
    desk.hec.refuse_events_with = "ca_bad"

    async def accept() -> None:
        settings = load_settings(desk.environment)
        async with open_runtime(settings, connections_max=2) as runtime, begin(runtime.engine) as conn:
            await log.accept(conn, [make_receipt(), make_receipt(account_id="ca_bad"), make_receipt()])

    asyncio.run(accept())
    desk.ship()
    (line,) = desk.run("poison", "siem").output.splitlines()
    assert "siem  position 2  event" in line
    assert "Invalid data format" in line


def test_the_commands_of_the_documentation_are_taken(desk: Desk) -> None:
    desk.ship(2)
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        words = shlex.split(command.replace("splunk", "siem"))
        assert words[:2] == ["authwatch", "sinks"]
        done = desk.run(*words[2:])
        assert done.exit_code == 0, done.output


def test_the_sections_of_the_documentation_are_taken() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    sections = YAML(typ="safe").load(block)["sinks"]
    secret = "whsec_" + "c29jLXNlY3JldC1vZi1hLXRlc3QtYW5kLW5vLW1vcmU="
    for name, section in sections.items():
        config = SINKS[section["kind"]].Config.model_validate(
            {**section, "name": name} | ({"secret": secret} if "secret" in section else {})
        )
        assert config.name == name
