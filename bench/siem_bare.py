"""The control of the push: a bare loop that reads the same rows and posts as many bytes. A process of its own.

It shapes nothing, redacts nothing and remembers nothing: what it posts was made before its clock began, by the sink itself.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import httpx
import psycopg
import uvloop

from bench.house import BenchFailed
from service import outbound
from service.event import Event
from service.sinks.splunk_hec import SplunkHec, SplunkHecConfig
from service.store import log
from service.store.log import EVENT_COLUMNS
from service.store.session import begin, open_engine

MADE_MAX = 20  # bodies, posted in turns
PAGE = f"SELECT {', '.join(EVENT_COLUMNS)} FROM events WHERE position > %s ORDER BY position LIMIT %s"


class Made:
    """What a sink posts, kept and not sent."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes, dict[str, str]]] = []

    async def take(self, request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
        self.requests.append((str(request.url), await request.aread(), headers))
        return httpx.Response(200, stream=httpx.ByteStream(b'{"text":"Success","code":0}'))


async def make(url: str, section: dict[str, Any], items: int) -> tuple[Made, int]:
    """The bodies of the first batches, and how many items each holds."""
    made, engine = Made(), open_engine(url, connections_max=1)
    client = httpx.AsyncClient(transport=httpx.MockTransport(made.take))
    sink = SplunkHec(SplunkHecConfig.model_validate({**section, "name": "bare"}), client)
    position, size = 0, min(sink.batch_items_max, items)
    try:
        for _ in range(MADE_MAX):
            async with begin(engine) as conn:
                rows: Sequence[Event] = await log.read_after(conn, position, size)
            if len(rows) < size:
                break
            await sink.send(rows)
            position = rows[-1].position
    finally:
        await client.aclose()
        await engine.dispose()
    return made, size


async def posted(section: dict[str, Any], items: int) -> dict[str, float]:
    url = os.environ["DATABASE_URL"]
    made, size = await make(url, section, items)
    done = position = number = 0
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn, outbound.open_client() as client:
        began, cpu = time.monotonic(), time.process_time()
        while done < items:
            rows = await (await conn.execute(PAGE.encode(), (position, size))).fetchall()
            if not rows:
                break
            address, body, headers = made.requests[number % len(made.requests)]
            answer = await client.post(address, content=body, headers=headers)
            if answer.status_code != 200:
                raise BenchFailed(f"the stand-in answered the bare loop {answer.status_code}")
            done, number, position = done + len(rows), number + 1, rows[-1][1]
        return {"began": began, "ended": time.monotonic(), "cpu": time.process_time() - cpu, "items": done}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--section", type=json.loads, required=True)
    parser.add_argument("--items", type=int, required=True)
    arguments = parser.parse_args()
    print(json.dumps(uvloop.run(posted(arguments.section, arguments.items))), flush=True)


if __name__ == "__main__":
    main()
