"""Kills, freezes, cuts and a full disk under load, drawn from a seed; at the end the sender's ledger is reconciled with
the database, the feed, the alerts and everybody we told. `make crash` runs it long; here runs its short form.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.crash import found as finding
from tests.crash import model, result
from tests.crash.history import make_history
from tests.crash.house import House, open_house, put_workflows, settled
from tests.crash.plan import first_processes, load_seconds, make_plan, read_knobs
from tests.crash.reader import FeedReader
from tests.crash.reconcile import reconcile
from tests.crash.sender import Sender
from tests.crash.weather import Weather

KNOBS = read_knobs()
PLAN = make_plan(KNOBS.seed, KNOBS.kills)
PROGRESS_SECONDS = 3.0
LEASE_LOOKS_MAX = 500
LOG_CHARS_MAX = 6000
# A burst of breaks is judged, told and shipped at some tens a second; the longest lease that may have to expire is 125 s.
SETTLE_SECONDS = 60 + KNOBS.events / 25 + (150 if KNOBS.long else 0)
# Blows on one part wait for each other, and a loaded machine starts slowly: three times the plan, and the events that
# could not be sent meanwhile, and it is a finding.
UNDER_WAY_SECONDS_MAX = 60 + 3 * load_seconds(PLAN) + KNOBS.events / 25


async def progress(began: float, sender: Sender, reader: FeedReader, weather: Weather) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        ledger = sender.ledger
        print(
            f"{time.monotonic() - began:5.0f} s: {ledger.started} sent, {ledger.settled} acknowledged, "
            f"{weather.kills()} kills, {len(weather.struck) - weather.kills()} other blows, {len(reader.items)} pulled",
            flush=True,
        )


async def calm_down(house: House, weather: Weather) -> int | None:
    """In the short form the last worker is asked to end, and nothing is left claimed by those that were killed.

    In the long form it is killed in the middle of its work, and two others take that over once its leases have run out:
    how many there were.
    """
    if not KNOBS.long:
        await weather.end("worker")
        await house.end_leases()
        held = None
        house.parts.start("worker")
    else:
        for _ in range(LEASE_LOOKS_MAX):
            if await house.leases_held():
                break
            await asyncio.sleep(0.01)
        house.parts.kill("worker")
        held = await house.leases_held()
        house.parts.start("worker", "worker-2")
    await house.parts.ready()
    await settled(house, SETTLE_SECONDS)
    return held


@pytest.mark.timeout(180 + UNDER_WAY_SECONDS_MAX + SETTLE_SECONDS)
async def test_whatever_falls_nothing_is_lost_and_nothing_happens_twice(tmp_path: Path) -> None:
    again = f"{KNOBS.again} repeats it"
    if KNOBS.result is not None:
        result.forget(Path(KNOBS.result))
    print(f"\nseed {KNOBS.seed}: {KNOBS.kills} kills, {len(PLAN)} blows, {KNOBS.events} events; {again}", flush=True)
    try:
        problems, logs = await run(tmp_path)
    except BaseException as exc:
        exc.add_note(again)
        raise
    assert not problems, "\n".join(["", *problems, again, logs])


def disk_never_full(house: House) -> list[str]:
    """In the long form only: a short one may be over before Postgres writes while its disk is full."""
    return ["Postgres never met a full disk"] if KNOBS.long and not house.disk_was_full() else []


async def run(folder: Path) -> tuple[list[str], str]:
    """What is wrong in the end, and the parts' last words."""
    began = time.monotonic()
    async with open_house(folder) as house:
        house.start_receiver(first_processes(PLAN))
        house.parts.start("worker")
        await house.parts.ready()
        history = make_history(KNOBS.seed, KNOBS.events, load_seconds(PLAN), datetime.now(UTC))
        await put_workflows(house, history)
        history = make_history(KNOBS.seed, KNOBS.events, load_seconds(PLAN), datetime.now(UTC))
        sender, reader = Sender(house.parts.url), FeedReader(house.parts.url)
        weather = Weather(house, KNOBS.seed)
        beside = [
            asyncio.create_task(reader.run(), name="reader"),
            asyncio.create_task(progress(began, sender, reader, weather), name="progress"),
        ]
        try:
            async with asyncio.timeout(UNDER_WAY_SECONDS_MAX), asyncio.TaskGroup() as group:
                group.create_task(sender.run(history.deliveries))
                group.create_task(weather.run(PLAN))
            leases_expired = await calm_down(house, weather)
            found = finding.Found()
            for _ in range(100):  # the reader sees the last rows within its next look
                found = await finding.look(house, reader.items)
                if found.feed and found.log and found.feed[-1]["position"] >= found.log[-1].position:
                    break
                await asyncio.sleep(0.1)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        problems = [
            *reconcile(sender.ledger, history, model.tell(history), found),
            *weather.problems(PLAN, long=KNOBS.long),
            *disk_never_full(house),
            *(f"the feed answered {status}" for status in reader.unexpected()),
            *(f"the orchestrator refused: {why}" for why in house.orchestrator.refused),
        ]
        table = result.lines(KNOBS, weather, sender.ledger, reader, found, time.monotonic() - began, leases_expired)
        print(result.as_text(table), flush=True)
        (folder / "weather.log").write_text(weather.timeline(began))
        (folder / "ledger.log").write_text(sender.ledger.told(began))
        if KNOBS.result is not None:
            result.write_markdown(Path(KNOBS.result), table, problems)
        return problems, f"{weather.timeline(began)}\n{house.parts.logs()[-LOG_CHARS_MAX:]}" if problems else ""
