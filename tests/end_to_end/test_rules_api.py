"""`/v1/rules` as its callers see it: what is in force, what cannot be used, and what each rule was."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from service.app import create_app
from service.settings import load_settings
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.make_requests import event_body, signed
from workers.evaluate import evaluate
from workers.rules import keep_rules

RULE = """\
version: 1
rules:
- severity: P2  # the id need not come first
  id: two-failures
  enabled: shadow
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 2}
  annotations: {summary: "It fails"}
"""


def save(folder: Path, name: str, text: str, ago: float = 1.0) -> None:
    (folder / name).write_text(text)
    os.utime(folder / name, (time.time() - ago,) * 2)


@pytest.fixture
async def app(database_url: str, tmp_path: Path) -> AsyncIterator[Starlette]:
    save(tmp_path, "mine.yml", RULE, ago=60)
    settings = load_settings(
        {
            "DATABASE_URL": database_url,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_RULES": str(tmp_path),
        }
    )
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    made = create_app(settings, {})
    async with made.router.lifespan_context(made):
        yield made
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://authwatch.test", headers=headers) as made:
        yield made


async def get(client: httpx.AsyncClient, path: str, status: int = 200) -> Any:
    answer = await client.get(path)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_the_rules_in_force_and_the_files_that_cannot_be_used(
    app: Starlette, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    first = await get(client, "/v1/rules")
    (rule,) = first["items"]
    assert {name: rule[name] for name in ("id", "severity", "enabled", "condition", "file", "problems")} == {
        "id": "two-failures",
        "severity": "P2",
        "enabled": "shadow",
        "condition": "count",
        "file": "mine.yml",
        "problems": [],
    }
    assert first["files"] == []
    save(tmp_path, "mine.yml", RULE.replace("P2", "P9"))
    save(tmp_path, "never.yml", "rules: {")
    await keep_rules(app.state.runtime)
    then = await get(client, "/v1/rules")
    assert (then["set_version"], then["digest"]) == (first["set_version"], first["digest"])
    assert then["items"][0]["severity"] == "P2"
    assert then["items"][0]["problems"][0].startswith("mine.yml:3:13: severity")
    assert [(file["name"], file["has_good_version"]) for file in then["files"]] == [
        ("mine.yml", True),
        ("never.yml", False),
    ]


async def test_what_a_rule_was_page_by_page(app: Starlette, client: httpx.AsyncClient, tmp_path: Path) -> None:
    await keep_rules(app.state.runtime)
    save(tmp_path, "mine.yml", RULE.replace("gte: 2", "gte: 3"))
    await keep_rules(app.state.runtime)
    page = await get(client, "/v1/rules/two-failures/versions?limit=1")
    (changed,) = page["items"]
    assert changed["change"] == "changed"
    assert "+  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 3}" in changed["diff"].splitlines()
    assert changed["version"] == (await get(client, "/v1/rules"))["items"][0]["version"]
    rest = await get(client, f"/v1/rules/two-failures/versions?limit=1&cursor={page['next_cursor']}")
    (added,) = rest["items"]
    assert (added["change"], rest["next_cursor"]) == ("added", None)
    assert added["text"] == "\n".join(RULE.splitlines()[2:]) + "\n"
    assert changed["condition_version"] != added["condition_version"]


async def test_a_rule_that_never_was_is_404(client: httpx.AsyncClient) -> None:
    assert (await get(client, "/v1/rules/nobody/versions", 404))["code"] == "unknown_rule"


async def test_what_a_rule_in_shadow_would_have_told_is_listed_when_asked_for(
    app: Starlette, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    save(tmp_path, "loud.yml", RULE.replace("two-failures", "loud").replace("shadow", "true"))
    await keep_rules(app.state.runtime)
    for _ in range(2):
        body = event_body("connected_account.token_refresh_failed", data={"id": "ca_1"})
        headers = signed(body, SECRET, message_id=str(json.loads(body)["id"]))
        assert (await client.post("/webhooks/scalekit", content=body, headers=headers)).status_code == 202
    await evaluate(app.state.runtime)

    async def listed(query: str) -> list[tuple[str, bool]]:
        return [(alert["rule"], alert["shadow"]) for alert in (await get(client, f"/v1/alerts?{query}"))["items"]]

    assert await listed("") == await listed("shadow=false") == [("loud", False)]
    assert await listed("shadow=true") == await listed("shadow=true&account_id=ca_1") == [("two-failures", True)]
    assert await listed("shadow=true&rule=loud") == []
    assert (await client.get("/v1/alerts?shadow=some")).status_code == 400
    (loud,) = (await get(client, "/v1/alerts"))["items"]
    (shadow,) = (await get(client, "/v1/alerts?shadow=true"))["items"]
    assert (await get(client, f"/v1/alerts/{shadow['id']}"))["shadow"] is True
    assert (await get(client, "/v1/accounts/ca_1"))["alerts"] == [loud["id"]]
    metrics = (await client.get("/metrics")).text
    assert 'rule="loud"' in metrics
    assert 'rule="two-failures"' not in metrics
    parameters = (await get(client, "/openapi.json"))["paths"]["/v1/alerts"]["get"]["parameters"]
    (asked,) = [one for one in parameters if one["name"] == "shadow"]
    assert (asked["schema"]["type"], asked["schema"]["default"]) == ("boolean", False)
