"""Why did I get this alert, and why did I not: asked of the API on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from service.store.session import begin
from tests.end_to_end.test_api import NOWHERE, Api, opened, problem
from tests.make_requests import event_body
from workers.evaluate import evaluate

FAILED = "connected_account.token_refresh_failed"
SUCCEEDED = "connected_account.token_refresh_succeeded"
FAILING, BROKEN = "token-refresh-failing", "account-disconnected-active-workflow"


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[Api]:
    async with opened(database_url) as made:
        yield made


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


async def test_why_did_i_get_this(api: Api) -> None:
    await api.put("w-1", name="One", account_ids=["ca_1"])
    await api.put("w-2", name="Two", account_ids=["ca_1"], active=False)
    alert_id = await api.failed_three_times()
    said = await api.get(f"/v1/alerts/{alert_id}/explain")
    assert said["alert"]["id"] == alert_id
    assert said["rule"]["condition"].startswith("3 events with kind token.refresh_failed within 15m")
    assert said["rule"]["version"] == said["rule"]["fired_by_version"]
    assert (said["value"], said["needs"]) == (3.0, ">= 3")
    assert [event["kind"] for event in said["events"]] == ["token.refresh_failed"] * 3
    assert all(event["lag_seconds"] >= 0 and event["received_at"] for event in said["events"])
    by_id = {line["workflow_id"]: line for line in said["workflows"]}
    assert by_id["w-1"]["paused"]
    assert by_id["w-1"]["why"].startswith("paused by this alert since")
    assert (by_id["w-2"]["paused"], by_id["w-2"]["why"]) == (False, "not paused: it is declared inactive")
    spans = said["timings"]["seconds"]
    assert spans["occurred_to_received"] >= 0
    assert spans["received_to_fired"] > 0
    assert spans["fired_to_message"] is None, "nobody was told: no notifier is configured"
    assert said["objective"] is None
    assert said["window"]["to"] == said["alert"]["opened_at"]
    assert said["notes"] == []


async def test_whether_the_objective_was_met(api: Api) -> None:
    await api.put("w-1", name="One", account_ids=["ca_1"])
    await api.happened("ca_1", "ACTIVE", occurred_at=ago(100))
    await api.happened("ca_1", "DISCONNECTED", occurred_at=ago(50))
    [alert] = await api.items("/v1/alerts?state=firing")
    said = await api.get(f"/v1/alerts/{alert['id']}/explain")
    assert said["objective"]["detect_within_seconds"] == 30
    assert said["objective"]["took_seconds"] > 30
    assert said["objective"]["met"] is False
    assert said["timings"]["seconds"]["occurred_to_received"] >= 50


async def test_a_persons_word_and_an_episode_that_was_over_are_said(api: Api) -> None:
    await api.put("w-1", name="One", account_ids=["ca_1"])
    alert_id = await api.failed_three_times()
    await api.post(f"/v1/alerts/{alert_id}/acknowledge")
    await api.post(f"/v1/alerts/{alert_id}/resolve")
    notes = (await api.get(f"/v1/alerts/{alert_id}/explain"))["notes"]
    assert any("a person resolved it" in note and "fires anew only after it has ended" in note for note in notes)
    assert any("acknowledged it" in note for note in notes)
    for seconds in (30, 29, 28):
        await api.send(event_body(FAILED, data={"id": "ca_2"}, occurred_at=ago(seconds)))
    await api.send(event_body(SUCCEEDED, data={"id": "ca_2"}, occurred_at=ago(5)))
    await evaluate(api.runtime)
    [late] = await api.items("/v1/alerts?account_id=ca_2")
    said = await api.get(f"/v1/alerts/{late['id']}/explain")
    assert any("over already when we learned of it" in note for note in said["notes"])


async def test_why_did_i_not(api: Api) -> None:
    for type_, seconds in ((FAILED, 60), (FAILED, 50), (SUCCEEDED, 40), (FAILED, 30), (FAILED, 20)):
        await api.send(event_body(type_, data={"id": "ca_1"}, occurred_at=ago(seconds)))
    await evaluate(api.runtime)
    said = await api.post("/v1/explain", {"account_id": "ca_1", "rule_id": FAILING})
    assert (said["state"], said["value"]) == ("inactive", 2.0)
    assert said["missing"][0] == "2 of 3 matching events within 15m"
    assert "emptied the window of 2 events" in said["missing"][1]
    assert len(said["events"]) == 2
    assert said["account_id"] == "scalekit:env_1:ca_1"
    before = await api.post("/v1/explain", {"account_id": "scalekit:env_1:ca_1", "rule_id": FAILING, "at": ago(55)})
    assert before["missing"] == ["1 of 3 matching events within 15m"]


async def test_what_is_not_evaluated_yet_is_left_out_and_said(api: Api) -> None:
    await api.happened("ca_1", "ACTIVE")
    for _ in range(3):
        await api.send(event_body(FAILED, data={"id": "ca_1"}))
    said = await api.post("/v1/explain", {"account_id": "ca_1", "rule_id": FAILING})
    assert said["state"] == "inactive"
    assert "3 of its events are not evaluated yet; they are left out here" in said["notes"]


async def test_no_workflow_depends_on_it(api: Api) -> None:
    await api.happened("ca_1", "DISCONNECTED", occurred_at=ago(60))
    said = await api.post("/v1/explain", {"account_id": "ca_1", "rule_id": BROKEN})
    assert (said["state"], said["missing"]) == ("inactive", ["no active workflow depends on it"])
    await api.put("w-1", name="One", account_ids=["ca_1"])
    said = await api.post("/v1/explain", {"account_id": "ca_1", "rule_id": BROKEN})
    assert said["state"] == "firing"
    [alert] = said["alerts"]
    then = await api.post("/v1/explain", {"account_id": "ca_1", "rule_id": BROKEN, "at": ago(30)})
    assert any(alert["id"] in note and "later" in note for note in then["notes"])
    early = await api.post("/v1/explain", {"account_id": "ca_1", "rule_id": BROKEN, "at": ago(90)})
    assert (early["state"], early["missing"]) == ("unknown", ["no event has said what status the account has"])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"rule_id": FAILING}, 400, "invalid_body"),
        ({"rule_id": FAILING, "account_id": "ca_1", "group": {}}, 400, "invalid_body"),
        ({"rule_id": "no-such-rule", "account_id": "ca_1"}, 404, "unknown_rule"),
        ({"rule_id": FAILING, "account_id": "ca_unknown"}, 404, "unknown_account"),
        ({"rule_id": FAILING, "group": {"provider": "SLACK"}}, 400, "invalid_group"),
        ({"rule_id": FAILING, "account_id": "ca_1", "at": "0001-01-01T00:00:00Z"}, 400, "invalid_body"),
        ({"rule_id": FAILING, "account_id": "ca_1", "at": "2199-01-01T00:00:00Z"}, 400, "invalid_body"),
    ],
)
async def test_what_cannot_be_answered_says_why(api: Api, body: dict[str, object], status: int, code: str) -> None:
    problem(await api.client.post("/v1/explain", json=body), status, code)


async def test_an_alert_nobody_knows_is_404(api: Api) -> None:
    problem(await api.client.get(f"/v1/alerts/{NOWHERE}/explain"), 404, "unknown_alert")


async def test_an_alert_of_our_own_is_explained_by_what_it_says(api: Api) -> None:
    await api.happened("ca_1", "SOMETHING_NEW")
    [alert] = await api.items("/v1/alerts?rule=unknown-account-status")
    said = await api.get(f"/v1/alerts/{alert['id']}/explain")
    assert said["rule"] is None
    assert said["because"] == [alert["summary"]]


async def test_two_accounts_of_one_short_id_are_409(api: Api) -> None:
    await api.happened("ca_1", "ACTIVE")
    await api.happened("ca_1", "ACTIVE", environment_id="env_2")
    said = problem(await api.client.post("/v1/explain", json={"rule_id": FAILING, "account_id": "ca_1"}), 409)
    assert len(said["candidates"]) == 2


async def test_explaining_changes_nothing(api: Api) -> None:
    alert_id = await api.failed_three_times()
    async with begin(api.runtime.engine) as conn:
        before = (await conn.exec_driver_sql("SELECT * FROM alerts")).all()
        log = (await conn.exec_driver_sql("SELECT count(*) FROM events")).scalar_one()
    await api.get(f"/v1/alerts/{alert_id}/explain")
    await api.post("/v1/explain", {"account_id": "ca_1", "rule_id": FAILING})
    async with begin(api.runtime.engine) as conn:
        assert (await conn.exec_driver_sql("SELECT * FROM alerts")).all() == before
        assert (await conn.exec_driver_sql("SELECT count(*) FROM events")).scalar_one() == log
