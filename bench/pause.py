"""From a break's receipt to its workflow paused, at 500 events/s steady, every part on two cores.

A generator sends 500 token refreshes a second over ten thousand accounts, so that each is heard of every twenty seconds:
still a hundred times as often as in life, where tokens last an hour. Beside it, five times a second, an account of its
own breaks that an active workflow depends on. Measured from the outside: from just before the POST of the break
to the first answer of `GET /v1/gate` that denies with `workflow_paused`, which is asked as soon as a hold can be seen in
the database.
"""

from __future__ import annotations

import asyncio
import json
import time
from statistics import median

import psycopg
import uvloop

from bench.ask import Asking
from bench.figure import Figure, quantile
from bench.house import BenchFailed, House, Server, cpu_seconds, generator, one, say, wait
from bench.load import PATH, occurred, request
from service.event import new_id
from service.signatures import Secret, parse_secret, sign

RATE = 500
SECONDS, SECONDS_SHORT = 124, 14  # of the background; the breaks end before it does
ROUNDS = 5
MARGIN_SECONDS = 2.0
ACCOUNTS = 10_000
STEADY_SECONDS, STEADY_SECONDS_SHORT = 24.0, 4.0  # every account of the background is known by then
BREAKS, BREAKS_SHORT = 500, 15
SAMPLES_MIN, SAMPLES_MIN_SHORT = 400, 5
BREAK_EVERY_SECONDS = 0.18
LOOK_EVERY_SECONDS = 0.002
PAUSE_SECONDS_MAX = 20
STEADY_SHARE_MIN = 0.98
P50_MS_MAX, P99_MS_MAX = 60.0, 300.0
ENVIRONMENT = "env_58345499215204356"


def measure(house: House) -> list[Figure]:
    url = house.database("pause")
    server = house.server("ours", url, "ours-pause")
    worker = house.worker(url, "worker-pause")
    breaks, seconds = (BREAKS_SHORT, SECONDS_SHORT) if house.short else (BREAKS, SECONDS)
    steady_seconds = STEADY_SECONDS_SHORT if house.short else STEADY_SECONDS
    postgres = house.postgres.process
    assert postgres is not None
    secret = parse_secret(house.secret, name="bench")
    uvloop.run(prepare(server, house.token, secret, breaks))
    wait(lambda: one(url, "SELECT count(*) FROM accounts") >= breaks, "the accounts are not known")
    pids = {"receiver": (server.process.pid, False), "worker": (worker.pid, False), "Postgres": (postgres.pid, True)}
    count = ["--count", str(RATE * seconds), "--rate", str(RATE), "--accounts", str(ACCOUNTS)]
    background = generator("bench.load", ["--port", str(server.port), *count, "--wait"], house.secret)
    assert background.stdin is not None
    assert background.stdout is not None
    try:
        if background.stdout.readline().strip() != "built":
            raise BenchFailed("the background load could not be built")
        before = {part: cpu_seconds(pid, family=family) for part, (pid, family) in pids.items()}
        began = time.monotonic()
        background.stdin.write("\n")
        background.stdin.flush()
        time.sleep(steady_seconds)
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("ANALYZE")  # as Postgres does by itself within a minute, and not in the middle of a round
        until = began + seconds - MARGIN_SECONDS
        taken = uvloop.run(break_all(url, server, house.token, secret, breaks, until))
        out, _ = background.communicate(timeout=seconds + 30)
    finally:
        if background.poll() is None:
            background.kill()
            background.wait()
    if background.returncode != 0:
        raise BenchFailed("the background load broke")
    said = json.loads(out.splitlines()[-1])
    if said["lost"] or set(said["statuses"]) != {"202"}:
        raise BenchFailed(f"the background was answered {said['statuses']}, connections lost: {said['lost']}")
    took = time.monotonic() - began
    cores = {part: (cpu_seconds(p, family=f) - before[part]) / took for part, (p, f) in pids.items()}
    for process in (worker, server.process):
        house.stop(process)
    enough = len(taken) >= (SAMPLES_MIN_SHORT if house.short else SAMPLES_MIN)
    steady = said["per_second"] >= RATE * STEADY_SHARE_MIN
    if not enough or not steady:
        say("too few breaks or too slow a background: the machine was too busy, and the figures count as not met")
    each = -(-len(taken) // ROUNDS)
    rounds = [taken[first : first + each] for first in range(0, len(taken), each)]
    whole = f"over all {len(taken)} breaks p50 {quantile(taken, 0.5):.0f} ms, p99 {quantile(taken, 0.99):.0f} ms"
    say(whole)
    busy = ", ".join(f"{part} {share:.0%}" for part, share in cores.items())
    notes = [
        f"{len(taken)} breaks beside {said['per_second']:,.0f} token refreshes/s for {took:.0f} s, in {len(rounds)} "
        f"rounds; {whole}, the slowest {max(taken):.0f} ms; its hold was looked for every {LOOK_EVERY_SECONDS * 1000:.0f} ms, "
        "and the time runs until the gate then denied",
        f"the first break came {steady_seconds:.0f} s after the background began",
        f"of one core: {busy}, generator {said['generator_cpu_us'] * RATE / 1e6:.0%}",
    ]
    return [
        figure("p50", [quantile(one, 0.5) for one in rounds], P50_MS_MAX, enough and steady, notes),
        figure("p99", [quantile(one, 0.99) for one in rounds], P99_MS_MAX, enough and steady, []),
    ]


def figure(which: str, milliseconds: list[float], below: float, counts: bool, notes: list[str]) -> Figure:
    return Figure(
        name=f"receipt to workflow paused, {RATE} events/s, {which}",
        unit="ms",
        ours=milliseconds,
        control_name="-",
        control=[],
        ratio=None,
        reach=f"below {below:.0f} ms",
        met=counts and median(milliseconds) < below,
        notes=notes,
    )


def told(status: str, number: int, secret: Secret) -> bytes:
    """A genuine status of account `ca_break_NUMBER`, occurred just now."""
    at, event_id = time.time(), f"evt_{new_id()}"
    body = {
        "spec_version": "1",
        "id": event_id,
        "type": "connected_account.status_updated",
        "object": "ConnectedAccount",
        "occurred_at": occurred(at),
        "environment_id": ENVIRONMENT,
        "data": {
            "id": f"ca_break_{number}",
            "connection_id": "conn_58345499215204357",
            "identifier": f"break-{number}@example.com",
            "provider": "GMAIL",
            "status": status,
        },
    }
    raw = json.dumps(body).encode()
    return request("127.0.0.1", PATH, event_id, int(at), sign(secret, event_id, int(at), raw), raw)


async def prepare(server: Server, token: str, secret: Secret, breaks: int) -> None:
    """Each account is known and well, and one active workflow depends on it."""
    asking = Asking(server.port, token)
    await asking.open()
    for number in range(breaks):
        body = {"name": f"break {number}", "account_ids": [f"ca_break_{number}"], "orchestrator": None}
        status, said = await asking.ask("PUT", f"/v1/workflows/wf_break_{number}", body)
        if status not in (200, 201):
            raise BenchFailed(f"PUT of a workflow was answered {status}: {said}")
        await taken_in(asking, told("ACTIVE", number, secret))
    asking.close()


async def taken_in(asking: Asking, raw: bytes) -> None:
    asking.send(raw)
    status, _ = await asking.answer()
    if status != 202:
        raise BenchFailed(f"an event was answered {status}")


async def held(conn: psycopg.AsyncConnection[tuple[int]], number: int) -> int:
    """How many holds are on the workflow of this break, as committed."""
    found = await conn.execute("SELECT count(*) FROM holds WHERE workflow_id = %s", (f"wf_break_{number}",))
    row = await found.fetchone()
    assert row is not None
    return row[0]


async def break_all(url: str, server: Server, token: str, secret: Secret, breaks: int, until: float) -> list[float]:
    """Milliseconds of each break to its pause, one after the other, at most one in `BREAK_EVERY_SECONDS`.

    None begins after `until` (`time.monotonic()`), when the background load is about to end.
    """
    post, gate = Asking(server.port, token), Asking(server.port, token)
    await post.open()
    await gate.open()
    watching: psycopg.AsyncConnection[tuple[int]] = await psycopg.AsyncConnection.connect(url, autocommit=True)
    milliseconds = []
    for number in range(breaks):
        if time.monotonic() > until:
            break
        next_at = time.perf_counter() + BREAK_EVERY_SECONDS
        path = f"/v1/gate?workflow_id=wf_break_{number}"
        _, said = await gate.ask("GET", path)
        if not said["allow"]:
            raise BenchFailed(f"the gate denies before the break: {said}")
        raw = told("DISCONNECTED", number, secret)
        began = time.perf_counter()
        posting = asyncio.create_task(taken_in(post, raw))
        # Asking the gate costs the cores that are measured: one cheap row says when it is worth it.
        while await held(watching, number) == 0:
            if time.perf_counter() - began > PAUSE_SECONDS_MAX:
                raise BenchFailed(f"no pause within {PAUSE_SECONDS_MAX} s")
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        while True:
            _, said = await gate.ask("GET", path)
            if not said["allow"] and said["reason"] == "workflow_paused":
                break
            if time.perf_counter() - began > PAUSE_SECONDS_MAX:
                raise BenchFailed(f"the workflow is held and the gate does not say so: {said}")
        milliseconds.append((time.perf_counter() - began) * 1000)
        await posting
        await asyncio.sleep(max(0.0, next_at - time.perf_counter()))
    await watching.close()
    post.close()
    gate.close()
    return milliseconds
