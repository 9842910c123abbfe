"""The weather: each blow of the plan, on the real part, and the part back again as a supervisor would bring it back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import psycopg
from redis.asyncio import Redis as RedisClient
from redis.exceptions import RedisError

from tests.crash.house import House, family, processes_of, tell_all
from tests.crash.plan import Blow
from tests.forked import Forked

STOP_SECONDS_MAX = 20.0
TEND_SECONDS = 0.1
STRIKE_SECONDS_MAX = 60.0  # until there is something to strike
POLL_SECONDS = 0.03
# What a blow keeps busy: blows on the same part wait for each other, all others fall together.
BUSY = {"child": "receiver", "backend": "postgres", "disk": "postgres"}
PATIENT, TAKING_SECONDS_MAX = 0.5, 10.0  # of the kills of what accepting needs, those that wait until it accepts
SERVERS = ("postgres", "redis")
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'authwatch' AND backend_type = 'client backend'"
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
    own_ends: list[str] = field(default_factory=list)  # parts of ours that ended unasked, or did not when asked
    children_killed: int = 0
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

    def problems(self, plan: Sequence[Blow], *, long: bool) -> list[str]:
        """Where the weather was not as bad as it was to be: a house that nothing struck has proved nothing."""
        return [*self.own_ends, *unfelt(plan, self.struck, "" if long else self.house.disk.why_not), *self.child_ends()]

    def child_ends(self) -> list[str]:
        """A process of a receiver that has several is started anew only when it was killed."""
        log = (self.house.parts.folder / "serve.log").read_text(errors="replace")
        more = log.count("Started server process") - self.house.receiver_processes - self.children_killed
        return [f"{more} processes of receivers ended by themselves and were started anew"] if more > 0 else []

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
        if blow.target in ("receiver", "child", "backend") and dice.random() < PATIENT:
            await self._taking()
        if blow.target in ("receiver", "worker"):
            part = PARTS[blow.target]
            self._look(part)
            self._note(blow)
            house.parts.kill(part)
            await self._start_again(part, blow)
        elif blow.target == "child":
            # One process of several, which uvicorn starts anew.
            async def children() -> list[int]:
                self._look("serve")
                return processes_of(house.pid("serve"))

            await self._kill_one_of(blow, dice, children)
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
            await self._kill_one_of(blow, dice, self._backends)

    async def _kill_one_of(self, blow: Blow, dice: random.Random, find: Callable[[], Awaitable[Sequence[int]]]) -> None:
        """One of several that come and go: whichever was found may be gone already, and then it is another."""
        deadline = time.monotonic() + STRIKE_SECONDS_MAX
        while time.monotonic() < deadline:
            pids = await find()
            if pids:
                pid, at = dice.choice(pids), time.monotonic()
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.children_killed += blow.target == "child"
                    self.struck.append(Struck(blow, at))
                    return
            await asyncio.sleep(TEND_SECONDS)
        self._note(blow, felt=False, reason="there was none to kill")

    async def _taking(self) -> None:
        """Waits a while until the receiver takes events: on a slow machine it would else only ever die at its start."""
        deadline = time.monotonic() + TAKING_SECONDS_MAX
        async with httpx.AsyncClient(base_url=self.house.parts.url, trust_env=False, timeout=1.0) as client:
            while time.monotonic() < deadline:
                with suppress(httpx.HTTPError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                await asyncio.sleep(TEND_SECONDS)

    async def _backends(self) -> list[int]:
        """Postgres' processes that serve ours; it may still be recovering from the blow before."""
        try:
            async with await self.house.connect() as conn:
                rows = await (await conn.execute(BACKENDS)).fetchall()
        except psycopg.OperationalError:
            return []
        return sorted(int(str(row[0])) for row in rows)

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
            await ended(process)  # one that has no time left is killed, which is weather too
            await asyncio.sleep(blow.seconds)
            await house.server_back(blow.target)
            return
        part = PARTS[blow.target]
        self._look(part)
        self._note(blow)
        await self.end(part)
        await self._start_again(part, blow)

    async def end(self, part: str) -> None:
        """Asked to end, a part of ours does it in time, whatever the weather; or it is a finding."""
        process = self.house.parts.processes[part]
        process.send_signal(signal.SIGTERM)
        if not await ended(process):
            self.own_ends.append(f"{part} did not end within {STOP_SECONDS_MAX:.0f} s of SIGTERM")

    async def _flush(self, blow: Blow) -> None:
        client = RedisClient.from_url(self.house.redis.url, socket_timeout=5, socket_connect_timeout=5)
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


def unfelt(plan: Sequence[Blow], struck: Sequence[Struck], why_no_disk: str) -> list[str]:
    """Kills that never fell, and kinds of blow of which none was felt; `why_no_disk` excuses a disk never filled."""
    asked, fell = (sum(blow.what == "kill" for blow in blows) for blows in (plan, felt_of(struck)))
    names = {blow.name for blow in plan} - {blow.name for blow in felt_of(struck)}
    never = sorted(name for name in names if not (why_no_disk and name == "fill disk"))
    return [
        *([f"{asked} kills were to fall, and {fell} fell"] if asked != fell else []),
        *(f"never felt: {name}" for name in never),
    ]


def felt_of(struck: Sequence[Struck]) -> list[Blow]:
    return [one.blow for one in struck if one.felt]


async def ended(process: subprocess.Popen[bytes] | Forked) -> bool:
    """Who was asked to end has a while to do it; False: had to be killed."""
    deadline, in_time = time.monotonic() + STOP_SECONDS_MAX, True
    while process.poll() is None:
        if time.monotonic() > deadline:
            in_time = False
            process.kill()
        await asyncio.sleep(POLL_SECONDS)
    return in_time
