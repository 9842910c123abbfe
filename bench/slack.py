"""What stands where Slack's Web API would: it takes every message and keeps when it came. A process of its own.

As lean as can be, since it runs on the cores that are measured, and it limits nothing, which Slack itself does: about one
message a second and channel. Ours has no limit of its own; it waits where Slack answers 429. `GET /heard?after=N` is
answered once more than N have come, with all after N: [when (CLOCK_MONOTONIC, seconds), method, delivery id, title].
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import uvloop

from bench.ask import Asking
from bench.house import HOST, House, wait
from service import children

CHANNEL = "C0BENCH01"
BODY_BYTES_MAX = 256 * 1024
TITLE_CHARS = 120
HOLD_SECONDS_MAX = 5.0
HEARD_MAX = 100_000


class Heard:
    """Every message and edit in the order they came."""

    def __init__(self) -> None:
        self.all: list[tuple[float, str, str, str]] = []
        self.more = asyncio.Event()
        self._deliveries: dict[str, str] = {}

    def take(self, method: str, body: Mapping[str, Any], at: float) -> dict[str, object]:
        """An edit names its message by `ts` alone: of which delivery it is, the post has told. A reply in a thread is
        kept as `thread`: it is no message of its own."""
        if method == "chat.postMessage":
            ts = f"{1_700_000_000 + len(self.all)}.000100"
            self._deliveries[ts] = str(body.get("metadata", {}).get("event_payload", {}).get("delivery_id", ""))
        else:
            ts = str(body.get("ts", ""))
        if len(self.all) < HEARD_MAX:
            kept = "thread" if body.get("thread_ts") else method
            self.all.append((at, kept, self._deliveries.get(ts, ""), str(body.get("text", ""))[:TITLE_CHARS]))
        self.more.set()
        return {"ok": True, "channel": CHANNEL, "ts": ts, "message": {"ts": ts}}

    async def after(self, number: int) -> list[tuple[float, str, str, str]]:
        until = time.monotonic() + HOLD_SECONDS_MAX
        while len(self.all) <= number and (left := until - time.monotonic()) > 0:
            self.more.clear()
            try:
                async with asyncio.timeout(left):
                    await self.more.wait()
            except TimeoutError:
                break
        return self.all[number:]


async def answer(heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            verb, path, _ = head.split(" ", 2)
            lower = head.lower()
            at = lower.find("\r\ncontent-length: ")
            length = int(lower[at + 18 : lower.find("\r", at + 18)]) if at >= 0 else 0
            body = await reader.readexactly(min(length, BODY_BYTES_MAX))
            came = time.monotonic()
            said: object
            if verb == "GET":
                said = await heard.after(int(parse_qs(urlsplit(path).query)["after"][0]))
            else:
                told = json.loads(body) if body[:1] == b"{" else {k: v[0] for k, v in parse_qs(body.decode()).items()}
                if isinstance(told.get("metadata"), str):
                    told["metadata"] = json.loads(told["metadata"])
                said = heard.take(path.rsplit("/", 1)[1], told, came)
            raw = json.dumps(said).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(raw) + raw
            )
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


class Ears:
    """The bench's side: what came since it last asked, by delivery id."""

    def __init__(self, port: int) -> None:
        self._asking = Asking(port, "-")
        self._heard = 0

    async def open(self) -> None:
        await self._asking.open()

    def close(self) -> None:
        self._asking.close()

    async def listen(self) -> list[tuple[float, str, str, str]]:
        """Waits for the next, at most `HOLD_SECONDS_MAX`; then it may be none."""
        _, said = await self._asking.ask("GET", f"/heard?after={self._heard}")
        self._heard += len(said)
        return [(at, method, delivery, title) for at, method, delivery, title in said]


def start_slack(house: House, url: str) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the port it listens on by now."""
    port = children.choose_port(HOST)
    process = house.start("slack", ["-m", "bench.slack", "--port", str(port)], url)

    def listens() -> bool:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            return False
        return True

    wait(listens, "Slack's stand-in does not listen", house.folder / "slack.log")
    return process, port


async def serve(port: int) -> None:
    heard = Heard()
    server = await asyncio.start_server(
        lambda reader, writer: answer(heard, reader, writer), HOST, port, limit=BODY_BYTES_MAX
    )
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
