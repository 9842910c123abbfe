"""The Grafana dashboard: every query asks for what /metrics really tells, and finds it in a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.children import choose_port
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import Running, post, until
from tests.end_to_end.test_api import Api, opened
from tests.end_to_end.test_docs_metrics import SCRAPE_CONFIG
from tests.end_to_end.test_reports import call, refresh, report, report_refreshes
from tests.make_requests import event_body
from tests.promql import mistakes
from workers.evaluate import evaluate
from workers.rollups import RollingUp

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "docs" / "grafana" / "authwatch.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
WORDS_OF_A_LEGEND = re.compile(r"\{\{(\w+)\}\}")
PROMETHEUS = shutil.which("prometheus")
SCRAPE_SECONDS = 1
# What must be there of each of these: who asks for all may get one.
EXPECTED = {
    "Sinks lag": {"reader": {"sink:splunk"}},
    "Identity: token refreshes that succeeded": {"provider": {"jira"}},
    "Execution: tool calls that succeeded": {"provider": {"jira", "slack"}},
    "Identity: how long refreshes take": {"quantile": {"0.5", "0.99"}},
    "Execution: retries by error class": {"error_class": {"rate_limited", "malformed_params"}},
    "Execution: partial executions": {"provider": {"jira"}},
}


def asked(expression: str) -> str:
    """As Grafana fills it in."""
    return expression.replace("$job", "authwatch").replace("$__rate_interval", "1m")


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with opened(database_url) as made:
        yield made


def test_it_can_be_imported() -> None:
    """What Grafana's import looks at: its schema, one id and one place a panel, and a data source of the reader's."""
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["uid"] == "authwatch"
    assert "id" not in DASHBOARD
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
    assert set(EXPECTED) <= set(titles)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        for target in [panel, *panel["targets"]]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_identity_plane_is_beside_the_execution_plane() -> None:
    for panel in PANELS:
        plane, _, _ = panel["title"].partition(": ")
        if plane in ("Identity", "Execution"):
            assert (panel["gridPos"]["x"] < 12) == (plane == "Identity"), panel["title"]


async def told(api: Api) -> dict[str, set[str]]:
    """Every metric of /metrics with the labels that it has, after one of everything happened."""
    calls, refreshes = reported(1)
    await report(api, *calls)
    await report_refreshes(api, *refreshes)
    await api.send(event_body())
    await evaluate(api.runtime)
    while await RollingUp().step(api.runtime):
        pass
    known: dict[str, set[str]] = {}
    for family in text_string_to_metric_families((await api.client.get("/metrics")).text):
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    return known


async def test_every_query_asks_for_what_is_there(api: Api) -> None:
    known = await told(api)
    for panel in PANELS:
        for target in panel["targets"]:
            assert mistakes(asked(target["expr"]), known) == [], panel["title"]
    said = next(item for item in DASHBOARD["templating"]["list"] if item["name"] == "job")["definition"]
    [metric] = re.findall(r"label_values\((\w+), job\)", said)
    assert metric in known


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("max(authwatch_tool_call_success_rate)", "authwatch_tool_call_success_rate is no metric"),
        ("min by (account_id) (authwatch_tool_call_success_ratio)", "authwatch_tool_call_success_ratio has no label"),
        ('authwatch_alerts{status="firing"}', "authwatch_alerts has no label status"),
        ("authwatch_tool_calls_total", "a counter is asked for by its rate"),
        ("rate(authwatch_tool_call_success_ratio[5m])", "a counter is asked for by its rate"),
        ("maximum(authwatch_database_up)", "maximum is no function"),
        ("authwatch_database_up ~ 3", "cannot be read"),
        ("sum by (rule) (authwatch_alerts) or max by (rule) (authwatch_database_up)", "database_up has no label rule"),
        ("sum(1)", "asks for no metric"),
    ],
)
def test_a_query_that_asks_for_something_else_is_found(expression: str, said: str) -> None:
    known = {
        "authwatch_tool_call_success_ratio": {"provider"},
        "authwatch_alerts": {"rule", "severity", "state"},
        "authwatch_tool_calls_total": {"provider", "outcome"},
        "authwatch_database_up": set(),
    }
    assert said in " ".join(mistakes(expression, known))
    fine = 'sum by (rule) (authwatch_alerts{state="firing", job=~"x"}) or 0 * min(authwatch_database_up == 1)'
    assert mistakes(fine, known) == []


def reported(number: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    calls = [
        call(f"{number}a"),
        call(f"{number}b", outcome="error", error_class="rate_limited", retries=3),
        call(f"{number}c", operation="write", verification="missing", account_id="ca_2"),
        call(f"{number}d", provider="slack", error_class="malformed_params", retries=1, account_id="ca_3"),
    ]
    refreshes = [
        refresh(f"{number}a", provider="jira", duration_ms=300),
        refresh(f"{number}b", provider="jira", duration_ms=4000, outcome="error"),
    ]
    return calls, refreshes


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    assert PROMETHEUS is not None
    port = choose_port("127.0.0.1")
    config = folder / "prometheus.yml"
    shown = re.sub(r"scrape_interval: \d+s", f"scrape_interval: {SCRAPE_SECONDS}s", SCRAPE_CONFIG)
    assert "authwatch:8080" in shown
    config.write_text(f"global: {{scrape_timeout: {SCRAPE_SECONDS}s}}\n" + shown.replace("authwatch:8080", target))
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus on this machine: apt-get install prometheus")
async def test_every_query_finds_its_answer_in_a_real_prometheus(tmp_path: Path, database_url: str) -> None:
    running = Running(
        tmp_path,
        {
            "DATABASE_URL": database_url,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_RULES": str(ROOT / "alert_rules"),
            # A SIEM that is away: its lag grows.
            "SPLUNK_HEC_URL": f"http://127.0.0.1:{choose_port('127.0.0.1')}",
            "SPLUNK_HEC_TOKEN": "11111111-2222-3333-4444-555555555555",
        },
        serve_words=("--workers", "2"),
    )
    running.start("serve", "worker")
    try:
        await running.ready()
        with prometheus(tmp_path, f"127.0.0.1:{running.port}") as url:
            async with running.client() as ours, httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
                await post(ours, event_body())
                telling = asyncio.create_task(tell(ours))
                try:
                    for panel in PANELS:
                        for target in panel["targets"]:
                            await until(partial(answered, client, panel, target), 60, partial(logs, running, panel))
                    await scraped_without_complaint(client, tmp_path)
                finally:
                    telling.cancel()
    finally:
        running.stop()


def logs(running: Running, panel: dict[str, Any]) -> str:
    return f"no answer for {panel['title']}\n{running.logs()}"


async def tell(ours: httpx.AsyncClient) -> None:
    """Agents that go on reporting, for as long as somebody looks."""
    number = 0
    while True:
        number += 1
        calls, refreshes = reported(number)
        for path, items in (("/v1/tool-calls", calls), ("/v1/token-refreshes", refreshes)):
            answer = await ours.post(path, json={"items": items})
            assert answer.status_code == 202, answer.text
        await asyncio.sleep(SCRAPE_SECONDS / 2)


async def answered(client: httpx.AsyncClient, panel: dict[str, Any], target: dict[str, Any]) -> bool:
    """Whether the query gives what the panel shows: the labels of its legend, and whoever must be there."""
    try:
        said = await client.get("/api/v1/query", params={"query": asked(target["expr"])})
    except httpx.TransportError:
        return False  # it starts
    if said.status_code == 503:
        return False
    assert said.status_code == 200, said.text
    result = said.json()["data"]["result"]
    names = WORDS_OF_A_LEGEND.findall(target["legendFormat"])
    for series in result:
        assert set(series["metric"]) - {"__name__"} <= set(names), f"{panel['title']}: {series['metric']}"
        assert all(series["metric"].get(name) for name in names), f"{panel['title']}: {series['metric']}"
        assert float(series["value"][1]) >= 0, panel["title"]
    expected = EXPECTED.get(panel["title"], {})
    return bool(result) and all(
        values <= {series["metric"].get(name) for series in result} for name, values in expected.items()
    )


async def scraped_without_complaint(client: httpx.AsyncClient, folder: Path) -> None:
    [target] = (await client.get("/api/v1/targets")).json()["data"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    log = (folder / "prometheus.log").read_text()
    assert not re.search(r"duplicate|out.of.order|level=error", log, re.IGNORECASE), log
