"""Which workflows depend on an account: by the account itself, or by the connection it is of."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import ARRAY, Text, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import AccountKey
from service.observe import log as logger
from service.store.tables import dependencies
from service.store.workflows import Workflow, to_workflow

# Of one account or one connection, not of all that are asked for together: thousands that break at once lose none.
DEPENDENTS_MAX = 10_000

Target = tuple[str, str, str, str]  # kind, source, environment id, and the id of the account or the connection

DEPENDENTS = text(
    """
    SELECT t.number, w.* FROM unnest(:kinds, :sources, :environment_ids, :target_ids)
        WITH ORDINALITY AS t (kind, source, environment_id, target_id, number)
    CROSS JOIN LATERAL (
        SELECT DISTINCT d.workflow_id
        FROM dependencies d JOIN workflows a ON a.workflow_id = d.workflow_id
        WHERE d.kind = t.kind AND d.target_id = t.target_id
            AND (d.source IS NULL OR d.source = t.source)
            AND (d.environment_id IS NULL OR d.environment_id = t.environment_id)
            AND (a.active OR NOT :only_active)
        ORDER BY d.workflow_id LIMIT :rows
    ) AS d
    JOIN workflows w ON w.workflow_id = d.workflow_id
    ORDER BY t.number, w.workflow_id
    """
).bindparams(*(bindparam(name, type_=ARRAY(Text())) for name in ("kinds", "sources", "environment_ids", "target_ids")))


async def dependents(
    conn: AsyncConnection, accounts: Mapping[AccountKey, str | None], *, only_active: bool = True
) -> dict[AccountKey, list[Workflow]]:
    """For each account (and its connection) the workflows that depend on it: by the account itself or by its connection."""
    targets: dict[AccountKey, list[Target]] = {}
    for key, connection_id in accounts.items():
        targets[key] = [("account", *key)]
        if connection_id:
            targets[key].append(("connection", key.source, key.environment_id, connection_id))
    found = await of_targets(conn, {target: None for of_key in targets.values() for target in of_key}, only_active)
    return {key: together([found.get(target, []) for target in of_key]) for key, of_key in targets.items()}


async def connection_dependents(
    conn: AsyncConnection, keys: Collection[AccountKey]
) -> dict[AccountKey, list[Workflow]]:
    """The active workflows that serve users through these connections."""
    targets: dict[AccountKey, Target] = {key: ("connection", *key) for key in keys}
    found = await of_targets(conn, targets.values(), only_active=True)
    return {key: found.get(target, []) for key, target in targets.items()}


async def written_short(conn: AsyncConnection, account_id: str) -> list[str]:
    """Workflows that name an account by its short id alone."""
    rows = await conn.execute(
        select(dependencies.c.workflow_id)
        .where(
            dependencies.c.kind == "account",
            dependencies.c.target_id == account_id,
            dependencies.c.written == account_id,
        )
        .order_by(dependencies.c.workflow_id)
        .limit(DEPENDENTS_MAX)
    )
    return [row.workflow_id for row in rows]


async def of_targets(
    conn: AsyncConnection, targets: Collection[Target], only_active: bool
) -> dict[Target, list[Workflow]]:
    """By id, in order; of more than `DEPENDENTS_MAX` the first, and the log says so."""
    if not targets:
        return {}
    known = list(targets)
    kinds, sources, environment_ids, target_ids = (list(column) for column in zip(*known, strict=True))
    rows = await conn.execute(
        DEPENDENTS,
        {
            "kinds": kinds,
            "sources": sources,
            "environment_ids": environment_ids,
            "target_ids": target_ids,
            "only_active": only_active,
            "rows": DEPENDENTS_MAX + 1,
        },
    )
    found: dict[Target, list[Workflow]] = {}
    read: dict[str, Workflow] = {}  # one that depends on thousands of them is built once
    for row in rows:
        if row.workflow_id not in read:
            read[row.workflow_id] = to_workflow(row)
        found.setdefault(known[row.number - 1], []).append(read[row.workflow_id])
    for target, workflows in found.items():
        if len(workflows) > DEPENDENTS_MAX:
            del workflows[DEPENDENTS_MAX:]
            logger.error(
                "dependents.too_many", kind=target[0], target=":".join(target[1:]), paused_at_most=DEPENDENTS_MAX
            )
    return found


def together(several: Collection[list[Workflow]]) -> list[Workflow]:
    """Each once, by id."""
    if sum(map(bool, several)) < 2:
        return next(filter(None, several), [])
    by_id = {workflow.workflow_id: workflow for workflows in several for workflow in workflows}
    return [by_id[workflow_id] for workflow_id in sorted(by_id)]
