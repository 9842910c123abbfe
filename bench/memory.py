"""The receiver's resident memory: at its start, after a million events, and with a queue 10,000 deep.

The million are those of the figures before and more at full speed. For the queue the log's lock is held from another
connection while 10,000 connections each post one event; then it is let go, in time for all to be answered 202.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress

import psycopg

from bench.figure import Figure
from bench.house import BenchFailed, House, events_after, generator, position, rss_mib, say
from bench.throughput import Front
from service import commit
from service.receive import READING_BYTES_MAX
from service.store.log import LOG_LOCK

EVENTS, EVENTS_SHORT = 1_000_000, 20_000
CHUNK, CHUNK_SHORT = 100_000, 5000
SECONDS_MAX = 360
ROUNDS = 5
GROWN_MIB_MAX = 32.0  # caches and arenas of a first load
FLAT_MIB_MAX = 4.0
BOUND_MIB = 512  # README.md states it
DEPTH, DEPTH_SHORT = 10_000, 1000
HELD_SECONDS, HELD_SECONDS_SHORT = 5.0, 1.0  # of the 8 the receiver waits for a commit
SETTLE_SECONDS = 2.0
MIB = 1024 * 1024


def after_a_million(house: House, front: Front, start_mib: float) -> Figure:
    """`start_mib` when it was ready. What follows is measured on a receiver and a database that have had a million."""
    pid = front.ours.process.pid
    wanted, chunk = (EVENTS_SHORT, CHUNK_SHORT) if house.short else (EVENTS, CHUNK)
    began = time.monotonic()
    seen: list[float] = []
    while front.taken < wanted and time.monotonic() - began < SECONDS_MAX:
        count = min(chunk, max(1000, wanted - front.taken))
        house.load(front.ours, count)
        front.taken += count
        seen.append(rss_mib(pid))
        say(f"{front.taken:,} events taken: {seen[-1]:.0f} MiB")
    whole = front.taken >= wanted
    notes = [f"by hundred thousand events, in this one process: {', '.join(f'{mib:.0f}' for mib in seen)} MiB"]
    if not whole:
        notes.append(f"a million would have taken more than {SECONDS_MAX} s of sending")
    last = seen[-ROUNDS:]
    return Figure(
        name=f"receiver's memory after {front.taken:,} events",
        unit="MiB",
        ours=last,
        control_name="at its start",
        control=[start_mib],
        ratio=last[-1] / start_mib,
        reach=f"flat: at most {GROWN_MIB_MAX:.0f} MiB above its start, and {FLAT_MIB_MAX:.0f} from first to last of these",
        met=whole and last[-1] - start_mib <= GROWN_MIB_MAX and last[-1] - last[0] <= FLAT_MIB_MAX,
        notes=notes,
    )


def deep_queue(house: House, front: Front, start_mib: float) -> Figure:
    pid, depth = front.ours.process.pid, DEPTH_SHORT if house.short else DEPTH
    before, first = rss_mib(pid), position(front.database_url)
    crowd = generator("bench.crowd", ["--port", str(front.ours.port), "--count", str(depth)], house.secret)
    assert crowd.stdin is not None
    assert crowd.stdout is not None
    peak, held = 0.0, HELD_SECONDS_SHORT if house.short else HELD_SECONDS
    try:
        if crowd.stdout.readline().strip() != "open":
            raise BenchFailed("the connections could not be opened")
        connected = rss_mib(pid)
        with psycopg.connect(front.database_url, autocommit=True) as conn:
            conn.execute("SELECT pg_advisory_lock(%s)", (LOG_LOCK,))
            held_at = time.monotonic()
            crowd.stdin.write("\n")
            crowd.stdin.flush()
            while time.monotonic() - held_at < held:
                peak = max(peak, rss_mib(pid))
                time.sleep(0.05)
        answered = json.loads(crowd.communicate(timeout=60)[0].splitlines()[-1])
    finally:
        with suppress(OSError):
            crowd.kill()
        crowd.wait()
    time.sleep(SETTLE_SECONDS)
    after = rss_mib(pid)
    accepted = answered["statuses"].get("202", 0)
    front.taken += accepted
    if (rows := events_after(front.database_url, first)) < accepted:
        raise BenchFailed(f"{accepted} times 202 under the deep queue, and {rows} rows are in the log")
    all_taken = answered["statuses"] == {"202": depth}
    say(f"queue {depth:,} deep: {before:.0f} MiB, connected {connected:.0f}, peak {peak:.0f}, after {after:.0f}")
    return Figure(
        name=f"receiver's memory with a queue {depth:,} deep",
        unit="MiB",
        ours=[peak],
        control_name="before, no connections",
        control=[before],
        ratio=peak / before,
        reach=f"below the stated {BOUND_MIB} MiB, and every one of them taken",
        met=peak <= BOUND_MIB and all_taken,
        notes=[
            f"the bound: {commit.QUEUE_BYTES_MAX // MIB} MiB the queue may hold, {READING_BYTES_MAX // MIB} MiB of bodies on "
            f"their way in, {commit.BATCHES_FLYING_MAX} batches of {commit.BATCH_BYTES_MAX // MIB} MiB under way counted "
            "twice, and the rest for the process and its connections",
            f"with {depth:,} connections open and silent {connected:.0f} MiB; {SETTLE_SECONDS:.0f} s after the last "
            f"answer {after:.0f} MiB (start {start_mib:.0f} MiB)",
            f"answers {answered['statuses']}, connections lost {answered['lost']}, slowest {answered['max_s']:.1f} s, "
            f"of which the log's lock was held {held:.0f} s",
        ],
    )
