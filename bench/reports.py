"""Reported tool calls accepted a second by one process, against a no-op that takes the same bodies; and the metrics read
back over 30 days of 10,000 accounts.

After each round the rows are counted: every call that was answered 202 must be there. What the counting worker then takes
is told in a note.
"""

from __future__ import annotations

import http.client
import time
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import psycopg
import uvloop

from bench.figure import Figure, quantile, ratio_of
from bench.house import BenchFailed, House, Server, cpu_seconds, one, run_module, say
from bench.reports_load import FAILED_EACH, ITEMS
from service.runtime import WORKER_CONNECTIONS_MAX, open_runtime
from service.settings import load_settings
from service.store import series
from service.store.session import begin
from workers.rollups import RollingUp

REACH_PER_SECOND, REACH_MS = 20_000, 50.0
ROUNDS, ROUNDS_SHORT = 5, 1
REQUESTS, REQUESTS_SHORT = 100, 10
ACCOUNTS, ACCOUNTS_SHORT = 10_000, 300
DAYS, PROVIDERS, BUCKETS = 30, 8, 120
LOOKS, LOOKS_SHORT = 40, 5
COUNTED_MAX_SECONDS = 120

SERIES = """
INSERT INTO metric_series (written, said_provider, provider)
SELECT '', 'provider_' || n, 'provider_' || n FROM generate_series(0, %(providers)s - 1) AS n;
INSERT INTO metric_series (written, said_provider, provider, source, environment_id, account_id, bound, provider_series_id)
SELECT 'ca_' || n, p.provider, p.provider, 'report', '', 'ca_' || n, false, p.id
FROM generate_series(0, %(accounts)s - 1) AS n
JOIN metric_series p ON p.written = '' AND p.provider = 'provider_' || n %% %(providers)s;
"""
# In the order of time, as life writes them.
HOURS = """
INSERT INTO rollup_hours (series_id, at, calls, calls_succeeded, writes, partials, refreshes, refreshes_succeeded,
    refresh_sizes, retries_rate_limited)
SELECT s.id, at, 120, 118, 40, 0, 1, 1,
    CASE WHEN s.written = '' THEN sketch.sizes ELSE ARRAY[-60, 1] END, 3
FROM generate_series(date_trunc('hour', now()) - %(days)s * interval '1 day', now(), interval '1 hour') AS at,
    metric_series s,
    (SELECT array_agg(n ORDER BY n) || array_agg(10 + n ORDER BY n) AS sizes FROM generate_series(0, %(buckets)s - 1) AS n) AS sketch
ORDER BY at
"""
MINUTES = """
INSERT INTO rollup_minutes (series_id, at, calls, calls_succeeded, writes, partials)
SELECT s.id, at, 2, CASE WHEN s.id %% 40 = 0 THEN 1 ELSE 2 END, 1, 0
FROM generate_series(date_trunc('minute', now()) - interval '30 minutes', now(), interval '1 minute') AS at,
    metric_series s
"""


def measure(house: House) -> list[Figure]:
    return [accepted(house), *read_back(house)]


def accepted(house: House) -> Figure:
    url = house.database("reports")
    ours, control = house.server("ours", url, "reports"), house.server("control", url, "reports_control")
    requests = REQUESTS_SHORT if house.short else REQUESTS
    said: dict[str, list[dict[str, Any]]] = {"ours": [], "control": []}
    load(house, control, requests // 5)
    load(house, ours, requests // 5)
    total = requests // 5 * ITEMS
    cpu_us = []
    for number in range(ROUNDS_SHORT if house.short else ROUNDS):
        said["control"].append(load(house, control, requests))
        before = cpu_seconds(ours.process.pid)
        said["ours"].append(load(house, ours, requests))
        total += requests * ITEMS
        cpu_us.append((cpu_seconds(ours.process.pid) - before) / (requests * ITEMS) * 1e6)
        if (kept := one(url, "SELECT count(*) FROM tool_calls")) != total:
            raise BenchFailed(f"{total} calls were accepted, and {kept} are there")
        if (
            logged := one(url, "SELECT count(*) FROM events WHERE kind = 'tool_call.completed'")
        ) != total // FAILED_EACH:
            raise BenchFailed(f"{total // FAILED_EACH} calls failed, and {logged} are in the log")
        say(
            f"round {number + 1}: "
            + ", ".join(f"{kind} {of[-1]['per_second']:,.0f} calls/s" for kind, of in said.items())
        )
    for server in (ours, control):
        house.stop(server.process)
    seconds = uvloop.run(count_up(house, url, total))
    per_second = {kind: [float(one_["per_second"]) for one_ in of] for kind, of in said.items()}
    ratio = ratio_of(per_second["ours"], per_second["control"])
    return Figure(
        name="reported tool calls accepted, one process, 1,000 a request, 4 connections",
        unit="calls/s",
        ours=per_second["ours"],
        control_name=f"a Starlette handler that only reads the same bodies of {said['ours'][0]['bytes'] // 1000} kB",
        control=per_second["control"],
        ratio=ratio,
        reach=f"at least {REACH_PER_SECOND:,}",
        met=median(per_second["ours"]) >= REACH_PER_SECOND,
        notes=[
            f"one call in {FAILED_EACH} failed and went into the log as well; every call and every failure was counted",
            f"processor time of the receiver, a call: {median(cpu_us):.1f} us",
            f"one worker counted these {total:,} calls into minutes and hours at {total / seconds:,.0f} calls/s",
        ],
    )


def load(house: House, server: Server, requests: int) -> dict[str, Any]:
    path = "/v1/tool-calls" if server.kind == "ours" else "/webhooks/none"
    said = run_module(
        "bench.reports_load",
        ["--port", str(server.port), "--path", path, "--requests", str(requests)],
        house.token,
    )
    if said["statuses"] != {"202": requests}:
        raise BenchFailed(f"{server.kind}: {requests} requests of reports, answers {said['statuses']}")
    return said


async def count_up(house: House, url: str, total: int) -> float:
    settings = load_settings(house.environment(url))
    async with open_runtime(settings, connections_max=WORKER_CONNECTIONS_MAX) as runtime:
        rolling, began = RollingUp(), time.perf_counter()
        while await rolling.step(runtime):
            if time.perf_counter() - began > COUNTED_MAX_SECONDS:
                raise BenchFailed(f"{total} calls were not counted within {COUNTED_MAX_SECONDS} s")
        took = time.perf_counter() - began
    counted = one(
        url, "SELECT sum(calls) FROM rollup_hours h JOIN metric_series s ON s.id = h.series_id WHERE s.written = ''"
    )
    if counted != total:
        raise BenchFailed(f"{total} calls were accepted, and {counted} were counted")
    return took


def read_back(house: House) -> list[Figure]:
    url = house.database("rollups")
    fill = {
        "accounts": ACCOUNTS_SHORT if house.short else ACCOUNTS,
        "providers": PROVIDERS,
        "days": DAYS,
        "buckets": BUCKETS,
    }
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as conn:
        for statement in (SERIES, HOURS, MINUTES):
            conn.execute(statement.encode(), fill)
        conn.execute(b"VACUUM ANALYZE metric_series, rollup_hours, rollup_minutes")
        row = conn.execute(b"SELECT count(*) FROM rollup_hours").fetchone()
    assert row is not None
    say(f"{row[0]:,} hours of {fill['accounts']:,} accounts are there")
    since = (datetime.now(UTC) - timedelta(days=DAYS)).strftime("%Y-%m-%dT%H:%M:%SZ")
    looks = LOOKS_SHORT if house.short else LOOKS
    server = house.server("ours", url, "rollups")
    asked = {
        "success rate of one account": "tool_call_success_rate?account_id=ca_{n}",
        "retry rate of one account": "retry_rate?account_id=ca_{n}",
        "success rate of one provider": "tool_call_success_rate?provider=provider_{p}",
        "refresh rate, p50 and p99 of one provider": "refresh_success_rate?provider=provider_{p}",
    }
    bare = ask(house, server, ["/v1/silences-nobody" for _ in range(looks)], status=404)
    figures = []
    for name, path in asked.items():
        paths = [
            f"/v1/metrics/{path.format(n=number * 37 % fill['accounts'], p=number % PROVIDERS)}&since={since}&step=1h"
            for number in range(looks)
        ]
        figures.append(figure(f"{name}, 720 hours", ask(house, server, paths), bare, fill["accounts"]))
    house.stop(server.process)
    figures.append(
        figure("worst accounts of the last five minutes", uvloop.run(worst(house, url, looks)), bare, fill["accounts"])
    )
    return figures


def ask(house: House, server: Server, paths: list[str], *, status: int = 200) -> list[float]:
    """Milliseconds of each."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    times = []
    for path in paths:
        began = time.perf_counter()
        connection.request("GET", path, headers={"Authorization": f"Bearer {house.token}"})
        answer = connection.getresponse()
        said = answer.read()
        times.append((time.perf_counter() - began) * 1000)
        if answer.status != status:
            raise BenchFailed(f"{path} was answered {answer.status}: {said[:200]!r}")
    connection.close()
    return times


async def worst(house: House, url: str, looks: int) -> list[float]:
    settings = load_settings(house.environment(url))
    times = []
    async with open_runtime(settings, connections_max=WORKER_CONNECTIONS_MAX) as runtime:
        for _ in range(looks):
            began = time.perf_counter()
            async with begin(runtime.engine) as conn:
                if not await series.worst(conn, datetime.now(UTC) - timedelta(minutes=5)):
                    raise BenchFailed("no account fails, where one in 40 should")
            times.append((time.perf_counter() - began) * 1000)
    return times


def figure(name: str, ours: list[float], bare: list[float], accounts: int) -> Figure:
    p95 = quantile(ours, 0.95)
    return Figure(
        name=f"{name}, of {accounts:,} accounts: p95",
        unit="ms",
        ours=[p95],
        control_name="a request for what is not there",
        control=[quantile(bare, 0.95)],
        ratio=p95 / quantile(bare, 0.95),
        reach=f"under {REACH_MS:.0f} ms",
        met=p95 < REACH_MS,
        digits=1,
        notes=[f"median {median(ours):.1f} ms of {len(ours)}"],
    )
