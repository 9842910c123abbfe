"""The scenarios on a real n8n, and what n8n alone has: drafts, a history that forgets, webhooks, archives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from service import outbound
from service.errors import DeliveryFailed
from service.orchestrators.base import Answer, Orchestrator, State
from service.orchestrators.n8n import N8nConfig, open_n8n
from tests.orchestrators.n8n import SCOPES, SECRET, N8n, every_hours, node
from tests.orchestrators.real import running
from tests.orchestrators.scenarios import Scenarios

EVENTUALLY_SECONDS_MAX = 20.0
EXPIRES_SECONDS = 2
PASS_ON = {"inputSource": "passthrough"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[N8n]:
    n8n = N8n(tmp_path_factory.mktemp("n8n"))
    with running(n8n):
        yield n8n


@pytest.fixture
async def open_with(server: N8n) -> AsyncIterator[Callable[[str], Orchestrator]]:
    async with outbound.open_client() as http:
        yield lambda key: open_n8n(N8nConfig.model_validate({"name": "ops", "url": server.url, "api_key": key}), http)


@pytest.fixture
def n8n(server: N8n, open_with: Callable[[str], Orchestrator]) -> Orchestrator:
    return open_with(server.environment()[SECRET])


async def pause(n8n: Orchestrator, ref: str) -> tuple[State, Answer]:
    found = await n8n.state(ref=ref)
    return found, await n8n.pause(**ask(ref), found=found.as_found)


def ask(ref: str) -> dict[str, Any]:
    return {"ref": ref, "workflow_id": "w1", "reason": "account ca_1 is gone", "idempotency_key": "k1"}


async def eventually(holds: Callable[[], Any]) -> None:
    until = time.monotonic() + EVENTUALLY_SECONDS_MAX
    while not holds():
        assert time.monotonic() < until, "it never came"
        await asyncio.sleep(0.2)


async def failure_of(call: Awaitable[Any]) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as caught:
        await call
    return caught.value


def webhook(path: str) -> dict[str, Any]:
    return node("Webhook", "n8n-nodes-base.webhook", {"path": path, "httpMethod": "GET"}, 2) | {"webhookId": path}


class TestN8n(Scenarios):
    """Those of every orchestrator."""


# What a pause stops


async def test_its_schedule_stops_and_its_editor_can_still_run_it(server: N8n, n8n: Orchestrator) -> None:
    ref = server.create("Nightly report", busy=True)
    await eventually(lambda: server.works(ref))
    _, paused = await pause(n8n, ref)
    assert paused.was_paused is False
    before = server.works(ref)
    by_hand = server.execute(ref)
    await eventually(lambda: {one["id"]: one for one in server.executions(ref)}.get(by_hand, {}).get("finished"))
    await asyncio.sleep(server.quiet_seconds)
    assert server.works(ref) <= before + 1, "one had begun while we counted"


async def test_its_webhook_is_not_there_and_what_runs_goes_on(server: N8n, n8n: Orchestrator) -> None:
    wait = node("Wait", "n8n-nodes-base.wait", {"amount": 3, "unit": "seconds"}, 1.1)
    ref = server.make("On call", webhook("on-call"), wait)
    assert server.call_webhook("on-call") == 200
    found, _ = await pause(n8n, ref)
    assert not server.executions(ref) or not server.executions(ref)[0]["finished"]
    assert server.call_webhook("on-call") == 404
    await eventually(lambda: [one["finished"] for one in server.executions(ref)] == [True])
    await n8n.resume(**ask(ref), prior_state=found.as_found)
    assert server.call_webhook("on-call") == 200


# What is published again


async def test_a_draft_of_meanwhile_stays_a_draft(server: N8n, n8n: Orchestrator) -> None:
    ref = server.create("Draft meanwhile")
    before = server.looks(ref)["activeVersionId"]
    found, _ = await pause(n8n, ref)
    server.edit(ref, nodes=[every_hours(3)], connections={})
    assert server.looks(ref)["versionId"] != before
    assert (await n8n.resume(**ask(ref), prior_state=found.as_found)).status == "resumed"
    assert server.looks(ref)["activeVersionId"] == before


async def test_a_version_that_the_history_has_forgotten_is_told(server: N8n, n8n: Orchestrator) -> None:
    ref = server.create("Forgotten")
    found, _ = await pause(n8n, ref)
    server.edit(ref, nodes=[every_hours(3)], connections={})
    server.sql("DELETE FROM workflow_history WHERE versionId = ?", str(found.as_found["active_version_id"]))
    failure = await failure_of(n8n.resume(**ask(ref), prior_state=found.as_found))
    assert (failure.code, failure.permanent) == ("version_gone", True)
    assert server.is_paused(ref)


async def test_a_webhook_that_another_workflow_took_meanwhile_is_told(server: N8n, n8n: Orchestrator) -> None:
    ref = server.make("First", webhook("shared"))
    found, _ = await pause(n8n, ref)
    server.make("Second", webhook("shared"))
    failure = await failure_of(n8n.resume(**ask(ref), prior_state=found.as_found))
    assert (failure.code, failure.permanent) == ("publish_refused", True)
    assert server.is_paused(ref)


async def test_one_that_calls_another_waits_until_that_is_published(server: N8n, n8n: Orchestrator) -> None:
    """n8n publishes no workflow that calls an unpublished one: of two that are resumed at once, one may have to be asked again."""
    called = server.make("Called", node("Called", "n8n-nodes-base.executeWorkflowTrigger", PASS_ON, 1.1))
    call = node(
        "Call", "n8n-nodes-base.executeWorkflow", {"workflowId": {"__rl": True, "mode": "id", "value": called}}, 1.2
    )
    caller = server.make("Caller", webhook("caller"), call)
    found = {ref: (await pause(n8n, ref))[0].as_found for ref in (called, caller)}
    failure = await failure_of(n8n.resume(**ask(caller), prior_state=found[caller]))
    assert (failure.status, failure.permanent) == (400, False)
    for ref in (called, caller):
        assert (await n8n.resume(**ask(ref), prior_state=found[ref])).status == "resumed"
    await n8n.pause(**ask(called), found=found[called])
    assert server.call_webhook("caller") == 200
    await eventually(lambda: [one["status"] for one in server.executions(caller)] == ["error"])
    assert server.executions(called) == []


async def test_what_was_archived_meanwhile_is_left(server: N8n, n8n: Orchestrator) -> None:
    ref = server.create("Archived")
    found, _ = await pause(n8n, ref)
    server.archive(ref)
    assert (await n8n.resume(**ask(ref), prior_state=found.as_found)).status == "left"


async def test_asked_again_it_does_nothing_more(server: N8n, n8n: Orchestrator) -> None:
    ref = server.create("Asked again")
    before = server.looks(ref)
    found, first = await pause(n8n, ref)
    assert await n8n.pause(**ask(ref), found=found.as_found) == first
    assert (await n8n.resume(**ask(ref), prior_state=first.prior_state)).status == "resumed"
    assert server.looks(ref) == before
    assert (await n8n.resume(**ask(ref), prior_state=first.prior_state)).status == "left"
    assert server.looks(ref) == before


async def test_a_workflow_that_is_gone_is_told_by_every_call(server: N8n, n8n: Orchestrator) -> None:
    ref = server.create("Gone")
    found, _ = await pause(n8n, ref)
    server.delete(ref)
    for call in (
        n8n.state(ref=ref),
        n8n.pause(**ask(ref), found=found.as_found),
        n8n.resume(**ask(ref), prior_state=found.as_found),
    ):
        failure = await failure_of(call)
        assert (failure.code, failure.permanent) == ("workflow_gone", True)


# What runs there, and whether we may


async def test_every_page_is_listed_without_what_is_archived(server: N8n, n8n: Orchestrator) -> None:
    refs = server.create_many(60, "Listed ")
    server.tag(refs[0], "authwatch")
    server.archive(refs[1])
    server.pause(refs[2])
    listed = {one.ref: one for one in await n8n.list_workflows(limit=1_000)}
    assert set(refs) - set(listed) == {refs[1]}
    assert (listed[refs[0]].name, listed[refs[0]].tags, listed[refs[0]].paused) == ("Listed 0", ("authwatch",), False)
    assert listed[refs[2]].paused is True
    assert len(await n8n.list_workflows(limit=7)) == 7


async def test_check_proves_a_key_until_it_expires(
    server: N8n, n8n: Orchestrator, open_with: Callable[[str], Orchestrator]
) -> None:
    assert "takes this API key" in await n8n.check()
    short = open_with(server.make_key("short", SCOPES, int(time.time()) + EXPIRES_SECONDS))
    await short.check()
    await asyncio.sleep(EXPIRES_SECONDS + 1)
    failure = await failure_of(short.check())
    assert (failure.code, failure.permanent) == ("http_401", True)
