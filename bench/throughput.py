"""Durably accepted events a second: ours against the no-op and against a commit per request, then with a worker beside.

64 connections, one receiver process. Each round sends a fixed number of unique signed events, as many as take about
`SECONDS` at the speed seen at the warm-up, first to the control, then to ours. After each round of ours the rows in
the log are counted: every 202 must be there. Processor time is read from /proc, since the machine is shared.
"""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.figure import Figure, ratio_of
from bench.house import BenchFailed, House, Server, cpu_seconds, events_after, one, position, say

REACH_ALONE, REACH_BESIDE, REACH_PLAIN = 0.6, 0.4, 4.0
SECONDS, SECONDS_SHORT = 3.5, 0.7
ROUNDS, ROUNDS_SHORT = 5, 2
WARM_COUNT, WARM_COUNT_PLAIN, WARM_DIVISOR_SHORT = 8000, 1500, 4
PARTS = ("receiver", "postgres", "worker", "generator")


@dataclass(slots=True)
class Front:
    """The three servers, on one database, and how many events ours has taken."""

    database_url: str
    ours: Server
    control: Server
    plain: Server
    taken: int = 0

    def stop(self, house: House) -> None:
        for server in (self.ours, self.control, self.plain):
            if server.process in house.processes:
                house.stop(server.process)


def open_front(house: House) -> Front:
    url = house.database("front")
    return Front(url, house.server("ours", url), house.server("control", url), house.server("plain", url))


def warm_up(house: House, front: Front) -> dict[str, int]:
    """How many requests make a round, for each server."""
    seconds = SECONDS_SHORT if house.short else SECONDS
    counts = {}
    for server in (front.control, front.ours, front.plain):
        warm = WARM_COUNT_PLAIN if server is front.plain else WARM_COUNT
        warm = warm // WARM_DIVISOR_SHORT if house.short else warm
        said = house.load(server, warm)
        counts[server.kind] = max(200, int(said["per_second"] * seconds))
        front.taken += warm if server is front.ours else 0
    say("a round is " + ", ".join(f"{count} to {kind}" for kind, count in counts.items()))
    return counts


def counted(house: House, front: Front, server: Server, count: int, worker: int | None = None) -> dict[str, Any]:
    """A load whose 202s are compared with the rows in the log; with processor microseconds a request."""
    before = position(front.database_url)
    pids = {"receiver": server.process.pid, "worker": worker}
    postgres = house.postgres.process
    assert postgres is not None
    cpu = {part: cpu_seconds(pid) for part, pid in pids.items() if pid}
    cpu["postgres"] = cpu_seconds(postgres.pid, family=True)
    said = house.load(server, count)
    after = {part: cpu_seconds(pid) for part, pid in pids.items() if pid}
    after["postgres"] = cpu_seconds(postgres.pid, family=True)
    said["cpu_us"] = {part: (after[part] - cpu[part]) / count * 1e6 for part in cpu}
    said["cpu_us"]["generator"] = said["generator_cpu_us"]
    if server.kind != "control" and (rows := events_after(front.database_url, before)) != count:
        raise BenchFailed(f"{server.kind} answered {count} times 202, and {rows} rows are in the log")
    front.taken += count if server is front.ours else 0
    return said


def measure(house: House, front: Front) -> tuple[list[Figure], float]:
    """The figures; our speed alone, of which the latency's load is the half."""
    counts = warm_up(house, front)
    rounds = ROUNDS_SHORT if house.short else ROUNDS
    alone: dict[str, list[dict[str, Any]]] = {"control": [], "ours": [], "plain": []}
    for number in range(rounds):
        for server in (front.control, front.ours, front.plain):
            alone[server.kind].append(counted(house, front, server, counts[server.kind]))
        say(f"round {number + 1}/{rounds}: " + told({kind: said[-1] for kind, said in alone.items()}))
    house.stop(front.plain.process)
    beside, evaluated, backlog = with_worker(house, front, counts, rounds)
    speed = {kind: [one["per_second"] for one in said] for kind, said in alone.items()}
    ours, control, plain = speed["ours"], speed["control"], speed["plain"]
    ours_beside = [one["per_second"] for one in beside["ours"]]
    control_beside = [one["per_second"] for one in beside["control"]]
    ratio, ratio_beside = ratio_of(ours, control), ratio_of(ours_beside, control_beside)
    ratio_plain = ratio_of(ours, plain)
    everything = "every 202 of every round was counted in the log"
    return (
        [
            Figure(
                name="durably accepted, one process, 64 connections",
                unit="events/s",
                ours=ours,
                control_name="the same uvicorn with a Starlette handler that does nothing",
                control=control,
                ratio=ratio,
                reach=f"at least {REACH_ALONE} of it",
                met=ratio >= REACH_ALONE,
                notes=[everything, cpu_told("ours", alone["ours"]), cpu_told("the no-op", alone["control"])],
            ),
            Figure(
                name="the same, with the worker evaluating beside it",
                unit="events/s",
                ours=ours_beside,
                control_name="the no-op, the worker stopped meanwhile",
                control=control_beside,
                ratio=ratio_beside,
                reach=f"at least {REACH_BESIDE} of it",
                met=ratio_beside >= REACH_BESIDE,
                notes=[
                    everything,
                    f"the worker evaluated {evaluated:,.0f} events/s beside it and "
                    + (
                        "had more to do at the end of every round"
                        if backlog
                        else "had caught up at the end of some round"
                    ),
                    cpu_told("ours", beside["ours"]),
                ],
            ),
            Figure(
                name="durably accepted, against a commit per request",
                unit="events/s",
                ours=ours,
                control_name="INSERT and COMMIT per request, same tables, 16 connections",
                control=plain,
                ratio=ratio_plain,
                reach=f"at least {REACH_PLAIN:.0f} times it",
                met=ratio_plain >= REACH_PLAIN,
                notes=[cpu_told("a commit per request", alone["plain"])],
            ),
        ],
        median(ours),
    )


def with_worker(
    house: House, front: Front, counts: dict[str, int], rounds: int
) -> tuple[dict[str, list[dict[str, Any]]], float, bool]:
    """The worker stands still (SIGSTOP) while the control is measured; events it evaluated a second while it ran, and
    whether it had more to do at the end of every round."""
    worker = house.worker(front.database_url)
    said: dict[str, list[dict[str, Any]]] = {"control": [], "ours": []}
    evaluated = seconds = 0.0
    backlog = True
    for number in range(rounds):
        worker.send_signal(signal.SIGSTOP)
        said["control"].append(counted(house, front, front.control, counts["control"]))
        worker.send_signal(signal.SIGCONT)
        before = read_up_to(front)
        said["ours"].append(counted(house, front, front.ours, counts["ours"], worker.pid))
        backlog = backlog and read_up_to(front) < position(front.database_url)
        evaluated += read_up_to(front) - before
        seconds += said["ours"][-1]["seconds"]
        say(f"with the worker, {number + 1}/{rounds}: " + told({kind: of[-1] for kind, of in said.items()}))
    gone(worker)
    house.stop(worker)
    return said, evaluated / seconds, backlog


def gone(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is not None:
        raise BenchFailed("the worker ended")


def read_up_to(front: Front) -> int:
    return int(one(front.database_url, "SELECT coalesce(max(position), 0) FROM readers WHERE name = 'evaluator'"))


def told(said: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{kind} {one['per_second']:,.0f}/s" for kind, one in said.items())


def cpu_told(name: str, said: list[dict[str, Any]]) -> str:
    medians = {part: median(one["cpu_us"][part] for one in said) for part in PARTS if part in said[0]["cpu_us"]}
    return f"processor time a request, {name}: " + ", ".join(f"{part} {us:.0f} us" for part, us in medians.items())
