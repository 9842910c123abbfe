"""The article's opening story, with Authwatch in it: a user disconnects the app, the connector answers the agent's queries
with 200 and nothing in it, and no exception anywhere says so. There it took four days until somebody looked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.event import new_id
from tests.conftest import ADMIN_TOKEN, SECRET, Servers
from tests.end_to_end.running import Running, post, until
from tests.fakes import slack
from tests.fakes.front import standing
from tests.make_requests import event_body

SHIPPED = Path(__file__).resolve().parents[2] / "alert_rules"
WITHIN_SECONDS = 5.0
UPDATED = "connected_account.status_updated"


@pytest.fixture(scope="module")
def people() -> Iterator[tuple[slack.FakeSlack, str]]:
    fake = slack.FakeSlack()
    with standing() as front:
        front.app = fake.app
        yield fake, front.url


@pytest.fixture(scope="module")
def service(
    servers: Servers,
    database_of_the_file: str,
    people: tuple[slack.FakeSlack, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """One for all of them, of which each has an account and a workflow of its own."""
    running = Running(
        tmp_path_factory.mktemp("story"),
        {
            "DATABASE_URL": database_of_the_file,
            "REDIS_URL": servers.redis_url,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_RULES": str(SHIPPED),
            "SLACK_BOT_TOKEN": slack.TOKEN,
            "SLACK_CHANNEL": slack.CHANNEL,
            "SLACK_API_URL": people[1] + "/api/",
        },
    )
    running.start("serve", "worker")

    async def alive() -> bool:
        return bool((await running.get("/v1/health"))["evaluator"]["alive"])

    try:
        asyncio.run(running.ready())
        asyncio.run(until(alive, 30, running.logs))
        yield running
    finally:
        running.stop()


def salesforce(name: str) -> dict[str, str]:
    return {"id": f"ca_{name}", "connection_id": f"conn_{name}", "provider": "SALESFORCE"}


def at(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def call(account_id: str, tool: str, *, operation: str = "read", **more: Any) -> dict[str, Any]:
    """As the agent's framework reports it: answered 200, a success."""
    return {
        "id": new_id(),
        "occurred_at": at(datetime.now(UTC)),
        "account_id": account_id,
        "tool": tool,
        "operation": operation,
        "outcome": "success",
        "http_status": 200,
        "workflow_id": f"routing-{account_id}",
        **more,
    }


async def report(client: httpx.AsyncClient, calls: list[dict[str, Any]]) -> None:
    answer = await client.post("/v1/tool-calls", json={"items": calls})
    assert answer.status_code == 202, answer.text


async def put_routing(client: httpx.AsyncClient, account: dict[str, str]) -> str:
    """The workflow's state once it depends on the account."""
    workflow = {"name": "Ticket routing", "account_ids": [account["id"]], "orchestrator": None}
    return str((await client.put(f"/v1/workflows/routing-{account['id']}", json=workflow)).json()["state"])


async def routing_is_set_up(client: httpx.AsyncClient, account: dict[str, str]) -> None:
    assert await put_routing(client, account) == "active"
    assert (await post(client, event_body(UPDATED, data={**account, "status": "ACTIVE"}))).status_code == 202


async def first_alert(client: httpx.AsyncClient, rule: str, service: Running, account_id: str = "") -> dict[str, Any]:
    where = f"/v1/alerts?rule={rule}" + (f"&account_id={account_id}" if account_id else "")

    async def there() -> bool:
        return bool((await client.get(where)).json()["items"])

    await until(there, 20, service.logs)
    found: dict[str, Any] = (await client.get(where)).json()["items"][0]
    return found


async def received_at(client: httpx.AsyncClient, account_id: str) -> datetime:
    items = (await client.get(f"/v1/events?kind=account.disconnected&account_id={account_id}")).json()["items"]
    return datetime.fromisoformat(items[0]["received_at"])


async def test_the_first_alert_comes_within_seconds_of_the_revocation_while_every_call_is_answered_200(
    service: Running, people: tuple[slack.FakeSlack, str]
) -> None:
    account = salesforce("revoked")
    async with service.client() as client:
        await routing_is_set_up(client, account)
        # What the execution plane sees, before and after: successes, of this account and of twenty others.
        others = [call(f"ca_{number}", "jira.search") for number in range(20)]
        await report(client, [*others, call(account["id"], "salesforce.query")])
        assert (await post(client, event_body(UPDATED, data={**account, "status": "DISCONNECTED"}))).status_code == 202
        await report(client, [call(account["id"], "salesforce.query") for _ in range(5)])

        alert = await first_alert(client, "account-disconnected-active-workflow", service, account["id"])
        assert (alert["account_id"], alert["state"]) == (account["id"], "firing")
        took = datetime.fromisoformat(alert["fired_at"]) - await received_at(client, account["id"])
        assert took.total_seconds() < WITHIN_SECONDS
        # The agent is told before its next call, and people hear what to do.
        gate = (await client.get(f"/v1/gate?workflow_id=routing-{account['id']}&account_id={account['id']}")).json()
        assert (gate["allow"], gate["reason"]) == (False, "workflow_paused")

        async def told() -> bool:
            return len(people[0].calls["chat.postMessage"]) == 1

        await until(told, WITHIN_SECONDS, service.logs)

        # And all the while nothing has failed, by the one number that most teams look at.
        rate = f"/v1/metrics/tool_call_success_rate?account_id={account['id']}"

        async def counted() -> bool:
            return any(item["value"] is not None for item in (await client.get(rate)).json()["items"])

        await until(counted, 20, service.logs)
        values = [item["value"] for item in (await client.get(rate)).json()["items"]]
        assert {value for value in values if value is not None} == {1.0}
        assert (await client.get("/v1/events?kind=tool_call.completed")).json()["items"] == []


async def test_a_revocation_that_we_hear_of_four_days_late_is_an_alert_within_seconds_and_says_how_late(
    service: Running,
) -> None:
    """The token was revoked four days ago, and whoever should have said so says it only now."""
    account = salesforce("late")
    async with service.client() as client:
        long_ago = datetime.now(UTC) - timedelta(days=4)
        active = event_body(UPDATED, occurred_at=at(long_ago - timedelta(days=3)), data={**account, "status": "ACTIVE"})
        assert (await post(client, active)).status_code == 202
        await put_routing(client, account)
        gone = event_body(UPDATED, occurred_at=at(long_ago), data={**account, "status": "DISCONNECTED"})
        assert (await post(client, gone)).status_code == 202

        alert = await first_alert(client, "account-disconnected-active-workflow", service, account["id"])
        took = datetime.fromisoformat(alert["fired_at"]) - await received_at(client, account["id"])
        assert took.total_seconds() < WITHIN_SECONDS
        assert alert["opened_at"][:16] == at(long_ago)[:16]
        late = await first_alert(client, "delivery-lag", service)
        assert late["state"] in ("firing", "resolved")
        assert (await client.get(f"/v1/workflows/routing-{account['id']}")).json()["state"] == "paused"


async def test_an_assignment_that_was_answered_200_and_is_not_there_is_an_alert_within_seconds(
    service: Running,
) -> None:
    """The other half of the story: the write that never happened. Whoever looks for what he wrote finds that out at once."""
    account = salesforce("unwritten")
    async with service.client() as client:
        await routing_is_set_up(client, account)
        sent = datetime.now(UTC)
        written = call(account["id"], "salesforce.update", operation="write", provider="salesforce")
        await report(client, [written | {"verification": "missing"}])
        alert = await first_alert(client, "partial-execution", service)
        assert (datetime.fromisoformat(alert["fired_at"]) - sent).total_seconds() < WITHIN_SECONDS
        assert alert["account_id"] == account["id"]
