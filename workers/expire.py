"""Holds that a person placed for a while go when it is over: looked for by every sweep, each workflow by itself."""

from __future__ import annotations

from service import expiry, queue
from service.observe import log as logger
from service.runtime import Runtime
from service.store import hold_history
from service.store.session import begin

EXPIRED_MAX = 200  # a look; the rest is let go at the next


async def let_go_expired(runtime: Runtime) -> None:
    async with begin(runtime.engine) as conn:
        over = await hold_history.expired(conn, EXPIRED_MAX)
    gone = 0
    for workflow_id in over:
        async with begin(runtime.engine) as conn:
            gone += await expiry.let_go(conn, workflow_id)
    if gone:
        logger.info("holds.expired", workflows=gone)
        runtime.nudger.nudge(queue.ACT)
        runtime.nudger.nudge(queue.SHIP)
