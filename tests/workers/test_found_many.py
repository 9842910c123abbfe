"""Thousands that break at once."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

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


async def test_five_hundred_accounts_that_break_at_once_are_paused_at_once(database_url: str, tmp_path: Path) -> None:
    async with open_house(database_url, tmp_path / "house") as house:
        await fill(house, 500)
        at = datetime.now(UTC) - timedelta(seconds=1)
        await house.accept(*(make_event("DISCONNECTED", at, account=f"ca_{number}") for number in range(1, 501)))
        began = time.perf_counter()
        await evaluate(house.runtime)
        print("evaluated in", round(time.perf_counter() - began, 2), "s")
        assert (await house.rows("SELECT count(*) AS n FROM holds"))[0]["n"] == 500
