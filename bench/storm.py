"""500 accounts breaking at once: from just before the first POST to the last alert committed, and to its message.

"Out" is when the last alert and its action are committed and can be seen; the messages follow from the same worker, with
nothing limiting their rate but the two cores.
"""

from __future__ import annotations

import asyncio
import json
import time
from statistics import median

import psycopg

from bench.ask import Asking
from bench.bare import Bare
from bench.figure import Figure, ratio_of, shown
from bench.house import BenchFailed, House, say
from bench.slack import Ears
from bench.told import body_of, signed
from service.signatures import Secret

ROUNDS, ROUNDS_SHORT = 3, 1
ACCOUNTS, ACCOUNTS_SHORT = 500, 20
CLIENTS, PUTS_AT_ONCE = 32, 8
LOOK_EVERY_SECONDS = 0.01
SECONDS_MAX = 90.0
REACH_SECONDS = 1.0
OUT = """
SELECT count(*) FROM alerts a
WHERE a.account_id LIKE %s AND EXISTS (SELECT FROM actions x WHERE x.alert_id = a.id)
"""


async def prepare(port: int, token: str, secret: Secret, names: list[str]) -> None:
    """Each account is known and well, and an active workflow of its own depends on it."""

    async def some(mine: list[str]) -> None:
        asking = Asking(port, token)
        await asking.open()
        for name in mine:
            body = {"name": name, "account_ids": [name], "orchestrator": None}
            status, said = await asking.ask("PUT", f"/v1/workflows/wf_{name}", body)
            if status not in (200, 201):
                raise BenchFailed(f"PUT of a workflow was answered {status}: {said}")
            await taken_in(asking, signed(secret, body_of(name, "ACTIVE", time.time())))
        asking.close()

    await asyncio.gather(*(some(names[first::PUTS_AT_ONCE]) for first in range(PUTS_AT_ONCE)))


async def taken_in(asking: Asking, raw: bytes) -> None:
    asking.send(raw)
    status, _ = await asking.answer()
    if status != 202:
        raise BenchFailed(f"an event was answered {status}")


async def measure(
    port: int, house: House, secret: Secret, ears: Ears, bare: Bare, conn: psycopg.AsyncConnection[tuple[str | None]]
) -> Figure:
    rounds, count = (ROUNDS_SHORT, ACCOUNTS_SHORT) if house.short else (ROUNDS, ACCOUNTS)
    out, heard, control, accepted = [], [], [], []
    for number in range(rounds):
        names = [f"ca_storm{number}_{one}" for one in range(count)]
        await prepare(port, house.token, secret, names)
        await asyncio.sleep(1.0)
        try:
            took = await one_storm(port, house.token, secret, ears, conn, names, f"ca\\_storm{number}\\_%")
        except TimeoutError:
            raise BenchFailed(
                f"{count} accounts broke at once, and not every message was out in {SECONDS_MAX:.0f} s"
            ) from None
        accepted.append(took[0])
        out.append(took[1])
        heard.append(took[2])
        control.append(await bare_storm(ears, bare, [f"bare_storm{number}_{one}" for one in range(count)]))
        say(
            f"storm {number + 1}/{rounds}: last 202 {took[0]:.2f} s, last alert committed {took[1]:.2f} s, last message "
            f"{took[2]:.2f} s; the bare loop's last message {control[-1]:.2f} s"
        )
    return Figure(
        name=f"{count} accounts breaking at once, last alert out",
        unit="s",
        ours=out,
        control_name="bare loop: INSERT, NOTIFY, POST, its last message",
        control=control,
        ratio=ratio_of(out, control),
        reach=f"at most {REACH_SECONDS} s",
        met=median(out) <= REACH_SECONDS,
        digits=2,
        notes=[
            f"posted by {CLIENTS} clients, each account of its own connection and with a workflow of its own that is paused"
            f" in the same transaction; the last 202 after {shown(accepted, 2)} s; out: alert and action committed and seen,"
            f" looked for every {LOOK_EVERY_SECONDS * 1000:.0f} ms; the last of the {count} messages came after"
            f" {shown(heard, 2)} s, where Slack itself would take about one a second"
        ],
    )


async def one_storm(
    port: int,
    token: str,
    secret: Secret,
    ears: Ears,
    conn: psycopg.AsyncConnection[tuple[str | None]],
    names: list[str],
    pattern: str,
) -> tuple[float, float, float]:
    """Seconds to the last 202, to the last alert committed, to the last message."""
    clients = [Asking(port, token) for _ in range(CLIENTS)]
    for client in clients:
        await client.open()
    at = time.time()
    raws = [signed(secret, body_of(name, "DISCONNECTED", at)) for name in names]

    async def post(client: Asking, mine: list[bytes]) -> None:
        for raw in mine:
            await taken_in(client, raw)

    messages: dict[str, float] = {}  # by alert
    wanted: set[str] = set()  # known once they are committed

    async def listen() -> None:
        while not wanted or wanted - messages.keys():
            for came, method, delivery, _ in await ears.listen():
                if method == "chat.postMessage":
                    messages[delivery.split(":")[0]] = came

    listening = asyncio.create_task(listen())
    began = time.monotonic()
    posting = asyncio.gather(*(post(client, raws[first::CLIENTS]) for first, client in enumerate(clients)))
    answered: list[float] = []
    posting.add_done_callback(lambda _: answered.append(time.monotonic()))
    async with asyncio.timeout(SECONDS_MAX):
        while await committed(conn, pattern) < len(names):  # noqa: ASYNC110 - another process's commit is no event here
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        out = time.monotonic() - began
        await posting
        alerts = await conn.execute("SELECT id::text FROM alerts WHERE account_id LIKE %s", (pattern,))
        wanted.update([str(row[0]) for row in await alerts.fetchall()])
        await listening
    for client in clients:
        client.close()
    return answered[0] - began, out, max(messages[alert] for alert in wanted) - began


async def committed(conn: psycopg.AsyncConnection[tuple[str | None]], pattern: str) -> int:
    row = await (await conn.execute(OUT, (pattern,))).fetchone()
    return int(row[0] or 0) if row else 0


async def bare_storm(ears: Ears, bare: Bare, names: list[str]) -> float:
    """Seconds to the last message."""
    waiting = set(names)
    last = began = time.monotonic()
    taking = asyncio.gather(*(bare.take(name, json.dumps({"id": name}).encode()) for name in names))
    async with asyncio.timeout(SECONDS_MAX):
        while waiting:
            for at, _, delivery, _ in await ears.listen():
                if delivery in waiting:
                    waiting.discard(delivery)
                    last = max(last, at)
        await taking
    return last - began
