"""Holds whose time is over let go: decided under the same locks as a person's word and the evaluator's verdict."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from service import consequences, steer
from service.consequences import Consequences
from service.errors import NotFound
from service.store import log
from service.store import workflows as workflow_store

EXPIRED = "expired"


async def let_go(conn: AsyncConnection, workflow_id: str) -> bool:
    """Whether a hold of this workflow was over and is gone now; alerts' holds stay."""
    try:
        workflow, _, now = await steer.open_workflow(conn, workflow_id)
    except NotFound:
        return False  # deleted meanwhile, and its holds with it
    held = await workflow_store.open_holds(conn, workflow_ids=[workflow_id])
    over = [hold for hold in held if hold.expires_at is not None and hold.expires_at <= now]
    if not over:
        return False  # a person moved its end, or was faster
    out = Consequences()
    before = await consequences.paused(conn, [workflow_id])
    await workflow_store.release_holds(conn, [hold.id for hold in over], now, EXPIRED)
    await consequences.settle(conn, out, {workflow_id: workflow}, before, [], over, now, reason=EXPIRED)
    out.decisions.append(steer.audit("authwatch", "workflow.hold_expired", workflow_id, now, over[0].reason))
    await log.append(conn, out.decisions)
    return True
