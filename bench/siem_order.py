"""A million events by eight writers at once, read meanwhile by three readers at different speeds: each gets all, in order.

The fast one and the one that rests read the log itself, as sinks do; the third asks the pull API. What each was given is
compared with the log as it stands in the end; the control says that there were gaps which nobody may wait for.
"""

from __future__ import annotations

import subprocess
from array import array
from dataclasses import dataclass

import psycopg

from bench.figure import Figure
from bench.house import BenchFailed, House, say
from bench.siem_judge import Came, judged, writers_in_order
from bench.siem_push import last_line
from bench.siem_writers import WRITERS

EVENTS, EVENTS_SHORT = 1_000_000, 8_000
READERS = {
    "fast": ("the log, 2,000 at a time, at once again", ["--limit", "2000", "--rest", "0"]),
    "api": ("GET /v1/siem/events, 1,000 at a time, at once again", ["--limit", "1000", "--rest", "0"]),
    "slow": ("the log, 5,000 at a time, then a rest of half a second", ["--limit", "5000", "--rest", "0.5"]),
}
SECONDS_MAX = 600
LOG = "SELECT position, split_part(event_id, '-', 1)::int, split_part(event_id, '-', 2)::int FROM events ORDER BY position"


@dataclass(frozen=True, slots=True)
class Read:
    came: Came
    seconds: float
    pages: float
    empty: float


def measure(house: House) -> list[Figure]:
    events = EVENTS_SHORT if house.short else EVENTS
    url = house.database("siem_order")
    server = house.server("ours", url, "ours-order")
    readers: dict[str, subprocess.Popen[bytes]] = {}
    for name, (_, words) in READERS.items():
        more = ["--port", str(server.port)] if name == "api" else []
        into = ["--into", str(house.folder / f"read-{name}"), "--rows", str(events)]
        readers[name] = house.start(f"reader-{name}", ["-m", "bench.siem_reader", *words, *into, *more], url)
    writing = house.start("writers", ["-m", "bench.siem_writers", "--rows", str(events)], url)
    wrote = last_line(house, writing, "writers", SECONDS_MAX)
    say(f"{events:,} events written in {wrote['seconds']:.1f} s, {events / wrote['seconds']:,.0f}/s")
    said = {name: last_line(house, process, f"reader-{name}", SECONDS_MAX) for name, process in readers.items()}
    with psycopg.connect(url, autocommit=True) as conn:
        rows = conn.execute(LOG.encode()).fetchall()
    house.stop(server.process)
    if len(rows) != events:
        raise BenchFailed(f"{len(rows):,} rows are in the log, and not {events:,}")
    if not writers_in_order([(writer, number) for _, writer, number in rows]):
        raise BenchFailed("the log does not hold each writer's rows in the order in which it committed them")
    positions = [row[0] for row in rows]
    gaps = positions[-1] - positions[0] + 1 - len(positions)
    found: dict[str, Read] = {}
    for name in READERS:
        came = array("q")
        came.frombytes((house.folder / f"read-{name}").read_bytes())
        found[name] = Read(judged(positions, came), said[name]["seconds"], said[name]["pages"], said[name]["empty"])
        say(f"{name}: {found[name].came.said()}; {said[name]['seconds']:.1f} s, {said[name]['pages']:,.0f} pages")
    return [figure(found, events, wrote, gaps)]


def figure(found: dict[str, Read], events: int, wrote: dict[str, float], gaps: int) -> Figure:
    wrong = {
        name: one.came.missing + one.came.disordered + one.came.strange + one.came.again for name, one in found.items()
    }
    return Figure(
        name=f"{events:,} events by {WRITERS} writers at once: skipped, doubled or out of order at three readers",
        unit="events",
        ours=[float(count) for count in wrong.values()],
        control_name="positions never used, of transactions rolled back among them",
        control=[float(gaps)],
        ratio=None,
        reach="none at any of them",
        met=not any(wrong.values()),
        notes=[
            f"written in batches of 1 to 500, half by accept and half by append, in {wrote['seconds']:.1f} s:"
            f" {events / wrote['seconds']:,.0f}/s beside the readers; {wrote['rolled_back']:.0f} transactions rolled back;"
            " each writer's rows stand in the order of its commits",
            *(
                f"{READERS[name][0]}: the last after {one.seconds:.1f} s, {one.pages:,.0f} pages, {one.empty:,.0f} of them empty"
                for name, one in found.items()
            ),
        ],
    )
