"""The shipping story and its HEC sink, a process held to one core: items a second into a stand-in on the other core.

The bare loop takes its turn in each round. Postgres and the stand-in share the other core.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psycopg

from bench import backlog, cores
from bench.figure import Figure, ratio_of, shown
from bench.hec import StandIn, start_hec
from bench.house import HOST, BenchFailed, House, cpu_seconds, say
from bench.siem_judge import judged
from service import children

ROUNDS, ROUNDS_SHORT = 3, 1
ITEMS, ITEMS_SHORT = 30_000, 3_000
PER_SECOND_MIN = 5_000
SECONDS_MAX = 120
FORGET_SINKS = "DELETE FROM readers WHERE name LIKE 'sink:%'"


@dataclass(slots=True)
class Taken:
    """Of each round."""

    per_second: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)  # an item, of the process that pushes
    postgres_us: list[float] = field(default_factory=list)


def measure(house: House) -> list[Figure]:
    rounds, items = (ROUNDS_SHORT, ITEMS_SHORT) if house.short else (ROUNDS, ITEMS)
    url = house.database("siem_push")
    backlog.fill(url, items, accounts=max(items // 20, 1), seconds=3600)
    core = cores.pair()
    with cores.kept(core[1] if core else None):
        stand_in = start_hec(house, url, children.choose_port(HOST))
    if core and house.postgres.process is not None:
        keep_family(house.postgres.process.pid, core[1])
    ours, bare = Taken(), Taken()
    section = stand_in.section()
    config = sinks(house, "siem-push", {"splunk": section})
    bytes_each = 0.0
    for number in range(rounds):
        run(house, url, "bare", bare, items, section=section, config=config, core=core)
        stand_in.ask("/forget")
        run(house, url, "ours", ours, items, section=section, config=config, core=core, stand_in=stand_in)
        bytes_each = stand_in.state()["bytes"] / items
        stand_in.ask("/forget")
        say(
            f"round {number + 1}/{rounds}: {ours.per_second[-1]:,.0f} items/s, {ours.cpu_us[-1]:.0f} us each; the bare loop"
            f" {bare.per_second[-1]:,.0f}/s, {bare.cpu_us[-1]:.0f} us"
        )
    house.stop(stand_in.process)
    if core and house.postgres.process is not None:
        keep_family(house.postgres.process.pid, *core)
    return [figure(ours, bare, items, bytes_each, held=core is not None)]


def sinks(house: House, name: str, sections: dict[str, object], **more: object) -> Path:
    """A config file with these sinks."""
    path = house.folder / f"{name}.yml"
    path.write_text(json.dumps({"sinks": sections, **more}))
    return path


def keep_family(pid: int, *allowed: int) -> None:
    """Postgres and the processes it has; those to come are its children."""
    for each in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
        os.sched_setaffinity(each, set(allowed))


def run(
    house: House,
    url: str,
    what: str,
    taken: Taken,
    items: int,
    *,
    section: dict[str, object],
    config: Path,
    core: tuple[int, int] | None,
    stand_in: StandIn | None = None,
) -> None:
    """One turn. Raises BenchFailed unless everything came, once and in order."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(FORGET_SINKS)
        positions = [row[0] for row in conn.execute("SELECT position FROM events ORDER BY position")]
    words = ["-m", "bench.siem_ship"]
    if what == "bare":
        words = ["-m", "bench.siem_bare", "--section", json.dumps(section), "--items", str(items)]
    postgres = house.postgres.process
    before = cpu_seconds(postgres.pid, family=True) if postgres else 0.0
    with cores.kept(core[0] if core else None):
        process = house.start(f"push-{what}", words, url, {"AUTHWATCH_CONFIG": str(config)})
    said = last_line(house, process, f"push-{what}")
    after = cpu_seconds(postgres.pid, family=True) if postgres else 0.0
    ended = said["ended"]
    if stand_in is not None:
        came = judged(positions, stand_in.taken())
        if not came.whole or came.again:
            raise BenchFailed(f"of {items:,} items pushed: {came.said()}")
        ended = stand_in.state()["last_at"]
    taken.per_second.append(items / (ended - said["began"]))
    taken.cpu_us.append(said["cpu"] / items * 1e6)
    taken.postgres_us.append((after - before) / items * 1e6)


def last_line(
    house: House, process: subprocess.Popen[bytes], name: str, seconds_max: float = SECONDS_MAX
) -> dict[str, float]:
    """What a process says at its end."""
    try:
        process.wait(seconds_max)
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"{name} did not end within {seconds_max:.0f} s") from None
    log = house.folder / f"{name}.log"
    house.processes.remove(process)
    if process.returncode != 0:
        raise BenchFailed(f"{name} ended with {process.returncode}: {children.last_line(log)}")
    said: dict[str, float] = json.loads(log.read_text().splitlines()[-1])
    return said


def figure(ours: Taken, bare: Taken, items: int, bytes_each: float, *, held: bool) -> Figure:
    core = "one core" if held else "no core of its own: this system cannot hold it to one"
    return Figure(
        name="items pushed to a local HEC stand-in, one process",
        unit="items/s",
        ours=ours.per_second,
        control_name="bare loop that reads the same rows and posts the same bytes",
        control=bare.per_second,
        ratio=ratio_of(ours.per_second, bare.per_second),
        reach=f"at least {PER_SECOND_MIN:,} on one core",
        met=median(ours.per_second) >= PER_SECOND_MIN,
        notes=[
            f"{items:,} items a round, OCSF, {bytes_each:,.0f} bytes each after gzip; from the first claim to the last batch"
            f" taken; held to {core}, Postgres and the stand-in on the other; all came once and in order",
            f"processor time an item: {shown(ours.cpu_us, 0)} us, the bare loop {shown(bare.cpu_us, 0)} us; Postgres"
            f" {shown(ours.postgres_us, 0)} us and {shown(bare.postgres_us, 0)} us (with the start of the process)",
        ],
    )
