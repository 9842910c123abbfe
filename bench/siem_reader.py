"""One reader of the log at a speed of its own, by the pull API or by the log's own reading. A process of its own.

It reads until it has so many rows, or nothing has come for a long time, and writes the positions that it was given to a
file, eight bytes each, as they came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from bench.siem_fetch import Poller
from service.store import log
from service.store.session import begin, open_engine

IDLE_SECONDS_MAX = 60.0
LOOK_SECONDS = 0.02


async def read(
    wanted: int, rest_seconds: float, page: Callable[[], Awaitable[int]], positions: Callable[[], array[int]]
) -> dict[str, float]:
    began = moved = time.monotonic()
    pages = empty = 0
    while len(positions()) < wanted and time.monotonic() - moved < IDLE_SECONDS_MAX:
        pages += 1
        if await page():
            moved = time.monotonic()
            await asyncio.sleep(rest_seconds)
        else:
            empty += 1
            await asyncio.sleep(max(LOOK_SECONDS, rest_seconds))
    return {"seconds": moved - began, "pages": pages, "empty": empty}


async def by_log(wanted: int, limit: int, rest_seconds: float) -> tuple[array[int], dict[str, float]]:
    engine, positions = open_engine(os.environ["DATABASE_URL"], connections_max=1), array("q")

    async def page() -> int:
        async with begin(engine) as conn:
            rows = await log.read_after(conn, positions[-1] if positions else 0, limit)
        positions.extend(row.position for row in rows)
        return len(rows)

    said = await read(wanted, rest_seconds, page, lambda: positions)
    await engine.dispose()
    return positions, said


async def by_api(port: int, path: str, wanted: int, rest_seconds: float) -> tuple[array[int], dict[str, float]]:
    poller = Poller(port, os.environ["AUTHWATCH_ADMIN_TOKEN"], path)

    async def page() -> int:
        return poller.page()

    said = await read(wanted, rest_seconds, page, lambda: poller.positions)
    poller.close()
    return poller.positions, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="of the API; without it, the log is read itself")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--rest", type=float, required=True, help="seconds after each page")
    parser.add_argument("--into", type=Path, required=True)
    given = parser.parse_args()
    if given.port is None:
        positions, said = uvloop.run(by_log(given.rows, given.limit, given.rest))
    else:
        path = f"/v1/siem/events?format=raw&limit={given.limit}"
        positions, said = uvloop.run(by_api(given.port, path, given.rows, given.rest))
    given.into.write_bytes(positions.tobytes())
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
