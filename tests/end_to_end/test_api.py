"""The API as its callers see it: the app in this process on a real database, asked through its own ASGI door."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from openapi_pydantic import OpenAPI
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from starlette.applications import Starlette

from service.api.routes import CALLS
from service.app import create_app
from service.children import choose_port
from service.runtime import Runtime
from service.settings import load_settings
from service.store import tokens
from service.store.session import begin
from service.store.tokens import SCOPES
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.make_requests import event_body, signed
from workers.decide import decide
from workers.evaluate import evaluate

BASE = "http://authwatch.test"
FAILED = "connected_account.token_refresh_failed"
STATUS = "connected_account.status_updated"
NOWHERE = "00000000-0000-7000-8000-000000000000"


@dataclass
class Api:
    app: Starlette
    client: httpx.AsyncClient

    @property
    def runtime(self) -> Runtime:
        runtime: Runtime = self.app.state.runtime
        return runtime

    async def send(self, body: bytes) -> str:
        """The event's id of ours."""
        headers = signed(body, SECRET, message_id=str(json.loads(body).get("id"))[:60])
        answer = await self.client.post("/webhooks/scalekit", content=body, headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def happened(self, account_id: str, status: str, **changes: Any) -> None:
        await self.send(event_body(STATUS, data={"id": account_id, "status": status}, **changes))
        await evaluate(self.runtime)

    async def failed_three_times(self, account_id: str = "ca_1") -> str:
        """The id of the alert it opened."""
        await self.send(event_body(data={"id": account_id}))
        for _ in range(3):
            await self.send(event_body(FAILED, data={"id": account_id}))
        await evaluate(self.runtime)
        [alert] = await self.items(f"/v1/alerts?account_id={account_id}&state=firing")
        return str(alert["id"])

    async def get(self, path: str) -> Any:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text, parse_constant=not_json)

    async def items(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await self.get(path))["items"]
        return items

    async def put(self, workflow_id: str, **body: Any) -> dict[str, Any]:
        answer = await self.client.put(f"/v1/workflows/{workflow_id}", json=body)
        assert answer.status_code == 200, answer.text
        workflow: dict[str, Any] = answer.json()
        return workflow

    async def post(self, path: str, body: Any = None) -> dict[str, Any]:
        answer = await self.client.post(path, json=body or {})
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said

    async def gate(self, query: str) -> tuple[bool, str | None]:
        answer = await self.get(f"/v1/gate?{query}")
        assert answer["detail"]
        return answer["allow"], answer["reason"]

    async def token(self, *scopes: str) -> dict[str, str]:
        async with begin(self.runtime.engine) as conn:
            _, made = await tokens.create(conn, "test", frozenset(scopes))
        return {"Authorization": f"Bearer {made}"}


def not_json(word: str) -> Any:
    raise AssertionError(f"{word} is not JSON")


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with opened(database_url) as made:
        yield made


@asynccontextmanager
async def opened(database_url: str) -> AsyncIterator[Api]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    settings = load_settings(
        {
            "DATABASE_URL": database_url,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_PUBLIC_URL": BASE,
        }
    )
    app = create_app(settings, {})
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url=BASE, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}
    )
    async with app.router.lifespan_context(app), client:
        yield Api(app, client)
    root.handlers[:] = handlers
    root.setLevel(level)


def problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["type"] == f"urn:authwatch:problem:{body['code']}"
    assert body["title"]
    assert body["detail"]
    assert code in (None, body["code"]), body
    return body


def address(path: str) -> str:
    return re.sub(r"\{id\}", NOWHERE, re.sub(r"\{\w+_id(:path)?\}", "some-id", path))


def cursor(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


# Who may ask.


async def test_every_call_wants_a_token_with_its_own_scope(api: Api) -> None:
    for call in CALLS:
        url = address(call.path)
        if call.scope is None:
            assert (await api.client.request(call.method, url, headers={"Authorization": ""})).status_code == 200
            continue
        for wrong in ("", "Bearer", "Bearer  ", f"Basic {ADMIN_TOKEN}", f"Bearer {'x' * 501}"):
            answer = await api.client.request(call.method, url, headers={"Authorization": wrong})
            problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")
        answer = await api.client.request(call.method, url, headers={"Authorization": "Bearer aw_nobody"})
        problem(answer, 401, "token_unknown")
        others = await api.token(*(scope for scope in SCOPES if scope != call.scope))
        said = problem(await api.client.request(call.method, url, headers=others), 403, "scope_missing")
        assert f'"{call.scope}"' in said["detail"]
        if call.media_type == "text/event-stream":
            continue  # an answer without end: test_gate.py has it
        own = await api.token(call.scope)
        assert (await api.client.request(call.method, url, headers=own)).status_code not in (401, 403, 500)


async def test_a_revoked_token_is_refused_at_once(api: Api) -> None:
    headers = await api.token("read")
    assert (await api.client.get("/v1/events", headers=headers)).status_code == 200
    async with begin(api.runtime.engine) as conn:
        [token] = await tokens.everyone(conn)
        assert token.last_used_at is not None
        await tokens.revoke(conn, token.id)
    problem(await api.client.get("/v1/events", headers=headers), 401, "token_unknown")


# What is wrong is said, in one shape.


async def test_every_error_is_a_problem_that_names_what_is_wrong(api: Api) -> None:
    ask = api.client
    problem(await ask.get("/v1/nothing"), 404, "not_found")
    answer = await ask.patch("/v1/events")
    problem(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]
    answer = await ask.patch("/v1/workflows/w1")
    problem(answer, 405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "PUT", "DELETE"}
    for path, code in {
        f"/v1/events/{NOWHERE}": "unknown_event",
        "/v1/events/not-an-id": "unknown_event",
        f"/v1/alerts/{NOWHERE}": "unknown_alert",
        "/v1/alerts/not-an-id": "unknown_alert",
        "/v1/accounts/ca_nobody": "unknown_account",
        "/v1/accounts/scalekit:env_1:ca_nobody": "unknown_account",
        "/v1/workflows/nobody": "unknown_workflow",
    }.items():
        problem(await ask.get(path), 404, code)
    problem(await ask.delete("/v1/workflows/nobody"), 404, "unknown_workflow")
    for path in ("/v1/workflows/nobody/pause", "/v1/workflows/nobody/resume"):
        problem(await ask.post(path), 404, "unknown_workflow")
    for verb in ("acknowledge", "resolve"):
        problem(await ask.post(f"/v1/alerts/{NOWHERE}/{verb}"), 404, "unknown_alert")
    problem(await ask.get("/v1/gate"), 400, "nothing_asked")


async def test_a_bug_of_ours_is_said_without_its_inside(api: Api) -> None:
    async with begin(api.runtime.engine) as conn:
        await conn.execute(text("DROP TABLE workflows CASCADE"))
    transport = httpx.ASGITransport(app=api.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=api.client.headers) as client:
        said = problem(await client.get("/v1/workflows"), 500, "internal_error")
    assert "workflows" not in said["detail"]


async def test_without_its_database_a_receiver_says_503_and_when_to_come_back() -> None:
    away = f"postgresql://u:p@127.0.0.1:{choose_port('127.0.0.1')}/authwatch"
    async with opened(away) as api:
        body = event_body()
        for answer in (
            await api.client.get("/readyz"),
            await api.client.get("/v1/events"),
            await api.client.get("/v1/events", headers={"Authorization": "Bearer aw_anybody"}),
            await api.client.put("/v1/workflows/w1", json={}),
            await api.client.get("/v1/gate?account_id=ca_1", headers={"Authorization": "Bearer aw_anybody"}),
            await api.client.get("/v1/gate/stream"),
            await api.client.post("/webhooks/scalekit", content=body, headers=signed(body, SECRET)),
        ):
            problem(answer, 503, "database_unavailable")
            assert int(answer.headers["retry-after"]) > 0
        assert await api.gate("account_id=ca_1") == (False, "evaluation_behind")
        assert await api.gate("account_id=ca_1&on_unknown=allow") == (True, None)
        assert (await api.client.get("/livez")).status_code == 200
        assert "authwatch_database_up 0.0" in (await api.client.get("/metrics")).text


LISTS = ("/v1/events", "/v1/accounts", "/v1/workflows", "/v1/alerts", "/v1/siem/events")


@pytest.mark.parametrize("path", LISTS)
async def test_a_list_refuses_what_it_does_not_understand(api: Api, path: str) -> None:
    said = problem(await api.client.get(f"{path}?limt=3"), 400, "invalid_query")
    assert '"limt" is not known; known: ' in said["detail"]
    assert "limit" in said["detail"]
    problem(await api.client.get(f"{path}?limit=3&limit=4"), 400, "invalid_query")
    for limit in ("0", "1001", "-1", "ten", "1e2", ""):
        problem(await api.client.get(f"{path}?limit={limit}"), 400, "invalid_query")
    for limit in ("1", "1000"):
        assert await api.items(f"{path}?limit={limit}") == []
    resource = path.split("/")[2]
    now = datetime.now(UTC).isoformat()
    for garbage in (
        "x",
        "é",
        "a" * 20_000,
        "====",
        cursor(),
        cursor("v1", resource),
        cursor("v0", resource, 1),
        cursor("v1", "elsewhere", now, 1),
        cursor("v1", resource, *["\x00"] * 3),
        cursor("v1", resource, "\x00"),
        cursor("v1", resource, now, "\x00"),
        cursor("v1", resource, "\ud800", "\ud800"),
        cursor("v1", resource, "\ud800"),
        cursor("v1", resource, float("inf")),
        cursor("v1", resource, now, float("inf")),
        cursor("v1", resource, now, 10**30),
        cursor("v1", resource, 10**30),
        cursor("v1", resource, None),
        cursor("v1", resource, {"a": 1}, [2]),
        cursor("v1", resource, now, True),
        cursor("v1", resource, True),
        cursor("v1", resource, -1),
        cursor("v1", resource, "2026-01-01T00:00:00", 1),
        cursor("v1", resource, "2026-01-01T00:00:00", NOWHERE),
        cursor("v1", resource, "0001-01-01T00:00:00+14:00", 1),
    ):
        problem(await api.client.get(path, params={"cursor": garbage}), 400, "invalid_cursor")


async def test_a_time_that_is_not_an_instant_is_refused(api: Api) -> None:
    for since in (
        "yesterday",
        "2026-01-01T00:00:00",
        "2026-13-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "1767225600",
    ):
        for path in ("/v1/events", "/v1/alerts", "/v1/siem/events"):
            problem(await api.client.get(path, params={"since": since}), 400, "invalid_query")


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/events?since=yesterday", None, "query: since: write a time such as 2026-11-24T02:00:00Z"),
        ("/v1/events?since=2026-01-01T00:00:00", None, "query: since: needs an offset, such as Z"),
        ("/v1/events?type=%00", None, "query: type: has a character that cannot be stored"),
        ("/v1/alerts/{nowhere}/snooze", {"for": "soon"}, "body: for: write a duration such as 30s, 10m, 2h or 1d"),
    ],
)
async def test_what_is_wrong_is_said_in_our_own_words(api: Api, path: str, body: Any, said: str) -> None:
    path = path.replace("{nowhere}", NOWHERE)
    answer = await (api.client.get(path) if body is None else api.client.post(path, json=body))
    assert problem(answer, 400)["detail"] == said


async def test_a_body_that_says_nothing_sensible_is_400(api: Api) -> None:
    for raw in (
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 20_000,
        b'{"for": NaN}',
        b'{"for": Infinity}',
        b'{"for": 1e300}',
        b'{"for": 1' + b"0" * 400 + b"}",
        b'{"for": true}',
        b'{"for": "1h30m"}',
        b'{"for": "999999999d"}',
        b'{"for": 0}',
        b'{"for": -5}',
        b'{"for": "8d"}',
        b'{"for": "1h", "because": "I say so"}',
        b'{"\\ud800": 1}',
    ):
        problem(await api.client.post(f"/v1/alerts/{NOWHERE}/snooze", content=raw), 400)


async def test_text_that_cannot_be_stored_is_refused_wherever_it_stands(api: Api) -> None:
    for raw in (b'{"name": "\\u0000"}', b'{"account_ids": ["\\ud800"]}', b'{"name": "\\udfff"}'):
        problem(await api.client.put("/v1/workflows/w1", content=raw), 400, "invalid_body")
    for path in ("/v1/workflows/%00", "/v1/accounts/%00", "/v1/events?type=%00", "/v1/gate?workflow_id=%00"):
        problem(await api.client.get(path), 400)
    problem(await api.client.put(f"/v1/workflows/{'w' * 513}", json={}), 400, "invalid_path")
    problem(await api.client.put("/v1/workflows/w1", json={"account_ids": [""]}), 400, "invalid_body")
    problem(await api.client.put("/v1/workflows/w1", content=b" " * (1024 * 1024 + 1)), 413, "body_too_large")


# Events.


async def test_events_come_newest_first_page_by_page_and_each_once(api: Api) -> None:
    start = datetime.now(UTC) - timedelta(minutes=10)
    ids = {}
    for number in (2, 0, 4, 1, 3, 3):  # two at one instant
        at = (start + timedelta(seconds=number)).isoformat()
        ids[await api.send(event_body(occurred_at=at))] = number
    pages, after = [], ""
    for _ in range(3):
        page = await api.get(f"/v1/events?limit=2{after}")
        pages.append(page["items"])
        after = f"&cursor={page['next_cursor']}"
    assert page["next_cursor"] is None
    seen = [item["id"] for items in pages for item in items]
    assert [ids[event_id] for event_id in seen] == [4, 3, 3, 2, 1, 0]
    assert len(set(seen)) == 6


async def test_events_are_found_by_each_filter(api: Api) -> None:
    early, late = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    one = await api.send(event_body(FAILED, occurred_at=early, data={"id": "ca_1", "connection_id": "conn_1"}))
    two = await api.send(event_body("odd.type", occurred_at=late, data={"id": "ca_2", "connection_id": "conn_2"}))
    for query, found in {
        "": [two, one],
        "account_id=ca_1": [one],
        "account_id=ca_nobody": [],
        "connection_id=conn_2": [two],
        "type=odd.type": [two],
        "kind=token.refresh_failed": [one],
        "kind=other": [two],
        "source=scalekit": [two, one],
        "source=elsewhere": [],
        f"since={late}": [two],
        f"until={late}": [one],
        "since=2026-01-01T05:00:00+05:00&until=2026-01-01T00:00:01Z": [one],
        "account_id=ca_1&kind=other": [],
    }.items():
        assert [item["id"] for item in await api.items(f"/v1/events?{query}")] == found, query
    await evaluate(api.runtime)
    assert [item["id"] for item in await api.items("/v1/events?account_id=scalekit:env_1:ca_1")] == [one]
    assert await api.items("/v1/events?account_id=ca_1&source=elsewhere") == []


async def test_an_event_is_shown_as_sent_with_its_tokens_masked(api: Api) -> None:
    data = {"id": "ca_1", "access_token": "ya29.secret-thing", "link": "https://x/?token=abc", "note": "kept"}
    event_id = await api.send(event_body("brand.new", data=data, extra={"refresh_token": "1//0secret", "n": 1}))
    one = await api.get(f"/v1/events/{event_id}")
    assert (one["id"], one["type"], one["kind"], one["origin"]) == (event_id, "brand.new", "other", "webhook")
    assert one["payload"]["data"]["note"] == "kept"
    assert one["payload"]["extra"] == {"refresh_token": "***", "n": 1}
    assert "secret" not in json.dumps(one)
    assert "abc" not in json.dumps(one)
    listed = (await api.items("/v1/events"))[0]
    assert {key: one[key] for key in listed} == listed


async def test_what_json_or_unicode_cannot_say_is_still_answered_with_json(api: Api) -> None:
    oddities: dict[str, Any] = {
        '"\\ud800"': "\ud800",
        "NaN": None,
        "-Infinity": None,
        "1e999": None,
        "[-1e999]": [None],
        '"\\u0000"': "\x00",
        "1" * 4000: int("1" * 4000),
    }
    for odd, shown in oddities.items():
        event_id = await api.send(event_body(odd="here").replace(b'"here"', odd.encode()))
        assert (await api.get(f"/v1/events/{event_id}"))["payload"]["odd"] == shown
    await api.get("/v1/events")
    for shape in ("raw", "ocsf", "ecs"):
        assert len(await api.items(f"/v1/siem/events?format={shape}")) == len(oddities)


async def test_an_unreadable_body_is_shown_without_a_payload(api: Api) -> None:
    body = b"not json"
    answer = await api.client.post("/webhooks/scalekit", content=body, headers=signed(body, SECRET))
    assert answer.json()["status"] == "quarantined"
    one = await api.get(f"/v1/events/{answer.json()['id']}")
    assert (one["kind"], one["payload"], one["details"]) == ("quarantine", None, {"reason": "not_json"})


# Accounts.


async def test_an_account_shows_its_state_its_alerts_and_its_workflows(api: Api) -> None:
    await api.put("w1", account_ids=["ca_1"])
    alert_id = await api.failed_three_times()
    account = await api.get("/v1/accounts/ca_1")
    assert (account["status"], account["failures_in_a_row"]) == ("ACTIVE", 3)
    assert (account["alerts"], account["workflows"]) == ([alert_id], ["w1"])
    assert (account["last_refresh_outcome"], account["full_id"]) == ("failure", "scalekit:env_1:ca_1")
    assert await api.items("/v1/accounts") == [account]


async def test_accounts_are_listed_by_filter_and_page(api: Api) -> None:
    long = "ü" * 256  # an id of the greatest length still makes a cursor we take back
    for account_id, status in (("ca_1", "ACTIVE"), ("ca_2", "EXPIRED"), (long, "ACTIVE")):
        await api.happened(account_id, status, environment_id=long)
    assert [item["account_id"] for item in await api.items("/v1/accounts?status=EXPIRED")] == ["ca_2"]
    assert await api.items("/v1/accounts?source=elsewhere") == []
    assert len(await api.items("/v1/accounts?connection_id=conn_1")) == 3
    seen, after = [], ""
    for _ in range(4):
        page = await api.get(f"/v1/accounts?limit=1{after}")
        seen += [item["account_id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        after = f"&cursor={page['next_cursor']}"
    assert seen == ["ca_1", "ca_2", long]


async def test_an_ambiguous_id_is_answered_with_the_candidates_and_the_full_form_is_taken(api: Api) -> None:
    await api.happened("ca_1", "ACTIVE", environment_id="production")
    await api.happened("ca_1", "EXPIRED", environment_id="staging")
    candidates = ["scalekit:production:ca_1", "scalekit:staging:ca_1"]
    asked = [
        api.client.get("/v1/accounts/ca_1"),
        api.client.get("/v1/events?account_id=ca_1"),
        api.client.get("/v1/alerts?account_id=ca_1"),
        api.client.get("/v1/gate?account_id=ca_1"),
        api.client.put("/v1/workflows/w1", json={"account_ids": ["ca_1"]}),
    ]
    for answer in asked:
        assert problem(await answer, 409, "ambiguous_account_id")["candidates"] == candidates
    full = candidates[1]
    assert (await api.get(f"/v1/accounts/{full}"))["status"] == "EXPIRED"
    assert len(await api.items(f"/v1/events?account_id={full}")) == 1
    assert await api.items(f"/v1/alerts?account_id={full}") == []
    assert await api.gate(f"account_id={full}") == (False, "account_expired")
    assert await api.gate(f"account_id={candidates[0]}") == (True, None)
    assert (await api.put("w1", account_ids=[full]))["account_ids"] == [full]


# Workflows and the gate.


async def test_put_answers_the_workflow_as_it_now_is_and_again_the_same(api: Api) -> None:
    first = await api.put("w1", name="Tickets", account_ids=["ca_1", "ca_1"])
    assert first["state"] == "active"
    assert (first["account_ids"], first["pause"], first["resume"]) == (["ca_1"], "workflow", "auto")
    assert (first["paused_by"], first["paused_at"], first["paused_accounts"]) == ([], None, [])
    assert first["orchestrator"] is None
    again = await api.put("w1", name="Tickets", account_ids=["ca_1"])
    assert {**again, "updated_at": ""} == {**first, "updated_at": ""}
    assert await api.get("/v1/workflows/w1") == again
    assert await api.items("/v1/workflows") == [again]
    assert (await api.put("w2", connection_ids=["conn_1"]))["pause"] == "account"
    assert (await api.put("w2", connection_ids=["conn_1"], active=False))["state"] == "inactive"
    said = {"orchestrator": {"name": "nobody", "ref": "1"}}
    problem(await api.client.put("/v1/workflows/w3", json=said), 400, "unknown_orchestrator")
    problem(await api.client.get("/v1/workflows/w3"), 404)


async def test_an_id_is_bounded_by_its_bytes(api: Api) -> None:
    long = "\U0001f511" * 128
    assert (await api.put(long, account_ids=[long]))["workflow_id"] == long
    problem(await api.client.put(f"/v1/workflows/{long}x", json={}), 400, "invalid_path")
    problem(await api.client.put("/v1/workflows/w1", json={"account_ids": [long + "x"]}), 400)


async def test_workflows_are_listed_page_by_page_whatever_their_names(api: Api) -> None:
    names = ["a", "b", "w" * 512]
    for name in names:
        await api.put(name)
    seen, after = [], ""
    for _ in names:
        page = await api.get(f"/v1/workflows?limit=1{after}")
        seen += [item["workflow_id"] for item in page["items"]]
        after = f"&cursor={page['next_cursor']}"
    assert (seen, page["next_cursor"]) == (names, None)


async def test_pause_and_resume_by_a_person_are_idempotent_and_put_never_resumes(api: Api) -> None:
    await api.put("w1", account_ids=["ca_1"])
    paused = await api.post("/v1/workflows/w1/pause", {"reason": "maintenance"})
    assert (paused["state"], paused["paused_by"]) == ("paused", ["manual"])
    assert await api.post("/v1/workflows/w1/pause", {"reason": "again"}) == paused
    assert (await api.put("w1", account_ids=["ca_1"]))["state"] == "paused"
    resumed = await api.post("/v1/workflows/w1/resume")
    assert (resumed["state"], resumed["paused_by"], resumed["paused_at"]) == ("active", [], None)
    assert await api.post("/v1/workflows/w1/resume") == resumed
    kinds = [item["kind"] for item in await api.items("/v1/siem/events?format=raw")]
    assert (kinds.count("workflow.paused"), kinds.count("workflow.resumed")) == (1, 1)


async def test_a_deleted_workflow_is_gone_and_may_come_back_unpaused(api: Api) -> None:
    await api.put("w1")
    await api.post("/v1/workflows/w1/pause")
    answer = await api.client.delete("/v1/workflows/w1")
    assert (answer.status_code, answer.content) == (204, b"")
    problem(await api.client.delete("/v1/workflows/w1"), 404, "unknown_workflow")
    assert (await api.put("w1"))["state"] == "active"


async def test_the_gate_denies_for_each_reason_and_allows_otherwise(api: Api) -> None:
    for account_id, status in (
        ("ca_well", "ACTIVE"),
        ("ca_expired", "EXPIRED"),
        ("ca_gone", "DISCONNECTED"),
        ("ca_pending", "PENDING_AUTH"),
        ("ca_verify", "PENDING_VERIFICATION"),
        ("ca_odd", "SOMETHING_NEW"),
    ):
        await api.happened(account_id, status)
    await api.send(event_body("connected_account.deleted", data={"id": "ca_deleted"}))
    await api.send(event_body(FAILED, data={"id": "ca_silent"}))  # says nothing about the status
    await evaluate(api.runtime)
    await api.put("on")
    await api.put("off", active=False)
    await api.put("held")
    await api.post("/v1/workflows/held/pause")
    for query, answer in {
        "workflow_id=on": (True, None),
        "account_id=ca_well": (True, None),
        "workflow_id=on&account_id=ca_well": (True, None),
        "workflow_id=held": (False, "workflow_paused"),
        "workflow_id=held&account_id=ca_well&on_unknown=allow": (False, "workflow_paused"),
        "workflow_id=off": (False, "workflow_inactive"),
        "workflow_id=on&account_id=ca_expired": (False, "account_expired"),
        "account_id=ca_gone": (False, "account_disconnected"),
        "account_id=ca_deleted&on_unknown=allow": (False, "account_deleted"),
        "account_id=ca_pending": (False, "account_pending"),
        "account_id=ca_verify": (False, "account_pending"),
        "workflow_id=nobody": (False, "unknown_workflow"),
        "workflow_id=nobody&on_unknown=allow": (True, None),
        "account_id=ca_nobody": (False, "unknown_account"),
        "account_id=ca_nobody&on_unknown=allow": (True, None),
        "account_id=ca_silent": (False, "unknown_account"),
        "account_id=ca_odd": (False, "unknown_account"),
        "account_id=ca_odd&on_unknown=allow": (True, None),
        "workflow_id=nobody&account_id=ca_expired": (False, "account_expired"),
    }.items():
        assert await api.gate(query) == answer, query
    problem(await api.client.get("/v1/gate?workflow_id=on&on_unknown=maybe"), 400, "invalid_query")


async def test_the_gate_denies_while_events_wait_too_long_to_be_evaluated(api: Api) -> None:
    await api.happened("ca_1", "ACTIVE")
    await api.send(event_body())
    assert await api.gate("account_id=ca_1") == (True, None)
    async with begin(api.runtime.engine) as conn:
        await conn.execute(text("UPDATE events SET received_at = received_at - interval '15 s'"))
    assert await api.gate("account_id=ca_1") == (False, "evaluation_behind")
    assert await api.gate("account_id=ca_1&on_unknown=allow") == (True, None)
    await evaluate(api.runtime)
    assert await api.gate("account_id=ca_1") == (True, None)


async def test_with_connection_ids_only_the_broken_account_is_held(api: Api) -> None:
    await api.happened("ca_2", "ACTIVE")
    await api.put("w1", connection_ids=["conn_1"])
    alert_id = await api.failed_three_times("ca_1")
    workflow = await api.get("/v1/workflows/w1")
    assert (workflow["state"], workflow["paused_accounts"]) == ("active", ["ca_1"])
    denied = await api.get("/v1/gate?workflow_id=w1&account_id=ca_1")
    assert (denied["allow"], denied["reason"], denied["alert_ids"]) == (False, "workflow_paused", [alert_id])
    assert await api.gate("workflow_id=w1&account_id=ca_2") == (True, None)
    assert await api.gate("workflow_id=w1") == (True, None)


async def test_a_workflow_put_on_a_broken_account_reads_paused_in_that_very_answer(api: Api) -> None:
    alert_id = await api.failed_three_times()
    put = await api.put("w1", account_ids=["ca_1"])
    assert (put["state"], put["paused_by"]) == ("paused", [alert_id])
    assert (await api.post("/v1/workflows/w1/resume"))["state"] == "active"
    assert (await api.put("w1", account_ids=["ca_1"]))["state"] == "active"  # the same episode holds it no second time
    await api.happened("ca_2", "DISCONNECTED")
    assert (await api.put("w2", account_ids=["ca_2"]))["state"] == "paused"
    assert (await api.put("w2", account_ids=[]))["state"] == "active"  # dropping the dependency drops its hold


# Alerts.


async def test_alerts_are_listed_by_filter_and_page_newest_first(api: Api) -> None:
    first = await api.failed_three_times("ca_1")
    second = await api.failed_three_times("ca_2")
    fired = (await api.get(f"/v1/alerts/{second}"))["fired_at"]
    for query, found in {
        "": [second, first],
        "state=firing": [second, first],
        "state=resolved": [],
        "rule=token-refresh-failing": [second, first],
        "rule=elsewhere": [],
        "account_id=ca_1": [first],
        "account_id=scalekit:env_1:ca_2": [second],
        "account_id=ca_nobody": [],
        f"since={fired}": [second],
    }.items():
        assert [item["id"] for item in await api.items(f"/v1/alerts?{query}")] == found, query
    problem(await api.client.get("/v1/alerts?state=open"), 400, "invalid_query")
    page = await api.get("/v1/alerts?limit=1")
    assert [item["id"] for item in page["items"]] == [second]
    page = await api.get(f"/v1/alerts?limit=1&cursor={page['next_cursor']}")
    assert ([item["id"] for item in page["items"]], page["next_cursor"]) == ([first], None)


async def test_an_alert_carries_its_evidence_and_what_was_asked_for(api: Api) -> None:
    alert_id = await api.failed_three_times()
    await decide(api.runtime)
    alert = await api.get(f"/v1/alerts/{alert_id}")
    assert (alert["rule"], alert["severity"], alert["account_id"]) == ("token-refresh-failing", "P2", "ca_1")
    assert alert["group"] == {"account_id": "ca_1"}
    failures = {item["id"] for item in await api.items("/v1/events?kind=token.refresh_failed")}
    assert (set(alert["evidence"]), len(failures)) == (failures, 3)
    [told] = alert["actions"]
    assert (told["kind"], told["destination"], told["attempts"]) == ("notify", "console", [])


async def test_acknowledge_snooze_and_resolve_by_a_person_leave_the_gate_as_it_is(api: Api) -> None:
    await api.put("w1", account_ids=["ca_1"])
    path = f"/v1/alerts/{await api.failed_three_times()}"
    denied = (False, "workflow_paused")
    assert await api.gate("workflow_id=w1") == denied
    seen = await api.post(f"{path}/acknowledge")
    assert (seen["state"], seen["acknowledged_by"]) == ("acknowledged", "admin")
    assert (await api.post(f"{path}/acknowledge"))["acknowledged_at"] == seen["acknowledged_at"]
    before = datetime.now(UTC)
    snoozed = await api.post(f"{path}/snooze", {"for": "1h"})
    until = datetime.fromisoformat(snoozed["snoozed_until"])
    assert abs((until - before).total_seconds() - 3600) < 30
    assert (await api.post(f"{path}/snooze", {"for": 90}))["snoozed_until"] < snoozed["snoozed_until"]
    assert await api.gate("workflow_id=w1") == denied
    closed = await api.post(f"{path}/resolve")
    assert (closed["state"], closed["resolved_reason"]) == ("resolved", "manual")
    assert (await api.post(f"{path}/resolve"))["resolved_at"] == closed["resolved_at"]
    assert await api.gate("workflow_id=w1") == denied
    problem(await api.client.post(f"{path}/acknowledge"), 409, "already_resolved")
    problem(await api.client.post(f"{path}/snooze", json={"for": "1h"}), 409, "already_resolved")
    problem(await api.client.post(f"{path}/resolve", json={"because": "x"}), 400, "invalid_body")
    audit = [item["event_id"] for item in await api.items("/v1/events?kind=audit")]
    assert audit.count(path.rsplit("/", 1)[1]) == 4  # acknowledged, snoozed twice, resolved


# The SIEM feed.


async def test_the_feed_gives_the_log_in_order_with_a_cursor_and_a_link_always(api: Api) -> None:
    page = await api.get("/v1/siem/events")
    assert (page["items"], page["has_more"]) == ([], False)
    ids = [await api.send(event_body()) for _ in range(5)]
    seen, link = [], f"/v1/siem/events?format=raw&limit=2&cursor={page['next_cursor']}"
    for number in range(4):
        answer = await api.client.get(link)
        page = answer.json()
        seen += [item["id"] for item in page["items"]]
        assert page["has_more"] is (number < 2)
        following = re.fullmatch(r'<(/v1/siem/events\?[^>]+)>; rel="next"', answer.headers["link"])
        assert following is not None
        link = following[1]
        assert "format=raw" in link
        assert "limit=2" in link
    assert (seen, page["items"]) == (ids, [])
    late = await api.send(event_body())
    assert [item["id"] for item in await api.items(link)] == [late]


async def test_the_feed_begins_at_since_and_speaks_each_format(api: Api) -> None:
    await api.send(event_body())
    received = (await api.items("/v1/events"))[0]["received_at"]
    second = await api.send(event_body())
    later = (datetime.fromisoformat(received) + timedelta(microseconds=1)).isoformat()
    found = await api.items(f"/v1/siem/events?format=raw&since={later}")
    assert [item["id"] for item in found] == [second]
    assert await api.items("/v1/siem/events?since=2190-01-01T00:00:00Z") == []
    [event] = await api.items("/v1/siem/events?limit=1&format=raw")
    assert event == (await api.items("/v1/events"))[-1]
    [ocsf] = await api.items("/v1/siem/events?limit=1")
    assert ocsf["metadata"]["version"] == "1.8.0"
    [ecs] = await api.items("/v1/siem/events?limit=1&format=ecs")
    assert "@timestamp" in ecs
    problem(await api.client.get("/v1/siem/events?format=cef"), 400, "invalid_query")


# How we are.


async def test_health_tells_each_part_with_its_lag(api: Api) -> None:
    await api.send(event_body())
    health = await api.get("/v1/health")
    assert {"evaluator", "actions", "sinks", "sweep", "stranded"} <= set(health)
    assert health["evaluator"]["lag_items"] == 1
    assert (health["evaluator"]["alive"], health["status"]) == (False, "degraded")
    await evaluate(api.runtime)
    assert (await api.get("/v1/health"))["evaluator"]["lag_items"] == 0


async def test_a_dead_worker_does_not_take_the_front_door_away(api: Api) -> None:
    for path in ("/livez", "/readyz"):
        assert (await api.client.get(path, headers={"Authorization": ""})).json() == {"status": "ok"}


async def test_metrics_are_prometheus_text(api: Api) -> None:
    await api.failed_three_times()
    await evaluate(api.runtime)  # what the alert itself put on the log is read by the next look
    await api.send(event_body())
    answer = await api.client.get("/metrics", headers={"Authorization": ""})
    assert answer.headers["content-type"].startswith("text/plain")
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.labels.get("reader") in (None, "evaluator")
    }
    assert found["authwatch_database_up"] == 1
    assert found["authwatch_alerts"] == 1
    assert found["authwatch_actions_open"] == 1
    assert found["authwatch_reader_lag_events"] == 1
    assert {"authwatch_events_accepted_total", "authwatch_delivery_lag_seconds_bucket"} <= set(found)


async def test_openapi_lists_every_route_and_is_openapi(api: Api) -> None:
    answer = await api.client.get("/openapi.json", headers={"Authorization": ""})
    document = OpenAPI.model_validate(answer.json())
    assert document.servers[0].url == BASE
    listed = {
        (method.upper(), path)
        for path, item in answer.json()["paths"].items()
        for method in item
        if method != "parameters"
    }
    served = {
        (method, re.sub(r":\w+\}", "}", route.path))  # type: ignore[attr-defined]
        for route in api.app.routes
        for method in route.methods  # type: ignore[attr-defined]
        if method != "HEAD"
    }
    assert listed == served - {("GET", "/openapi.json")}
    ids = [operation["operationId"] for item in answer.json()["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))
    events = answer.json()["paths"]["/v1/events"]["get"]
    assert {"account_id", "since", "limit", "cursor"} <= {parameter["name"] for parameter in events["parameters"]}
