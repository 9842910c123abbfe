"""Says "now" through Redis: one arq job per wake-up, never one per event, and nothing is lost when it cannot be said.

With `workers/main.py`, the only file that knows arq. Redis holds no truth: the workers look by themselves every second.
"""

from __future__ import annotations

import asyncio
import contextlib

from arq.connections import ArqRedis, RedisSettings, create_pool
from redis.exceptions import RedisError

from service.observe import log

QUEUE_NAME = "authwatch"
# Job names; `workers/main.py` has a function for each, and a test holds the two together.
EVALUATE = "evaluate"
ACT = "act"
SHIP = "ship"
JOBS = (EVALUATE, ACT, SHIP)

INTERVAL_SECONDS = 0.05  # one wake-up answers for everything committed meanwhile; a story that has work stays awake
BACKOFF_SECONDS_MAX = 5.0
CONNECT_SECONDS = 1
# With no worker to take them, wake-ups would pile up; past this many another one says nothing new.
JOBS_WAITING_MAX = 100


def redis_settings(redis_url: str) -> RedisSettings:
    settings = RedisSettings.from_dsn(redis_url)
    settings.conn_timeout = CONNECT_SECONDS
    settings.conn_retries = 0
    return settings


class Nudger:
    """`nudge(job)` returns at once and never raises; `run` is the task that tells Redis."""

    def __init__(self, redis_url: str | None) -> None:
        self._redis_url = redis_url
        self._wanted: set[str] = set()
        self._event = asyncio.Event()
        self._redis: ArqRedis | None = None

    def nudge(self, job: str) -> None:
        if self._redis_url is not None:
            self._wanted.add(job)
            self._event.set()

    async def run(self) -> None:
        if self._redis_url is None:
            return
        backoff = INTERVAL_SECONDS
        try:
            while True:
                await self._event.wait()
                self._event.clear()
                jobs, self._wanted = self._wanted, set()
                try:
                    await self._tell(self._redis_url, jobs)
                    backoff = INTERVAL_SECONDS
                except (RedisError, OSError, TimeoutError) as exc:
                    # Dropped on purpose: the workers' own one-second look finds the work.
                    log.warning("nudge.failed", error=type(exc).__name__)
                    await self._close()
                    backoff = min(backoff * 2 + 0.1, BACKOFF_SECONDS_MAX)
                await asyncio.sleep(backoff)
        finally:
            await self._close()

    async def _tell(self, redis_url: str, jobs: set[str]) -> None:
        async with asyncio.timeout(CONNECT_SECONDS * 2):
            if self._redis is None:
                self._redis = await create_pool(redis_settings(redis_url), default_queue_name=QUEUE_NAME)
            if await self._redis.zcard(QUEUE_NAME) < JOBS_WAITING_MAX:
                for job in sorted(jobs):
                    await self._redis.enqueue_job(job)

    async def _close(self) -> None:
        redis, self._redis = self._redis, None
        if redis is not None:
            with contextlib.suppress(RedisError, OSError):
                await redis.aclose()
