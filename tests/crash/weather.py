"""The weather: each blow of the plan, on the real part, and the part back again as a supervisor would bring it back."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg
from redis.asyncio import Redis as RedisClient
from redis.exceptions import RedisError

from tests.crash.house import House, family, processes_of, tell_all
from tests.crash.plan import Blow

STOP_SECONDS_MAX = 20.0
TEND_SECONDS = 0.1
BACKENDS_SECONDS_MAX = 8.0
POLL_SECONDS = 0.03
# What a blow keeps busy: blows on the same part wait for each other, all others fall together.
BUSY = {"child": "receiver", "backend": "postgres", "disk": "postgres"}
SERVERS = ("postgres", "redis")
PARTS = {"receiver": "serve", "worker": "worker"}  # by their names in Running


@dataclass(frozen=True, slots=True)
class Struck:
    """A blow that fell; `at` by the monotonic clock. `felt`: it found what it was meant for."""

    blow: Blow
    at: float
    felt: bool = True
    reason: str = ""


@dataclass(slots=True)
class Weather:
    house: House
    seed: int
    struck: list[Struck] = field(default_factory=list)
    own_ends: list[str] = field(default_factory=list)  # parts of ours that ended although nobody struck them
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    def timeline(self, began: float) -> str:
        """What fell when, for whoever must find out why."""
        return "\n".join(
            f"{one.at - began:6.1f} s {one.blow.name} for {one.blow.seconds} s {one.reason}" for one in self.struck
        )

    def kills(self) -> int:
        return sum(struck.felt and struck.blow.what == "kill" for struck in self.struck)

    def counted(self) -> Counter[str]:
        return Counter(struck.blow.name for struck in self.struck if struck.felt)

    async def run(self, plan: Sequence[Blow]) -> None:
        """All of it; ends when everything is up again."""
        began = time.monotonic()
        tending = asyncio.create_task(self._tend())
        try:
            async with asyncio.TaskGroup() as group:
                for blow in plan:
                    await asyncio.sleep(max(0.0, began + blow.at_seconds - time.monotonic()))
                    group.create_task(self._fall(blow))
                    await asyncio.sleep(0)
        finally:
            tending.cancel()
            await asyncio.gather(tending, return_exceptions=True)
        for name in SERVERS:
            await self.house.server_back(name)

    def _lock(self, target: str) -> asyncio.Lock:
        return self._locks.setdefault(BUSY.get(target, target), asyncio.Lock())

    async def _fall(self, blow: Blow) -> None:
        async with self._lock(blow.target):
            match blow.what:
                case "kill":
                    await self._kill(blow)
                case "freeze":
                    await self._freeze(blow)
                case "restart":
                    await self._restart(blow)
                case "flush":
                    await self._flush(blow)
                case "fill":
                    await self._fill(blow)
                case "stall" | "blackhole" | "reset":
                    await self._cut(blow)

    def _note(self, blow: Blow, felt: bool = True, reason: str = "") -> None:
        self.struck.append(Struck(blow, time.monotonic(), felt, reason))

    async def _kill(self, blow: Blow) -> None:
        house, dice = self.house, random.Random(f"{self.seed} {blow.number}")
        if blow.target in ("receiver", "worker"):
            part = PARTS[blow.target]
            self._look(part)
            self._note(blow)
            house.parts.kill(part)
            await self._start_again(part, blow)
        elif blow.target == "child":
            # One process of several, which uvicorn starts anew; of a single one it is that one.
            self._look("serve")
            pids = processes_of(house.pid("serve"))
            self._note(blow)
            if pids:
                tell_all([dice.choice(pids)], signal.SIGKILL)
            else:
                house.parts.kill("serve")
                await self._start_again("serve", blow)
        elif blow.target in SERVERS:
            server = house.server(blow.target)
            await house.server_back(blow.target)
            assert server.process is not None
            self._note(blow)
            server.process.kill()
            server.process.wait(STOP_SECONDS_MAX)
            await asyncio.sleep(blow.seconds)
            await house.server_back(blow.target)
        else:
            await house.server_back("postgres")
            pids = await self._backends()
            self._note(blow, felt=bool(pids), reason="" if pids else "nobody was connected")
            if pids:
                tell_all([dice.choice(pids)], signal.SIGKILL)

    async def _backends(self) -> list[int]:
        """Postgres' processes that serve ours; it may still be recovering from the blow before."""
        deadline = time.monotonic() + BACKENDS_SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                async with await self.house.connect() as conn:
                    rows = await (
                        await conn.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'authwatch'")
                    ).fetchall()
            except psycopg.OperationalError:
                rows = []
            if rows:
                return sorted(int(str(row[0])) for row in rows)
            await asyncio.sleep(TEND_SECONDS)
        return []

    async def _start_again(self, part: str, blow: Blow) -> None:
        if part == "worker":
            await self.house.end_leases()
        await asyncio.sleep(blow.seconds)
        if part == "worker":
            self.house.parts.start("worker")
        else:
            await self.house.serve_again(blow.processes)

    async def _freeze(self, blow: Blow) -> None:
        house = self.house
        if blow.target in SERVERS:
            await house.server_back(blow.target)
        pids = family(house.pid(PARTS.get(blow.target, blow.target)))
        self._note(blow)
        tell_all(pids, signal.SIGSTOP)
        try:
            await asyncio.sleep(blow.seconds)
        finally:
            tell_all(reversed(pids), signal.SIGCONT)

    async def _restart(self, blow: Blow) -> None:
        house = self.house
        if blow.target in SERVERS:
            server = house.server(blow.target)
            await house.server_back(blow.target)
            process = server.process
            assert process is not None
            self._note(blow)
            # Postgres' "fast" shutdown; Redis takes both.
            process.send_signal(signal.SIGINT)
            await ended(process)
            await asyncio.sleep(blow.seconds)
            await house.server_back(blow.target)
            return
        part = PARTS[blow.target]
        self._look(part)
        self._note(blow)
        process = house.parts.processes[part]
        process.send_signal(signal.SIGTERM)
        await ended(process)
        await self._start_again(part, blow)

    async def _flush(self, blow: Blow) -> None:
        client = RedisClient.from_url(self.house.redis.url, socket_timeout=1, socket_connect_timeout=1)
        try:
            await client.flushall()
            self._note(blow)
        except (RedisError, OSError, TimeoutError) as exc:
            self._note(blow, felt=False, reason=type(exc).__name__)
        finally:
            await client.aclose()

    async def _fill(self, blow: Blow) -> None:
        house = self.house
        if house.disk.why_not:
            self._note(blow, felt=False, reason=house.disk.why_not)
            return
        await house.server_back("postgres")
        self._note(blow)
        deadline = time.monotonic() + blow.seconds
        try:
            while time.monotonic() < deadline:  # what Postgres frees is taken too, or it would hardly notice
                await asyncio.to_thread(house.disk.fill)
                await asyncio.sleep(0.2)
        finally:
            house.disk.empty()
        await house.server_back("postgres")

    async def _cut(self, blow: Blow) -> None:
        wire = self.house.postgres_wire if blow.target == "postgres_wire" else self.house.redis_wire
        self._note(blow)
        if blow.what == "reset":
            await wire.reset()
        else:
            await (wire.stall if blow.what == "stall" else wire.blackhole)(blow.seconds)

    def _look(self, part: str) -> None:
        """A part of ours that has ended by itself is a finding, and is started again all the same."""
        process = self.house.parts.processes[part]
        if process.poll() is not None:
            self.own_ends.append(f"{part} ended by itself with status {process.returncode}")
            self.house.parts.start(part)

    async def _tend(self) -> None:
        """What ends by itself is started again: Postgres may, on a full disk."""
        while True:
            await asyncio.sleep(TEND_SECONDS)
            for name in SERVERS:
                if not self._lock(name).locked():
                    process = self.house.server(name).process
                    if process is not None and process.poll() is not None:
                        async with self._lock(name):
                            await self.house.server_back(name)
            for name, part in PARTS.items():
                if not self._lock(name).locked():
                    self._look(part)


async def ended(process: subprocess.Popen[bytes]) -> None:
    """Who was asked to end has a while to do it."""
    deadline = time.monotonic() + STOP_SECONDS_MAX
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
        await asyncio.sleep(POLL_SECONDS)
