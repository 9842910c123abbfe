"""Explain, as an outsider asks it: by the rules in force now, and of groups by what an admin can know of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service.store.session import begin
from tests.end_to_end.test_api import Api, opened, problem
from tests.make_requests import event_body
from tests.workers.editing import HOUR, age, save
from workers.evaluate import evaluate
from workers.gauges import look_at_gauges
from workers.rules import keep_rules

FAILED = "connected_account.token_refresh_failed"
NEW = """\
version: 1
rules:
- id: saved-while-it-runs
  severity: P3
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 9}
  labels: {team: mail}
  annotations: {summary: "It fails"}
- id: by-connection
  severity: P3
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 2, distinct: account_id}
  group_by: [connection_id]
  labels: {team: mail}
  annotations: {summary: "They fail"}
- id: by-hand
  severity: P3
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 1}
  resolve: {manual: true}
  annotations: {summary: "A person looks at each"}
- id: behind
  severity: P3
  gauge: {metric: evaluator_lag_seconds, gt: 10}
  for: 5m
  annotations: {summary: "Behind"}
- id: switched-off
  severity: P3
  enabled: false
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 1}
  annotations: {summary: "Off"}
- id: in-shadow
  severity: P3
  enabled: shadow
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 1}
  annotations: {summary: "Nobody hears of it"}
"""


@pytest.fixture
async def api(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """A receiver that started with no rule, and a rule file saved after that."""
    folder = tmp_path / "rules"
    folder.mkdir()
    monkeypatch.setattr("service.settings.default_rules_folder", lambda: folder)
    async with opened(database_url) as made:
        assert made.runtime.settings.rules_folder == folder
        save(folder, NEW, ago=HOUR)
        age(folder, HOUR)
        await keep_rules(made.runtime)
        yield made


async def fail(api: Api, account_id: str, environment_id: str = "env_1") -> None:
    await api.send(
        event_body(FAILED, data={"id": account_id, "connection_id": "conn_1"}, environment_id=environment_id)
    )
    await evaluate(api.runtime)


async def ask(api: Api, **body: Any) -> dict[str, Any]:
    answer = await api.client.post("/v1/explain", json=body)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


async def test_a_rule_saved_while_the_receiver_runs_is_explained(api: Api) -> None:
    await fail(api, "ca_1")
    said = await ask(api, rule_id="saved-while-it-runs", account_id="ca_1")
    assert said["missing"] == ["1 of 9 matching events within 15m"]


async def test_the_rule_may_be_named_as_alerts_name_it(api: Api) -> None:
    await fail(api, "ca_1")
    assert (await ask(api, rule="saved-while-it-runs", account_id="ca_1"))["value"] == 1
    for body in ({"account_id": "ca_1"}, {"rule": "a", "rule_id": "a", "account_id": "ca_1"}):
        problem(await api.client.post("/v1/explain", json=body), 400, "invalid_body")


@pytest.mark.parametrize("about", [{"account_id": "ca_1"}, {"group": {"connection_id": "conn_1"}}])
async def test_a_connection_is_explained_with_the_alert_that_stands_for_it(api: Api, about: dict[str, Any]) -> None:
    await fail(api, "ca_1")
    await fail(api, "ca_2")
    (alert,) = [one for one in await api.items("/v1/alerts?state=firing") if one["rule"] == "by-connection"]
    said = await ask(api, rule="by-connection", **about)
    assert [one["id"] for one in said["alerts"]] == [alert["id"]]
    assert said["state"] == "firing"
    assert not [note for note in said["notes"] if "no alert stands" in note]
    assert said["group"] == alert["group"]


async def test_a_connection_of_two_environments_is_asked_which(api: Api) -> None:
    await fail(api, "ca_1", "env_1")
    await fail(api, "ca_2", "env_2")
    answer = await api.client.post("/v1/explain", json={"rule": "by-connection", "group": {"connection_id": "conn_1"}})
    said = problem(answer, 409, "ambiguous_group")
    assert "environment_id=env_1" in said["detail"]
    assert "environment_id=env_2" in said["detail"]
    group = {"connection_id": "conn_1", "source": "scalekit", "environment_id": "env_2"}
    assert (await ask(api, rule="by-connection", group=group))["value"] == 1


async def test_an_alert_shows_its_labels_and_whether_it_is_in_shadow(api: Api) -> None:
    await fail(api, "ca_1")
    await fail(api, "ca_2")
    assert "in-shadow" not in {one["rule"] for one in await api.items("/v1/alerts")}
    listed = await api.items("/v1/alerts") + await api.items("/v1/alerts?shadow=true")
    by_rule = {one["rule"]: one for one in listed}
    assert by_rule["by-connection"]["labels"]["team"] == "mail"
    assert (by_rule["by-connection"]["shadow"], by_rule["in-shadow"]["shadow"]) == (False, True)


async def test_why_a_gauge_does_not_fire_is_what_it_read_last(api: Api) -> None:
    await look_at_gauges(api.runtime)
    said = await ask(api, rule="behind", group={})
    assert (said["state"], said["needs"], said["value"]) == ("inactive", "> 10", 0.0)
    assert said["missing"][0].startswith("evaluator_lag_seconds read 0 at ")
    assert said["missing"][0].endswith("needs > 10")
    await api.send(event_body(FAILED, data={"id": "ca_1", "connection_id": "conn_1"}))
    async with begin(api.runtime.engine) as conn:
        await conn.execute(text("UPDATE events SET received_at = clock_timestamp() - interval '40 seconds'"))
    await look_at_gauges(api.runtime)
    said = await ask(api, rule="behind", group={})
    assert (said["state"], said["value"]) == ("pending", pytest.approx(40, abs=5))
    assert said["missing"][0].startswith("true for 0 s of 5m")
    long_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert (await ask(api, rule="behind", group={}, at=long_ago))["state"] == "unknown", "readings are not kept"


async def test_why_nobody_heard_of_what_fired_is_in_the_same_answer(api: Api) -> None:
    """It fired, and a silence muted it: "why did I not get it" is one call."""
    await fail(api, "ca_1")
    await fail(api, "ca_2")
    silence = {
        "matchers": ["rule_id=by-connection"],
        "end": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        "comment": "maintenance",
    }
    answer = await api.client.post("/v1/silences", json=silence)
    assert answer.status_code in (200, 201), answer.text
    said = await ask(api, rule="by-connection", group={"connection_id": "conn_1"})
    assert [one["comment"] for one in said["routing"]["silences"]] == ["maintenance"]
    assert (await ask(api, rule="saved-while-it-runs", account_id="ca_1"))["routing"] is None


async def test_an_edit_of_the_words_takes_nothing_from_why_it_fired(api: Api) -> None:
    await fail(api, "ca_1")
    await fail(api, "ca_2")
    (alert,) = [one for one in await api.items("/v1/alerts") if one["rule"] == "by-connection"]
    before = await api.get(f"/v1/alerts/{alert['id']}/explain")
    save(api.runtime.settings.rules_folder, NEW.replace("They fail", "They fail together"))
    await keep_rules(api.runtime)
    said = await api.get(f"/v1/alerts/{alert['id']}/explain")
    for name in ("because", "value", "needs", "window"):
        assert said[name] == before[name]
    assert said["needs"] == ">= 2"
    assert any("it was fired by version" in note for note in said["notes"])


async def test_what_a_person_has_dealt_with_does_not_read_as_firing(api: Api) -> None:
    await fail(api, "ca_1")
    (alert,) = [one for one in await api.items("/v1/alerts") if one["rule"] == "by-hand"]
    assert (await ask(api, rule="by-hand", account_id="ca_1"))["state"] == "firing"
    await api.post(f"/v1/alerts/{alert['id']}/resolve")
    said = await ask(api, rule="by-hand", account_id="ca_1")
    assert said["state"] == "resolved"
    assert any(f"a person resolved alert {alert['id']}" in note for note in said["notes"])


async def test_a_rule_that_is_switched_off_says_so(api: Api) -> None:
    await fail(api, "ca_1")
    answer = await api.client.post("/v1/explain", json={"rule": "switched-off", "account_id": "ca_1"})
    assert "switched off (enabled: false)" in problem(answer, 404, "unknown_rule")["detail"]
