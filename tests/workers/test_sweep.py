"""The sweep: what is ahead is made, the outside watchdog hears of us only while all is current."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.runtime import Runtime, open_runtime
from service.settings import load_settings
from service.store import readers
from service.store.session import begin
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.fakes import serve
from workers.sweep import Sweep, sweep

GOOD = """\
version: 1
rules:
- id: three-failures
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 3}
  annotations: {summary: "It fails"}
"""


class Watchdog:
    def __init__(self) -> None:
        self.calls = 0
        self.app = Starlette(routes=[Route("/ping", self.ping)])

    async def ping(self, _request: Request) -> Response:
        self.calls += 1
        return Response()


@pytest.fixture
async def watchdog() -> AsyncIterator[tuple[Watchdog, str]]:
    made = Watchdog()
    async with serve(made.app) as url:
        yield made, f"{url}/ping"


@pytest.fixture
async def runtime(database_url: str, tmp_path: Path, watchdog: tuple[Watchdog, str]) -> AsyncIterator[Runtime]:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "mine.yml").write_text(GOOD)
    settings = load_settings(
        {
            "DATABASE_URL": database_url,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_RULES": str(tmp_path / "rules"),
            "AUTHWATCH_HEARTBEAT_URL": watchdog[1],
        }
    )
    async with open_runtime(settings, connections_max=3) as opened:
        yield opened


async def everyone_is_alive(runtime: Runtime) -> None:
    async with begin(runtime.engine) as conn:
        now = await readers.clock(conn)
        for part in ("evaluator", "actions", "sinks", "sweep"):
            await readers.beat(conn, part, now)


async def test_the_watchdog_hears_of_us_once_a_minute_while_all_is_current(
    runtime: Runtime, watchdog: tuple[Watchdog, str]
) -> None:
    last = Sweep()
    await everyone_is_alive(runtime)
    for _ in range(3):
        await sweep(runtime, last)
    assert watchdog[0].calls == 1
    assert last.heartbeat.done_at is not None
    last.heartbeat.done_at -= 60
    await sweep(runtime, last)
    assert watchdog[0].calls == 2


async def test_the_watchdog_hears_nothing_while_the_evaluator_is_stalled(
    runtime: Runtime, watchdog: tuple[Watchdog, str]
) -> None:
    await everyone_is_alive(runtime)
    async with begin(runtime.engine) as conn:
        await readers.beat(conn, "evaluator", await readers.clock(conn) - timedelta(minutes=1))
    await sweep(runtime, Sweep())
    assert watchdog[0].calls == 0


async def test_days_ahead_get_their_partitions(runtime: Runtime) -> None:
    async with begin(runtime.engine) as conn:
        ahead = "SELECT to_char((now() AT TIME ZONE 'UTC')::date + 5, 'YYYYMMDD')"
        day = (await conn.execute(text(ahead))).scalar_one()
        await conn.execute(text(f"DROP TABLE events_{day}"))
    await sweep(runtime, Sweep())
    async with begin(runtime.engine) as conn:
        assert (await conn.execute(text(f"SELECT to_regclass('events_{day}') IS NOT NULL"))).scalar_one()


async def test_a_mistake_in_a_rule_file_keeps_its_last_good_rules_and_a_mend_is_taken(
    runtime: Runtime, tmp_path: Path
) -> None:
    file, last = tmp_path / "rules" / "mine.yml", Sweep()
    await sweep(runtime, last)
    assert [rule.id for rule in runtime.rules.rules] == ["three-failures"]
    file.write_text(GOOD.replace("within", "witin"))
    await sweep(runtime, last)
    assert [rule.id for rule in runtime.rules.rules] == ["three-failures"]
    assert any('unknown key "witin"; did you mean "within"?' in problem for problem in last.rule_problems)
    assert all(problem.startswith("mine.yml:5:") for problem in last.rule_problems)
    file.write_text(GOOD.replace("three-failures", "three-in-a-row"))
    await sweep(runtime, last)
    assert [rule.id for rule in runtime.rules.rules] == ["three-in-a-row"]
    assert last.rule_problems == ()


async def test_what_was_refused_over_a_day_ago_is_swept_out(runtime: Runtime) -> None:
    async with begin(runtime.engine) as conn:
        for hours in (25, 1):
            await conn.execute(
                text(
                    "INSERT INTO rejected (source, reason, received_at, headers, body_bytes)"
                    " VALUES ('scalekit', 'no_match', now() - make_interval(hours => :hours), '{}', 0)"
                ),
                {"hours": hours},
            )
    await sweep(runtime, Sweep())
    async with begin(runtime.engine) as conn:
        left = await conn.execute(
            text("SELECT count(*), bool_and(received_at > now() - interval '2 hours') FROM rejected")
        )
        assert tuple(left.one()) == (1, True)
