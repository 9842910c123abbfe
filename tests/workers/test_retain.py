"""The retaining story runs once an hour, beside the others; a person sees its plan and may run it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service.runtime import Runtime, open_runtime
from service.settings import load_settings
from service.store.session import begin
from tests.conftest import SECRET
from workers.retain import Retaining

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


async def authwatch(database_url: str, *words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from service.cli import main; main()",
        "retention",
        *words,
        env=os.environ | {"DATABASE_URL": database_url},
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
