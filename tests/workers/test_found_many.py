"""Thousands that break at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event

from service.event import AccountKey
from service.store import dependents
from service.store.session import begin
from tests.workers.house import House, make_event, open_house
from workers.evaluate import evaluate


async def fill(house: House, number: int) -> None:
    """A workflow of its own for each account."""
    await house.put("w0", account_ids=["ca_0"])
    for table, own in (
        ("workflows", {"workflow_id": "'w' || n"}),
        ("dependencies", {"workflow_id": "'w' || n", "written": "'ca_' || n", "target_id": "'ca_' || n"}),
    ):
        rows = await house.rows(
            f"SELECT column_name AS name FROM information_schema.columns WHERE table_name = '{table}'"
        )
        names = [row["name"] for row in rows]
        values = ", ".join(own.get(name, name) for name in names)
        await house.run(
            f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM {table}, generate_series(1, {number}) AS n"
        )


async def break_many(house: House, number: int) -> None:
    await fill(house, number)
    await house.run("UPDATE workflows SET orchestrator_name = 'flows', orchestrator_ref = workflow_id")
    at = datetime.now(UTC) - timedelta(seconds=1)
    for first in range(1, number + 1, 500):
        some = range(first, min(first + 500, number + 1))
        await house.accept(*(make_event("DISCONNECTED", at, account=f"ca_{number}") for number in some))


@contextmanager
def statements_of(house: House) -> Iterator[list[str]]:
    """What is sent meanwhile: each row of an executemany is one."""
    sent: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        sent.extend([statement] * (len(parameters) if many else 1))

    engine = house.runtime.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def test_what_breaks_at_once_costs_the_statements_of_one(database_url: str, tmp_path: Path) -> None:
    """Alerts, holds, messages, pauses at the orchestrator and decisions: none of them is a round trip for each."""
    async with open_house(database_url, tmp_path / "house") as house:
        await evaluate(house.runtime)
        counts = []
        for number in (1, 300):
            await house.run("TRUNCATE workflows, dependencies, holds, alerts, actions, accounts, alert_news")
            await break_many(house, number)
            with statements_of(house) as sent:
                await evaluate(house.runtime)
            counts.append(len(sent))
            found = (
                await house.rows(
                    "SELECT (SELECT count(*) FROM holds) AS holds, (SELECT count(*) FROM alerts) AS alerts,"
                    " (SELECT count(*) FROM alert_news) AS told,"
                    " (SELECT count(*) FROM actions WHERE kind = 'orchestrator.pause') AS pauses,"
                    " (SELECT count(*) FROM workflows WHERE orchestrator_held) AS held"
                )
            )[0]
            assert set(found.values()) == {number}, found
        assert counts[1] == counts[0], "one for each of them is sent somewhere"


async def test_of_too_many_dependents_no_account_loses_all(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is of each account; of one that reaches it the first by name are found, and the log says so."""
    monkeypatch.setattr(dependents, "DEPENDENTS_MAX", 3)
    async with open_house(database_url, tmp_path / "house") as house:
        for account in ("ca_1", "ca_2", "ca_3"):
            for number in range(4 if account == "ca_2" else 3):
                await house.put(f"{account}-w{number}", account_ids=[account])
        keys = {AccountKey("scalekit", "env_1", f"ca_{number}"): "conn_1" for number in (1, 2, 3)}
        logs: list[dict[str, object]] = []
        monkeypatch.setattr(
            dependents, "logger", SimpleNamespace(error=lambda event, **said: logs.append({"event": event, **said}))
        )
        async with begin(house.runtime.engine) as conn:
            found = await dependents.dependents(conn, keys)
        for key, workflows in found.items():
            assert [one.workflow_id for one in workflows] == [f"{key.account_id}-w{number}" for number in range(3)]
        said = [line for line in logs if line["event"] == "dependents.too_many"]
        assert [line["target"] for line in said] == ["scalekit:env_1:ca_2"]


async def test_two_thousand_accounts_with_a_workflow_each_are_judged_in_one_batch(
    database_url: str, tmp_path: Path
) -> None:
    async with open_house(database_url, tmp_path / "house") as house:
        await fill(house, 2000)
        keys = {AccountKey("scalekit", "env_1", f"ca_{number}"): "conn_1" for number in range(1, 2001)}
        began = time.process_time()
        async with begin(house.runtime.engine) as conn:
            found = await dependents.dependents(conn, keys)
        assert all([one.workflow_id for one in found[key]] == ["w" + key.account_id[3:]] for key in keys)
        assert time.process_time() - began < 1.5, "of every pair of an account and a row it took 20 s"


async def test_two_thousand_accounts_that_break_at_once_are_paused_at_once(database_url: str, tmp_path: Path) -> None:
    async with open_house(database_url, tmp_path / "house") as house:
        await break_many(house, 2000)
        began = time.perf_counter()
        await evaluate(house.runtime)
        print("evaluated in", round(time.perf_counter() - began, 2), "s")
        assert (await house.rows("SELECT count(*) AS n FROM holds WHERE released_at IS NULL"))[0]["n"] == 2000
        # And well again: let go of at once too.
        at = datetime.now(UTC) - timedelta(seconds=1)
        for first in range(1, 2001, 500):
            some = range(first, first + 500)
            await house.accept(*(make_event("ACTIVE", at, account=f"ca_{number}") for number in some))
        await evaluate(house.runtime)
        assert (await house.rows("SELECT count(*) AS n FROM alerts WHERE state = 'resolved'"))[0]["n"] == 2000
