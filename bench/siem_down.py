"""A sink that is down for an hour under 500 events/s and then catches up, and how late alerts are meanwhile.

A real receiver, a real worker with the shipped rules, the generator of `make bench` and the stand-ins for Splunk and Slack.
The hour is shorter by a named factor, and with it what piles up; the waits between two tries are the real ones, up to half
a minute, and so the stand-in is asked for the first time that late. Accounts break all the while, each once; an alert counts
from just before its event is posted until its message came. The control is the calm of the same run.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import uvloop

from bench.ask import Asking
from bench.figure import Figure, quantile
from bench.hec import StandIn, spawn_hec, start_hec
from bench.house import HOST, BenchFailed, House, generator, say
from bench.siem_judge import Came, judged
from bench.siem_push import sinks
from bench.slack import CHANNEL, Ears, start_slack
from bench.storm import prepare, taken_in
from bench.told import body_of, signed
from service import children
from service.signatures import Secret, parse_secret

FASTER = 30.0
DOWN_SECONDS, DOWN_SECONDS_SHORT = 3600.0 / FASTER, 5.0
CALM_SECONDS, CALM_SECONDS_SHORT = 40.0, 5.0
RATE, RATE_SHORT = 500, 100
CATCH_UP_SECONDS_MAX, CATCH_UP_SECONDS_SHORT = 120.0, 20.0  # with accounts enough for so long
PER_SECOND = {"calm": 4.0, "down": 2.0, "catching up": 4.0}  # accounts that break
PREPARED_AT_ONCE = 50
ALERT_SECONDS, TIMES_MAX = 0.2, 1.5  # the figure of `make bench`, or so much of the calm where that is no better
ALERTS_MIN, ALERTS_MIN_SHORT = 20, 3  # a sink that is level at once is measured a little longer
HEARD_SECONDS_MAX, LOOK_SECONDS = 30.0, 0.1
STANDS = """
SELECT coalesce((SELECT position FROM readers WHERE name = 'sink:splunk'), 0), (SELECT max(position) FROM events)
"""
AGAIN = "SELECT sent_again FROM readers WHERE name = 'sink:splunk'"
LOG = "SELECT position FROM events WHERE origin <> 'probe' AND position <= %s ORDER BY position"
ALERTS = "SELECT id::text, account_id FROM alerts WHERE account_id = ANY(%s)"


@dataclass(slots=True)
class Scene:
    house: House
    url: str
    secret: Secret
    port: int  # of the receiver
    hec: StandIn
    ears: Ears
    conn: psycopg.AsyncConnection[tuple[Any, ...]]
    waiting: deque[str]  # accounts that are well and known
    phase: str = "calm"
    broke: dict[str, tuple[str, float]] = field(default_factory=dict)  # by account: phase, when
    heard: dict[str, float] = field(default_factory=dict)  # by alert: when its first message came

    async def ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return await (await self.conn.execute(statement.encode(), values or None)).fetchall()

    async def listen(self) -> None:
        while True:
            for at, method, delivery, _ in await self.ears.listen():
                if method == "chat.postMessage":
                    self.heard.setdefault(delivery.split(":")[0], at)

    async def break_accounts(self) -> None:
        asking = Asking(self.port, self.house.token)
        await asking.open()
        try:
            while self.waiting:
                await asyncio.sleep(1 / PER_SECOND[self.phase])
                name = self.waiting.popleft()
                raw = signed(self.secret, body_of(name, "DISCONNECTED", time.time()))
                self.broke[name] = self.phase, time.monotonic()
                await taken_in(asking, raw)
        finally:
            asking.close()


@dataclass(frozen=True, slots=True)
class Outage:
    """`behind`: items when the sink came back; `asked_after`, `caught_up_after`: seconds since then."""

    behind: int
    asked_after: float
    caught_up_after: float
    came: Came
    sent_again: int
    late: dict[str, list[float]]


def measure(house: House) -> list[Figure]:
    return uvloop.run(measured(house))


async def measured(house: House) -> list[Figure]:
    calm, down = (CALM_SECONDS_SHORT, DOWN_SECONDS_SHORT) if house.short else (CALM_SECONDS, DOWN_SECONDS)
    rate = RATE_SHORT if house.short else RATE
    async with open_scene(house, calm, down) as scene:
        outage = await weathered(scene, calm, down, rate)
    return figures(outage, down, rate)


@asynccontextmanager
async def open_scene(house: House, calm: float, down: float) -> AsyncIterator[Scene]:
    url = house.database("siem_down")
    async with AsyncExitStack() as stack:
        slack, slack_port = start_slack(house, url)
        stack.callback(house.stop, slack)
        hec = start_hec(house, url, children.choose_port(HOST))
        more = {
            "AUTHWATCH_CONFIG": str(sinks(house, "siem-down", {"splunk": hec.section()})),
            "SLACK_BOT_TOKEN": "xoxb-bench-token",
            "SLACK_CHANNEL": CHANNEL,
            "SLACK_API_URL": f"http://{HOST}:{slack_port}/api/",
        }
        server = house.server("ours", url, "ours-siem-down", more)
        stack.callback(house.stop, server.process)
        worker = house.worker(url, "worker-siem-down", more)
        stack.callback(house.stop, worker)
        catching_up = CATCH_UP_SECONDS_SHORT if house.short else CATCH_UP_SECONDS_MAX
        count = int(
            sum(PER_SECOND[phase] * of for phase, of in zip(PER_SECOND, (calm, down, catching_up), strict=True))
        )
        secret, names = parse_secret(house.secret, name="bench"), [f"ca_siem_{number}" for number in range(count)]
        for first in range(0, count, PREPARED_AT_ONCE):
            await prepare(server.port, house.token, secret, names[first : first + PREPARED_AT_ONCE])
        ears = Ears(slack_port)
        await ears.open()
        stack.callback(ears.close)
        conn = await stack.enter_async_context(await psycopg.AsyncConnection.connect(url, autocommit=True))
        yield Scene(house, url, secret, server.port, hec, ears, conn, deque(names))


async def weathered(scene: Scene, calm: float, down: float, rate: int) -> Outage:
    events = int((calm + down + CATCH_UP_SECONDS_MAX) * rate)
    words = ["--port", str(scene.port), "--count", str(events), "--rate", str(rate), "--wait"]
    load = generator("bench.load", words, scene.house.secret)
    tasks: list[asyncio.Task[None]] = []
    try:
        await asyncio.to_thread(begin_load, load)
        tasks = [asyncio.create_task(scene.listen()), asyncio.create_task(scene.break_accounts())]
        say(f"calm for {calm:.0f} s at {rate} events/s")
        await asyncio.sleep(calm)
        scene.phase = "down"
        first = await taken_away(scene)
        say(f"the sink is down for {down:.0f} s")
        await asyncio.sleep(down)
        behind, asked_after, caught_up_after = await caught_up(scene)
        wanted = ALERTS_MIN_SHORT if scene.house.short else ALERTS_MIN
        while sum(phase == scene.phase for phase, _ in scene.broke.values()) < wanted and not tasks[1].done():  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        say(f"{behind:,} items behind; asked again after {asked_after:.1f} s, caught up after {caught_up_after:.1f} s")
    finally:
        load.kill()
        load.wait()
        for task in tasks[1:]:
            task.cancel()
    ended = [task for task in tasks if task.done() and not task.cancelled() and task.exception()]
    late = await heard_all(scene)
    for task in tasks:
        task.cancel()
    for task in ended:
        task.result()
    came = await everything_came(scene, first)
    [(sent_again,)] = await scene.ask(AGAIN)
    return Outage(behind, asked_after, caught_up_after, came, int(sent_again), late)


def begin_load(load: subprocess.Popen[str]) -> None:
    assert load.stdin is not None
    assert load.stdout is not None
    if load.stdout.readline().strip() != "built":
        raise BenchFailed("the generator did not begin")
    load.stdin.write("\n")
    load.stdin.flush()


async def taken_away(scene: Scene) -> list[int]:
    """Nobody listens any more; what had come by then."""
    scene.hec.ask("/busy")  # and takes nothing more, of which we then would not hear
    taken = list(scene.hec.taken())
    scene.house.stop(scene.hec.process)
    return taken


async def caught_up(scene: Scene) -> tuple[int, float, float]:
    """Brings it back: (items behind, seconds until it was asked, seconds until the sink stands where the log ends)."""
    [(position, head)] = await scene.ask(STANDS)
    scene.hec = spawn_hec(scene.house, scene.url, scene.hec.port)
    back, behind, asked_at = time.monotonic(), int(head - position), None
    while time.monotonic() - back < CATCH_UP_SECONDS_MAX:
        await asyncio.sleep(LOOK_SECONDS)
        was, [(position, head)] = position, await scene.ask(STANDS)
        if asked_at is None and position > was:
            asked_at, scene.phase = time.monotonic(), "catching up"
        if asked_at is not None and head - position <= RATE:
            return behind, asked_at - back, time.monotonic() - back
    raise BenchFailed(
        f"the sink did not catch up within {CATCH_UP_SECONDS_MAX:.0f} s: {head - position:,} items behind"
    )


async def heard_all(scene: Scene) -> dict[str, list[float]]:
    """By phase, seconds from each account's break to its message. Raises BenchFailed where one did not come."""
    until, left = time.monotonic() + HEARD_SECONDS_MAX, len(scene.broke)
    while time.monotonic() < until:
        alerts = {str(alert): str(account) for alert, account in await scene.ask(ALERTS, [*scene.broke])}
        late: dict[str, list[float]] = {phase: [] for phase in PER_SECOND}
        for alert, account in alerts.items():
            if alert in scene.heard:
                phase, at = scene.broke[account]
                late[phase].append(scene.heard[alert] - at)
        if (left := len(scene.broke) - sum(map(len, late.values()))) == 0:
            return late
        await asyncio.sleep(LOOK_SECONDS)
    raise BenchFailed(f"{left} of {len(scene.broke)} accounts that broke were never told of")


async def everything_came(scene: Scene, first: list[int]) -> Came:
    until = time.monotonic() + CATCH_UP_SECONDS_MAX
    [(position, head)] = await scene.ask(STANDS)
    while position < head:
        if time.monotonic() > until:
            raise BenchFailed(f"the sink stands {head - position:,} items behind a log in which nothing happens")
        await asyncio.sleep(LOOK_SECONDS)
        position = (await scene.ask(STANDS))[0][0]
    log = [row[0] for row in await scene.ask(LOG, head)]
    return judged(log, [one for one in [*first, *scene.hec.taken()] if one <= head])


def figures(outage: Outage, down: float, rate: int) -> list[Figure]:
    p95 = {phase: quantile(seconds, 0.95) for phase, seconds in outage.late.items() if seconds}
    if "calm" not in p95 or "catching up" not in p95:
        raise BenchFailed(f"no account broke in one of the phases: {', '.join(p95)} are measured")
    limit = max(ALERT_SECONDS, TIMES_MAX * p95["calm"])
    told = "; ".join(
        f"{phase}: {len(seconds)}, p50 {quantile(seconds, 0.5):.3f} s, p95 {p95[phase]:.3f} s, the slowest {max(seconds):.3f} s"
        for phase, seconds in outage.late.items()
        if seconds
    )
    catching_up = outage.caught_up_after - outage.asked_after
    per_second = outage.behind / max(catching_up, LOOK_SECONDS)
    return [
        Figure(
            name=f"event to alert, p95, while a sink catches up under {rate} events/s",
            unit="s",
            ours=[p95["catching up"]],
            control_name="in the calm before",
            control=[p95["calm"]],
            ratio=p95["catching up"] / p95["calm"],
            reach=f"at most {limit:.2f} s: the alerts' own {ALERT_SECONDS} s, or {TIMES_MAX} times the calm",
            met=p95["catching up"] <= limit,
            digits=3,
            notes=[f"alerts, each from just before its event is posted until Slack's stand-in has its message: {told}"],
        ),
        Figure(
            name=f"a sink down for {down:.0f} s under {rate} events/s: pushed while it caught up",
            unit="items/s",
            ours=[per_second + rate],
            control_name="came in meanwhile",
            control=[float(rate)],
            ratio=(per_second + rate) / rate,
            reach="catches up, with nothing lost or out of order, and nothing twice that was not counted",
            met=outage.came.whole and outage.came.again <= outage.sent_again,
            notes=[
                f"an hour is {3600 / down:.0f} times as long; {outage.behind:,} items behind when it came back, which was found"
                f" out {outage.asked_after:.1f} s later; level {catching_up:.1f} s after that; {outage.came.said()};"
                f" {outage.sent_again:,} counted as perhaps sent twice"
            ],
        ),
    ]
