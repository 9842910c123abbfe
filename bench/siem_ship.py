"""The shipping story alone, as the worker process runs it: a process of its own that ends once its sinks have everything.

`--profile` prints where its time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import time
from collections.abc import Sequence

import uvloop

from service.observe import configure_logging
from service.runtime import WORKER_CONNECTIONS_MAX, Runtime, open_runtime
from service.settings import load_settings
from service.store import log, shipping
from service.store.session import begin
from workers.ship import ship

LOOK_SECONDS = 0.02
LINES = 45


async def shipped() -> dict[str, float]:
    async with open_runtime(load_settings(os.environ), connections_max=WORKER_CONNECTIONS_MAX) as runtime:
        async with begin(runtime.engine) as conn:
            head, _ = await log.head(conn)
        began, cpu = time.monotonic(), time.process_time()
        while True:
            await ship(runtime)
            if await all_at(runtime, [*runtime.sinks], head):
                break
            await asyncio.sleep(LOOK_SECONDS)
        return {"began": began, "ended": time.monotonic(), "cpu": time.process_time() - cpu}


async def all_at(runtime: Runtime, sinks: Sequence[str], head: int) -> bool:
    async with begin(runtime.engine) as conn:
        states = await shipping.states(conn, sinks)
    return len(states) == len(sinks) and all(state.position >= head for state in states.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true")
    configure_logging()
    if not parser.parse_args().profile:
        print(json.dumps(uvloop.run(shipped())), flush=True)
        return
    profile = cProfile.Profile()
    said = profile.runcall(uvloop.run, shipped())
    print(json.dumps(said))
    pstats.Stats(profile).sort_stats("tottime").print_stats(LINES)


if __name__ == "__main__":
    main()
