"""The retaining story runs once an hour, beside the others; a person sees its plan and may run it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service import retain
from service.runtime import Runtime, open_runtime
from service.settings import load_settings
from service.store.session import begin
from tests.conftest import SECRET
from workers.retain import AGAIN_SECONDS, Retaining

LONG_AGO = "SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 100, :days)"
OLD = "SELECT count(*) FROM pg_inherits WHERE inhrelid::regclass::text = to_char(now() - interval '100 days', '\"events_\"YYYYMMDD')"


@pytest.fixture
async def runtime(database_url: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    (tmp_path / "rules").mkdir()
    settings = load_settings(
        {
            "DATABASE_URL": database_url,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_RULES": str(tmp_path / "rules"),
        }
    )
    async with open_runtime(settings, connections_max=3) as opened:
        yield opened


async def old_days(engine: AsyncEngine, days: int) -> None:
    async with begin(engine) as conn:
        await conn.execute(text(LONG_AGO), {"days": days})


async def left(engine: AsyncEngine) -> int:
    async with begin(engine) as conn:
        return int((await conn.execute(text(OLD))).scalar_one())


async def test_it_runs_at_once_and_then_once_an_hour(runtime: Runtime) -> None:
    await old_days(runtime.engine, 1)
    assert await left(runtime.engine) == 1
    retaining = Retaining()
    assert await retaining.step(runtime)
    assert await left(runtime.engine) == 0
    assert not await retaining.step(runtime)


async def authwatch(database_url: str, *words: str, **variables: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from service.cli import main; main()",
        "retention",
        *words,
        env=os.environ | {"DATABASE_URL": database_url} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_person_sees_what_would_go_and_confirms_what_is_unusual(engine: AsyncEngine, database_url: str) -> None:
    await old_days(engine, 9)
    code, out, _ = await authwatch(database_url, "plan")
    assert code == 0
    assert out.startswith("refused: 9 days would go at once")
    assert "would be dropped: 18 partitions" in out
    code, out, err = await authwatch(database_url, "run")
    assert (code, await left(engine)) == (1, 1)
    assert "use --confirm" in err
    code, out, _ = await authwatch(database_url, "run", "--confirm")
    assert (code, await left(engine)) == (0, 0)
    assert "dropped: 18 partitions" in out
    code, out, _ = await authwatch(database_url, "plan")
    assert out == "would be dropped: 0 partitions\n"


async def test_what_a_run_did_not_come_to_is_gone_on_with_soon(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = await waits_after(runtime, monkeypatch, unfinished=["more of dedup than one run cuts"])
    assert (0 < waits <= AGAIN_SECONDS, waits > 0) == (True, True)
    assert await waits_after(runtime, monkeypatch, unfinished=[]) > AGAIN_SECONDS


async def waits_after(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, *, unfinished: list[str]) -> float:
    """Until the next run, after one that left that."""
    real = retain.retain

    async def run(*words: Any, **more: Any) -> retain.Done | None:
        done = await real(*words, **more)
        assert done is not None
        return retain.Done(done.plan, unfinished=unfinished)

    monkeypatch.setattr(retain, "retain", run)
    retaining = Retaining()
    await retaining.step(runtime)
    monkeypatch.undo()
    return retaining._due_at - time.monotonic()


async def test_a_clock_that_jumped_between_two_runs_holds_one(runtime: Runtime) -> None:
    retaining = Retaining()
    await retaining.step(runtime)
    assert retaining._before is not None
    # As if the clock had then stood three days behind what it reads now.
    retaining._before = retaining._before[0] - timedelta(days=3), retaining._before[1]
    await old_days(runtime.engine, 1)
    for held in (1, 0):
        retaining._due_at = 0.0
        await retaining.step(runtime)
        assert await left(runtime.engine) == held
    async with begin(runtime.engine) as conn:
        told = await conn.execute(text("SELECT summary, state FROM alerts WHERE rule_id = 'retention-refused'"))
        (alert,) = told.all()
    assert "the clock moved +72 h beside the time that passed" in alert.summary
    assert alert.state == "resolved"


async def test_the_command_refuses_another_configuration_than_the_workers(
    runtime: Runtime, database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "other.yml").write_text("retention: {events: 10d, audit: 20d}\n")
    other = {"AUTHWATCH_CONFIG": str(tmp_path / "other.yml")}
    await Retaining().step(runtime)
    await old_days(runtime.engine, 1)
    code, _, err = await authwatch(database_url, "run", "--confirm", **other)
    assert (code, await left(runtime.engine)) == (1, 1)
    assert "the worker runs with another retention.events, retention.audit than this shell's" in err
    sink = {"SPLUNK_HEC_URL": "http://127.0.0.1:9", "SPLUNK_HEC_TOKEN": "11111111-2222-3333-4444-555555555555"}
    code, _, err = await authwatch(database_url, "run", **sink)
    assert (code, "another list of sinks than" in err) == (1, True), err
    assert (await authwatch(database_url, "run"))[0] == 0
    assert await left(runtime.engine) == 0


async def test_before_any_worker_ran_the_command_is_believed(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "other.yml").write_text("retention: {events: 10d}\n")
    assert (await authwatch(database_url, "run", AUTHWATCH_CONFIG=str(tmp_path / "other.yml")))[0] == 0
