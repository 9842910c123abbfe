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
from service.store.log import LOG_LOCK

EVENTS, EVENTS_SHORT = 1_000_000, 20_000
CHUNK, CHUNK_SHORT = 100_000, 5000
SECONDS_MAX = 360
FLAT_MIB_MAX = 24.0  # above what it has after its first load; caches and arenas that a longer life does not grow
DEPTH, DEPTH_SHORT = 10_000, 1000
HELD_SECONDS, HELD_SECONDS_SHORT = 5.0, 1.0  # of the 8 the receiver waits for a commit
SETTLE_SECONDS = 2.0
MIB = 1024 * 1024


def measure(house: House, front: Front, start_mib: float, warm_mib: float) -> list[Figure]:
    """`start_mib` when it was ready, `warm_mib` after its first loads."""
    pid = front.ours.process.pid
    wanted, chunk = (EVENTS_SHORT, CHUNK_SHORT) if house.short else (EVENTS, CHUNK)
    began = time.monotonic()
    seen = [warm_mib]
    while front.taken < wanted and time.monotonic() - began < SECONDS_MAX:
        count = min(chunk, max(1000, wanted - front.taken))
        house.load(front.ours, count)
        front.taken += count
        seen.append(rss_mib(pid))
        say(f"{front.taken:,} events taken: {seen[-1]:.0f} MiB")
    notes = [f"at its start {start_mib:.0f} MiB; {front.taken:,} events in this one process"]
    if front.taken < wanted:
        notes.append(f"a million would have taken more than {SECONDS_MAX} s of sending")
    grown = seen[-1] - warm_mib
    million = Figure(
        name=f"receiver's memory after {front.taken:,} events",
        unit="MiB",
        ours=[seen[-1]],
        control_name="after its first loads",
        control=[warm_mib],
        ratio=seen[-1] / warm_mib,
        reach=f"flat: at most {FLAT_MIB_MAX:.0f} MiB more",
        met=grown <= FLAT_MIB_MAX,
        notes=notes,
    )
    return [million, deep_queue(house, front, start_mib)]


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
    each = max(0.0, connected - before) / depth
    # What the code promises: the queue's own count, what is under way (as rows, and once more with the driver), and
    # for each connection what an open one was seen to take, twice: its request's objects wait with it.
    bound = (
        before
        + (commit.QUEUE_BYTES_MAX + 2 * commit.BATCHES_FLYING_MAX * commit.BATCH_BYTES_MAX) / MIB
        + 2 * depth * each
    )
    all_answered = sum(answered["statuses"].values()) == depth
    say(f"queue {depth:,} deep: {before:.0f} MiB, connected {connected:.0f}, peak {peak:.0f}, after {after:.0f}")
    return Figure(
        name=f"receiver's memory with a queue {depth:,} deep",
        unit="MiB",
        ours=[peak],
        control_name="before, no connections",
        control=[before],
        ratio=peak / before,
        reach=f"below its bound of {bound:.0f} MiB, and every request answered",
        met=peak <= bound and all_answered,
        notes=[
            f"the bound: {before:.0f} MiB before it, {commit.QUEUE_BYTES_MAX // MIB} MiB the queue may hold, "
            f"{commit.BATCHES_FLYING_MAX} batches of {commit.BATCH_BYTES_MAX // MIB} MiB under way counted twice, and "
            f"{2 * each * 1024:.0f} KiB for each of {depth:,} connections",
            f"with {depth:,} connections open and silent {connected:.0f} MiB; {SETTLE_SECONDS:.0f} s after the last "
            f"answer {after:.0f} MiB (start {start_mib:.0f} MiB)",
            f"answers {answered['statuses']}, connections lost {answered['lost']}, slowest {answered['max_s']:.1f} s, "
            f"of which the log's lock was held {held:.0f} s",
        ],
    )
