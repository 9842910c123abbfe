"""Kill -9 of receiver and worker in the middle of posted events: every accepted event is there once, and the alerts
are those of an undisturbed run."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ADMIN_TOKEN, SECRET, Servers
from tests.end_to_end.running import RULES, Running, post
from tests.fakes import serve, slack
from tests.make_requests import event_body

EVENTS = int(os.environ.get("AUTHWATCH_CRASH_EVENTS", "400"))  # `make crash` posts more
ACCOUNTS = 60
SENDERS = 16
KILLS = int(os.environ.get("AUTHWATCH_CRASH_KILLS", "3"))
SEED = int(os.environ.get("AUTHWATCH_CRASH_SEED") or random.randrange(10**6))
RETRIES_MAX = 400


def history(seed: int) -> list[bytes]:
    """Events of many accounts within the last minutes; shuffled a little, with duplicates among them."""
    dice = random.Random(seed)
    start = datetime.now(UTC) - timedelta(minutes=8)
    made: list[bytes] = []
    for n in range(EVENTS * 9 // 10):
        what = dice.choices(
            ["token_refresh_failed", "token_refresh_succeeded", "EXPIRED", "ACTIVE", "DISCONNECTED"], [60, 4, 3, 5, 2]
        )[0]
        data: dict[str, Any] = {"id": f"ca_{dice.randrange(ACCOUNTS)}"}
        type_ = f"connected_account.{what}"
        if what.isupper():
            type_, data["status"] = "connected_account.status_updated", what
        at = start + timedelta(seconds=480 * n / EVENTS)
        made.append(event_body(type_, id=f"evt_{seed}_{n}", occurred_at=at.isoformat(), data=data))
    made += dice.choices(made, k=EVENTS // 10)
    for n in range(len(made) - 1):  # arrive out of order, by up to a few places
        other = min(len(made) - 1, n + dice.randrange(6))
        made[n], made[other] = made[other], made[n]
    return made


@pytest.fixture
async def slack_url() -> AsyncIterator[tuple[slack.FakeSlack, str]]:
    fake = slack.FakeSlack()
    async with serve(fake.app) as url:
        yield fake, f"{url}/api/"


def running(folder: Path, database_url: str, servers: Servers, slack_api: str | None) -> Running:
    folder.mkdir()
    (folder / "rules").mkdir()
    (folder / "rules" / "all.yml").write_text(RULES)
    environment = {
        "DATABASE_URL": database_url,
        "REDIS_URL": servers.redis_url,
        "SCALEKIT_WEBHOOK_SECRET": SECRET,
        "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
        "AUTHWATCH_RULES": str(folder / "rules"),
    }
    if slack_api:
        environment |= {"SLACK_BOT_TOKEN": slack.TOKEN, "SLACK_CHANNEL": slack.CHANNEL, "SLACK_API_URL": slack_api}
    return Running(folder, environment)


async def put_workflows(service: Running) -> None:
    async with service.client() as client:
        for n in range(0, ACCOUNTS, 2):  # every other account has an active workflow
            answer = await client.put(f"/v1/workflows/w{n}", json={"account_ids": [f"ca_{n}"]})
            assert answer.status_code == 200


async def send(service: Running, bodies: list[bytes]) -> Counter[str]:
    """As the provider does: the same event again until somebody took it. The ledger of what was accepted."""
    ledger: Counter[str] = Counter()
    waiting = list(reversed(bodies))

    async def sender() -> None:
        async with service.client() as client:
            while waiting:
                body = waiting.pop()
                for _ in range(RETRIES_MAX):
                    try:
                        answer = await post(client, body)
                    except httpx.HTTPError:
                        await asyncio.sleep(0.05)
                        continue
                    if answer.status_code in (200, 202):
                        ledger[json.loads(body)["id"]] += answer.status_code == 202
                        break
                    assert answer.status_code == 503, answer.text
                    await asyncio.sleep(0.05)
                else:
                    raise AssertionError("never taken")

    await asyncio.gather(*(sender() for _ in range(SENDERS)))
    return ledger


async def story(service: Running) -> dict[str, Any]:
    await service.evaluated(60)
    await asyncio.sleep(2.5)  # the last EXPIRED gets the second it needs to count
    await service.evaluated(10)
    episodes = []
    cursor = ""
    while True:
        page = await service.get(f"/v1/alerts?limit=200{cursor}")
        episodes += [
            (one["rule"], one["account_id"], one["opened_at"], one["condition_ended_at"], one["state"])
            for one in page["items"]
        ]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    accounts = await service.get("/v1/accounts?limit=1000")
    return {
        "episodes": sorted(episodes, key=str),
        "accounts": {one["account_id"]: (one["status"], one["failures_in_a_row"]) for one in accounts["items"]},
        "feed": await service.feed(),
    }


@pytest.mark.timeout(1200)
async def test_killed_nine_times_over_it_tells_the_same_story(
    servers: Servers,
    make_database: Callable[[], str],
    slack_url: tuple[slack.FakeSlack, str],
    tmp_path: Path,
) -> None:
    print(f"seed {SEED}, {KILLS} kills; AUTHWATCH_CRASH_SEED={SEED} repeats it")
    bodies = history(SEED)
    calm = running(tmp_path / "calm", make_database(), servers, None)
    rough = running(tmp_path / "rough", make_database(), servers, slack_url[1])
    try:
        calm.start("serve", "worker")
        await calm.ready()
        await put_workflows(calm)
        await send(calm, bodies)
        expected = await story(calm)
        calm.stop()

        rough.start("serve", "worker")
        await rough.ready()
        await put_workflows(rough)
        dice = random.Random(SEED)
        sending = asyncio.create_task(send(rough, bodies))
        for _ in range(KILLS):
            await asyncio.sleep(dice.uniform(0.2, 1.2))
            part = dice.choice(["serve", "worker"])
            rough.kill(part)
            await asyncio.sleep(dice.uniform(0, 0.3))
            rough.start(part)
        ledger = await sending
        await rough.ready()
        found = await story(rough)

        wanted = {json.loads(body)["id"] for body in bodies}
        assert set(ledger) == wanted
        stored = Counter(item["event_id"] for item in found["feed"] if item["origin"] == "webhook")
        assert stored == Counter(dict.fromkeys(wanted, 1))
        positions = [item["position"] for item in found["feed"]]
        assert positions == sorted(set(positions))
        assert found["accounts"] == expected["accounts"]
        assert found["episodes"] == expected["episodes"], rough.logs()
        posts = Counter(call["metadata"]["event_payload"]["delivery_id"] for call in slack_url[0].messages)
        doubled = {delivery for delivery, times in posts.items() if times > 1}
        marked = {
            call["metadata"]["event_payload"]["delivery_id"]
            for call in slack_url[0].messages
            if "possible repeat" in slack_url[0].text_of(call)
        }
        assert doubled <= marked
    finally:
        calm.stop()
        rough.stop()
