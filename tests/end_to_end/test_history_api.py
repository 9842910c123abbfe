"""A person's pause with an end, and the history of a workflow's holds, as their callers see them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from service.api.workflows import PAUSE_SECONDS_MAX
from tests.end_to_end.test_api import Api, opened, problem


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with opened(database_url) as made:
        yield made


async def test_a_pause_may_say_for_how_long(api: Api) -> None:
    await api.put("w1")
    paused = await api.post("/v1/workflows/w1/pause", {"reason": "maintenance", "for": "2h"})
    [hold] = paused["holds"]
    ends, placed = (datetime.fromisoformat(hold[name]) for name in ("expires_at", "placed_at"))
    assert ends - placed == timedelta(hours=2)
    assert (hold["person"], hold["alert_id"], hold["rule"]) == ("admin", None, None)
    again = await api.post("/v1/workflows/w1/pause", {"for": 60})
    assert again["holds"][0]["expires_at"] < hold["expires_at"]
    assert again["holds"][0]["reason"] == "maintenance"


@pytest.mark.parametrize("wrong", ["0s", "-1s", -5, "31d", PAUSE_SECONDS_MAX + 1, "soon", True, [], 1e300])
async def test_a_time_that_cannot_be_right_is_refused(api: Api, wrong: object) -> None:
    await api.put("w1")
    problem(await api.client.post("/v1/workflows/w1/pause", json={"for": wrong}), 400, "invalid_body")
    assert (await api.get("/v1/workflows/w1"))["state"] == "active"


async def test_the_history_is_read_page_by_page_newest_first_also_of_a_deleted_workflow(api: Api) -> None:
    await api.put("w1")
    for number in range(5):
        await api.post("/v1/workflows/w1/pause", {"reason": f"reason {number}"})
        await api.post("/v1/workflows/w1/resume", {"reason": f"done {number}"})
    await api.client.delete("/v1/workflows/w1")
    items, cursor = [], ""
    while cursor is not None:
        page = await api.get(f"/v1/workflows/w1/history?limit=2{cursor and '&cursor=' + cursor}")
        assert len(page["items"]) <= 2
        items += page["items"]
        cursor = page["next_cursor"]
    assert [item["reason"] for item in items] == [f"reason {number}" for number in (4, 3, 2, 1, 0)]
    assert {(item["release_reason"], item["released_by"]) for item in items} == {("person", "admin")}
    assert items[0]["release_note"] == "done 4"
    assert items == (await api.get("/v1/workflows/w1/history"))["items"]


async def test_the_history_names_the_alert_and_its_rule(api: Api) -> None:
    await api.put("w1", account_ids=["ca_1"])
    alert_id = await api.failed_three_times()
    [item] = await api.items("/v1/workflows/w1/history")
    assert (item["alert_id"], item["person"], item["account_id"]) == (alert_id, None, "ca_1")
    assert item["rule"] == (await api.get(f"/v1/alerts/{alert_id}"))["rule"]
    assert (item["released_at"], item["release_reason"], item["expires_at"]) == (None, None, None)


async def test_what_nobody_ever_put_has_no_history(api: Api) -> None:
    problem(await api.client.get("/v1/workflows/nobody/history"), 404, "unknown_workflow")
    await api.put("w1")
    assert await api.items("/v1/workflows/w1/history") == []
    await api.put("w2")
    for _ in range(2):
        await api.post("/v1/workflows/w2/pause")
        await api.post("/v1/workflows/w2/resume")
    cursor = (await api.get("/v1/workflows/w2/history?limit=1"))["next_cursor"]
    problem(await api.client.get(f"/v1/workflows/w1/history?cursor={cursor}"), 400, "invalid_cursor")
    problem(await api.client.get("/v1/workflows/w2/history?limit=0"), 400, "invalid_query")


async def test_the_history_needs_the_scope_to_read_and_stands_in_the_document(api: Api) -> None:
    await api.put("w1")
    answer = await api.client.get("/v1/workflows/w1/history", headers=await api.token("siem"))
    problem(answer, 403)
    paths = (await api.get("/openapi.json"))["paths"]
    assert "get" in paths["/v1/workflows/{workflow_id}/history"]
    body = paths["/v1/workflows/{workflow_id}/pause"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"reason", "for"}
