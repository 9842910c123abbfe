"""/metrics tells the five metrics: by name of who is worst, the rest as one, what is unknown not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from service import exposition, families
from service.children import choose_port
from service.store.session import begin
from tests.end_to_end.test_api import Api, opened
from tests.end_to_end.test_reports import call, refresh, report, report_refreshes
from tests.make_requests import event_body
from workers.rollups import RollingUp

Series = dict[tuple[str, ...], float]


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with opened(database_url) as made:
        yield made


async def seen(api: Api) -> dict[str, Series]:
    """What a scrape gives now: name -> the labels' values in the order of their names -> value."""
    while await RollingUp().step(api.runtime):
        pass
    api.runtime.seen._read_at = None
    return read((await api.client.get("/metrics", headers={"Authorization": ""})).text)


def read(words: str) -> dict[str, Series]:
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(words):
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            series = found.setdefault(sample.name, {})
            assert key not in series, f"{sample.name} is given twice with {key}"
            series[key] = sample.value
    return found


async def test_what_nobody_told_is_absent_and_not_zero(api: Api) -> None:
    found = await seen(api)
    assert found["authwatch_database_up"] == {(): 1}
    assert found["authwatch_metrics_accounts_named_max"] == {(): families.ACCOUNTS_NAMED_MAX}
    assert found["authwatch_metrics_providers_named_max"] == {(): families.PROVIDERS_NAMED_MAX}
    assert found["authwatch_metrics_window_seconds"] == {(): families.WINDOW.total_seconds()}
    told = [name for name in found if name.startswith(("authwatch_account_", "authwatch_tool_call", "authwatch_ref"))]
    assert told == []
    await report(api, call(1))
    found = await seen(api)
    assert found["authwatch_tool_call_success_ratio"] == {("jira",): 1}
    assert found["authwatch_tool_calls_total"] == {("success", "jira"): 1, ("error", "jira"): 0}
    for absent in (
        "authwatch_refresh_success_ratio",
        "authwatch_refresh_duration_seconds",
        "authwatch_partial_execution_ratio",
        "authwatch_partial_executions_total",
        "authwatch_webhook_lag_seconds",
    ):
        assert absent not in found, absent


async def test_each_metric_by_account_and_by_provider(api: Api) -> None:
    await report(
        api,
        call(1, outcome="error", retries=2, error_class="rate_limited"),
        call(2, operation="write", verification="missing"),
        call(3, operation="write", verification="verified", account_id="ca_2"),
        call(4, provider=None, account_id="ca_3"),
    )
    await report_refreshes(
        api,
        refresh(1, provider="jira", duration_ms=300),
        refresh(2, provider="jira", duration_ms=300, outcome="error"),
    )
    await api.send(event_body())
    found = await seen(api)
    worst, rest = ("report::ca_1",), (families.REST,)
    assert found["authwatch_account_tool_call_success_ratio"] == {worst: 0.5, rest: 1}
    assert found["authwatch_account_refresh_success_ratio"] == {worst: 0.5}
    assert found["authwatch_account_partial_execution_ratio"] == {worst: 1, rest: 0}
    assert found["authwatch_account_retries_per_tool_call"] == {worst: 1, rest: 0}
    assert found["authwatch_tool_call_success_ratio"] == {("jira",): pytest.approx(2 / 3), (families.NOBODY,): 1}
    assert found["authwatch_refresh_success_ratio"] == {("jira",): 0.5}
    assert found["authwatch_partial_execution_ratio"] == {("jira",): 0.5}
    assert found["authwatch_refresh_duration_seconds"]["jira", "0.99"] == pytest.approx(0.3, rel=0.02)
    assert found["authwatch_retries_per_tool_call"]["rate_limited", "jira"] == pytest.approx(2 / 3)
    assert found["authwatch_retries_per_tool_call"]["other", "jira"] == 0
    assert found["authwatch_tool_call_retries_total"]["rate_limited", "jira"] == 2
    assert found["authwatch_tool_call_writes_total"]["jira",] == 2
    assert found["authwatch_partial_executions_total"]["jira",] == 1
    assert found["authwatch_token_refreshes_total"]["error", "jira"] == 1
    assert len(found["authwatch_webhook_lag_seconds"]) == 2
    assert len(found["authwatch_account_delivery_lag_seconds"]) == 1


async def test_the_worst_accounts_have_names_and_all_others_are_one(api: Api) -> None:
    many = families.ACCOUNTS_NAMED_MAX + 15
    # Account n fails n times of 50.
    calls = [
        call(f"{n}_{k}", account_id=f"ca_{n:03}", outcome="error" if k < n else "success")
        for n in range(1, many + 1)
        for k in range(50)
    ]
    for begins in range(0, len(calls), 1000):
        await report(api, *calls[begins : begins + 1000])
    ratios = (await seen(api))["authwatch_account_tool_call_success_ratio"]
    named = [f"report::ca_{n:03}" for n in range(many, many - families.ACCOUNTS_NAMED_MAX, -1)]
    assert set(ratios) == {(name,) for name in [*named, families.REST]}
    assert ratios[named[0],] == pytest.approx(1 - many / 50)
    assert ratios[families.REST,] == pytest.approx(1 - sum(range(1, 16)) / (15 * 50))


async def test_the_latest_accounts_are_named_and_the_rest_is_what_is_left(api: Api) -> None:
    """Lags have no sum: what is left is a quantile of the others' own."""
    many = families.ACCOUNTS_NAMED_MAX + 5
    async with begin(api.runtime.engine) as conn:
        await conn.execute(text("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 1, 3)"))
        await conn.execute(
            text(
                f"""
                WITH series AS (INSERT INTO metric_series (written, said_provider, provider, source, environment_id,
                    account_id) SELECT 'ca_' || n, 'jira', 'jira', 'scalekit', 'env', 'ca_' || n
                    FROM generate_series(1, {many}) n RETURNING id, substr(written, 4)::int AS n),
                hours AS (INSERT INTO rollup_hours (series_id, at, deliveries, lag_seconds_max)
                    SELECT id, date_trunc('hour', now()), 1, n FROM series)
                INSERT INTO rollup_minutes (series_id, at, deliveries, lag_seconds_max, lag_sizes)
                SELECT id, date_trunc('minute', now()), 1, n, ARRAY[ceil(ln(n) / ln(1.01 / 0.99))::int, 1] FROM series
                """
            )
        )
        await conn.execute(
            text("INSERT INTO metric_series (id, written, said_provider, provider) VALUES (0, '', 'jira', 'jira')")
        )
        sizes = (await conn.execute(text("SELECT lag_sizes[1] FROM rollup_minutes ORDER BY 1"))).scalars().all()
        counts = [*sorted(set(sizes)), *(sizes.count(size) for size in sorted(set(sizes)))]
        await conn.execute(
            text(
                "INSERT INTO rollup_minutes (series_id, at, deliveries, lag_seconds_max, lag_sizes)"
                " VALUES (0, date_trunc('minute', now()), :many, :many, :sizes)"
            ),
            {"many": many, "sizes": counts},
        )
    lags = (await seen(api))["authwatch_account_delivery_lag_seconds"]
    assert set(lags) == {(f"scalekit:env:ca_{n}",) for n in range(6, many + 1)} | {(families.REST,)}
    assert lags[f"scalekit:env:ca_{many}",] == pytest.approx(many, rel=0.02)
    # Of 1 to 5 seconds the 0.99 quantile is the fourth, here as in rules: the value that 99 % of the way has reached.
    assert lags[families.REST,] == pytest.approx(4, rel=0.02)


async def test_providers_beyond_the_bound_are_one_and_keep_their_places(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "PROVIDERS_NAMED_MAX", 2)
    await report(api, call(1, provider="a"), call(2, provider="b"))
    await seen(api)
    await report(api, call(3, provider="c"), call(4, provider="d"), *(call(f"c{n}", provider="c") for n in range(9)))
    await report(api, call(5, provider="Rest"))
    totals = (await seen(api))["authwatch_tool_calls_total"]
    assert {key: value for key, value in totals.items() if "success" in key} == {
        ("success", "a"): 1,
        ("success", "b"): 1,
        ("success", "rest"): 12,
    }


async def test_what_looks_like_a_token_is_not_shown(api: Api) -> None:
    secrets = [f"xoxb-{n}23456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx" for n in (1, 2)]
    await report(api, *(call(n, account_id=name, provider=name, outcome="error") for n, name in enumerate(secrets)))
    found = await seen(api)
    assert len(found["authwatch_account_tool_call_success_ratio"]) == 1
    assert sum(found["authwatch_tool_calls_total"].values()) == 2
    assert "AbCdEfGhIj" not in str(found)


async def test_old_minutes_leave_the_window_and_the_day_counts_on(api: Api) -> None:
    await report(api, call(1, outcome="error"))
    await seen(api)
    async with begin(api.runtime.engine) as conn:
        await conn.execute(text("DELETE FROM rollup_minutes"))  # as if they were of an hour ago
    found = await seen(api)
    assert "authwatch_tool_call_success_ratio" not in found
    assert "authwatch_account_tool_call_success_ratio" not in found
    assert found["authwatch_tool_calls_total"]["error", "jira"] == 1


async def test_counters_begin_with_the_day(api: Api) -> None:
    now = datetime(2026, 11, 26, 15, 4, 5, 6, UTC)
    assert exposition.day_of(now) == datetime(2026, 11, 26, tzinfo=UTC)
    await report(api, call(1))
    await seen(api)
    async with begin(api.runtime.engine) as conn:
        await conn.execute(text("UPDATE rollup_hours SET at = at - interval '1 day'"))
    assert "authwatch_tool_calls_total" not in await seen(api)


async def test_a_reading_is_given_again_for_some_seconds(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[Any] = []
    real = exposition.five_metrics

    async def counted(conn: Any) -> Any:
        readings.append(conn)
        return await real(conn)

    monkeypatch.setattr(exposition, "five_metrics", counted)
    await asyncio.gather(*(api.client.get("/metrics") for _ in range(5)))
    assert len(readings) == 1
    api.runtime.seen._read_at = time.monotonic() - exposition.CACHE_SECONDS
    await api.client.get("/metrics")
    assert len(readings) == 2


async def test_a_table_that_somebody_holds_costs_the_five_metrics_only_and_no_more_time_than_said(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "READ_SECONDS_MAX", 0.3)
    await report(api, call(1))
    assert "authwatch_tool_calls_total" in await seen(api)
    async with begin(api.runtime.engine) as conn:
        await conn.execute(text("LOCK TABLE rollup_minutes"))
        api.runtime.seen._read_at = None
        began = time.monotonic()
        found = read((await api.client.get("/metrics")).text)
        assert time.monotonic() - began < 2
    assert "authwatch_tool_calls_total" not in found
    assert found["authwatch_database_up"] == {(): 1}
    assert "authwatch_tool_calls_total" in await seen(api)


async def test_without_postgres_the_database_parts_are_absent() -> None:
    async with opened(f"postgresql://u:p@127.0.0.1:{choose_port('127.0.0.1')}/authwatch") as api:
        answer = await api.client.get("/metrics")
        found = read(answer.text)
    assert answer.status_code == 200
    assert found["authwatch_database_up"] == {(): 0}
    assert found["authwatch_metrics_accounts_named_max"] == {(): families.ACCOUNTS_NAMED_MAX}
    assert "authwatch_alerts" not in found
    assert "authwatch_tool_calls_total" not in found


async def test_the_bound_is_stated_where_it_is_read(api: Api) -> None:
    words = (await api.client.get("/metrics")).text
    for what in families.OF_ACCOUNTS:
        [said] = [line for line in words.split("\n") if line.startswith(f"# HELP {what.name} ")]
        assert f"the {families.ACCOUNTS_NAMED_MAX} worst by name" in said
