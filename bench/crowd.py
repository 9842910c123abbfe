"""Thousands of connections that each send one event: the queue as deep as it gets. A process of its own.

It says `open` when all are connected, waits for a line, sends, says `sent`, and prints one JSON line with the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys

import uvloop

from bench.house import HOST
from bench.load import PATH, Connection, Load, build
from service.signatures import parse_secret

WAVE = 500  # connected at a time, well below the receiver's backlog
CONNECTIONS_MAX = 20_000
ANSWER_SECONDS_MAX = 30


async def run(port: int, count: int) -> dict[str, object]:
    secret = parse_secret(os.environ["BENCH_SECRET"], name="bench")
    load = Load(list(build(count, secret, f"{HOST}:{port}", PATH)), None)
    loop = asyncio.get_running_loop()
    connections: list[Connection] = []
    for first in range(0, count, WAVE):
        wave = [loop.create_connection(lambda: Connection(load), HOST, port) for _ in range(min(WAVE, count - first))]
        connections += [protocol for _, protocol in await asyncio.gather(*wave)]
    print("open", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    load.start(connections)
    print("sent", flush=True)
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await load.done.wait()
    except TimeoutError:
        pass
    return {"statuses": dict(load.statuses), "lost": load.lost_count, "max_s": max(load.seconds, default=0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    if not 0 < arguments.count <= CONNECTIONS_MAX:
        parser.error(f"--count is 1 to {CONNECTIONS_MAX}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(uvloop.run(run(arguments.port, arguments.count))))


if __name__ == "__main__":
    main()
