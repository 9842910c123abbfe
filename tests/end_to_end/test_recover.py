"""`authwatch recover` as a command, and a real receiver and worker that were away: killed, started again, filled."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from service.event import rfc3339
from service.providers import PROVIDERS
from tests.conftest import ADMIN_TOKEN, SECRET, Servers
from tests.end_to_end.running import COMMAND, OURS, RULES, Running, until
from tests.fakes import serve
from tests.fakes.scalekit_api import CLIENT_ID, CLIENT_SECRET, FakeScalekit

COMMAND_SECONDS_MAX = 60


@dataclass
class Place:
    database_url: str
    folder: Path
    fake: FakeScalekit
    environment: dict[str, str]

    async def run(self, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        environment = {name: value for name, value in {**clean, **self.environment, **changes}.items() if value}
        return await asyncio.to_thread(
            subprocess.run,
            [COMMAND, "recover", *words],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
        )

    def say(self, count: int, since: datetime, every: timedelta) -> None:
        for number in range(count):
            body = PROVIDERS["scalekit"].example(
                "account.updated",
                account_id="ca_1",
                connection_id="conn_1",
                event_id=f"evt_{number}",
                now=since + number * every,
            )
            self.fake.say(json.loads(body) | {"environment_id": "env_1"})

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url) as conn:
            return conn.execute(query).fetchall()


@pytest.fixture
async def place(servers: Servers, database_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "rules.yml").write_text(RULES)
    fake = FakeScalekit()
    async with serve(fake.app) as url:
        yield Place(
            database_url,
            tmp_path,
            fake,
            {
                "DATABASE_URL": database_url,
                "REDIS_URL": servers.redis_url,
                "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
                "AUTHWATCH_RULES": str(tmp_path / "rules"),
                "SCALEKIT_WEBHOOK_SECRET": SECRET,
                "SCALEKIT_ENV_URL": url,
                "SCALEKIT_CLIENT_ID": CLIENT_ID,
                "SCALEKIT_CLIENT_SECRET": CLIENT_SECRET,
            },
        )


@pytest.fixture
def running(place: Place) -> Iterator[Running]:
    made = Running(place.folder, place.environment)
    yield made
    made.stop()


def hours_ago(hours: float) -> str:
    return str(rfc3339(datetime.now(UTC) - timedelta(hours=hours)))


async def test_a_dry_run_keeps_nothing_and_the_run_keeps_all_once(place: Place) -> None:
    place.say(250, datetime.now(UTC) - timedelta(hours=3), timedelta(seconds=30))
    place.fake.set_account("ca_1", "ACTIVE")
    place.fake.set_account("ca_2", "EXPIRED")
    dry = await place.run("--since", hours_ago(4), "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "250 events found, 250 of them new and would be taken" in dry.stdout
    assert place.rows("SELECT count(*) FROM events") == [(0,)]
    full = await place.run("--since", hours_ago(4), "--until", hours_ago(0))
    assert full.returncode == 0, full.stderr
    assert "250 events found, 250 of them new and taken; 2 accounts compared, 1 brought" in full.stdout
    again = await place.run("--since", hours_ago(4))
    assert "250 events found, 0 of them new and taken; 2 accounts compared, 0 brought" in again.stdout
    assert place.rows("SELECT origin, count(*) FROM events GROUP BY 1") == [("recovery", 251)]
    assert CLIENT_SECRET not in dry.stdout + dry.stderr + full.stdout + full.stderr


@pytest.mark.parametrize(
    ("words", "changes", "code", "said"),
    [
        (["--since", hours_ago(24 * 94)], {}, 2, "no further back than"),
        (["--since", "2026-01-01T00:00:00"], {}, 2, "does not say its offset"),
        (["--since", "yesterday"], {}, 2, "is not a time"),
        (["--since", hours_ago(-1)], {}, 2, "before now"),
        (["--since", hours_ago(1), "--source", "other"], {}, 2, "there is: scalekit"),
        (
            ["--since", hours_ago(1)],
            {"SCALEKIT_ENV_URL": "", "SCALEKIT_CLIENT_ID": "", "SCALEKIT_CLIENT_SECRET": ""},
            2,
            "set SCALEKIT_ENV_URL",
        ),
        (["--since", hours_ago(1)], {"SCALEKIT_CLIENT_SECRET": "wrong-0123456789"}, 1, "refused the client id"),
    ],
)
async def test_what_cannot_be_is_refused_in_a_sentence(
    place: Place, words: list[str], changes: dict[str, str], code: int, said: str
) -> None:
    ended = await place.run(*words, **changes)
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    assert said in ended.stderr
    assert place.rows("SELECT count(*) FROM events") == [(0,)]


async def test_credentials_of_another_environment_are_refused(place: Place) -> None:
    with psycopg.connect(place.database_url) as conn:
        conn.execute(
            "INSERT INTO accounts (source, environment_id, account_id, first_seen_at) VALUES ('scalekit', 'env_2', 'a', now())"
        )
    place.say(3, datetime.now(UTC) - timedelta(hours=3), timedelta(seconds=30))
    for words in ((), ("--source", "scalekit")):
        ended = await place.run("--since", hours_ago(4), *words)
        assert (ended.returncode, "Traceback" in ended.stderr) == (1, False), ended.stderr
        assert "environment env_1, of which scalekit never sent anything" in ended.stderr
    assert place.rows("SELECT count(*) FROM events") == [(0,)]


async def test_killed_in_the_middle_and_run_again_nothing_is_doubled(place: Place) -> None:
    place.say(2000, datetime.now(UTC) - timedelta(hours=40), timedelta(minutes=1))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [COMMAND, "recover", "--since", hours_ago(41)],
        cwd=place.folder,
        env={**clean, **place.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    async def some() -> bool:
        return bool(place.rows("SELECT count(*) FROM events")[0][0] > 0)

    try:
        await until(some, 30)
    finally:
        process.kill()
        process.wait(10)
    assert 0 < place.rows("SELECT count(*) FROM events")[0][0] <= 2000
    ended = await place.run("--since", hours_ago(41))
    assert ended.returncode == 0, ended.stderr
    assert place.rows("SELECT count(*), count(DISTINCT event_id) FROM events") == [(2000, 2000)]


async def test_who_comes_back_after_an_outage_fills_it_by_itself(place: Place, running: Running) -> None:
    place.fake.set_account("ca_1", "ACTIVE")
    running.start("serve", "worker")
    await running.ready()

    async def noted() -> bool:
        return bool(place.rows("SELECT 1 FROM intake"))

    await until(noted, 20, running.logs)
    for part in ("serve", "worker"):
        running.kill(part)
    # They have been away for an hour, in which the provider said things and gave up.
    with psycopg.connect(place.database_url, autocommit=True) as conn:
        conn.execute("UPDATE intake SET able_until = able_until - interval '1 hour'")
    place.say(30, datetime.now(UTC) - timedelta(minutes=59), timedelta(minutes=1))
    place.fake.set_account("ca_1", "DISCONNECTED", updated_at=datetime.now(UTC) - timedelta(minutes=5))
    running.start("serve", "worker")

    async def done() -> bool:
        return place.rows("SELECT state FROM recoveries WHERE reason = 'outage'") == [("done",)]

    await until(done, 40, running.logs)
    assert place.rows("SELECT count(*) FROM events WHERE event_id LIKE 'evt_%' AND origin = 'recovery'") == [(30,)]

    async def known() -> bool:
        return place.rows("SELECT status FROM accounts WHERE account_id = 'ca_1'") == [("DISCONNECTED",)]

    await until(known, 20, running.logs)
