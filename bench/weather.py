"""`make weather`: Slack answers 429 for ten minutes and a pager is down for an hour; every message arrives once, in order.

A real receiver and a real worker, on real servers; accounts break and heal all the while. The database's clock cannot be
turned, so the outages are shorter than life by a named factor, and so are Retry-After and the steps of the backoff
(`bench.weather_worker`): 30 by default, which makes 20 seconds and two minutes of it. WEATHER=full waits the real times.
It exits with 1 and names what is wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from bench import weather_judge as judge
from bench.ask import Asking
from bench.figure import quantile
from bench.house import BenchFailed, House, Server, one, open_house, say, wait
from bench.sky import Sky, open_sky
from bench.storm import prepare, taken_in
from bench.told import body_of, signed
from service.signatures import Secret, parse_secret

FASTER = 30.0
RAIN_SECONDS, DOWN_SECONDS, RETRY_AFTER_SECONDS = 600.0, 3600.0, 30.0  # in life
CALM_SECONDS = 12.0
CALM_ACCOUNTS, ACCOUNTS = 10, 40
ACKNOWLEDGED = 0.5  # of all breaks, those that somebody takes in hand
SEED = 20_261_126
BACKOFF_SECONDS_MAX, SETTLE_SECONDS = 300.0 * 1.2, 60.0
# p95 from verdict to message where the weather is fine: so much, or twice what it was in the calm of the same run.
UNAFFECTED_SECONDS, UNAFFECTED_TIMES = 2.0, 2.0
PREPARED_AT_ONCE = 4
RULES = """\
version: 1
rules:
- id: weather-account-disconnected
  severity: P2
  state: {of: account, match: [{status: DISCONNECTED, active_workflows: {gte: 1}}]}
  actions: [{pause_workflows: {depends_on: account_id, stable_for: 1s}}]
  annotations: {summary: "Account is {{ status }}", what_to_do: "Ask the owner to authorize it again."}
"""
ALERTS = """
SELECT id::text, account_id, state, extract(epoch FROM fired_at)::float8, dedup_key FROM alerts
WHERE account_id LIKE 'ca\\_%' ORDER BY fired_at
"""
OPEN = "SELECT (SELECT count(*) FROM actions WHERE state IN ('pending', 'running')) + (SELECT count(*) FROM alert_news) + (SELECT count(*) FROM deadlines)"
FAILED = "SELECT count(*) FROM actions WHERE state = 'failed'"


@dataclass(frozen=True, slots=True)
class Step:
    """`what`: DISCONNECTED, ACTIVE, or `acknowledge`; `at`: seconds after the weather broke."""

    at: float
    account: str
    what: str


@dataclass(slots=True)
class Scene:
    house: House
    secret: Secret
    url: str
    server: Server
    worker: subprocess.Popen[bytes]
    sky: Sky

    async def do(self, step: Step) -> None:
        asking = Asking(self.server.port, self.house.token)
        await asking.open()
        try:
            if step.what != "acknowledge":
                await taken_in(asking, signed(self.secret, body_of(step.account, step.what, time.time())))
                return
            _, found = await asking.ask("GET", f"/v1/alerts?account_id={step.account}&state=firing")
            for alert in found["items"]:
                status, said = await asking.ask("POST", f"/v1/alerts/{alert['id']}/acknowledge", {})
                if status not in (200, 409):
                    raise BenchFailed(f"an acknowledgement was answered {status}: {said}")
        finally:
            asking.close()


def steps_of(accounts: int, seconds: float, dice: random.Random) -> list[Step]:
    """Each account breaks and heals twice, at times of its own."""
    made = []
    for number in range(accounts):
        name, at = f"ca_weather_{number}", dice.uniform(0.0, 0.3)
        for _ in range(2):
            healed = at + dice.uniform(0.06, 0.17)
            made.append(Step(at * seconds, name, "DISCONNECTED"))
            if dice.random() < ACKNOWLEDGED:
                made.append(Step((at + healed) / 2 * seconds, name, "acknowledge"))
            made.append(Step(healed * seconds, name, "ACTIVE"))
            at = healed + dice.uniform(0.06, 0.17)
    return sorted(made, key=lambda step: step.at)


def config(sky: Sky) -> str:
    notifiers: dict[str, Any] = {"slack": sky.slack.section(), "spare": sky.spare.section(), "pager": sky.pager.section}
    return json.dumps({"notifiers": notifiers})


@asynccontextmanager
async def open_scene(house: House, faster: float) -> AsyncIterator[Scene]:
    url, folder = house.database("weather"), Path(house.folder)
    (folder / "weather-rules").mkdir()
    (folder / "weather-rules" / "rules.yml").write_text(RULES)
    async with AsyncExitStack() as stack:
        sky = await stack.enter_async_context(open_sky())
        (folder / "weather.yml").write_text(config(sky))
        more = {
            "AUTHWATCH_RULES": str(folder / "weather-rules"),
            "AUTHWATCH_CONFIG": str(folder / "weather.yml"),
        }
        server = house.server("ours", url, "ours-weather", more)
        stack.callback(house.stop, server.process)
        worker = start_worker(house, url, more, faster)
        stack.callback(house.stop, worker)
        yield Scene(house, parse_secret(house.secret, name="bench"), url, server, worker, sky)


def start_worker(house: House, url: str, more: Mapping[str, str], faster: float) -> subprocess.Popen[bytes]:
    process = house.start("worker-weather", ["-m", "bench.weather_worker", "--faster", str(faster)], url, more)
    log = house.folder / "worker-weather.log"

    def begun() -> bool:
        if process.poll() is not None:
            raise BenchFailed(f"the worker ended: {log.read_text()[-500:]}")
        return b"worker.started" in log.read_bytes()

    wait(begun, "the worker does not begin", log)
    return process


async def all_done(scene: Scene, seconds: float) -> int:
    """Waits until nothing is left to do; how much is, after so long."""
    until = time.monotonic() + seconds
    async with await psycopg.AsyncConnection.connect(scene.url, autocommit=True) as conn:
        while True:
            row = await (await conn.execute(OPEN.encode())).fetchone()
            left = int(row[0]) if row else 0
            if left == 0 or time.monotonic() > until:
                return left
            await asyncio.sleep(0.2)


async def carried_out(scene: Scene, steps: list[Step], began: float) -> None:
    for step in steps:
        await asyncio.sleep(max(0.0, began + step.at - time.monotonic()))
        await scene.do(step)


async def weather(house: House, faster: float) -> list[str]:
    """What is wrong; what was seen is printed."""
    rain, down, retry_after = RAIN_SECONDS / faster, DOWN_SECONDS / faster, max(1.0, RETRY_AFTER_SECONDS / faster)
    async with open_scene(house, faster) as scene:
        calm = [f"ca_calm_{number}" for number in range(CALM_ACCOUNTS)]
        steps = steps_of(ACCOUNTS, down, random.Random(SEED))
        names = [*calm, *sorted({step.account for step in steps})]
        for first in range(0, len(names), PREPARED_AT_ONCE):
            some = names[first : first + PREPARED_AT_ONCE]
            await prepare(scene.server.port, house.token, scene.secret, some)
        say(f"calm for {CALM_SECONDS:.0f} s")
        since = time.time()
        gap = CALM_SECONDS / 2 / CALM_ACCOUNTS
        fine = [Step(n * gap, name, "DISCONNECTED") for n, name in enumerate(calm)]
        fine += [Step(CALM_SECONDS / 2 + n * gap, name, "ACTIVE") for n, name in enumerate(calm)]
        await carried_out(scene, fine, time.monotonic())
        await all_done(scene, SETTLE_SECONDS)
        broke = time.time()
        say(f"Slack answers 429, Retry-After {retry_after:.0f}, for {rain:.0f} s; the pager is down for {down:.0f} s")
        await asyncio.gather(
            scene.sky.slack.rain(rain, retry_after),
            scene.sky.pager.down(down),
            carried_out(scene, steps, time.monotonic()),
        )
        back = time.time()
        say("the pager is back")
        left = await all_done(scene, BACKOFF_SECONDS_MAX / faster + SETTLE_SECONDS)
        say(
            f"everything was done {time.time() - back:.1f} s after that" if left == 0 else f"{left} things are not done"
        )
        return judged(scene, Times(since, broke, broke + rain, back, retry_after), left)


@dataclass(frozen=True, slots=True)
class Times:
    """By the wall clock, in seconds: the calm, the weather's begin, the end of Slack's rain, the pager's return."""

    calm: float
    broke: float
    dry: float
    back: float
    retry_after: float


def judged(scene: Scene, times: Times, left: int) -> list[str]:
    with psycopg.connect(scene.url, autocommit=True) as conn:
        alerts = conn.execute(ALERTS.encode()).fetchall()
    failed = int(one(scene.url, FAILED))
    ids = [str(row[0]) for row in alerts]
    fired_at = {str(row[0]): float(row[3]) for row in alerts}
    pager = scene.sky.pager
    heard = {
        "slack": scene.sky.slack.heard(),
        "spare": scene.sky.spare.heard(),
        "pager": pager.heard({str(row[4]): str(row[0]) for row in alerts}),
    }
    wanted, found = CALM_ACCOUNTS + 2 * ACCOUNTS, list[str]()
    if len(ids) != wanted or any(row[2] != "resolved" for row in alerts):
        found.append(f"{len(ids)} alerts, {sum(r[2] == 'resolved' for r in alerts)} of them resolved, and not {wanted}")
    if left or failed:
        found.append(f"{left} things were never done, {failed} actions failed for good")
    for name, came in heard.items():
        found += judge.problems(name, ids, came, keyed=name == "pager" and pager.keyed)
    refused = scene.sky.slack.refused()
    early = judge.asked_too_early(refused, scene.sky.slack.came(), times.retry_after)
    if not refused:
        found.append("Slack never answered 429: nothing was proved")
    if early:
        found.append(f"slack: asked {early} times while it had asked for quiet")
    calm = judge.delays(fired_at, heard["spare"], times.calm, times.broke)
    dry = times.dry + times.retry_after
    beside = {
        "spare, in the weather": judge.delays(fired_at, heard["spare"], times.broke, times.back),
        "slack, dry again while the pager is down": judge.delays(fired_at, heard["slack"], dry, times.back),
    }
    limit = max(UNAFFECTED_SECONDS, UNAFFECTED_TIMES * p95(calm))
    say(f"spare, in the calm: {len(calm)} alerts told, p95 {p95(calm):.2f} s after the verdict")
    for name, seconds in beside.items():
        say(f"{name}: {len(seconds)} alerts told, p95 {p95(seconds):.2f} s after the verdict")
        if p95(seconds) > limit:
            found.append(f"{name}: p95 {p95(seconds):.2f} s, which is over {limit:.2f} s")
    for name, came in heard.items():
        posts = sum(each.post for each in came)
        say(f"{name}: {posts} messages and {len(came) - posts} edits about {len(ids)} alerts")
    say(f"slack answered 429 {len(refused)} times, and was asked too early {early} times")
    say(f"pager ({pager.kind}): {pager.said()}")
    return found


def p95(seconds: list[float]) -> float:
    """Of none: no message came, which is as late as can be."""
    return quantile(seconds, 0.95) if seconds else float("inf")


def how_much_faster(word: str) -> float:
    """WEATHER: nothing, `full`, or the factor."""
    if word in ("", "short"):
        return FASTER
    try:
        faster = 1.0 if word == "full" else float(word)
    except ValueError:
        faster = 0.0
    if not 1.0 <= faster <= 60.0:
        sys.exit(f'weather: WEATHER is "{word}"; it is full, or how much faster than life, 1 to 60')
    return faster


def main() -> None:
    faster, began = how_much_faster(os.environ.get("WEATHER", "")), time.monotonic()
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # answers that are lost are so on purpose
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, stopped)
    signal.alarm(int(600 + 2 * DOWN_SECONDS / faster))
    say(f"{faster:g} times faster than life" if faster != 1 else "in real time")
    try:
        with open_house(short=True) as house:
            found = asyncio.run(weather(house, faster))
    except (BenchFailed, TimeoutError) as error:
        sys.exit(f"weather: {str(error) or 'the service did not answer in time'}")
    print(f"\ntook {(time.monotonic() - began) / 60:.1f} minutes")
    if found:
        sys.exit("\n".join(["weather: not every message arrived once, in order:", *found]))
    print("every message arrived once, in order per alert; whoever had fine weather was told in time")


def stopped(number: int, _frame: object) -> None:
    raise BenchFailed(f"stopped by {signal.Signals(number).name}")


if __name__ == "__main__":
    main()
