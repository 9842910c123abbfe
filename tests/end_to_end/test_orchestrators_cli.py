"""`authwatch orchestrators` as a person types it, and the commands of docs/orchestrators.md."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel, ConfigDict

from service.cli import authwatch
from service.doctor import of_plug_in
from service.orchestrators import ORCHESTRATORS, OrchestratorKind
from service.orchestrators.proposals import Proposal, Wanted
from service.orchestrators_cli import curl
from tests.fakes.asked_first import FakeAskedFirst

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "orchestrators.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("authwatch orchestrators")
]
SECRET = "whsec_" + "b3JjaGVzdHJhdG9yLXNlY3JldC1vZi10aGUtdGVzdHM="


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["asked_first"]
    name: str


@pytest.fixture
def prod(monkeypatch: pytest.MonkeyPatch) -> FakeAskedFirst:
    fake = FakeAskedFirst("prod", "sync-mail", "sync-crm", "report")
    monkeypatch.setitem(ORCHESTRATORS, "asked_first", OrchestratorKind(Section, lambda _config, _http: fake))
    return fake


class Shell:
    def __init__(self, folder: Path, database_url: str | None = None) -> None:
        self.folder, self.database_url = folder, database_url
        hook = {"kind": "webhook", "url": "https://ops.example.com/hook", "secret": SECRET}
        self.write({"prod": {"kind": "asked_first"}, "hook": hook})

    def write(self, orchestrators: Mapping[str, Any]) -> None:
        (self.folder / "config.yml").write_text(json.dumps({"orchestrators": orchestrators}))

    def __call__(self, *words: str) -> Result:
        env = {"DATABASE_URL": self.database_url, "AUTHWATCH_CONFIG": str(self.folder / "config.yml")}
        runner = CliRunner(env=env)
        return runner.invoke(authwatch, ["orchestrators", *words, "--data-dir", str(self.folder)])


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def at_home(tmp_path: Path, database_url: str) -> Shell:
    return Shell(tmp_path, database_url)


def registered(database_url: str) -> dict[str, str]:
    with psycopg.connect(database_url) as conn:
        return dict(conn.execute("SELECT workflow_id, orchestrator_ref FROM workflows").fetchall())


# list and test


def test_list_says_what_a_pause_stops(shell: Shell, prod: FakeAskedFirst) -> None:
    done = shell("list")
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()
    assert first == (
        "prod (asked_first): a pause stops scheduled starts: yes, starts by hand or API: no, running work: it does not say"
    )
    assert second.startswith("hook (webhook): ")
    assert SECRET not in done.output


def test_without_any_it_says_where_to_read_on(shell: Shell) -> None:
    shell.write({})
    for words in (["list"], ["test"]):
        done = shell(*words)
        assert (done.exit_code, "docs/orchestrators.md" in done.stdout) == (0, True)


def test_test_calls_each_and_fails_with_the_mend(shell: Shell, prod: FakeAskedFirst) -> None:
    assert shell("test").exit_code == 0
    prod.takes_us = False
    done = shell("test")
    assert done.exit_code == 1
    assert "BAD  prod: 401: the key is no longer valid; make a new one (http_401)" in done.stdout
    assert "ok   hook: " in done.stdout
    assert shell("test", "hook").exit_code == 0
    assert "there is: prod, hook" in shell("test", "prdo").output


def test_test_says_how_one_workflow_stands(shell: Shell, prod: FakeAskedFirst) -> None:
    assert "     report: not paused" in shell("test", "prod", "--ref", "report").stdout
    prod.flows["report"].paused = True
    assert "     report: paused" in shell("test", "prod", "--ref", "report").stdout
    done = shell("test", "prod", "--ref", "reprot")
    assert (done.exit_code, "workflow_gone" in done.stdout) == (1, True)
    assert [line.partition(" ")[0] for line in done.stdout.splitlines() if not line.startswith(" ")] == ["BAD"]
    assert "prod takes our key" in done.stdout, "what is well is said under the verdict"
    assert shell("test", "--ref", "report").exit_code == 2
    assert prod.made("pause") == prod.made("resume") == 0


# import


def test_import_proposes_calls_that_can_be_run_and_changes_nothing(at_home: Shell, prod: FakeAskedFirst) -> None:
    done = at_home("import", "prod", "--name", "sync-*", "--connection", "conn_1")
    assert done.exit_code == 0, done.output
    crm, mail = (shlex.split(line) for line in done.stdout.splitlines())
    assert crm[:5] == ["curl", "-fsS", "-X", "PUT", "$AUTHWATCH_URL/v1/workflows/sync-crm"]
    assert json.loads(mail[-1]) == {
        "name": "sync-mail",
        "account_ids": [],
        "connection_ids": ["conn_1"],
        "orchestrator": {"name": "prod", "ref": "sync-mail"},
    }
    assert "prod: 3 looked at, 2 to register, 0 left as they are" in done.stderr
    assert registered(str(at_home.database_url)) == {}


def test_apply_registers_them_once(at_home: Shell, prod: FakeAskedFirst) -> None:
    words = ("import", "prod", "--account", "ca_1", "--apply")
    assert "3 registered" in at_home(*words).stderr
    found = registered(str(at_home.database_url))
    assert found == {name: name for name in ("sync-mail", "sync-crm", "report")}
    again = at_home(*words)
    assert "0 registered, 3 left as they are" in again.stderr
    assert "left as it is: report (report), registered as report" in again.stderr
    del prod.flows["report"]
    assert "not there any more: report" in at_home(*words).stderr
    assert registered(str(at_home.database_url)) == found


def test_apply_without_anything_to_depend_on_is_refused(at_home: Shell, prod: FakeAskedFirst) -> None:
    assert at_home("import", "prod", "--apply").exit_code == 2
    assert "they depend on nothing yet" in at_home("import", "prod").stderr


def test_as_json_it_is_the_calls(at_home: Shell, prod: FakeAskedFirst) -> None:
    [call] = json.loads(at_home("import", "prod", "--name", "report", "--account", "ca_1", "--json").stdout)
    assert (call["method"], call["path"], call["body"]["account_ids"]) == ("PUT", "/v1/workflows/report", ["ca_1"])


def test_one_that_cannot_list_says_what_to_do_instead(at_home: Shell, prod: FakeAskedFirst) -> None:
    done = at_home("import", "hook")
    assert done.exit_code == 1
    assert "register its workflows with PUT /v1/workflows" in str(done.exception)


def test_a_name_from_there_is_only_text_in_the_shell() -> None:
    bad = "x'; rm -rf / #$(id)`id`"
    words = shlex.split(curl(Wanted(orchestrator="prod"), Proposal(bad, bad, bad)))
    assert words[4] == "$AUTHWATCH_URL/v1/workflows/x%27%3B%20rm%20-rf%20%2F%20%23%24%28id%29%60id%60"
    assert json.loads(words[-1])["name"] == bad
    assert len(words) == 9


# The commands of the docs


def test_the_docs_show_each_command() -> None:
    assert {shlex.split(line)[2] for line in COMMANDS} == {"list", "test", "import"}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_docs_does_what_it_says(line: str, at_home: Shell, prod: FakeAskedFirst) -> None:
    done = at_home(*shlex.split(line)[2:])
    assert done.exit_code == 0, done.output


async def test_doctor_says_the_same(prod: FakeAskedFirst) -> None:
    assert (await of_plug_in("orchestrator prod", prod)).ok
    prod.takes_us = False
    found = await of_plug_in("orchestrator prod", prod)
    assert (found.ok, "make a new one" in found.said) == (False, True)
