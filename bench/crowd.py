"""Thousands of connections that each send one event: the queue as deep as it gets. A process of its own.

It says `open` when all are connected, waits for a line, sends, and prints one JSON line with the answers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys

from bench.house import HOST
from bench.load import PATH, Load, build
from service.signatures import parse_secret

CONNECTIONS_MAX = 20_000
ANSWER_SECONDS_MAX = 30


def run(port: int, count: int) -> dict[str, object]:
    secret = parse_secret(os.environ["BENCH_SECRET"], name="bench")
    load = Load(list(build(count, secret, f"{HOST}:{port}", PATH)), None)
    load.open(HOST, port, count)
    print("open", flush=True)
    sys.stdin.readline()
    load.run(ANSWER_SECONDS_MAX)
    load.close()
    return {"statuses": dict(load.statuses), "lost": load.lost, "max_s": max(load.seconds, default=0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    if not 0 < arguments.count <= CONNECTIONS_MAX:
        parser.error(f"--count is 1 to {CONNECTIONS_MAX}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(run(arguments.port, arguments.count)))


if __name__ == "__main__":
    main()
