"""The main job on real parts: from the provider's request to the pause, the message, the SIEM, and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ADMIN_TOKEN, SECRET, Servers
from tests.end_to_end.running import RULES, Running, post, until
from tests.fakes import hec, orchestrator, serve, slack
from tests.make_requests import event_body

HEC_TOKEN = "11111111-2222-3333-4444-555555555555"
FAILED = "connected_account.token_refresh_failed"
SUCCEEDED = "connected_account.token_refresh_succeeded"


@pytest.fixture
async def outside() -> AsyncIterator[dict[str, Any]]:
    """Everybody else's servers."""
    fakes: dict[str, Any] = {
        "slack": slack.FakeSlack(),
        "hec": hec.FakeHec(HEC_TOKEN),
        "jobs": orchestrator.FakeOrchestrator(),
    }
    async with (
        serve(fakes["slack"].app) as slack_url,
        serve(fakes["hec"].app) as hec_url,
        serve(fakes["jobs"].app) as jobs_url,
    ):
        yield fakes | {"slack_url": slack_url, "hec_url": hec_url, "jobs_url": jobs_url}


@pytest.fixture
async def service(
    servers: Servers, database_url: str, outside: dict[str, Any], tmp_path: Path
) -> AsyncIterator[Running]:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "all.yml").write_text(RULES)
    (tmp_path / "config.yml").write_text(
        f"""\
notifiers:
  oncall: {{kind: slack, token: "{slack.TOKEN}", channel: "{slack.CHANNEL}", api_url: "{outside["slack_url"]}/api/"}}
sinks:
  splunk: {{kind: splunk_hec, url: "{outside["hec_url"]}", token: "{HEC_TOKEN}", format: raw}}
orchestrators:
  jobs: {{kind: webhook, url: "{outside["jobs_url"]}{orchestrator.PATH}", secret: "{orchestrator.SECRET}"}}
"""
    )
    running = Running(
        tmp_path,
        {
            "DATABASE_URL": database_url,
            "REDIS_URL": servers.redis_url,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_RULES": str(tmp_path / "rules"),
            "AUTHWATCH_CONFIG": str(tmp_path / "config.yml"),
        },
    )
    running.start("serve", "worker")
    try:
        await running.ready()

        async def alive() -> bool:
            return bool((await running.get("/v1/health"))["evaluator"]["alive"])

        await until(alive, 30, running.logs)  # what is measured below is a running worker
        await asyncio.sleep(1)
        yield running
    finally:
        running.stop()


async def seconds_to_pause(client: httpx.AsyncClient) -> float:
    """From the receipt that broke it to the pause, by the service's own clock: ours also counts how slowly we look."""
    events = (await client.get("/v1/events?kind=token.refresh_failed")).json()["items"]
    received_at = max(datetime.fromisoformat(item["received_at"]) for item in events)
    paused_at = datetime.fromisoformat((await client.get("/v1/workflows/w1")).json()["paused_at"])
    assert paused_at >= received_at
    return (paused_at - received_at).total_seconds()


async def test_three_failures_pause_tell_and_copy_and_a_success_puts_back(
    service: Running, outside: dict[str, Any]
) -> None:
    posts, edits, orders = outside["slack"].calls, outside["slack"].calls, outside["jobs"]
    async with service.client() as client:
        put = await client.put(
            "/v1/workflows/w1",
            json={"name": "Route tickets", "account_ids": ["ca_1"], "orchestrator": {"name": "jobs", "ref": "job-7"}},
        )
        assert put.json()["state"] == "active"
        for _ in range(3):
            assert (await post(client, event_body(FAILED))).status_code == 202

        async def paused() -> bool:
            return bool((await client.get("/v1/workflows/w1")).json()["state"] == "paused")

        await until(paused, 10, service.logs)
        assert await seconds_to_pause(client) < 1.0
        gate = (await client.get("/v1/gate?workflow_id=w1&account_id=ca_1")).json()
        assert (gate["allow"], gate["reason"]) == (False, "workflow_paused")

        async def told() -> bool:
            return len(posts["chat.postMessage"]) == 1 and len(orders.pauses) == 1

        await until(told, 5, service.logs)
        alerts = (await client.get("/v1/alerts")).json()["items"]
        assert [(alert["rule"], alert["state"], alert["severity"]) for alert in alerts] == [
            ("token-refresh-failing", "firing", "P2")
        ]
        for _ in range(3):
            await post(client, event_body(FAILED))
        await service.evaluated()

        await post(client, event_body(SUCCEEDED))

        async def well() -> bool:
            now = (await client.get("/v1/workflows/w1")).json()
            return bool(now["state"] == "active" and len(orders.resumes) == 1)

        await until(well, 10, service.logs)
        assert (await client.get("/v1/gate?workflow_id=w1&account_id=ca_1")).json()["allow"] is True
        [alert] = (await client.get("/v1/alerts")).json()["items"]
        assert (alert["state"], alert["resolved_reason"]) == ("resolved", "recovered")

        async def edited() -> bool:
            return len(edits["chat.update"]) >= 1 and "resumed" in outside["slack"].text_of(
                outside["slack"].messages[-1]
            )

        await until(edited, 10, service.logs)
        feed = await service.feed()

        async def copied() -> bool:
            return len(outside["hec"].events) >= len(await service.feed())

        await until(copied, 10, service.logs)
    assert len(posts["chat.postMessage"]) == 1
    assert (len(orders.pauses), len(orders.resumes)) == (1, 1)
    kinds = [item["kind"] for item in feed]
    for kind, times in {
        "token.refresh_failed": 6,
        "alert.firing": 1,
        "workflow.paused": 1,
        "alert.resolved": 1,
        "workflow.resumed": 1,
    }.items():
        assert kinds.count(kind) == times, kinds
    pushed = [event["position"] for event in outside["hec"].events]
    assert pushed == sorted(set(pushed))
    assert pushed[: len(feed)] == [item["position"] for item in feed]
