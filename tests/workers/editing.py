"""Editing rule files under one worker or two."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from service import rule_sets
from service.rule_folder import SETTLE_SECONDS
from service.runtime import Runtime, open_runtime
from service.store.session import begin
from tests.workers.house import House

TWO_FAILURES = """\
version: 1
rules:
- id: two-failures
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 2}
  annotations: {summary: "It fails"}
"""
THREE_FAILURES = TWO_FAILURES.replace("gte: 2", "gte: 3")
ANOTHER = TWO_FAILURES.replace("two-failures", "another")
BROKEN = TWO_FAILURES.replace("within", "witin")
ME = pwd.getpwuid(os.getuid()).pw_name
HOUR = 3600.0


def save(folder: Path, text: str | None, name: str = "rules.yml", *, ago: float = 1.0) -> None:
    """Saved `ago` seconds before now; None: deleted, long enough ago to be no renaming."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if text is None:
        path.unlink()
        age(folder, SETTLE_SECONDS)
        return
    new = path.with_suffix(".new")
    new.write_text(text)
    at = time.time() - ago
    os.utime(new, (at, at))
    new.replace(path)


def age(folder: Path, ago: float) -> None:
    """As if nothing had come or gone in the folder since."""
    os.utime(folder, (time.time() - ago,) * 2)


@asynccontextmanager
async def another(house: House, folder: Path) -> AsyncIterator[Runtime]:
    """A second worker with its own copy of the files."""
    settings = house.runtime.settings.model_copy(update={"rules_folder": folder})
    async with open_runtime(settings, connections_max=4) as runtime:
        yield runtime


async def ids(runtime: Runtime) -> list[str]:
    async with begin(runtime.engine) as conn:
        return [rule.id for rule in (await rule_sets.in_force(conn, runtime)).rules]


async def version(runtime: Runtime) -> int:
    async with begin(runtime.engine) as conn:
        return (await runtime.rule_sets.current(conn)).version


async def own(house: House, rule_id: str) -> list[Any]:
    return [alert for alert in await house.alerts() if alert["rule_id"] == rule_id]


async def in_set(runtime: Runtime, rule_id: str) -> Any:
    async with begin(runtime.engine) as conn:
        return (await rule_sets.in_force(conn, runtime)).by_id[rule_id]
