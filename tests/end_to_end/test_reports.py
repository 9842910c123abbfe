"""What agents report: taken whole or not at all, once by id, and into the log what a success alone does not tell."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from service.store.session import begin
from tests.end_to_end.test_api import Api, opened, problem
from tests.make_requests import event_body
from workers.evaluate import evaluate
from workers.rollups import RollingUp

REFRESH_FAILED = "connected_account.token_refresh_failed"
REFRESH_SUCCEEDED = "connected_account.token_refresh_succeeded"


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with opened(database_url) as made:
        yield made


def ago(seconds: float = 0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def call(number: int | str = 1, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"call_{number}",
        "occurred_at": ago(),
        "account_id": "ca_1",
        "tool": "jira.search",
        "provider": "jira",
        "operation": "read",
        "outcome": "success",
        **changes,
    }


def refresh(number: int | str = 1, **changes: Any) -> dict[str, Any]:
    return {"id": f"refresh_{number}", "occurred_at": ago(), "account_id": "ca_1", "outcome": "success", **changes}


async def report(api: Api, *items: dict[str, Any], path: str = "/v1/tool-calls") -> tuple[int, int]:
    answer = await api.client.post(path, json={"items": items})
    assert answer.status_code == 202, answer.text
    return answer.json()["accepted"], answer.json()["duplicates"]


async def report_refreshes(api: Api, *items: dict[str, Any]) -> tuple[int, int]:
    return await report(api, *items, path="/v1/token-refreshes")


async def value(api: Api, statement: str) -> Any:
    async with begin(api.runtime.engine) as conn:
        return (await conn.execute(text(statement))).scalar_one()


async def logged(api: Api) -> list[dict[str, Any]]:
    return [event for event in await api.items("/v1/events?limit=1000") if event["origin"] == "report"]


# Taken whole or not at all.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outcome": "done"}, "items[1].outcome: must be one of success, error"),
        ({"operation": None}, "items[1].operation: "),
        ({"error_class": "teapot"}, "items[1].error_class: must be one of token_expired, "),
        ({"occurred_at": "yesterday"}, "items[1].occurred_at: must be an RFC 3339 time with an offset"),
        ({"occurred_at": "2026-11-26T09:00:00"}, "items[1].occurred_at: must be an RFC 3339 time with an offset"),
        ({"retires": 1}, 'items[1]: object contains unknown field "retires"; known: id, '),
        ({"id": ""}, "items[1].id: "),
        ({"id": "x" * 129}, "items[1].id: "),
        ({"retries": True}, "items[1].retries: "),
        ({"tool": "a\x00b"}, "items[1].tool: has a character that cannot be stored"),
    ],
)
async def test_one_bad_item_refuses_the_request_and_is_named(api: Api, change: dict[str, Any], said: str) -> None:
    answer = await api.client.post("/v1/tool-calls", json={"items": [call(1), call(2, **change)]})
    assert said in problem(answer, 400, "invalid_body")["detail"]
    assert await value(api, "SELECT count(*) FROM tool_calls") == 0


async def test_bodies_are_bounded(api: Api) -> None:
    many = {"items": [call(number) for number in range(1001)]}
    detail = problem(await api.client.post("/v1/tool-calls", json=many), 400, "invalid_body")["detail"]
    assert "send 1 to 1000 items" in detail
    problem(await api.client.post("/v1/tool-calls", json={"items": []}), 400, "invalid_body")
    for raw, code in (
        (b"nope", "invalid_json"),
        (b"[]", "invalid_body"),
        (b'{"items":[{"id":"\xff"}]}', "invalid_json"),
    ):
        problem(await api.client.post("/v1/tool-calls", content=raw), 400, code)
    deep = b'{"items":[{"id":"a","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}"
    problem(await api.client.post("/v1/tool-calls", content=deep), 400)
    large = json.dumps({"items": [call(1, error="x" * 5_000_000)]}).encode()
    problem(await api.client.post("/v1/tool-calls", content=large), 413, "body_too_large")
    problem(await api.client.post("/v1/token-refreshes", json={"items": [call(1)]}), 400, "invalid_body")


async def test_what_is_optional_may_be_null(api: Api) -> None:
    """As clients write it that write every field they know."""
    optional = (
        "connection_id",
        "workflow_id",
        "provider",
        "http_status",
        "error_class",
        "error",
        "retries",
        "latency_ms",
    )
    nothing = dict.fromkeys((*optional, "verification", "idempotency_key", "params", "schema"))
    assert await report(api, call(1, **nothing), call(2, **nothing | {"outcome": "error"})) == (2, 0)
    assert await value(api, "SELECT sum(retries) FROM tool_calls") == 0
    [event] = await logged(api)
    assert (await api.get(f"/v1/events/{event['id']}"))["details"]["retries"] == 0


# Once by id.


async def test_an_id_counts_once_within_a_request_and_across_them(api: Api) -> None:
    assert await report(api, call(1), call(2), call(1, outcome="error")) == (2, 1)
    assert await report(api, call(2), call(3)) == (1, 1)
    assert await report(api, call(1), call(2), call(3)) == (0, 3)
    assert await value(api, "SELECT count(*) FROM tool_calls") == 3
    assert await logged(api) == []  # the first of an id is the one that counts


async def test_an_id_of_yesterday_is_known_today(api: Api) -> None:
    await report(api, call(1))
    async with begin(api.runtime.engine) as conn:
        await conn.execute(text("UPDATE tool_calls SET day = day - 1"))
    assert await report(api, call(1), call(2)) == (1, 1)


async def test_the_same_ids_from_many_at_once_are_kept_once(api: Api) -> None:
    batches = [[call(number) for number in range(start, start + 40)] for start in range(0, 200, 10)]
    told = await asyncio.gather(*(report(api, *batch) for batch in batches))
    assert sum(accepted for accepted, _ in told) == 230 == await value(api, "SELECT count(*) FROM tool_calls")
    assert sum(duplicates for _, duplicates in told) == 20 * 40 - 230


async def test_any_text_comes_through_as_it_was(api: Api) -> None:
    said = 'back\\slash "quoted" {braces}, NULL\n\ttab é 漢 \U0001f600'
    await report(api, call(1, tool=said, workflow_id="NULL", idempotency_key=""), call(2, tool='",{}'))
    rows = "SELECT json_agg(json_build_array(tool, workflow_id, idempotency_key) ORDER BY id) FROM tool_calls"
    assert await value(api, rows) == [[said, "NULL", ""], ['",{}', None, None]]


async def test_a_clock_that_cannot_be_right_is_not_believed(api: Api) -> None:
    await report(api, call(1, occurred_at="2199-01-01T00:00:00Z"), call(2, occurred_at="0001-01-01T00:00:00Z"))
    await report(api, call(3, occurred_at=ago(3600)))
    suspect = "SELECT json_agg(json_build_array(clock_suspect, occurred_at = received_at) ORDER BY id) FROM tool_calls"
    assert await value(api, suspect) == [[True, True], [True, True], [False, False]]


# Into the log.


@pytest.mark.parametrize(
    ("change", "details"),
    [
        ({"outcome": "error", "error_class": "upstream_5xx"}, {"error_class": "upstream_5xx"}),
        ({"operation": "write", "verification": "missing"}, {"partial": True}),
        ({"operation": "write", "verification": "mismatch"}, {"partial": True}),
        ({"operation": "write", "error_class": "partial_execution"}, {"partial": True}),
        ({"error_class": "malformed_params", "retries": 1}, {"retried_against_rules": True}),
        ({"error_class": "refresh_failed", "retries": 2}, {"retried_against_rules": True}),
        ({"error_class": "rate_limited", "retries": 2}, None),
        ({"error_class": "token_expired", "retries": 1}, None),
        ({"operation": "write", "verification": "verified"}, None),
        ({"operation": "read", "verification": "missing"}, None),
        ({}, None),
    ],
)
async def test_what_enters_the_log(api: Api, change: dict[str, Any], details: dict[str, Any] | None) -> None:
    await report(api, call(1, **change))
    events = await logged(api)
    assert len(events) == (details is not None)
    for event in events:
        assert (event["kind"], event["event_id"]) == ("tool_call.completed", "call_1")
        assert details is not None
        said = (await api.get(f"/v1/events/{event['id']}"))["details"]
        assert details.items() <= said.items()
    await report(api, call(1, **change))
    assert len(await logged(api)) == len(events)


async def test_a_report_means_the_account_the_provider_told_of(api: Api) -> None:
    await api.send(event_body())
    await evaluate(api.runtime)
    [account] = await api.items("/v1/accounts")
    await report(api, call(1, outcome="error", account_id=account["account_id"]))
    full = f"{account['source']}:{account['environment_id']}:{account['account_id']}"
    await report(api, call(2, outcome="error", account_id=full))
    await report(api, call(3, outcome="error", account_id="ca_unheard_of"))
    events = {event["event_id"]: event for event in await logged(api)}
    for name in ("call_1", "call_2"):
        assert events[name]["account_id"] == account["account_id"]
        assert (events[name]["source"], events[name]["environment_id"]) == ("scalekit", account["environment_id"])
        assert events[name]["provider"] == account["provider"]
    assert (events["call_3"]["source"], events["call_3"]["account_id"]) == ("report", "ca_unheard_of")


async def test_secrets_in_errors_and_params_are_masked(api: Api) -> None:
    token = "ya29.a0AfH6SMBx"
    await report(
        api,
        call(
            1,
            outcome="error",
            error_class="malformed_params",
            error=f"400 for Authorization: Bearer {token}",
            params={"access_token": token, "project": "OPS\x00", "url": f"https://x/?token={token}"},
            schema={"type": "object"},
        ),
        call(2, outcome="error", error_class="malformed_params", params={"x": "y" * 40_000}),
        call(3, outcome="error", error_class="malformed_params"),
        call(4, outcome="error", error_class="upstream_5xx", params={"password": "hunter2"}),
    )
    said = await api.get("/v1/malformed-calls?account_id=ca_1&tool=jira.search")
    items = {item["id"]: item for item in said["items"]}
    assert set(items) == {"call_1", "call_2", "call_3"}
    assert items["call_1"]["params"]["project"] == "OPS"
    assert items["call_1"]["params"]["access_token"] == "***"
    assert items["call_1"]["schema"] == {"type": "object"}
    assert "left_out" in items["call_2"]["params"]
    assert items["call_3"]["params"] is None
    everything = json.dumps([said, await logged(api)])
    for table in ("tool_calls", "malformed_calls", "receipts", "events"):
        everything += json.dumps(await value(api, f"SELECT json_agg(t) FROM {table} t"))
        everything += str(await value(api, "SELECT string_agg(encode(body, 'escape'), ',') FROM receipts"))
    assert token not in everything
    assert "hunter2" not in everything


async def test_malformed_calls_are_read_page_by_page(api: Api) -> None:
    for number in range(3):
        await report(api, call(number, outcome="error", error_class="malformed_params", params={"n": number}))
    first = await api.get("/v1/malformed-calls?limit=2")
    second = await api.get(f"/v1/malformed-calls?limit=2&cursor={first['next_cursor']}")
    assert [item["params"]["n"] for item in first["items"] + second["items"]] == [2, 1, 0]
    assert second["next_cursor"] is None


# Refreshes.


async def test_refreshes_that_enter_the_log(api: Api) -> None:
    """Every failure; a success of whoever was not known to be well; no further success of one who is."""
    assert await report_refreshes(api, refresh(1, occurred_at=ago(600))) == (1, 0)
    await evaluate(api.runtime)
    await report_refreshes(api, refresh(2, occurred_at=ago(500)))
    await report_refreshes(
        api, refresh(3, occurred_at=ago(400), outcome="error", http_status=400, error="invalid_grant")
    )
    await report_refreshes(api, refresh(4, occurred_at=ago(300)))  # the failure was not evaluated yet
    await evaluate(api.runtime)
    kinds = [(event["event_id"], event["kind"]) for event in await logged(api)]
    assert kinds == [
        ("refresh_4", "token.refresh_succeeded"),
        ("refresh_3", "token.refresh_failed"),
        ("refresh_1", "token.refresh_succeeded"),
    ]
    account = await api.get("/v1/accounts/ca_1")
    assert account["last_refresh_outcome"] == "success"


@pytest.mark.parametrize(("apart", "wins"), [(59, True), (-59, True), (61, False), (-61, False)])
async def test_a_providers_event_wins_over_a_report_within_a_minute(api: Api, apart: float, wins: bool) -> None:
    at = datetime.now(UTC) - timedelta(minutes=10)
    await api.send(event_body(REFRESH_FAILED, occurred_at=at.isoformat()))
    await evaluate(api.runtime)
    [account] = await api.items("/v1/accounts")
    told = (at + timedelta(seconds=apart)).isoformat()
    assert await report_refreshes(api, refresh(1, account_id=account["account_id"], occurred_at=told)) == (1, 0)
    assert len(await logged(api)) == (not wins)
    assert await value(api, "SELECT outweighed FROM token_refreshes") is wins


async def test_a_failed_report_fires_a_shipped_rule(api: Api) -> None:
    await report_refreshes(
        api, *(refresh(number, occurred_at=ago(60 * number), outcome="error") for number in range(3))
    )
    await evaluate(api.runtime)
    alerts = await api.items("/v1/alerts?account_id=ca_1&state=firing")
    assert "token-refresh-failing" in {alert["rule"] for alert in alerts}


# The metrics.


async def count_up(api: Api) -> None:
    rolling = RollingUp()
    while await rolling.step(api.runtime):
        pass


async def points(api: Api, query: str) -> list[dict[str, Any]]:
    """Those that hold anything."""
    return [item for item in (await api.get(f"/v1/metrics/{query}"))["items"] if item["count"]]


async def test_the_five_metrics_by_account_by_provider_and_in_all(api: Api) -> None:
    await report(
        api,
        call(1),
        call(2, outcome="error", error_class="upstream_5xx", retries=2),
        call(3, operation="write", verification="missing"),
        call(4, account_id="ca_2", provider="Slack"),
    )
    await report_refreshes(
        api,
        *(refresh(number, account_id="ca_9", provider="jira", duration_ms=100 * number) for number in range(1, 101)),
        refresh(0, account_id="ca_9", provider="jira", outcome="error"),
    )
    await count_up(api)
    [rate] = await points(api, "tool_call_success_rate?account_id=ca_1&step=1d")
    assert (rate["value"], rate["count"]) == (pytest.approx(2 / 3), 3)
    [rate] = await points(api, "tool_call_success_rate?provider=SLACK&step=1d")
    assert (rate["value"], rate["count"]) == (1.0, 1)
    [rate] = await points(api, "tool_call_success_rate?step=1d")
    assert (rate["value"], rate["count"]) == (0.75, 4)
    [rate] = await points(api, "partial_execution_rate?account_id=ca_1&step=1h")
    assert (rate["value"], rate["count"], rate["partials"]) == (1.0, 1, 1)
    [rate] = await points(api, "retry_rate?account_id=ca_1&provider=jira&step=1h")
    assert rate["by_error_class"] == {"upstream_5xx": pytest.approx(2 / 3)}
    assert rate["value"] == pytest.approx(2 / 3)
    [rate] = await points(api, "refresh_success_rate?provider=jira&step=1d")
    assert (rate["value"], rate["count"], rate["timed"]) == (pytest.approx(100 / 101), 101, 100)
    assert rate["p50_seconds"] == pytest.approx(5.0, rel=0.03)
    assert rate["p99_seconds"] == pytest.approx(9.9, rel=0.03)
    assert await points(api, "tool_call_success_rate?account_id=ca_2&provider=jira") == []
    assert await points(api, "tool_call_success_rate?account_id=ca_unheard_of") == []


async def test_without_reports_latency_is_unknown_and_lag_is_the_logs(api: Api) -> None:
    await api.send(event_body(REFRESH_SUCCEEDED, occurred_at=ago(42)))
    await evaluate(api.runtime)
    await count_up(api)
    [rate] = await points(api, "refresh_success_rate?account_id=ca_1&step=1d")
    assert (rate["value"], rate["count"], rate["p50_seconds"], rate["p99_seconds"], rate["timed"]) == (
        1.0,
        1,
        None,
        None,
        0,
    )
    for query in ("account_id=ca_1", "provider=google_ads", ""):
        said = await api.get(f"/v1/metrics/delivery_lag?step=1h&{query}")
        assert said["unit"] == "seconds"
        [lag] = [item for item in said["items"] if item["count"]]
        assert lag["value"] == pytest.approx(42, rel=0.03)
        assert lag["max_seconds"] == pytest.approx(42, abs=1)


async def test_a_series_has_every_step_and_null_where_nothing_is_known(api: Api) -> None:
    said = await api.get("/v1/metrics/tool_call_success_rate")
    assert len(said["items"]) == 61
    assert {re.sub(r"\d", "0", item["at"]) for item in said["items"]} == {"0000-00-00T00:00:00Z"}
    assert {item["value"] for item in said["items"]} == {None}
    assert said["step_seconds"] == 60
    for query, least in (("since=2020-01-01T00:00:00Z", 90), ("step=1d&since=2020-01-01T00:00:00Z", 90)):
        items = (await api.get(f"/v1/metrics/delivery_lag?{query}"))["items"]
        assert least <= len(items) <= 1500


@pytest.mark.parametrize(
    ("query", "status", "code", "mend"),
    [
        ("nonsense", 404, "unknown_metric", "known: tool_call_success_rate"),
        ("retry_rate?step=30s", 400, "invalid_query", "write whole minutes"),
        ("retry_rate?step=0s", 400, "invalid_query", "write whole minutes"),
        ("retry_rate?step=31d", 400, "invalid_query", "write whole minutes"),
        ("retry_rate?step=90m&since=2020-01-01T00:00:00Z", 400, "invalid_query", "write whole hours, such as step=1h"),
        ("retry_rate?step=1h&since=2020-01-01T00:00:00Z", 400, "too_many_points", "write a step of"),
        ("retry_rate?since=2199-01-01T00:00:00Z", 400, "invalid_query", "lies in the future"),
        ("retry_rate?tool=x", 400, "invalid_query", "known: account_id"),
    ],
)
async def test_what_cannot_be_answered_says_what_can(api: Api, query: str, status: int, code: str, mend: str) -> None:
    assert mend in problem(await api.client.get(f"/v1/metrics/{query}"), status, code)["detail"]


async def test_the_providers_word_wins_when_it_comes_after_the_report_as_well(api: Api) -> None:
    """Two refreshes failed, each of them told twice: that is no third failure."""
    await api.send(event_body(occurred_at=ago(3000)))
    await evaluate(api.runtime)
    for number, at in enumerate((ago(600), ago(300))):
        await report_refreshes(api, refresh(number, occurred_at=at, outcome="error"))
        await evaluate(api.runtime)
        await api.send(event_body(REFRESH_FAILED, occurred_at=at))
        await evaluate(api.runtime)
    assert len(await logged(api)) == 2
    open_ones = await api.items("/v1/alerts?state=firing")
    assert "token-refresh-failing" not in {alert["rule"] for alert in open_ones}
