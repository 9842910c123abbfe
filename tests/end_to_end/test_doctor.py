"""`authwatch doctor` beside a running receiver: every fault is found and named with its mend, and its probe leaves no trace."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from service.app import create_app
from service.children import choose_port
from service.doctor import findings, of_clocks, of_public_url
from service.durability import Given, faults
from service.finding import Finding
from service.runtime import Runtime
from service.settings import load_settings
from service.signatures import make_secret
from service.sources import PROBE_PREFIX
from service.store import readers
from service.store.session import begin
from tests.conftest import ADMIN_TOKEN, SECRET, Servers
from tests.end_to_end.running import COMMAND, NO_TLS, OURS
from tests.fakes import hec, orchestrator, serve, slack
from tests.fakes.scalekit_api import CLIENT_ID, CLIENT_SECRET, FakeScalekit
from tests.make_requests import event_body, signed
from tests.workers.editing import HOUR, ME, TWO_FAILURES, age, save
from workers.evaluate import evaluate
from workers.rules import keep_rules
from workers.ship import ship

pytestmark = pytest.mark.usefixtures("waits_for_the_disk")
HEC_TOKEN = "11111111-2222-3333-4444-555555555555"
# Whatever happens alerts.
RULES = """\
version: 1
rules:
- id: anything-at-all
  severity: P1
  count: {match: {kind: [account.updated, token.refresh_failed, account.deleted]}, within: 15m, gte: 1}
  annotations: {summary: "It happened"}
- id: dependence
  severity: P1
  state: {of: account, match: {status: [DISCONNECTED, DELETED], active_workflows: {gte: 1}}}
  actions: [{pause_workflows: {}}]
  annotations: {summary: "It broke"}
"""


@dataclass
class Ward:
    """A receiver that runs, everybody else's servers, and the environment the doctor is given."""

    runtime: Runtime
    url: str
    folder: Path
    environment: dict[str, str]
    slack: slack.FakeSlack = field(default_factory=slack.FakeSlack)
    hec: hec.FakeHec = field(default_factory=lambda: hec.FakeHec(HEC_TOKEN))

    async def examine(self, url: str | None = None, **changes: str) -> dict[str, Finding]:
        found = [finding async for finding in findings(url, self.environment | changes)]
        assert not any(secret in finding.said for finding in found for secret in (SECRET, HEC_TOKEN, slack.TOKEN))
        return {finding.what: finding for finding in found}

    async def bad(self, url: str | None = None, **changes: str) -> dict[str, str]:
        return {
            what: finding.said for what, finding in (await self.examine(url, **changes)).items() if finding.ok is False
        }

    async def get(self, path: str) -> Any:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, verify=NO_TLS) as client:
            answer = await client.get(path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
            assert answer.status_code == 200, answer.text
            return answer.json()

    async def everyone_is_alive(self) -> None:
        async with begin(self.runtime.engine) as conn:
            for part in ("evaluator", "actions", "sinks", "sweep"):
                await readers.beat(conn, part, await readers.clock(conn))


@pytest.fixture
async def ward(servers: Servers, database_url: str, tmp_path: Path) -> AsyncIterator[Ward]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    (tmp_path / "rules").mkdir()
    save(tmp_path / "rules", RULES, "all.yml", ago=HOUR)
    fake_slack, fake_hec, fake_jobs = slack.FakeSlack(), hec.FakeHec(HEC_TOKEN), orchestrator.FakeOrchestrator()
    async with (
        serve(fake_slack.app) as slack_url,
        serve(fake_hec.app) as hec_url,
        serve(fake_jobs.app) as jobs_url,
    ):
        (tmp_path / "config.yml").write_text(
            f"""\
sources: {{scalekit: {{secrets: ["{SECRET}"]}}}}
notifiers:
  oncall: {{kind: slack, token: "{slack.TOKEN}", channel: "{slack.CHANNEL}", api_url: "{slack_url}/api/"}}
sinks:
  siem: {{kind: splunk_hec, url: "{hec_url}", token: "${{HEC_TOKEN}}", format: raw}}
orchestrators:
  jobs: {{kind: webhook, url: "{jobs_url}{orchestrator.PATH}", secret: "{orchestrator.SECRET}"}}
"""
        )
        environment = {
            "DATABASE_URL": database_url,
            "REDIS_URL": servers.redis_url,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_RULES": str(tmp_path / "rules"),
            "AUTHWATCH_CONFIG": str(tmp_path / "config.yml"),
            "HEC_TOKEN": HEC_TOKEN,
        }
        app = create_app(load_settings(environment), {})
        async with app.router.lifespan_context(app), serve(app) as url:
            made = Ward(app.state.runtime, url, tmp_path, environment | {"AUTHWATCH_URL": url}, fake_slack, fake_hec)
            await made.everyone_is_alive()
            await keep_rules(made.runtime)
            yield made
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_where_all_is_well_every_part_in_use_is_said_to_be(ward: Ward) -> None:
    found = await ward.examine()
    hints = {what for what, finding in found.items() if finding.ok is None}
    assert {what: finding for what, finding in found.items() if finding.ok is False} == {}
    assert hints == {"public URL", "provider API", "clicks of oncall"}
    assert set(found) == {
        "settings",
        "database",
        "durability",
        "migrations",
        "clock",
        "evaluator",
        "actions",
        "sweep",
        "sink siem lag",
        "redis",
        "sources",
        "public URL",
        "rules",
        "rules in force",
        "routing",
        "notifier oncall",
        "clicks of oncall",
        "sink siem",
        "orchestrator jobs",
        "provider API",
        "front door scalekit",
    }
    assert found["sources"].said == "scalekit (1 secret)"
    assert "takes the token" in found["sink siem"].said
    assert (ward.hec.envelopes, ward.slack.messages) == ([], [])


async def test_routes_that_lead_to_nobody_are_named(ward: Ward) -> None:
    assert (await ward.examine())["routing"].said.endswith("every notifier hears every alert (oncall)")
    config = (ward.folder / "config.yml").read_text()
    routed = "receivers: [{name: oncall}, {name: nobody, notifiers: []}]\nroute: {receiver: nobody}\n"
    (ward.folder / "config.yml").write_text(config + routed)
    found = [f async for f in findings(None, ward.environment) if f.what == "routing"]
    assert [finding.ok for finding in found] == [False, None]
    assert found[0].said.startswith("no route leads to a notifier")
    assert "notifier oncall" in found[1].said


async def test_the_provider_api_is_asked_with_the_credentials_given(ward: Ward) -> None:
    fake = FakeScalekit()
    async with serve(fake.app) as url:
        given = {"SCALEKIT_ENV_URL": url, "SCALEKIT_CLIENT_ID": CLIENT_ID, "SCALEKIT_CLIENT_SECRET": CLIENT_SECRET}
        assert (await ward.examine(**given))["provider API"] == Finding(
            True, "provider API", "answers; it knows 0 connected accounts"
        )
        refused = (await ward.bad(**given | {"SCALEKIT_CLIENT_SECRET": "not-the-secret-0123"}))["provider API"]
    assert "refused the client id and secret with 401; mend SCALEKIT_ENV_URL" in refused
    assert "not-the-secret-0123" not in refused


async def test_the_probe_is_kept_as_a_probe_and_never_alerts_nor_reaches_a_siem(ward: Ward) -> None:
    async with httpx.AsyncClient(base_url=ward.url, trust_env=False) as client:
        put = {"account_ids": ["authwatch_probe", "ca_worst"]}
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        assert (await client.put("/v1/workflows/w1", json=put, headers=headers)).status_code == 200
        assert await ward.bad() == {}
        worst = event_body("connected_account.deleted", data={"id": "ca_worst"})
        for number, body in enumerate((worst, event_body("connected_account.token_refresh_failed"))):
            door = signed(body, SECRET, message_id=f"{PROBE_PREFIX}{number}")
            assert (await client.post("/webhooks/scalekit", content=body, headers=door)).status_code == 202
        listed = (await ward.get("/v1/events"))["items"]
        assert [event["origin"] for event in listed if event["kind"] != "audit"] == ["probe"] * 3

        async def effects() -> tuple[list[Any], list[Any], str, set[str], set[str]]:
            await evaluate(ward.runtime)
            await ship(ward.runtime)
            feed = await ward.get("/v1/siem/events?format=raw")
            assert feed["has_more"] is False
            return (
                (await ward.get("/v1/alerts"))["items"],
                (await ward.get("/v1/accounts"))["items"],
                (await ward.get("/v1/workflows/w1"))["state"],
                {item["kind"] for item in feed["items"]},
                {item["kind"] for item in ward.hec.events},
            )

        assert await effects() == ([], [], "active", {"audit"}, {"audit"})
        # The same event without the probe's mark does all of it.
        again = event_body("connected_account.deleted", data={"id": "ca_worst"})
        await client.post("/webhooks/scalekit", content=again, headers=signed(again, SECRET))
        alerts, accounts, state, pulled, pushed = await effects()
        assert ({alert["rule"] for alert in alerts}, len(accounts), state) == (
            {"anything-at-all", "dependence"},
            1,
            "paused",
        )
        assert "account.deleted" in pulled
        assert "account.deleted" in pushed


async def test_a_mistake_in_the_settings_is_all_that_can_be_said(ward: Ward) -> None:
    assert await ward.bad(AUTHWATCH_PUBLIC_URL="nowhere") == {
        "settings": "AUTHWATCH_PUBLIC_URL is not a URL of the form https://host"
    }
    (ward.folder / "config.yml").write_text("sources: {scalekit: {secrets: [whsec_]}}")
    assert "has 0 bytes" in (await ward.bad())["config"]


async def test_a_database_that_is_away_is_named_and_the_rest_is_looked_at_all_the_same(ward: Ward) -> None:
    away = f"postgresql://u:hidden-password@127.0.0.1:{choose_port('127.0.0.1')}/authwatch"
    found = await ward.examine(DATABASE_URL=away)
    assert found["database"] == Finding(False, "database", "does not answer; is DATABASE_URL right and Postgres up?")
    assert "front door scalekit" not in found
    assert found["notifier oncall"].ok


async def test_migrations_that_wait_or_are_ahead_are_named(ward: Ward, servers: Servers, engine: AsyncEngine) -> None:
    found = await ward.examine(DATABASE_URL=servers.database_url)
    assert found["migrations"].ok is False
    assert "pending; run `authwatch migrate`" in found["migrations"].said
    assert "front door scalekit" not in found
    async with begin(engine) as conn:
        await conn.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
    assert "a revision that this version does not know" in (await ward.bad())["migrations"]


@pytest.mark.parametrize(
    ("how", "undo"),
    [
        (
            "ALTER DATABASE {database} SET synchronous_commit = off",
            "ALTER DATABASE {database} RESET synchronous_commit",
        ),
        (
            "ALTER ROLE {role} IN DATABASE {database} SET synchronous_commit = off",
            "ALTER ROLE {role} IN DATABASE {database} RESET synchronous_commit",
        ),
    ],
)
async def test_a_commit_that_is_not_on_the_disk_is_named_with_the_mend(
    ward: Ward, engine: AsyncEngine, how: str, undo: str
) -> None:
    assert (await ward.examine())["durability"].ok is True
    async with begin(engine) as conn:
        row = (await conn.execute(text("SELECT current_user AS role, current_database() AS database"))).one()
        names = {"role": f'"{row.role}"', "database": f'"{row.database}"'}
        await conn.execute(text(how.format(**names)))
    said = (await ward.examine())["durability"]
    assert (said.ok, "synchronous_commit is off" in said.said) == (False, True)
    assert undo.format(**names) in said.said
    async with begin(engine) as conn:
        await conn.execute(text(undo.format(**names)))
    assert (await ward.examine())["durability"].ok is True


def test_what_a_server_must_not_be_without_is_named() -> None:
    settings = [Given("fsync", "off", "configuration file"), Given("full_page_writes", "off", "command line")]
    said = faults([*settings, Given("synchronous_commit", "remote_apply", "user")], role="a", database="d")
    assert [line.partition(":")[0] for line in said] == ["fsync is off", "full_page_writes is off"]
    assert said[0].endswith("ALTER SYSTEM SET fsync = on, then SELECT pg_reload_conf()")
    [client] = faults([Given("synchronous_commit", "off", "client")], role="a", database="d")
    assert client.endswith("take it out of DATABASE_URL and PGOPTIONS")


async def test_redis_that_is_away_only_slows_and_none_at_all_is_a_hint(ward: Ward) -> None:
    away = f"redis://:hidden@127.0.0.1:{choose_port('127.0.0.1')}/0"
    [(what, said)] = (await ward.bad(REDIS_URL=away)).items()
    assert (what, "things are slower, nothing is lost" in said) == ("redis", True)
    del ward.environment["REDIS_URL"]
    assert (await ward.examine())["redis"].ok is None


async def test_a_worker_that_is_silent_and_an_action_that_failed_are_named(ward: Ward) -> None:
    async with begin(ward.runtime.engine) as conn:
        await conn.execute(text("UPDATE heartbeats SET at = at - interval '1 minute' WHERE part = 'evaluator'"))
        await conn.execute(
            text(
                "INSERT INTO actions (id, kind, destination, lane, state, created_at, next_attempt_at, payload)"
                " VALUES (gen_random_uuid(), 'notify', 'oncall', 'l', 'failed', now(), now(), '{}')"
            )
        )
    bad = await ward.bad()
    assert set(bad) == {"evaluator", "failed actions"}
    assert bad["evaluator"].endswith("start `authwatch worker`")
    assert bad["failed actions"].startswith("1 failed for good")


async def test_what_has_waited_too_long_is_named(ward: Ward) -> None:
    body = event_body()
    async with httpx.AsyncClient(base_url=ward.url, trust_env=False) as client:
        await client.post("/webhooks/scalekit", content=body, headers=signed(body, SECRET))
    async with begin(ward.runtime.engine) as conn:
        await conn.execute(text("UPDATE events SET received_at = received_at - interval '2 minutes'"))
    bad = await ward.bad()
    assert set(bad) == {"evaluator", "sink siem lag"}
    assert bad["evaluator"].startswith("1 wait, the oldest for 12")
    assert bad["sink siem lag"].startswith("1 waiting, 0 put aside; is `authwatch worker` running?")
    ward.hec.always = hec.Scripted(503, b'{"text":"Server is busy","code":9}')
    await ship(ward.runtime)
    assert "last error: " in (await ward.bad())["sink siem lag"]


@pytest.mark.parametrize("seconds", [-2.1, 2.1, 3600])
def test_clocks_that_differ_are_named_with_the_mend(seconds: float) -> None:
    now = datetime.now(UTC)
    assert of_clocks(now + timedelta(seconds=seconds), now).ok is False
    assert "run NTP" in of_clocks(now + timedelta(seconds=seconds), now).said
    assert of_clocks(now + timedelta(seconds=1.9), now).ok is True


async def test_a_rule_file_with_a_mistake_is_named_with_its_line(ward: Ward) -> None:
    (ward.folder / "rules" / "all.yml").write_text(RULES.replace("within: 15m", "witin: 15m"))
    [(what, said)] = (await ward.bad()).items()
    assert what == "rules"
    assert said.startswith("all.yml:5:")


async def test_the_rules_in_force_are_told_from_those_of_the_folder(ward: Ward) -> None:
    folder = ward.folder / "rules"
    age(folder, HOUR)
    await keep_rules(ward.runtime)
    found = await ward.examine()
    assert found["rules"].said == f"2 in {folder}"
    assert found["rules in force"].said.startswith("2, published 20")
    # No worker has seen what follows.
    save(folder, TWO_FAILURES, "more.yml", ago=60)
    assert "more.yml here was saved" in (await ward.bad())["rules in force"]
    save(folder, TWO_FAILURES, "more.yml", ago=0)
    assert "rules in force" not in await ward.bad(), "it takes a moment"
    (folder / "more.yml").unlink()
    save(folder, RULES.replace("It happened", "Something happened"), "all.yml", ago=2 * HOUR)
    found = await ward.examine()
    assert found["rules in force"].ok is None
    assert found["rules in force"].said.startswith(f"all.yml here is older than what is in force, which {ME} saved ")
    save(folder, None, "all.yml")
    save(folder, TWO_FAILURES, "more.yml", ago=0)
    assert "all.yml is in force and not in the folder here" in (await ward.examine())["rules in force"].said


async def test_before_anything_was_published_the_doctor_says_so_and_publishes_nothing(ward: Ward) -> None:
    async with begin(ward.runtime.engine) as conn:
        await conn.execute(text("DELETE FROM rule_set"))
        await conn.execute(text("DELETE FROM rule_files"))
    found = (await ward.examine())["rules in force"]
    assert (found.ok, "none was ever published" in found.said) == (None, True)
    async with begin(ward.runtime.engine) as conn:
        assert (await conn.execute(text("SELECT count(*) FROM rule_set"))).scalar_one() == 0


async def test_slack_and_splunk_that_refuse_us_are_named_with_the_mend(ward: Ward) -> None:
    ward.slack.token = "xoxb-another"
    assert "invalid_auth" in (await ward.bad())["notifier oncall"]
    bad = await ward.bad(HEC_TOKEN="99999999-2222-3333-4444-555555555555")
    assert "Splunk does not know this HEC token" in bad["sink siem"]
    ward.hec.always = hec.Scripted(200, b"<html>Sign in</html>")
    assert "not as Splunk HEC does" in (await ward.bad())["sink siem"]
    assert ward.hec.envelopes == []


async def test_a_front_door_that_does_not_take_the_probe_is_named_with_the_reason(ward: Ward) -> None:
    door = "front door scalekit"
    nobody = f"http://127.0.0.1:{choose_port('127.0.0.1')}"
    assert "no answer from" in (await ward.bad(nobody))[door]
    config = (ward.folder / "config.yml").read_text()
    (ward.folder / "config.yml").write_text(config.replace(SECRET, make_secret()))
    assert (await ward.bad())[door] == "401: the service runs with another secret, or its clock is off"
    (ward.folder / "config.yml").write_text(config.replace("sources: {scalekit:", "sources: {elsewhere:"))
    assert (await ward.bad())["front door elsewhere"].startswith("404 from ")
    (ward.folder / "config.yml").write_text(config)

    async def hello(_request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello", status_code=202)

    async with serve(Starlette(routes=[Route("/{rest:path}", hello, methods=["POST"])])) as stranger:
        assert (await ward.bad(stranger))[door].endswith("is that address Authwatch's?")


async def test_a_service_on_another_database_is_found_out(
    ward: Ward, make_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.doctor.PROBE_SEEN_SECONDS_MAX", 0.3)
    bad = await ward.bad(DATABASE_URL=make_database())
    assert "does the service use another DATABASE_URL?" in bad["front door scalekit"]


@pytest.mark.parametrize(
    ("url", "ok"),
    [
        (None, None),
        ("http://127.0.0.1:8080", None),
        ("http://authwatch.example.com", None),
        ("https://authwatch.example.com", True),
    ],
)
def test_a_public_url_that_nobody_reaches_is_a_hint(url: str | None, ok: bool | None) -> None:
    assert of_public_url(url).ok is ok


async def test_the_command_prints_a_line_a_check_and_exits_1_if_one_is_bad(ward: Ward) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, "doctor"],
            cwd=ward.folder,
            env={**clean, **ward.environment, **changes},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    await ward.everyone_is_alive()
    well = await asyncio.to_thread(run)
    assert (well.returncode, well.stderr) == (0, ""), well.stdout
    assert well.stdout.endswith("all is well\n")
    assert all(line.startswith(("ok ", "hint ")) for line in well.stdout.splitlines()[:-1]), well.stdout
    ill = await asyncio.to_thread(run, **{"REDIS_URL": f"redis://127.0.0.1:{choose_port('127.0.0.1')}/0"})
    assert ill.returncode == 1
    assert "BAD  redis: does not answer" in ill.stdout
