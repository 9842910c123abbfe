"""Registering what an orchestrator runs: looked up there, proposed, and put like any workflow, one transaction each.

Whatever is registered is left as it is, and nothing is ever deleted: a person's word counts, and what is gone there is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service import rule_sets, steer
from service.event import TEXT_BYTES_MAX
from service.orchestrators.proposals import Plan, Proposal, Wanted, plan, workflow_id_of
from service.runtime import Runtime
from service.store import registered, workflows
from service.store.session import begin

LISTED_MAX = 5_000  # of one orchestrator


async def look(runtime: Runtime, wanted: Wanted) -> Plan:
    """Changes nothing. Raises `DeliveryFailed` where the orchestrator does not list what it runs."""
    orchestrator = runtime.orchestrators[wanted.orchestrator]
    listed = [
        one
        for one in await orchestrator.list_workflows(limit=LISTED_MAX)
        if fits(one.ref) and fits(one.name) and fits(workflow_id_of(one))
    ]
    async with begin(runtime.engine) as conn:
        there = await registered.at(conn, wanted.orchestrator)
        taken = await registered.taken(conn, {workflow_id_of(one) for one in listed})
    return plan(wanted, listed, there, taken, cut=len(listed) >= LISTED_MAX)


def fits(text: str) -> bool:
    """As PUT takes it."""
    return 0 < len(text.encode()) <= TEXT_BYTES_MAX and "\x00" not in text


async def apply(runtime: Runtime, wanted: Wanted, new: Sequence[Proposal], actor: str) -> list[Proposal]:
    """Those that were put: whatever somebody registered meanwhile is left as it is."""
    return [one for one in new if await put(runtime, wanted, one, actor)]


async def put(runtime: Runtime, wanted: Wanted, one: Proposal, actor: str) -> bool:
    context = steer.Context(actor=actor, notifiers=list(runtime.notifiers), orchestrators=list(runtime.orchestrators))
    workflow = steer.Wanted(
        workflow_id=one.workflow_id,
        name=one.name,
        account_ids=wanted.account_ids,
        connection_ids=wanted.connection_ids,
        active=True,
        pause="account" if wanted.connection_ids else "workflow",
        resume="auto",
        orchestrator_name=wanted.orchestrator,
        orchestrator_ref=one.ref,
    )
    async with begin(runtime.engine) as conn:
        ruleset = await rule_sets.in_force(conn, runtime)
        await workflows.lock(conn, one.workflow_id)
        if await workflows.load(conn, one.workflow_id) or await registered.is_at(conn, wanted.orchestrator, one.ref):
            return False
        await steer.put_workflow(conn, workflow, replace(context, ruleset=ruleset))
    return True
