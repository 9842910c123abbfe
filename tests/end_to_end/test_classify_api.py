"""`POST /v1/classify` as an agent sees it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from service.api.http import JSON_BYTES_MAX
from service.app import create_app
from service.settings import load_settings
from service.store import tokens
from service.store.session import begin
from tests.conftest import ADMIN_TOKEN, SECRET

PAGE = Path(__file__).resolve().parents[2] / "docs" / "playbook.md"


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Starlette]:
    settings = load_settings(
        {"DATABASE_URL": database_url, "SCALEKIT_WEBHOOK_SECRET": SECRET, "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN}
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


async def ask(client: httpx.AsyncClient, **asked: Any) -> Any:
    answer = await client.post("/v1/classify", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(client: httpx.AsyncClient, asked: bytes) -> tuple[int, str]:
    answer = await client.post("/v1/classify", content=asked)
    return answer.status_code, answer.json()["code"]


async def test_the_class_and_the_one_right_response(client: httpx.AsyncClient) -> None:
    answer = await ask(client, provider="GOOGLE", http_status=400, headers={}, body={"error": "invalid_grant"})
    assert (answer["class"], answer["action"], answer["code"]) == ("refresh_failed", "reauthorize", "invalid_grant")
    assert (answer["token_state"], answer["credential"]) == ("expired_or_revoked", "refresh_token")
    assert answer["retry"]["allowed"] is False
    assert answer["safe_write"] is None
    assert answer["sources"][0].startswith("https://developers.google.com/")


async def test_a_write_and_a_date(client: httpx.AsyncClient) -> None:
    answer = await ask(
        client,
        provider="stripe",
        http_status=503,
        headers={"Retry-After": "7"},
        body="<html>",
        operation="write",
        attempt=2,
        idempotency_key="order-17",
    )
    assert (answer["class"], answer["action"]) == ("upstream_5xx", "check_state_then_retry")
    assert answer["retry"] | {"jitter_seconds_max": None} == {
        "allowed": False,
        "retries_max": 2,
        "retries_left": 1,
        "within_seconds": 60,
        "wait_seconds": 7.0,
        "jitter_seconds_max": None,
        "wait_asked_by": "retry-after",
        "circuit_open": False,
        "requires": ["state_check"],
    }
    assert answer["safe_write"]["mechanism"] == "key"


async def test_what_nobody_calls_a_read_is_taken_for_a_write(client: httpx.AsyncClient) -> None:
    for operation, taken in (
        ("GET", "read"),
        ("delete", "write"),
        ("WRITE", "write"),
        ("nonsense", "write"),
        (None, "write"),
    ):
        answer = await ask(client, provider="jira", http_status=503, operation=operation)
        assert (answer["operation"], answer["retry"]["allowed"]) == (taken, taken == "read"), operation
        assert ("taken for a write" in answer["what_to_do"]) is (operation in ("nonsense", None))


async def test_nothing_of_the_body_comes_back(client: httpx.AsyncClient) -> None:
    body = {"error": "invalid_grant", "error_description": "hunter2hunter2", "access_token": "hunter2hunter2"}
    answer = await ask(client, provider="hunter2hunter2", http_status=400, headers={"X": "hunter2hunter2"}, body=body)
    assert "hunter2" not in json.dumps(answer)


async def test_what_was_asked_wrongly_is_said(client: httpx.AsyncClient) -> None:
    for asked in (b'{"status": 400}', b'{"http_status": 1000}', b'{"operation": 7}', b'{"attempt": 0}', b"[]"):
        assert await refused(client, asked) == (400, "invalid_body")
    assert await refused(client, b"{") == (400, "invalid_json")
    assert await refused(client, b'{"body": "' + b"x" * JSON_BYTES_MAX + b'"}') == (413, "body_too_large")


async def test_it_needs_the_scope_read(app: Starlette, client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/classify", json={}, headers={"Authorization": ""})
    assert answer.status_code == 401
    for scopes, status in ((["siem"], 403), (["read"], 200)):
        async with begin(app.state.runtime.engine) as conn:
            _, token = await tokens.create(conn, name=scopes[0], scopes=frozenset(scopes))
        answer = await client.post("/v1/classify", json={}, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == status


async def test_the_document_has_it(client: httpx.AsyncClient) -> None:
    operation = (await client.get("/openapi.json")).json()["paths"]["/v1/classify"]["post"]
    properties = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(properties) == {
        *("provider", "http_status", "headers", "body", "operation", "attempt", "verification", "idempotency_key")
    }


async def test_the_command_in_the_docs_answers_what_the_table_says(client: httpx.AsyncClient) -> None:
    found = re.search(r"curl -s \"\$AUTHWATCH_URL(/v1/\w+)\" .* -d '(\{.*?\n\})'", PAGE.read_text(), re.DOTALL)
    assert found is not None
    answer = (await client.post(found[1], content=found[2])).json()
    assert (answer["class"], answer["action"], answer["row"]) == (
        "refresh_failed",
        "reauthorize",
        "atlassian-invalid-grant",
    )
    for name in ("class", "action", "what_to_do", "token_state", "retry", "safe_write"):
        assert f"`{name}`" in PAGE.read_text()
        assert name in answer
