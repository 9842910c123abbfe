"""The counting story, once a second: what was reported becomes rollups, and what is over its time goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from service.account_known import follow_known
from service.observe import log as logger
from service.runtime import Runtime
from service.store import log, readers, reports, rollups
from service.store.session import begin
from workers.every import Every

LOG_EVERY_SECONDS = 5.0  # what came in is counted together: the log may grow by thousands of rows a second
BIND_EVERY_SECONDS = 30.0
PRUNE_EVERY_SECONDS = 600.0
# Judging a backlog goes before counting it, since both want the database's processor; but not for ever.
UNJUDGED_MAX, WAIT_SECONDS_MAX = 5_000, 60.0


@dataclass(slots=True)
class RollingUp:
    """When this process last did what; nothing here is truth."""

    log: Every = field(default_factory=lambda: Every(LOG_EVERY_SECONDS))
    unjudged: Every = field(default_factory=lambda: Every(WAIT_SECONDS_MAX, time.monotonic()))
    bind: Every = field(default_factory=lambda: Every(BIND_EVERY_SECONDS))
    prune: Every = field(default_factory=lambda: Every(PRUNE_EVERY_SECONDS))

    async def step(self, runtime: Runtime) -> bool:
        """Whether there is more to count at once."""
        full = False
        for name in (rollups.CALLS, rollups.REFRESHES):
            full = await count_once(runtime, name) >= rollups.ROWS_MAX or full
        if self.log.due and not self.unjudged.due and await is_behind(runtime):
            self.log.done()
        elif self.log.due:
            self.unjudged.done()
            if await count_once(runtime, rollups.LOG) < rollups.ROWS_MAX:
                self.log.done()
            else:
                full = True
        if self.bind.due:
            self.bind.done()
            async with begin(runtime.engine) as conn:
                if await rollups.alone(conn):
                    await rollups.bind_again(conn)
            async with begin(runtime.engine) as conn:
                if await rollups.alone(conn):
                    await follow_known(conn, list(runtime.notifiers))
        if self.prune.due:
            self.prune.done()
            await prune(runtime)
        return full


async def is_behind(runtime: Runtime) -> bool:
    async with begin(runtime.engine) as conn:
        newest, _ = await log.head(conn)
        return newest - await readers.position(conn, readers.EVALUATOR) > UNJUDGED_MAX


async def count_once(runtime: Runtime, name: str) -> int:
    """How many rows one transaction has counted; 0 while another worker is at it."""
    async with begin(runtime.engine) as conn:
        if not await rollups.alone(conn):
            return 0
        now = await readers.clock(conn)
        if name == rollups.LOG:
            return await rollups.count_log(conn, now)
        return await rollups.count_reports(conn, name, now)


async def prune(runtime: Runtime) -> None:
    async with begin(runtime.engine) as conn:
        if not await rollups.alone(conn):
            return
        now = await readers.clock(conn)
        await rollups.prune(conn, now)
        await reports.prune_malformed(conn, now)
        over = await rollups.days_over(conn, now)
    for name in over:
        async with begin(runtime.engine) as conn:
            dropped = await rollups.drop_day(conn, name)
        logger.info("rollups.dropped" if dropped else "rollups.drop_waits", partition=name)
