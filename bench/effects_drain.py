"""10,000 open actions and one worker: how fast they drain against stand-ins that answer at once.

The control is a bare loop of httpx POSTs to the same stand-in, in turns with ours: no row is claimed for one of them,
none is recorded, and what was under way when it dies is forgotten.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.effects_fill import fill, message, open_all, pause
from bench.figure import Figure, ratio_of
from bench.house import HOST, BenchFailed, House, cpu_seconds, say
from bench.slack import CHANNEL, Ears, start_slack
from service import outbound
from service.signatures import make_secret
from service.store.actions import NewAction
from service.store.session import open_engine
from workers.act import PLACES_MAX

ACTIONS, ACTIONS_SHORT = 10_000, 300
BARE, BARE_SHORT = 2_000, 200
PER_SECOND_MIN = 200
DRAIN_SECONDS_MAX = 300.0
LOOK_EVERY_SECONDS = 0.1
BODY_CHARS = 1_500  # about as much as a message of ours
OPEN = "SELECT count(*) FROM actions WHERE state IN ('pending', 'running')"
OF_THESE = "SELECT count(*) FILTER (WHERE state = 'done'), extract(epoch FROM max(finished_at) - %s)::float8 FROM actions WHERE created_at = %s"
ALL = "SELECT count(*), extract(epoch FROM max(finished_at) - %s)::float8 FROM actions WHERE created_at >= %s"
TRIES = "SELECT count(*) FROM attempts t JOIN actions a ON a.id = t.action_id WHERE a.created_at >= %s AND t.outcome <> 'done'"


def measure(house: House) -> list[Figure]:
    return uvloop.run(measured(house))


async def measured(house: House) -> list[Figure]:
    actions, bare = (ACTIONS_SHORT, BARE_SHORT) if house.short else (ACTIONS, BARE)
    url = house.database("effects_drain")
    stand_in, port = start_slack(house, url)
    config = house.folder / "effects-drain.yml"
    hook = {"kind": "webhook", "url": f"http://{HOST}:{port}/hooks/flows", "secret": make_secret()}
    config.write_text(json.dumps({"orchestrators": {"flows": hook}}))
    worker = house.worker(url, "worker-effects-drain", environment(port, config))
    engine = open_engine(url, connections_max=2)
    ears = Ears(port)
    await ears.open()
    try:
        scene = Scene(engine, url, ears, port, worker.pid, bare)
        told = await one_drain(scene, "messages", actions)
        mixed = await one_drain(scene, "pauses", actions)
    finally:
        ears.close()
        await engine.dispose()
        house.stop(worker)
        house.stop(stand_in)
    return [told, mixed]


def environment(port: int, config: Path) -> dict[str, str]:
    return {
        "AUTHWATCH_CONFIG": str(config),
        "SLACK_BOT_TOKEN": "xoxb-bench-token",
        "SLACK_CHANNEL": CHANNEL,
        "SLACK_API_URL": f"http://{HOST}:{port}/api/",
    }


@dataclass(frozen=True, slots=True)
class Scene:
    engine: AsyncEngine
    url: str
    ears: Ears
    port: int  # of the stand-in
    worker: int  # its process
    bare: int  # POSTs of the control


async def one_drain(scene: Scene, what: str, count: int) -> Figure:
    """`messages`: one for each of so many alerts. `pauses`: half as many alerts, for each a message and a pause."""
    engine, url, ears, bare = scene.engine, scene.url, scene.ears, scene.bare
    before, before_us = await bare_posts(scene.port, bare)
    both = what == "pauses"
    broken = await fill(engine, what, count // 2 if both else count, orchestrator="flows" if both else None)
    new: list[NewAction] = [message(each, "slack") for each in broken]
    if both:
        new += [pause(each, "flows") for each in broken]
    await heard_until_now(ears)
    cpu = cpu_seconds(scene.worker)
    began = await open_all(engine, new)
    seconds, total, total_seconds, again = await drained(url, began, len(new))
    cpu_us = (cpu_seconds(scene.worker) - cpu) / total * 1e6
    once_each(await heard_until_now(ears), [each.alert_id for each in broken], again)
    after, after_us = await bare_posts(scene.port, bare)
    per_second, all_per_second = len(new) / seconds, total / total_seconds
    half = len(new) // 2
    named = f"{half:,} messages and {len(new) - half:,} pauses" if both else f"{len(new):,} messages"
    say(
        f"{named}: {seconds:.1f} s, {per_second:,.0f}/s, {cpu_us:,.0f} us each; the bare loop {before:,.0f} and {after:,.0f}/s"
    )
    notes = [
        f"one worker process, {PLACES_MAX} under way at most of one kind at one destination; from the commit that makes"
        f" them due to the last one's end, by the database's clock; {again} tries were repeated, all other messages came once",
        f"the control: {bare:,} POSTs, {PLACES_MAX} at once, before and after",
        f"processor time: the worker {cpu_us:,.0f} us an action, the bare loop {(before_us + after_us) / 2:,.0f} us a POST",
    ]
    if both:
        notes.append(
            f"each pause that was answered is told by an edit of its message: {total - len(new):,} more actions, all"
            f" {total:,} done after {total_seconds:.1f} s, {all_per_second:,.0f}/s"
        )
    return Figure(
        name=f"{named} open, drained by one worker",
        unit="/s",
        ours=[per_second],
        control_name="bare loop of httpx POSTs to the same stand-in",
        control=[(before + after) / 2],
        ratio=ratio_of([per_second], [(before + after) / 2]),
        reach=f"at least {PER_SECOND_MIN}/s",
        met=per_second >= PER_SECOND_MIN,
        notes=notes,
    )


async def drained(url: str, began: object, count: int) -> tuple[float, int, float, int]:
    """(seconds until the last of these was done, how many there were with all that followed, seconds until the last of
    all, how many tries had to be repeated). Raises BenchFailed where one failed or is not done in time."""
    until = time.monotonic() + DRAIN_SECONDS_MAX
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:

        async def ask(statement: str, *values: object) -> tuple[object, ...]:
            row = await (await conn.execute(statement.encode(), values or None)).fetchone()
            assert row is not None
            return row

        quiet = 0  # a follow-up is decided a moment after what it follows
        while quiet < 10:
            quiet = quiet + 1 if (await ask(OPEN))[0] == 0 else 0
            if time.monotonic() > until:
                raise BenchFailed(f"{(await ask(OPEN))[0]} actions are still open after {DRAIN_SECONDS_MAX:.0f} s")
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        done, seconds = await ask(OF_THESE, began, began)
        total, total_seconds = await ask(ALL, began, began)
        again = (await ask(TRIES, began))[0]
    if done != count:
        raise BenchFailed(f"{done} of {count} actions done")
    return float(str(seconds)), int(str(total)), float(str(total_seconds)), int(str(again))


async def heard_until_now(ears: Ears) -> list[tuple[float, str, str, str]]:
    """What the stand-in took since the last time."""
    found, some = [], await ears.listen()
    while some:
        found += some
        some = await ears.listen()
    return found


def once_each(heard: Sequence[tuple[float, str, str, str]], alert_ids: Sequence[str], again: int) -> None:
    """Every message came once; but on a machine too busy to answer in time, where a try was repeated: this stand-in shows
    no history by which it would be found."""
    posts = Counter(delivery.split(":")[0] for _, method, delivery, _ in heard if method == "chat.postMessage")
    wrong = [alert_id for alert_id in alert_ids if posts[alert_id] != 1]
    if len(wrong) > again or any(posts[alert_id] == 0 for alert_id in wrong):
        raise BenchFailed(f"{len(wrong)} of {len(alert_ids)} messages did not come exactly once")


async def bare_posts(port: int, count: int) -> tuple[float, float]:
    """POSTs a second, and microseconds of this process's time that one of them took."""
    raw = json.dumps({"channel": CHANNEL, "text": "x" * BODY_CHARS}).encode()
    url, left = f"http://{HOST}:{port}/api/chat.bare", iter(range(count))

    async with outbound.open_client() as client:

        async def some() -> None:
            for _ in left:
                answer = await client.post(url, content=raw, headers={"content-type": "application/json"})
                if answer.status_code != 200:
                    raise BenchFailed(f"the stand-in answered the bare loop {answer.status_code}")

        began, cpu = time.monotonic(), time.process_time()
        async with asyncio.timeout(DRAIN_SECONDS_MAX):
            await asyncio.gather(*(some() for _ in range(PLACES_MAX)))
        took, cpu_took = time.monotonic() - began, time.process_time() - cpu
    return count / took, cpu_took / count * 1e6
