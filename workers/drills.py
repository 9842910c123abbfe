"""Drills end by themselves, also when the command that began one was killed."""

from __future__ import annotations

from service import drill, queue
from service.runtime import Runtime
from service.store import alerts, readers
from service.store.session import begin

DRILLS_MAX = 20  # a look; the rest is ended at the next


async def end_drills(runtime: Runtime) -> None:
    async with begin(runtime.engine) as conn:
        over = await alerts.drills_over(conn, await readers.clock(conn), DRILLS_MAX)
    for alert_id in over:
        async with begin(runtime.engine) as conn:
            await drill.end(conn, alert_id, list(runtime.notifiers), reason="drill_over")
    if over:
        runtime.nudger.nudge(queue.ACT)
        runtime.nudger.nudge(queue.SHIP)
