"""Bad weather on real processes: Postgres and Redis stopped, restarted, flushed, frozen. Nothing accepted is lost, no
alert is missed or doubled, and nothing of ours is restarted by hand.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis as RedisClient

from service import migrate
from service.embedded import Postgres, Redis, start_postgres, start_redis
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import RULES, Running, post, until
from tests.fakes import serve, slack
from tests.make_requests import event_body

FAILED = "connected_account.token_refresh_failed"
ANSWER_SECONDS_MAX = 10  # the provider's patience


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, Redis]]:
    folder = tmp_path_factory.mktemp("weather")
    postgres, redis = start_postgres(folder), start_redis(folder)
    migrate.upgrade(postgres.url)
    yield postgres, redis
    redis.remove()
    postgres.remove()


@pytest.fixture
async def house(own_servers: tuple[Postgres, Redis], tmp_path: Path) -> AsyncIterator[tuple[Running, slack.FakeSlack]]:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "all.yml").write_text(RULES)
    fake = slack.FakeSlack()
    async with serve(fake.app) as url:
        running = Running(
            tmp_path,
            {
                "DATABASE_URL": own_servers[0].url,
                "REDIS_URL": own_servers[1].url,
                "SCALEKIT_WEBHOOK_SECRET": SECRET,
                "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
                "AUTHWATCH_RULES": str(tmp_path / "rules"),
                "SLACK_BOT_TOKEN": slack.TOKEN,
                "SLACK_CHANNEL": slack.CHANNEL,
                "SLACK_API_URL": f"{url}/api/",
            },
        )
        try:
            yield running, fake
        finally:
            running.stop()


class Sender:
    """Posts failures, three for each account, and retries as the provider does; the ledger of what was accepted."""

    def __init__(self, running: Running, name: str) -> None:
        self.running, self.name = running, name
        self.ledger: set[str] = set()
        self.accounts = 0
        self.slowest_seconds = 0.0
        self.refusals: Counter[int] = Counter()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        async with self.running.client() as client:
            while not self._stop.is_set():
                account = f"ca_{self.name}_{self.accounts}"
                for _ in range(3):
                    # Each of a connection of its own, and so with a message of its own.
                    data = {"id": account, "connection_id": f"conn_{account}"}
                    await self.one(client, event_body(FAILED, data=data))
                self.accounts += 1

    async def more(self, accounts: int = 3) -> None:
        """Until the failures of so many more accounts are taken."""
        wanted = self.accounts + accounts

        async def there() -> bool:
            return self.accounts >= wanted

        await until(there, 20, self.running.logs)

    async def one(self, client: httpx.AsyncClient, body: bytes) -> None:
        for _ in range(400):
            began = time.monotonic()
            try:
                answer = await post(client, body)
            except httpx.HTTPError:
                await asyncio.sleep(0.05)
                continue
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
            if answer.status_code in (200, 202):
                self.ledger.add(json.loads(body)["id"])
                return
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
            self.refusals[answer.status_code] += 1
            await asyncio.sleep(0.05)
        raise AssertionError("never taken")

    def stop(self) -> None:
        self._stop.set()


async def start(server: Postgres | Redis) -> None:
    """As `server.start()` does; but from this thread, with which it would end, and without stopping all else here."""
    server.prepare()
    server.spawn()
    await until(lambda: asyncio.to_thread(server.is_ready), 60)


async def said(running: Running, word: str) -> bool:
    return word in running.whole_logs()


def published(running: Running) -> int:
    return running.whole_logs().count('"rules": 2, "event": "rules.published"')


async def rules_loaded(running: Running) -> None:
    """Readiness is the receiver's; this is the worker's."""
    await until(lambda: said(running, '"rules": 2'), 30, running.logs)


async def all_told(running: Running, fake: slack.FakeSlack, sender: Sender) -> None:
    """Every accepted event once, one alert and one post for each account."""

    async def posted() -> bool:
        mine = [message for message in fake.messages if sender.name in fake.text_of(message)]
        return len(mine) >= sender.accounts

    await until(posted, 40, running.logs)
    stored = Counter(item["event_id"] for item in await running.feed() if item["event_id"] in sender.ledger)
    assert stored == Counter(dict.fromkeys(sender.ledger, 1))
    alerts: Counter[str] = Counter()
    cursor = ""
    while True:
        page = await running.get(f"/v1/alerts?limit=500&rule=token-refresh-failing{cursor}")
        alerts.update(item["account_id"] for item in page["items"] if sender.name in item["account_id"])
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert alerts == Counter({f"ca_{sender.name}_{n}": 1 for n in range(sender.accounts)})
    posts = Counter(
        message["metadata"]["event_payload"]["delivery_id"]
        for message in fake.messages
        if sender.name in fake.text_of(message) and "possible repeat" not in fake.text_of(message)
    )
    assert len(posts) == sender.accounts
    assert set(posts.values()) == {1}


async def test_postgres_stopped_started_and_killed_under_load(
    house: tuple[Running, slack.FakeSlack], own_servers: tuple[Postgres, Redis]
) -> None:
    running, fake = house
    postgres = own_servers[0]
    running.start("serve", "worker")
    await running.ready()
    sender = Sender(running, "pg")
    sending = asyncio.create_task(sender.run())
    await sender.more()
    await asyncio.to_thread(postgres.stop)
    await asyncio.sleep(1.5)
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{running.url}/livez")).status_code == 200
        assert (await client.get(f"{running.url}/readyz")).status_code == 503
        assert "authwatch_database_up 0.0" in (await client.get(f"{running.url}/metrics")).text
    await start(postgres)
    await running.ready()
    await sender.more()
    assert postgres.process is not None
    postgres.process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(postgres.process.wait, 10)
    await asyncio.sleep(0.5)
    await start(postgres)
    await running.ready()
    await sender.more()
    sender.stop()
    await sending
    assert sender.refusals[503] > 0
    assert sender.slowest_seconds < ANSWER_SECONDS_MAX
    assert all(process.poll() is None for process in running.processes.values())
    await all_told(running, fake, sender)


async def test_redis_flushed_stopped_and_back(
    house: tuple[Running, slack.FakeSlack], own_servers: tuple[Postgres, Redis]
) -> None:
    running, fake = house
    redis = own_servers[1]
    running.start("serve", "worker")
    await running.ready()
    sender = Sender(running, "redis")
    sending = asyncio.create_task(sender.run())
    await sender.more()
    client = RedisClient.from_url(redis.url)
    await client.flushall()
    await client.aclose()
    await sender.more()
    await asyncio.to_thread(redis.stop)
    await asyncio.sleep(2)
    await start(redis)
    await asyncio.sleep(2)
    sender.stop()
    await sending
    assert sender.refusals == Counter()  # the accept path touches Postgres alone
    assert all(process.poll() is None for process in running.processes.values())
    await all_told(running, fake, sender)


async def test_redis_absent_from_the_start_and_a_frozen_worker(house: tuple[Running, slack.FakeSlack]) -> None:
    running, fake = house
    running.environment["REDIS_URL"] = "redis://127.0.0.1:1/0"
    running.start("serve", "worker")
    await running.ready()
    await rules_loaded(running)
    async with running.client() as client:
        for _ in range(3):
            assert (await post(client, event_body(FAILED, data={"id": "ca_absent"}))).status_code == 202

        async def told() -> bool:
            return any("ca_absent" in fake.text_of(message) for message in fake.messages)

        assert await until(told, 10, running.logs) < 6
        running.kill("worker", signal.SIGSTOP)
        for _ in range(3):
            assert (await post(client, event_body(FAILED, data={"id": "ca_frozen"}))).status_code == 202
        await asyncio.sleep(1)

        async def thawed() -> bool:
            return any("ca_frozen" in fake.text_of(message) for message in fake.messages)

        assert not await thawed()
        running.kill("worker", signal.SIGCONT)
        await until(thawed, 10, running.logs)


async def test_a_mistake_in_a_rule_file_harms_nothing_and_its_mend_is_in_force_soon(
    house: tuple[Running, slack.FakeSlack],
) -> None:
    running, fake = house
    running.start("serve", "worker")
    await running.ready()
    await rules_loaded(running)  # rules that were never good have no last good ones
    file = running.folder / "rules" / "all.yml"
    file.write_text(RULES.replace("within", "witin"))
    await until(lambda: said(running, 'unknown key \\"witin\\"; did you mean'), 20, running.logs)
    async with running.client() as client:
        for _ in range(3):
            await post(client, event_body(FAILED, data={"id": "ca_mistake"}))

        async def told(account: str, word: str) -> bool:
            return any(account in fake.text_of(m) and word in fake.text_of(m) for m in fake.messages)

        await until(lambda: told("ca_mistake", "Token refresh is failing"), 20, running.logs)
        before = published(running)
        file.write_text(RULES.replace("Token refresh is failing", "No refresh works"))

        async def is_published() -> bool:
            return published(running) > before

        # In force is what is published: between "good" and that, events are still judged by the rules before. How often,
        # and not by which number: a publication that is rolled back uses one up.
        await until(is_published, 20, running.logs)
        for _ in range(3):
            await post(client, event_body(FAILED, data={"id": "ca_mended", "connection_id": "conn_mended"}))
        await until(lambda: told("ca_mended", "No refresh works"), 20, running.logs)
