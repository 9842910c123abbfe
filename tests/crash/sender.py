"""The provider: it sends each event until somebody takes it, a bounded number of times, and writes down every answer."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from tests.conftest import SECRET
from tests.crash.history import Delivery
from tests.make_requests import signed

PATIENCE_SECONDS = 10.0  # the provider's, by its documentation
RETRY_SECONDS = (0.1, 0.3, 0.6, 1.0, 1.5)  # its 5 s, 30 s, 2 min ..., in a smaller world; then the last for ever
ATTEMPTS_MAX = 300
IN_FLIGHT_MAX = 200
OTHER_SECRET = "whsec_" + "c29tZWJvZHkgZWxzZSdzIHNlY3JldCAwMDAwMDAwMDA="
STALE_SECONDS = 400
FORGERY_REFUSED = 401


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` 0: none came. `id` and `word` are of the answer's body; `at` is this machine's monotonic clock."""

    delivery: Delivery
    at: float
    status: int
    word: str = ""
    id: str = ""


@dataclass(slots=True)
class Ledger:
    answers: list[Answer] = field(default_factory=list)
    never_taken: list[Delivery] = field(default_factory=list)
    started: int = 0
    settled: int = 0

    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    def told(self, began: float) -> str:
        """Every answer, a line each, for whoever must find out why."""
        return "\n".join(
            f"{one.at - began:8.3f} {one.status} {one.word or '-'} {one.delivery.message_id} {one.id}"
            for one in self.answers
        )

    def taken(self) -> list[Answer]:
        """Answered with a 2xx, forged or not."""
        return [answer for answer in self.answers if 200 <= answer.status < 300]


class Sender:
    def __init__(self, url: str) -> None:
        self.ledger = Ledger()
        self._url = url
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def run(self, deliveries: Sequence[Delivery]) -> None:
        """Each at its time, from now on; ends when all are settled."""
        began = time.monotonic()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=40)
        async with (
            httpx.AsyncClient(base_url=self._url, trust_env=False, timeout=PATIENCE_SECONDS, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            for delivery in deliveries:
                wait = began + delivery.at_seconds - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                self.ledger.started += 1
                group.create_task(self._deliver(client, delivery))

    async def _deliver(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        for attempt in range(ATTEMPTS_MAX):
            async with self._slots:
                answer = await ask(client, delivery)
            self.ledger.answers.append(answer)
            if 200 <= answer.status < 300 or (delivery.forged and answer.status == FORGERY_REFUSED):
                self.ledger.settled += 1
                return
            pause = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))
        self.ledger.never_taken.append(delivery)


async def ask(client: httpx.AsyncClient, delivery: Delivery) -> Answer:
    """One attempt, signed anew: the time in its signature is the attempt's."""
    try:
        got = await client.post("/webhooks/scalekit", content=delivery.body, headers=headers_of(delivery))
        said = got.json() if got.is_success else {}
    except (httpx.HTTPError, json.JSONDecodeError):
        return Answer(delivery, time.monotonic(), 0)
    return Answer(delivery, time.monotonic(), got.status_code, said.get("status", ""), said.get("id", ""))


def headers_of(delivery: Delivery) -> dict[str, str]:
    message_id, body = delivery.message_id, delivery.body
    match delivery.forged:
        case "":
            return signed(body, SECRET, message_id=message_id)
        case "unsigned":
            return {"content-type": "application/json", "webhook-id": message_id}
        case "wrong_secret":
            return signed(body, OTHER_SECRET, message_id=message_id)
        case "changed_body":
            return signed(body + b" ", SECRET, message_id=message_id)
        case "too_old":
            return signed(body, SECRET, message_id=message_id, at=int(time.time()) - STALE_SECONDS)
    raise AssertionError(f"no such forgery: {delivery.forged}")
