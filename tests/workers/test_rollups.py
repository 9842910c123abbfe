"""Rollups: every report is counted once, whatever came twice, late or from many, by account and by provider."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service.report import TokenRefresh, ToolCall
from service.rules.triggers.quantile import size_of
from service.store import rollups
from service.store.report_tables import COUNTS
from service.store.session import begin
from tests.workers.house import House, open_house
from workers.rollups import RollingUp, count_once, prune

SECONDS = (0.0, 1e-10, 0.0001, 0.05, 0.31, 1.0, 1.02, 7.7, 42.0, 86_400.0)


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house") as opened:
        await opened.run("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 3, 12)")
        yield opened


def call(number: int, *, ago: float = 0.0, **changes: Any) -> ToolCall:
    values: dict[str, Any] = {
        "account_id": "ca_1",
        "tool": "search",
        "provider": "Jira",
        "operation": "read",
        "outcome": "success",
        **changes,
    }
    return ToolCall(id=f"call_{number}", occurred_at=datetime.now(UTC) - timedelta(seconds=ago), **values)


def refresh(number: int, *, ago: float = 0.0, **changes: Any) -> TokenRefresh:
    values: dict[str, Any] = {"account_id": "ca_1", "provider": "jira", "outcome": "success", **changes}
    return TokenRefresh(id=f"refresh_{number}", occurred_at=datetime.now(UTC) - timedelta(seconds=ago), **values)


async def counted(house: House, what: str, table: str = "rollup_minutes") -> dict[tuple[str, str], Any]:
    """By (account as written, provider) summed over time."""
    async with begin(house.runtime.engine) as conn:
        rows = await conn.execute(
            text(
                f"SELECT written, provider, {what} FROM {table} r JOIN metric_series s ON s.id = series_id GROUP BY 1, 2"
            )
        )
        return {(row[0], row[1]): row[2] for row in rows}


async def count_all(house: House) -> None:
    rolling = RollingUp()
    while await rolling.step(house.runtime):
        pass


async def test_calls_are_counted_by_account_and_by_provider(house: House) -> None:
    keep = house.runtime.tool_calls.keep
    await keep([call(1), call(2, outcome="error"), call(3, account_id="ca_2", provider="jira"), call(1)])
    await count_all(house)
    await keep([call(2, outcome="error"), call(4, provider=None, account_id="ca_3")])
    await count_all(house)
    await count_all(house)
    for table in ("rollup_minutes", "rollup_hours"):
        assert await counted(house, "sum(calls), sum(calls)", table) == {
            ("ca_1", "jira"): 2,
            ("ca_2", "jira"): 1,
            ("", "jira"): 3,
            ("ca_3", ""): 1,
            ("", ""): 1,
        }
        assert (await counted(house, "sum(calls_succeeded)", table))["", "jira"] == 2


async def test_writes_partials_and_retries_by_class(house: House) -> None:
    await house.runtime.tool_calls.keep(
        [
            call(1, operation="write", verification="verified"),
            call(2, operation="write", verification="missing"),
            call(3, operation="write", verification="mismatch", outcome="error", error_class="upstream_5xx", retries=2),
            call(4, operation="write", error_class="partial_execution"),
            call(5, verification="missing"),
            call(6, retries=3, error_class="rate_limited"),
            call(7, retries=1),
            call(8, error_class="rate_limited"),
        ]
    )
    await count_all(house)
    for column, total in {
        "writes": 4,
        "partials": 2,
        "retries_upstream_5xx": 2,
        "retries_rate_limited": 3,
        "retries_other": 1,
        "retries_token_expired": None,
        "refreshes": None,
    }.items():
        assert (await counted(house, f"sum({column})"))["ca_1", "jira"] == total, column


async def test_a_late_report_goes_to_its_own_minute(house: House) -> None:
    await house.runtime.tool_calls.keep([call(1), call(2, ago=3600), call(3, ago=10 * 86_400)])
    await count_all(house)
    assert (await counted(house, "count(*)"))["ca_1", "jira"] == 2  # minutes of ten days ago are gone already
    assert (await counted(house, "sum(calls)", "rollup_hours"))["ca_1", "jira"] == 3
    async with begin(house.runtime.engine) as conn:
        late = (await conn.execute(text("SELECT min(at), min(occurred_at) FROM rollup_hours, tool_calls"))).one()
    assert late[0] == late[1].replace(minute=0, second=0, microsecond=0)


async def test_refreshes_and_their_sketch(house: House) -> None:
    await house.runtime.token_refreshes.keep(
        [refresh(number, duration_ms=seconds * 1000) for number, seconds in enumerate(SECONDS)]
        + [refresh(20, outcome="error"), refresh(21, duration_ms=50)]
    )
    await count_all(house)
    await house.runtime.token_refreshes.keep([refresh(22, duration_ms=50)])
    await count_all(house)
    expected = Counter(size_of(seconds) for seconds in (*SECONDS, 0.05, 0.05))
    for table in ("rollup_minutes", "rollup_hours"):
        async with begin(house.runtime.engine) as conn:
            rows = await conn.execute(
                text(f"SELECT refresh_sizes FROM {table} JOIN metric_series s ON s.id = series_id WHERE written = ''")
            )
            sizes: Counter[int] = Counter()
            for row in rows:
                half = len(row[0]) // 2
                assert row[0][:half] == sorted(row[0][:half])
                sizes.update(dict(zip(row[0][:half], row[0][half:], strict=True)))
        assert sizes == expected
        assert (await counted(house, "sum(refreshes)", table))["ca_1", "jira"] == 13
        assert (await counted(house, "sum(refreshes_succeeded)", table))["ca_1", "jira"] == 12


async def test_what_the_provider_tells_is_counted_and_wins(house: House) -> None:
    """Its refreshes have no latency: that is unknown until a report says it, and the report adds nothing else."""
    await house.tell("failed", ago=100)
    await count_all(house)
    key = "scalekit:env_1:ca_1"
    assert [row[1:] for row in (await counted(house, "sum(refreshes)")).items() if row[0][0] == key] == [(1,)]
    assert set((await counted(house, "bool_or(refresh_sizes IS NOT NULL)")).values()) == {False}
    assert set((await counted(house, "max(lag_seconds_max)")).values()) != {None}
    await house.told("failed", ago=90)
    await house.runtime.token_refreshes.keep([refresh(1, ago=95, duration_ms=200, provider=None)])
    await count_all(house)
    assert sum(value or 0 for value in (await counted(house, "sum(refreshes)")).values()) == 2 * 2
    assert set((await counted(house, "bool_or(refresh_sizes IS NOT NULL)", "rollup_hours")).values()) >= {True}


async def test_many_receivers_and_workers_at_once_count_each_once(house: House) -> None:
    chance = random.Random(7)
    batches = []
    for _ in range(30):
        numbers = [chance.randrange(600) for _ in range(50)]
        batches.append([call(n, account_id=f"ca_{n % 7}", ago=60.0 * (n % 90)) for n in numbers])
    sending = asyncio.gather(*(house.runtime.tool_calls.keep(batch) for batch in batches))
    while not sending.done():
        await asyncio.gather(*(count_once(house.runtime, rollups.CALLS) for _ in range(3)))
    await sending
    await count_all(house)
    ids = {one.id for batch in batches for one in batch}
    for table in ("rollup_minutes", "rollup_hours"):
        by_account = await counted(house, "sum(calls)", table)
        assert by_account["", "jira"] == len(ids)
        assert sum(by_account.values()) == 2 * len(ids)


async def test_a_crash_before_the_commit_counts_nothing_twice(house: House) -> None:
    await house.runtime.tool_calls.keep([call(number) for number in range(5)])
    async with house.runtime.engine.connect() as conn:
        assert await rollups.count_reports(conn, rollups.CALLS, datetime.now(UTC)) == 5
        await conn.rollback()
    await count_all(house)
    assert (await counted(house, "sum(calls)"))["ca_1", "jira"] == 5


async def test_reports_of_an_account_not_seen_yet_become_its_own(house: House) -> None:
    await house.runtime.tool_calls.keep([call(1)])
    await count_all(house)
    await house.told("ACTIVE")
    await house.runtime.tool_calls.keep([call(2)])
    await count_all(house)
    async with begin(house.runtime.engine) as conn:
        keys = await conn.execute(
            text("SELECT source, environment_id, account_id FROM metric_series WHERE written = 'ca_1'")
        )
        assert [tuple(key) for key in keys] == [("scalekit", "env_1", "ca_1")]
    assert (await counted(house, "sum(calls)"))["ca_1", "jira"] == 2


async def test_series_are_bounded_and_what_is_beyond_counts_in_the_sum(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "SERIES_MAX", 5)
    await house.runtime.tool_calls.keep([call(number, account_id=f"ca_{number:02}") for number in range(10)])
    await count_all(house)
    by_account = await counted(house, "sum(calls)")
    assert len(by_account) == 1 + 3
    assert by_account["", "jira"] == 10


async def test_what_is_over_its_time_goes_by_whole_days(house: House) -> None:
    await house.runtime.tool_calls.keep([call(1), call(2, outcome="error", error_class="malformed_params")])
    await count_all(house)
    async with begin(house.runtime.engine) as conn:
        await conn.execute(text("UPDATE malformed_calls SET received_at = now() - interval '31 days'"))
        await conn.execute(text("UPDATE rollup_hours SET at = at - interval '91 days'"))
    await prune(house.runtime)
    async with begin(house.runtime.engine) as conn:
        names = (
            await conn.execute(
                text(
                    "SELECT relname FROM pg_class WHERE relkind = 'r'"
                    " AND relname ~ '^(tool_calls|token_refreshes|rollup_minutes)_[0-9]{8}$'"
                )
            )
        ).scalars()
        yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y%m%d}"
        assert min(name[-8:] for name in names) == yesterday
        for table, left in (("tool_calls", 2), ("malformed_calls", 0), ("rollup_hours", 0)):
            assert (await conn.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() == left
        assert (await conn.execute(text("SELECT count(*) FROM metric_series WHERE written <> ''"))).scalar_one() == 0


async def test_a_day_that_is_read_just_now_waits(house: House) -> None:
    async with begin(house.runtime.engine) as conn:
        [*names] = await rollups.days_over(conn, datetime.now(UTC))
        await conn.execute(text(f"SELECT count(*) FROM {names[0]}"))
        await prune(house.runtime)
    async with begin(house.runtime.engine) as conn:
        assert await rollups.days_over(conn, datetime.now(UTC)) == names[:1]


def test_every_count_has_its_kind() -> None:
    kinds = (rollups.OF_CALLS, rollups.OF_REFRESHES, *rollups.OF_LOG)
    assert {name for kind in kinds for name in kind.counts} == set(COUNTS)


async def test_the_log_is_counted_after_it_was_judged_and_does_not_wait_for_ever(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.rollups.UNJUDGED_MAX", 1)
    await house.tell("ACTIVE", ago=300)
    await house.tell("succeeded", ago=290)
    await house.tell("succeeded", ago=280)
    waiting, out_of_patience = RollingUp(), RollingUp()
    await waiting.step(house.runtime)
    assert await counted(house, "sum(refreshes)") == {}, "it is not judged yet"
    out_of_patience.unjudged.done_at = None
    await out_of_patience.step(house.runtime)
    assert sum(value or 0 for (written, _), value in (await counted(house, "sum(refreshes)")).items() if written) == 2
    await house.told("succeeded", ago=270)
    waiting.log.done_at = None
    await waiting.step(house.runtime)
    assert sum(value or 0 for (written, _), value in (await counted(house, "sum(refreshes)")).items() if written) == 3
