"""Eight writers at once, by the log's real appends: half take receipts in, half append what Authwatch decides. A process of
its own, whose writers each have a connection.

Batches are of 1 to 500 rows; one transaction in fifty is rolled back, which leaves a gap in the positions that nobody may
wait for, and some linger before they take the log's lock, so that who began first is not who commits first. Each row names
its writer and its number: `event_id` is WRITER-NUMBER.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import uvloop
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service.event import AccountKey, ProviderEvent
from service.store import log
from service.store.log import Decision, Receipt
from service.store.session import begin, open_engine

WRITERS = 8
BATCH_ROWS_MAX = 500
ROLLED_BACK, LINGERS = 0.02, 0.05
LINGER_SECONDS_MAX = 0.02
BODY = b'{"type":"connected_account.token_refresh_succeeded"}'
DIGEST = hashlib.sha256(BODY).digest()


def receipt_of(name: str, account: str, now: datetime) -> Receipt:
    return Receipt(
        source="scalekit",
        origin="webhook",
        event=ProviderEvent(
            event_id=name,
            type="connected_account.token_refresh_succeeded",
            kind="token.refresh_succeeded",
            account_id=account,
            connection_id="conn_1",
            environment_id="env_1",
            occurred_at=now,
        ),
        clock_suspect=False,
        headers={},
        body=BODY,
        body_sha256=DIGEST,
        secret_name="bench",
        attempted_at=None,
    )


def decision_of(name: str, account: str, now: datetime) -> Decision:
    return Decision(
        kind="alert.acknowledged", subject_id=name, occurred_at=now, account=AccountKey("scalekit", "env_1", account)
    )


class RolledBack(Exception):
    """On purpose."""


async def write_batch(
    engine: AsyncEngine,
    dice: random.Random,
    names: Sequence[str],
    writer: int,
    account: str,
    now: datetime,
    *,
    rolled_back: bool,
) -> None:
    async with begin(engine) as conn:
        if dice.random() < LINGERS:
            await conn.execute(text("SELECT 1"))  # its transaction has begun
            await asyncio.sleep(dice.uniform(0.0, LINGER_SECONDS_MAX))
        if writer % 2:
            await log.append(conn, [decision_of(name, account, now) for name in names])
        else:
            await log.accept(conn, [receipt_of(name, account, now) for name in names])
        if rolled_back:
            raise RolledBack


async def write(engine: AsyncEngine, writer: int, rows: int) -> int:
    """So many rows, and how many transactions of it were rolled back first."""
    dice, done, undone = random.Random(writer), 0, 0
    while done < rows:
        size = min(dice.randint(1, BATCH_ROWS_MAX), rows - done)
        names, now = [f"{writer}-{done + number}" for number in range(size)], datetime.now(UTC)
        account, rolled_back = f"ca_{writer}_{done % 997}", dice.random() < ROLLED_BACK
        with suppress(RolledBack):
            await write_batch(engine, dice, names, writer, account, now, rolled_back=rolled_back)
        done, undone = (done, undone + 1) if rolled_back else (done + size, undone)
    return undone


async def written(rows: int) -> dict[str, float]:
    engine = open_engine(os.environ["DATABASE_URL"], connections_max=WRITERS)
    began, cpu = time.monotonic(), time.process_time()
    undone = await asyncio.gather(*(write(engine, writer, rows // WRITERS) for writer in range(WRITERS)))
    seconds = time.monotonic() - began
    await engine.dispose()
    return {"seconds": seconds, "cpu": time.process_time() - cpu, "rolled_back": sum(undone)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, required=True, help="of all writers together")
    print(json.dumps(uvloop.run(written(parser.parse_args().rows))), flush=True)


if __name__ == "__main__":
    main()
