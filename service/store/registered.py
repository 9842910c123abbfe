"""Which workflows are registered at an orchestrator, and which ids are taken."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.keys import any_of
from service.store.tables import workflows

REF = func.coalesce(workflows.c.orchestrator_ref, workflows.c.workflow_id)


async def at(conn: AsyncConnection, orchestrator: str) -> dict[str, str]:
    """Workflow id by ref; of several that share a ref, one."""
    rows = await conn.execute(
        select(REF, workflows.c.workflow_id)
        .where(workflows.c.orchestrator_name == orchestrator)
        .order_by(workflows.c.workflow_id.desc())
    )
    return {row[0]: row[1] for row in rows}


async def is_at(conn: AsyncConnection, orchestrator: str, ref: str) -> bool:
    query = (
        select(workflows.c.workflow_id)
        .where(workflows.c.orchestrator_name == orchestrator, REF.is_not_distinct_from(ref))
        .limit(1)
    )
    return (await conn.execute(query)).first() is not None


async def taken(conn: AsyncConnection, workflow_ids: Collection[str]) -> frozenset[str]:
    """Those of them that are registered, at whatever orchestrator or at none."""
    if not workflow_ids:
        return frozenset()
    rows = await conn.execute(
        select(workflows.c.workflow_id).where(workflows.c.workflow_id == any_of(sorted(workflow_ids)))
    )
    return frozenset(row[0] for row in rows)
