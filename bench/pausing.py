"""From the receipt of a break to the workflow paused, seen from outside, under a steady load with all parts running."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import httpx

from bench.load import request
from bench.parts import TOKEN, Bench
from service.event import new_id
from service.signatures import Secret, parse_secret, sign

POLL_SECONDS = 0.004
GIVE_UP_SECONDS = 10.0
PAUSE_BETWEEN_SECONDS = 0.15


def measure(
    bench: Bench, rate: float, samples: int, say: Callable[[str], None]
) -> tuple[list[float], dict[str, object]]:
    """Seconds from just before the POST to the first gate answer that denies, and what the background load saw."""
    database_url = bench.database("pausing")
    ours, worker = bench.receiver(database_url), bench.worker(database_url)
    time.sleep(2)
    count = int(rate * (samples * (PAUSE_BETWEEN_SECONDS + 0.1) + 10))
    words = [
        "--port",
        str(ours.port),
        "--secret",
        bench.secret,
        "--count",
        str(count),
        "--connections",
        "32",
        "--rate",
        str(rate),
    ]
    background = subprocess.Popen([sys.executable, "-m", "bench.load", *words], stdout=subprocess.PIPE)
    time.sleep(3)
    try:
        secret = parse_secret(bench.secret, name="bench")
        seconds = asyncio.run(breaks(ours.url, ours.port, secret, samples, say))
    finally:
        background.terminate() if background.poll() is None else None
        background.wait(20)
    bench.stop(ours, worker)
    return seconds, {"rate": rate}


async def breaks(url: str, port: int, secret: Secret, samples: int, say: Callable[[str], None]) -> list[float]:
    seconds: list[float] = []
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=20) as client:
        for number in range(samples):
            account, workflow = f"ca_break_{number}", f"w_{number}"
            put = await client.put(
                f"/v1/workflows/{workflow}", json={"account_ids": [account], "active": True, "orchestrator": None}
            )
            put.raise_for_status()
            seconds.append(await one_break(client, port, secret, account, workflow))
            if (number + 1) % 50 == 0:
                say(f"pausing, {number + 1} of {samples} breaks")
            await asyncio.sleep(PAUSE_BETWEEN_SECONDS)
    return seconds


async def one_break(client: httpx.AsyncClient, port: int, secret: Secret, account: str, workflow: str) -> float:
    now, unique = datetime.now(UTC), new_id()
    body = json.dumps(
        {
            "spec_version": "1",
            "id": f"evt_{unique}",
            "type": "connected_account.status_updated",
            "object": "ConnectedAccount",
            "occurred_at": now.isoformat().replace("+00:00", "Z"),
            "environment_id": "env_1",
            "data": {
                "id": account,
                "connection_id": "conn_1",
                "identifier": account,
                "provider": "GMAIL",
                "status": "DISCONNECTED",
                "old_status": "ACTIVE",
            },
        }
    ).encode()
    at = int(now.timestamp())
    raw = request(f"127.0.0.1:{port}", "/webhooks/scalekit", unique, at, sign(secret, unique, at, body), body)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    writer.write(raw)
    answered = await reader.readuntil(b"\r\n")
    if b" 202 " not in answered:
        raise RuntimeError(f"a break was answered {answered!r}")
    writer.close()
    while time.perf_counter() - began < GIVE_UP_SECONDS:
        gate = (await client.get("/v1/gate", params={"workflow_id": workflow})).json()
        if gate["reason"] == "workflow_paused":
            return time.perf_counter() - began
        await asyncio.sleep(POLL_SECONDS)
    raise RuntimeError(f"{workflow} was not paused within {GIVE_UP_SECONDS} s")
