"""A receiver on a port of its own, in front of a Slack and a provider that are as strict as the real ones."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from service.app import create_app
from service.clicks import PATH
from service.settings import load_settings
from service.store.session import begin
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.test_api import BASE, FAILED, STATUS, Api
from tests.fakes import serve
from tests.fakes.scalekit_api import CLIENT_ID, CLIENT_SECRET, FakeScalekit
from tests.fakes.slack import CHANNEL, TOKEN
from tests.fakes.slack_clicks import APP, DIANA, SIGNING_SECRET, TEAM, FakeClicks
from tests.make_requests import event_body
from workers.evaluate import evaluate


@dataclass
class Desk(Api):
    slack: FakeClicks = field(default_factory=FakeClicks)
    provider: FakeScalekit = field(default_factory=FakeScalekit)
    log_file: Path = Path()

    async def click(self, action: str, value: str | None, **more: Any) -> str:
        """What the clicker is told; Slack itself is answered 200 and nothing."""
        return await self.send_click(*self.slack.click(action, value, **more))

    async def send_click(self, headers: Mapping[str, str], body: bytes) -> str:
        before = len(self.slack.replies)
        answer = await self.client.post(PATH, content=body, headers=dict(headers))
        assert (answer.status_code, answer.content) == (200, b""), answer.text
        reply = (await self.slack.told(before + 1))[-1]
        assert (reply["response_type"], reply["replace_original"]) == ("ephemeral", False)
        return str(reply["text"])

    async def alert(self, alert_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.get(f"/v1/alerts/{alert_id}")
        return found

    async def audit(self, action: str) -> list[dict[str, Any]]:
        """The details of its entries, oldest first."""
        async with begin(self.runtime.engine) as conn:
            rows = await conn.execute(
                text(
                    "SELECT details FROM events WHERE kind = 'audit' AND details ->> 'action' = :action ORDER BY position"
                ),
                {"action": action},
            )
            return [dict(row.details) for row in rows]

    async def broken_twice(self) -> tuple[str, str]:
        """Two alerts hold the workflow w1: the one of failed refreshes, and the one of the disconnection."""
        await self.put("w1", account_ids=["ca_1"])
        await self.failed_three_times()
        await self.send(event_body(FAILED, data={"id": "ca_1"}))
        await self.send(event_body(STATUS, data={"id": "ca_1", "status": "DISCONNECTED"}))
        await evaluate(self.runtime)
        alerts = {alert["rule"]: str(alert["id"]) for alert in await self.items("/v1/alerts?account_id=ca_1")}
        assert len((await self.get("/v1/workflows/w1"))["paused_by"]) == 2
        return alerts["token-refresh-failing"], alerts["account-disconnected-active-workflow"]


@asynccontextmanager
async def open_desk(database_url: str, folder: Path, **changes: str | None) -> AsyncIterator[Desk]:
    """`changes` of the environment; None takes a variable out."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    slack, provider = FakeClicks(), FakeScalekit()
    async with serve(slack.app) as slack_url, serve(provider.app) as provider_url:
        slack.url = f"{slack_url}/api/"
        given: dict[str, str | None] = {
            "DATABASE_URL": database_url,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_PUBLIC_URL": BASE,
            "SLACK_BOT_TOKEN": TOKEN,
            "SLACK_CHANNEL": CHANNEL,
            "SLACK_API_URL": slack.url,
            "SLACK_SIGNING_SECRET": SIGNING_SECRET,
            "SLACK_MAY_ACT": f"{DIANA}, {TEAM}, {APP}",
            "SCALEKIT_ENV_URL": provider_url,
            "SCALEKIT_CLIENT_ID": CLIENT_ID,
            "SCALEKIT_CLIENT_SECRET": CLIENT_SECRET,
        }
        variables = {name: value for name, value in (given | changes).items() if value is not None}
        log_file = folder / "receiver.log"
        app = create_app(load_settings(variables), {"AUTHWATCH_LOG_FILE": str(log_file)})
        async with (
            app.router.lifespan_context(app),
            serve(app) as url,
            httpx.AsyncClient(
                base_url=url, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}, trust_env=False, timeout=20
            ) as client,
        ):
            yield Desk(app, client, slack, provider, log_file)
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
