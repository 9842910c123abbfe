"""Faults that were measured in other alerting systems (Prefect 3, Alertmanager 0.25, Prometheus 2.42), each as a test
that this one passes: what it does after kill -9, after an outage, and with events that come late, twice or in the wrong
order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from tests.conftest import ADMIN_TOKEN, SECRET, Servers
from tests.end_to_end.running import Running, post, until
from tests.fakes import serve, slack
from tests.make_requests import event_body
from tests.workers.house import House, make_event, open_house
from tests.workers.passing import let_pass, started_anew
from workers.act import act
from workers.evaluate import evaluate

RULES = """\
version: 1
rules:
- id: not-recovered
  severity: P2
  absence: {after: {kind: token.refresh_failed}, expect: {kind: account.authorized}, within: 60s}
  annotations: {summary: "Nothing came after it"}
- id: three-failures
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 3}
  annotations: {summary: "It failed three times"}
- id: expired-for-a-while
  severity: P2
  state: {of: account, match: {status: EXPIRED}}
  for: 40s
  annotations: {summary: "It is expired"}
- id: gone
  severity: P2
  state: {of: account, match: {status: DISCONNECTED}}
  annotations: {summary: "{{ account_id }} is disconnected"}
"""


@pytest.fixture
async def house(database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(database_url, tmp_path / "house", rules=RULES) as opened:
        yield opened


async def of_rule(house: House, rule_id: str) -> list[str]:
    return [alert["state"] for alert in await house.alerts() if alert["rule_id"] == rule_id]


@pytest.fixture
async def running(
    servers: Servers, database_url: str, tmp_path: Path
) -> AsyncIterator[tuple[Running, slack.FakeSlack]]:
    """Receiver and worker as processes of their own."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "all.yml").write_text(RULES)
    fake = slack.FakeSlack()
    async with serve(fake.app) as url:
        environment = {
            "DATABASE_URL": database_url,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_RULES": str(tmp_path / "rules"),
            "SLACK_BOT_TOKEN": slack.TOKEN,
            "SLACK_CHANNEL": slack.CHANNEL,
            "SLACK_API_URL": f"{url}/api/",
        }
        made = Running(tmp_path, environment)
        made.environment["REDIS_URL"] = servers.redis_url
        try:
            yield made, fake
        finally:
            made.stop()


DISCONNECTED = "connected_account.status_updated"


async def disconnect(running: Running, accounts: int) -> set[str]:
    """The ids of what was accepted, one event for each account."""
    async with running.client() as client:

        async def one(number: int) -> str:
            data = {"id": f"ca_{number}", "status": "DISCONNECTED"}
            answer = await post(client, event_body(DISCONNECTED, data=data))
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        return set(await asyncio.gather(*(one(number) for number in range(accounts))))


async def was_answered(running: Running, alert_id: str) -> bool:
    actions = (await running.get(f"/v1/alerts/{alert_id}"))["actions"]
    return any(attempt["finished_at"] for action in actions for attempt in action["attempts"])


async def firing(running: Running) -> list[str]:
    page = await running.get("/v1/alerts?rule=gone&limit=1000")
    return [item["account_id"] for item in page["items"]]


def fired_in(running: Running) -> int:
    """Asked of the database, so that waiting takes no time of those who are waited for."""
    with psycopg.connect(running.environment["DATABASE_URL"]) as conn:
        [fired] = conn.execute("SELECT count(*) FROM alerts WHERE rule_id = 'gone'").fetchone() or (0,)
    return int(fired)


@pytest.mark.parametrize("redis", [True, False], ids=["with Redis", "without"])
async def test_200_accepted_and_killed_at_once_are_all_stored_and_fire_once(
    running: tuple[Running, slack.FakeSlack], redis: bool
) -> None:
    house, _ = running
    if not redis:
        del house.environment["REDIS_URL"]
    house.start("serve", "worker")
    await house.ready()
    accepted = await disconnect(house, 200)
    for part in ("serve", "worker"):
        house.kill(part)
    house.start("serve", "worker")
    await house.ready()

    async def all_fired() -> bool:
        return fired_in(house) >= 200

    await until(all_fired, 30, house.logs)
    assert sorted(await firing(house)) == sorted(f"ca_{number}" for number in range(200))
    assert {item["id"] for item in await house.feed() if item["origin"] == "webhook"} == accepted


async def test_killed_before_its_message_and_after_it_people_hear_of_an_alert_once(
    running: tuple[Running, slack.FakeSlack],
) -> None:
    """Alertmanager: never, and again."""
    house, fake = running
    house.start("serve", "worker")
    await house.ready()
    fake.rate_limit_next(retry_after="3")
    await disconnect(house, 1)

    async def put_off() -> bool:
        alerts = (await house.get("/v1/alerts?rule=gone"))["items"]
        return bool(alerts) and await was_answered(house, alerts[0]["id"])

    await until(put_off, 20, house.logs)
    house.kill("worker")
    assert fake.messages == []
    house.start("worker")

    async def posted() -> bool:
        return len(fake.messages) == 1

    await until(posted, 20, house.logs)
    for _ in range(2):
        house.kill("worker")
        last_seen = (await house.get("/v1/health"))["actions"]["last_seen_at"]
        house.start("worker")

        async def acted(before: str = last_seen) -> bool:
            return bool((await house.get("/v1/health"))["actions"]["last_seen_at"] > before)

        await until(acted, 20, house.logs)
    assert len(fake.messages) == 1
    assert len(fake.calls["chat.postMessage"]) == 2


@pytest.mark.parametrize("seconds_down", [15, 85])
async def test_an_absence_whose_deadline_passes_while_we_are_down_fires_at_the_start(
    house: House, seconds_down: float
) -> None:
    await house.told("failed")
    await let_pass(house, 50)
    await evaluate(house.runtime)
    assert await of_rule(house, "not-recovered") == []
    await let_pass(house, seconds_down)
    async with started_anew(house) as started:
        await evaluate(started.runtime)
        assert await of_rule(started, "not-recovered") == ["firing"]
        await evaluate(started.runtime)
        assert await of_rule(started, "not-recovered") == ["firing"], "once"


async def test_an_absence_armed_by_an_event_five_minutes_late_fires(house: House) -> None:
    await house.told("failed", ago=300)
    assert await of_rule(house, "not-recovered") == ["firing"]


async def test_an_expected_event_that_arrives_before_the_one_it_answers_is_no_false_alert(house: House) -> None:
    await house.told("ACTIVE", ago=10)
    await house.told("failed", ago=10.5)
    await let_pass(house, 120)
    await evaluate(house.runtime)
    assert await house.alerts() == []
    assert await house.rows("SELECT * FROM armed") == []


async def test_the_same_event_five_times_counts_once(house: House) -> None:
    receipt = make_event("failed", house.began)
    for _ in range(5):
        await house.accept(receipt)
        await evaluate(house.runtime)
    assert await of_rule(house, "three-failures") == []
    await house.told("failed")
    assert await of_rule(house, "three-failures") == [], "two are not three"


async def test_the_same_event_again_after_each_of_two_restarts_counts_once(house: House) -> None:
    receipt = make_event("failed", house.began)
    for _ in range(3):
        async with started_anew(house) as started:
            await started.accept(receipt)
            await evaluate(started.runtime)
    assert await of_rule(house, "three-failures") == []
    assert len(await house.rows("SELECT * FROM events WHERE origin = 'webhook'")) == 1


async def test_for_40_s_and_killed_at_25_s_fires_at_40_s(house: House) -> None:
    expired = (await house.told("EXPIRED")).event.occurred_at
    await let_pass(house, 25)
    async with started_anew(house) as started:
        await evaluate(started.runtime)
        await let_pass(house, 5)
        await evaluate(started.runtime)
        assert await house.alerts() == []
        await let_pass(house, 10)
        await evaluate(started.runtime)
    [alert] = await house.alerts()
    assert (alert["rule_id"], alert["state"]) == ("expired-for-a-while", "firing")
    assert alert["opened_at"] == expired, "which is 40 s after what is 40 s ago by now"


async def test_an_alert_whose_worker_was_killed_is_told_by_the_next(house: House) -> None:
    """Without waiting for the provider to say it again."""
    await house.told("DISCONNECTED")
    assert house.posts() == 0
    for _ in range(3):
        async with started_anew(house) as started:
            await act(started.runtime)
            assert house.posts() == 1
            await let_pass(house, 8)
