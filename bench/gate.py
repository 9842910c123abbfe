"""The gate at 500 questions a second beside webhooks that come in and are evaluated; and from a commit to the stream.

The client measures: a generator process of its own sends by the clock, and a question that found no free connection
counts from when it was due. `SELECT 1` is asked of the same process in the same way, right after, beside the same load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from statistics import median
from subprocess import Popen
from typing import Any

from bench.ask import Asking
from bench.figure import Figure, quantile, ratio_of
from bench.gate_serve import PATH as CONTROL_PATH
from bench.house import HOST, BenchFailed, House, Server, generator, run_module, say, wait
from bench.load import Load
from service import children

QUESTIONS_PER_SECOND = 500.0
WEBHOOKS_PER_SECOND = 300.0
P99_MS_MAX, TOLD_MS_MAX = 5.0, 100.0
SECONDS, SECONDS_SHORT = 4, 2
ROUNDS, ROUNDS_SHORT = 5, 2
CHANGES, CHANGES_SHORT = 200, 20
WORKFLOWS = 100
CONNECTIONS = 16
TOLD_SECONDS_MAX = 10.0


def measure(house: House) -> list[Figure]:
    database_url = house.database("gate")
    port = children.choose_port(HOST)
    process = house.start("gate", ["-m", "bench.gate_serve", "--port", str(port)], database_url)
    server = Server("ours", port, process, house.folder / "gate.log")
    wait(server.answers, "gate does not answer", server.log)
    worker = house.worker(database_url, "gate-worker")
    house.load(server, 2000)  # a thousand accounts
    asyncio.run(put_workflows(house, port))
    figures = [of_questions(house, server), asyncio.run(of_changes(house, port))]
    house.stop(worker)
    house.stop(process)
    return figures


async def put_workflows(house: House, port: int) -> None:
    asking = Asking(port, house.token)
    await asking.open()
    for number in range(WORKFLOWS):
        status, _ = await asking.ask("PUT", f"/v1/workflows/w{number}", {"account_ids": [f"ca_{number}"]})
        if status != 200:
            raise BenchFailed(f"PUT of a workflow: {status}")
    asking.close()


def of_questions(house: House, server: Server) -> Figure:
    rounds, seconds = (ROUNDS_SHORT, SECONDS_SHORT) if house.short else (ROUNDS, SECONDS)
    ours: list[dict[str, Any]] = []
    control: list[dict[str, Any]] = []
    for number in range(rounds):
        for said, path in ((control, CONTROL_PATH), (ours, "/v1/gate?workflow_id=w%d&account_id=ca_%d")):
            beside = webhooks(house, server.port, seconds + 1)
            time.sleep(0.5)
            words = ["--port", str(server.port), "--path", path, "--count", str(int(seconds * QUESTIONS_PER_SECOND))]
            said.append(run_module("bench.gate", words, house.token))
            ended(beside)
        say(
            f"round {number + 1}/{rounds}: p99 gate {ours[-1]['p99_ms']:.2f} ms, SELECT 1 {control[-1]['p99_ms']:.2f} ms"
        )
    for one in ours + control:
        if one["lost"] or set(one["statuses"]) != {"200"}:
            raise BenchFailed(f"answers {one['statuses']}, connections lost {one['lost']}")
    p99, its_p99 = [one["p99_ms"] for one in ours], [one["p99_ms"] for one in control]
    p50, its_p50 = [one["p50_ms"] for one in ours], [one["p50_ms"] for one in control]
    return Figure(
        name=f"p99 of the gate at {QUESTIONS_PER_SECOND:.0f} questions/s beside {WEBHOOKS_PER_SECOND:.0f} webhooks/s",
        unit="ms",
        ours=p99,
        control_name="SELECT 1 answered by the same process",
        control=its_p99,
        ratio=ratio_of(p99, its_p99),
        reach=f"under {P99_MS_MAX:.0f} ms",
        met=median(p99) < P99_MS_MAX,
        digits=2,
        notes=[
            f"p50 {median(p50):.2f} ms, of SELECT 1 {median(its_p50):.2f} ms: {ratio_of(p50, its_p50):.2f} times it"
        ],
    )


def webhooks(house: House, port: int, seconds: float) -> Popen[str]:
    count = int(seconds * WEBHOOKS_PER_SECOND)
    words = ["--port", str(port), "--count", str(count), "--rate", str(WEBHOOKS_PER_SECOND)]
    return generator("bench.load", words, house.secret)


def ended(beside: Popen[str]) -> None:
    out, _ = beside.communicate(timeout=60)
    if beside.returncode != 0 or json.loads(out.splitlines()[-1])["lost"]:
        raise BenchFailed("the webhooks beside the questions were not all answered")


async def of_changes(house: House, port: int) -> Figure:
    """From the answer to a pause or resume, which follows its commit, to the change on an open stream."""
    asking = Asking(port, house.token)
    await asking.open()
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(
        f"GET /v1/gate/stream?workflow_id=w0 HTTP/1.1\r\nhost: {HOST}\r\nauthorization: Bearer {house.token}\r\n\r\n".encode()
    )
    told_ms: list[float] = []
    asked_ms: list[float] = []
    async with asyncio.timeout(TOLD_SECONDS_MAX):
        await reader.readuntil(b"event: ready")
    for number in range(CHANGES_SHORT if house.short else CHANGES):
        began = time.perf_counter()
        what = "resume" if number % 2 else "pause"
        hearing = asyncio.create_task(reader.readuntil(b"event: answer"))
        status, _ = await asking.ask("POST", f"/v1/workflows/w0/{what}", {})
        answered = time.perf_counter()
        if status != 200:
            raise BenchFailed(f"{what}: {status}")
        async with asyncio.timeout(TOLD_SECONDS_MAX):
            await hearing
        told_ms.append(max(0.0, time.perf_counter() - answered) * 1000)
        asked_ms.append((answered - began) * 1000)
    writer.close()
    asking.close()
    return Figure(
        name="p99 from a commit to its change on the gate's stream",
        unit="ms",
        ours=[quantile(told_ms, 0.99)],
        control_name="the pause itself, asked to answered, p50",
        control=[median(asked_ms)],
        ratio=None,
        reach=f"within {TOLD_MS_MAX:.0f} ms",
        met=quantile(told_ms, 0.99) <= TOLD_MS_MAX,
        digits=1,
        notes=[f"p50 {median(told_ms):.1f} ms, of {len(told_ms)} changes"],
    )


def requests(path: str, count: int, token: str) -> list[bytes]:
    head = f" HTTP/1.1\r\nhost: {HOST}\r\nauthorization: Bearer {token}\r\n\r\n"
    paths = [path % (number, number) if "%" in path else path for number in range(WORKFLOWS)]
    return [f"GET {paths[number % WORKFLOWS]}{head}".encode() for number in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    load = Load(requests(arguments.path, arguments.count, os.environ["BENCH_SECRET"]), QUESTIONS_PER_SECOND)
    load.open(HOST, arguments.port, CONNECTIONS)
    load.run(2 * arguments.count / QUESTIONS_PER_SECOND)
    load.close()
    print(
        json.dumps(
            {
                "statuses": dict(load.statuses),
                "lost": load.lost,
                "p50_ms": quantile(load.seconds, 0.5) * 1000,
                "p99_ms": quantile(load.seconds, 0.99) * 1000,
            }
        )
    )


if __name__ == "__main__":
    main()
