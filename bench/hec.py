"""What stands where Splunk's HEC would: it takes every batch and keeps the log positions in it. A process of its own.

As lean as can be, since it runs on the cores that are measured: it unpacks, counts the envelopes and finds the position in
each; how strictly Splunk judges them is proved with tests/fakes/hec.py. `GET /taken` answers all positions as they came,
eight bytes each; `GET /state` how many, and when the last came (CLOCK_MONOTONIC); `GET /busy` has it answer 503 from
then on; `GET /forget` begins anew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import subprocess
import time
import zlib
from array import array
from dataclasses import dataclass
from http.client import HTTPConnection

import uvloop

from bench.house import HOST, BenchFailed, House, wait

TOKEN = "11111111-2222-3333-4444-555555555555"
PATH = "/services/collector/event"
BODY_BYTES_MAX = 4 * 1024 * 1024
# Where an item says its place in the log: in OCSF, and in raw. What is told in `details` is not meant.
OCSF, RAW = (
    re.compile(rb'"unmapped": ?\{"position": ?(\d+)'),
    re.compile(rb'"id": ?"[^"]{1,40}", ?"position": ?(\d+)'),
)
ENVELOPE = b'{"time":'
ANSWER_SECONDS_MAX = 30


def positions_of(body: bytes) -> list[int]:
    """Of the items in it, as they come."""
    return [int(found) for found in OCSF.findall(body) or RAW.findall(body)]


class Taken:
    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.positions = array("q")
        self.batches = self.bytes = 0
        self.last_at = 0.0
        self.busy = False

    def take(self, body: bytes) -> tuple[int, bytes]:
        """Status and answer. A body of which not every envelope has one position is refused."""
        if self.busy:
            return 503, b'{"text":"Server is busy","code":9}'
        self.bytes += len(body)
        if body[:2] == b"\x1f\x8b":
            body = zlib.decompress(body, wbits=31)
        found = positions_of(body)
        if not found or len(found) != body.count(ENVELOPE):
            return 400, b'{"text":"Invalid data format","code":6}'
        self.positions.extend(found)
        self.batches += 1
        self.last_at = time.monotonic()
        return 200, b'{"text":"Success","code":0}'

    def state(self) -> dict[str, float]:
        return {
            "items": len(self.positions),
            "batches": self.batches,
            "bytes": self.bytes,
            "last_at": self.last_at,
            "cpu": time.process_time(),
        }

    def answer(self, verb: str, path: str, body: bytes) -> tuple[int, bytes]:
        if verb == "POST" and path == PATH:
            return self.take(body)
        if path == "/taken":
            return 200, self.positions.tobytes()
        if path == "/busy":
            self.busy = True
        elif path == "/forget":
            self.forget()
        return 200, json.dumps(self.state()).encode()


async def answer(taken: Taken, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            verb, path, _ = head.split(" ", 2)
            lower = head.lower()
            at = lower.find("\r\ncontent-length: ")
            length = int(lower[at + 18 : lower.find("\r", at + 18)]) if at >= 0 else 0
            status, raw = taken.answer(verb, path, await reader.readexactly(min(length, BODY_BYTES_MAX)))
            writer.write(b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n" % (status, len(raw)) + raw)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


@dataclass(slots=True)
class StandIn:
    """The bench's hand on it."""

    port: int
    process: subprocess.Popen[bytes]

    def listens(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def ask(self, path: str) -> bytes:
        connection = HTTPConnection(HOST, self.port, timeout=ANSWER_SECONDS_MAX)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise BenchFailed(f"the HEC stand-in answered {answer.status} to {path}")
        return said

    def state(self) -> dict[str, float]:
        found: dict[str, float] = json.loads(self.ask("/state"))
        return found

    def taken(self) -> array[int]:
        found = array("q")
        found.frombytes(self.ask("/taken"))
        return found

    def section(self, **more: object) -> dict[str, object]:
        """For the config file's `sinks`."""
        return {"kind": "splunk_hec", "url": f"http://{HOST}:{self.port}", "token": TOKEN, **more}


def spawn_hec(house: House, url: str, port: int) -> StandIn:
    """It listens soon."""
    return StandIn(port, house.start("hec", ["-m", "bench.hec", "--port", str(port)], url))


def start_hec(house: House, url: str, port: int) -> StandIn:
    """It listens by then."""
    stand_in = spawn_hec(house, url, port)
    wait(stand_in.listens, "the HEC stand-in does not listen", house.folder / "hec.log")
    return stand_in


async def serve(port: int) -> None:
    taken = Taken()
    server = await asyncio.start_server(
        lambda reader, writer: answer(taken, reader, writer), HOST, port, limit=BODY_BYTES_MAX
    )
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
