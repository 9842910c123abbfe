"""From the outside to the message: an event, a recovery and a deadline that passes, each until Slack's stand-in has heard.

A receiver, a worker, the shipped rules and one more with a deadline of three seconds; a workflow of its own depends on
each account. One thing happens at a time, at no fixed rhythm; the bare loop takes its turn in each round.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psycopg
import uvloop

from bench import storm
from bench.ask import Asking
from bench.bare import Bare
from bench.figure import Figure, quantile, ratio_of
from bench.house import ROOT, BenchFailed, House, say
from bench.slack import CHANNEL, Ears, start_slack
from bench.told import body_of, signed
from service.signatures import Secret, parse_secret

ROUNDS, ROUNDS_SHORT = 3, 1
EACH, EACH_SHORT = 40, 3
PAUSE_SECONDS_MAX = 0.1
HEARD_SECONDS_MAX = 15.0
WITHIN_SECONDS = 3.0
REACH = {"alert": 0.2, "absence": 1.0, "resolve": 1.0}
RULE = f"""version: 1
rules:
- id: bench-not-confirmed
  severity: P2
  absence:
    after: {{kind: account.updated}}
    expect: {{kind: account.authorized}}
    within: {WITHIN_SECONDS:.0f}s
  group_by: [account_id]
  annotations: {{summary: "An update that nothing confirmed"}}
"""


@dataclass(slots=True)
class Taken:
    """Seconds of one round."""

    alert: list[float]
    resolve: list[float]
    absence: list[float]
    bare: list[float]
    bare_absence: list[float]


@dataclass(slots=True)
class Scene:
    """Everything that runs, and our hands on it."""

    house: House
    secret: Secret
    post: Asking
    ears: Ears
    bare: Bare
    conn: psycopg.AsyncConnection[tuple[str | None]]
    port: int
    url: str
    chance: random.Random
    unheard: deque[tuple[float, str, str, str]] = field(default_factory=deque)  # came together with what was waited for

    async def send(self, raw: bytes) -> None:
        self.post.send(raw)
        status, _ = await self.post.answer()
        if status != 202:
            raise BenchFailed(f"an event was answered {status}")

    async def hear(self, wanted: Callable[[str, str, str], bool]) -> float:
        """When it came; `wanted` is asked with method, delivery id and title of each message."""
        until = time.monotonic() + HEARD_SECONDS_MAX
        while time.monotonic() < until:
            if not self.unheard:
                self.unheard.extend(await self.ears.listen())
            while self.unheard:
                at, method, delivery, title = self.unheard.popleft()
                if wanted(method, delivery, title):
                    return at
        raise BenchFailed(f"no message within {HEARD_SECONDS_MAX:.0f} s")

    async def account_of(self, delivery: str) -> str | None:
        """Whose alert a message is about."""
        found = await self.conn.execute("SELECT account_id FROM alerts WHERE id::text = %s", (delivery.split(":")[0],))
        row = await found.fetchone()
        return row[0] if row else None

    async def breathe(self) -> None:
        await asyncio.sleep(self.chance.uniform(0.0, PAUSE_SECONDS_MAX))


def measure(house: House) -> list[Figure]:
    return uvloop.run(measured(house))


@asynccontextmanager
async def open_scene(house: House) -> AsyncIterator[Scene]:
    url = house.database("alerting")
    rules = Path(house.folder) / "alerting-rules"
    shutil.copytree(ROOT / "alert_rules", rules)
    (rules / "bench-not-confirmed.yml").write_text(RULE)
    stand_in, port = start_slack(house, url)
    more = {
        "AUTHWATCH_RULES": str(rules),
        "SLACK_BOT_TOKEN": "xoxb-bench-token",
        "SLACK_CHANNEL": CHANNEL,
        "SLACK_API_URL": f"http://127.0.0.1:{port}/api/",
    }
    server = house.server("ours", url, "ours-alerting", more)
    worker = house.worker(url, "worker-alerting", more)
    post, ears, bare = Asking(server.port, house.token), Ears(port), Bare(url, port)
    await post.open()
    await ears.open()
    await bare.open()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        secret = parse_secret(house.secret, name="bench")
        yield Scene(house, secret, post, ears, bare, conn, server.port, url, random.Random(20_261_126))
    post.close()
    ears.close()
    await bare.close()
    for process in (worker, server.process, stand_in):
        house.stop(process)


async def measured(house: House) -> list[Figure]:
    rounds, each = (ROUNDS_SHORT, EACH_SHORT) if house.short else (ROUNDS, EACH)
    taken: list[Taken] = []
    async with open_scene(house) as scene:
        for number in range(rounds):
            names = [f"ca_alert_{number}_{one}" for one in range(each)]
            await storm.prepare(scene.port, house.token, scene.secret, names)
            taken.append(await one_round(scene, names, f"bare_{number}"))
            say(f"round {number + 1}/{rounds}: " + summary(taken[-1]))
        figures = figures_of(taken)
        say("500 accounts at once")
        figures.insert(1, await storm.measure(scene.port, house, scene.secret, scene.ears, scene.bare, scene.conn))
    return figures


async def one_round(scene: Scene, names: list[str], bare: str) -> Taken:
    alert = [await told(scene, name, "DISCONNECTED") for name in names]
    taken = [await bare_told(scene, f"{bare}_{name}") for name in names]
    resolve = [await told(scene, name, "ACTIVE") for name in names]
    absence = await absences(scene, [f"{name}_late" for name in names])
    return Taken(alert, resolve, absence, taken, await bare_absences(scene, f"{bare}_late", len(names)))


async def told(scene: Scene, name: str, status: str) -> float:
    """Seconds from just before the POST until the message about this account's change came."""
    await scene.breathe()
    method, lead = ("chat.update", "Resolved: ") if status == "ACTIVE" else ("chat.postMessage", "")
    raw = signed(scene.secret, body_of(name, status, time.time()))
    began = time.monotonic()
    posting = asyncio.create_task(scene.send(raw))
    while True:
        delivery = ""

        def mine(by: str, of: str, title: str) -> bool:
            nonlocal delivery
            delivery = of
            return by == method and lead in title

        at = await scene.hear(mine)
        if await scene.account_of(delivery) == name:
            await posting
            return at - began


async def bare_told(scene: Scene, name: str) -> float:
    await scene.breathe()
    body = json.dumps(body_of(name, "DISCONNECTED", time.time())).encode()
    began = time.monotonic()
    await scene.bare.take(name, body)
    return await scene.hear(lambda _method, delivery, _title: delivery == name) - began


async def absences(scene: Scene, names: list[str]) -> list[float]:
    """Seconds from each deadline until its message came."""
    due: dict[str, float] = {}
    for name in names:
        await scene.breathe()
        at = time.time()
        due[name] = time.monotonic() + WITHIN_SECONDS - (time.time() - at)
        await scene.send(signed(scene.secret, body_of(name, "ACTIVE", at, what="updated")))
    past: dict[str, float] = {}
    until = max(due.values()) + HEARD_SECONDS_MAX
    while len(past) < len(names):
        if time.monotonic() > until:
            raise BenchFailed(f"{len(names) - len(past)} absences were not told")
        for at, method, delivery, _ in await scene.ears.listen():
            whose = await scene.account_of(delivery)
            if method == "chat.postMessage" and whose in due and whose not in past:
                past[whose] = at - due[whose]
    return list(past.values())


async def bare_absences(scene: Scene, prefix: str, count: int) -> list[float]:
    """A timer of the event loop for each, then the bare loop: nothing about it would survive its process."""
    first = time.monotonic() + PAUSE_SECONDS_MAX
    due = {f"{prefix}_{n}": first + n * scene.chance.uniform(0.0, PAUSE_SECONDS_MAX) for n in range(count)}

    async def later(name: str) -> None:
        await asyncio.sleep(due[name] - time.monotonic())
        await scene.bare.take(name, b"{}")

    timers = [asyncio.create_task(later(name)) for name in due]
    past: dict[str, float] = {}
    until = max(due.values()) + HEARD_SECONDS_MAX
    while len(past) < count and time.monotonic() < until:
        for at, _, delivery, _ in await scene.ears.listen():
            if delivery in due:
                past[delivery] = at - due[delivery]
    await asyncio.gather(*timers)
    if len(past) < count:
        raise BenchFailed(f"{count - len(past)} of the bare loop's deadlines were not told")
    return list(past.values())


def summary(taken: Taken) -> str:
    return (
        f"alert p95 {quantile(taken.alert, 0.95):.3f} s, resolve max {max(taken.resolve):.3f} s, past a deadline max"
        f" {max(taken.absence):.3f} s; the bare loop p95 {quantile(taken.bare, 0.95):.3f} s"
    )


def figures_of(taken: list[Taken]) -> list[Figure]:
    ways: list[tuple[str, str, Callable[[list[float]], float], list[list[float]], list[list[float]]]] = [
        ("event posted to alert webhook, p95", "alert", p95, [t.alert for t in taken], [t.bare for t in taken]),
        ("past an absence deadline, max", "absence", max, [t.absence for t in taken], [t.bare_absence for t in taken]),
        ("recovery to resolve, max", "resolve", max, [t.resolve for t in taken], [t.bare for t in taken]),
    ]
    return [figure(name, REACH[key], of, mine, its) for name, key, of, mine, its in ways]


def p95(seconds: list[float]) -> float:
    return quantile(seconds, 0.95)


def figure(
    name: str, reach: float, of: Callable[[list[float]], float], mine: list[list[float]], its: list[list[float]]
) -> Figure:
    """A maximum is one over every round; a quantile is the median of the rounds'."""
    ours, control = [of(one) for one in mine], [of(one) for one in its]
    everything = sorted(second for one in mine for second in one)
    whole = max(ours) if of is max else median(ours)
    return Figure(
        name=name,
        unit="s",
        ours=ours,
        control_name="bare loop: INSERT, NOTIFY, POST",
        control=control,
        ratio=ratio_of(ours, control),
        reach=f"at most {reach} s" + (" in every round" if of is max else ""),
        met=whole <= reach,
        digits=3,
        notes=[
            f"{len(everything)} in {len(mine)} rounds, one at a time; p50 {quantile(everything, 0.5):.3f} s, p95 "
            f"{quantile(everything, 0.95):.3f} s, the slowest {everything[-1]:.3f} s; the bare loop's p50 "
            f"{quantile([second for one in its for second in one], 0.5):.3f} s"
        ],
    )
