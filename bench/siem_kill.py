"""kill -9 of the process that pushes, again and again, at whatever it is doing: what is lost, doubled or out of order.

HEC has no key by which it would drop what comes again, so what was under way may come twice; the log's reader counts it
(`sent_again`), and what came twice must not be more than that. tests/crash/test_siem.py strikes each step by itself.
"""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import psycopg

from bench import backlog
from bench.figure import Figure
from bench.hec import StandIn, start_hec
from bench.house import HOST, BenchFailed, House, one, say
from bench.siem_judge import Came, judged
from bench.siem_push import sinks
from service import children

ITEMS, ITEMS_SHORT = 40_000, 3_000
KILLS, KILLS_SHORT = 20, 2
BATCH_ITEMS = 100
BEGIN_SECONDS_MAX, END_SECONDS_MAX = 60.0, 120.0
AGAIN = "SELECT sent_again FROM readers WHERE name = 'sink:splunk'"
# Nobody holds it any more: its two minutes are not waited for.
END_LEASE = "UPDATE readers SET lease_until = NULL, next_attempt_at = NULL WHERE name LIKE 'sink:%'"


def measure(house: House) -> list[Figure]:
    items, kills = (ITEMS_SHORT, KILLS_SHORT) if house.short else (ITEMS, KILLS)
    url = house.database("siem_kill")
    backlog.fill(url, items, accounts=max(items // 20, 1), seconds=3600)
    stand_in = start_hec(house, url, children.choose_port(HOST))
    config = sinks(house, "siem-kill", {"splunk": stand_in.section(batch_items_max=BATCH_ITEMS)})
    dice, killed = random.Random(20_261_126), 0
    for number in range(kills):
        killed += strike(house, url, stand_in, config, most=(number + 1) * items // (kills + 1), dice=dice)
    finish(house, url, config)
    with psycopg.connect(url, autocommit=True) as conn:
        positions = [row[0] for row in conn.execute("SELECT position FROM events ORDER BY position")]
    came, again = judged(positions, stand_in.taken()), int(one(url, AGAIN))
    house.stop(stand_in.process)
    say(f"killed {killed} times: {came.said()}; counted as perhaps sent twice: {again:,}")
    return [figure(came, again, killed, items)]


def start(house: House, url: str, config: Path) -> subprocess.Popen[bytes]:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(END_LEASE)
    return house.start("siem-kill", ["-m", "bench.siem_ship"], url, {"AUTHWATCH_CONFIG": str(config)})


def strike(house: House, url: str, stand_in: StandIn, config: Path, *, most: int, dice: random.Random) -> bool:
    """Kills it some milliseconds after its first batches; whether it still ran. It is to have sent about `most` then."""
    process, before = start(house, url, config), stand_in.state()["items"]
    until = time.monotonic() + BEGIN_SECONDS_MAX
    while process.poll() is None and stand_in.state()["items"] < max(before + 1, most):
        if time.monotonic() > until:
            raise BenchFailed(f"nothing came within {BEGIN_SECONDS_MAX:.0f} s after a kill")
        time.sleep(0.005)
    time.sleep(dice.uniform(0.0, 0.05))
    ran = process.poll() is None
    process.kill()
    process.wait()
    house.processes.remove(process)
    return ran


def finish(house: House, url: str, config: Path) -> None:
    process = start(house, url, config)
    try:
        process.wait(END_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"the rest was not pushed within {END_SECONDS_MAX:.0f} s") from None
    house.processes.remove(process)
    if process.returncode != 0:
        raise BenchFailed(f"the push ended with {process.returncode}")


def figure(came: Came, again: int, killed: int, items: int) -> Figure:
    return Figure(
        name=f"items that came twice at the HEC stand-in, {killed} times kill -9 while {items:,} were pushed",
        unit="items",
        ours=[float(came.again)],
        control_name="counted by the log's reader as perhaps sent twice",
        control=[float(again)],
        ratio=None,
        reach="none lost, none out of order, and none twice that was not counted",
        met=came.whole and came.again <= again and killed > 0,
        notes=[f"batches of {BATCH_ITEMS}; {came.said()}; HEC has no key by which it could drop what comes again"],
    )
