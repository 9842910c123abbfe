"""Alerts, paused workflows and open actions by the thousand, as the stories would have left them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service.event import AccountKey, new_id
from service.store import actions, alerts, readers, tables
from service.store import workflows as workflow_store
from service.store.actions import NOTIFY, PAUSE, NewAction
from service.store.alerts import Alert
from service.store.session import begin
from service.store.workflows import Workflow

AT_ONCE = 1000
SUMMARY = "Account is DISCONNECTED and an active workflow depends on it"


@dataclass(frozen=True, slots=True)
class Broken:
    """An alert, and the workflow that it holds."""

    alert_id: str
    workflow_id: str


async def fill(engine: AsyncEngine, prefix: str, count: int, *, orchestrator: str | None) -> list[Broken]:
    """So many accounts broke, each of a connection of its own: alert, workflow and hold are there, and nobody was told."""
    made: list[Broken] = []
    for first in range(0, count, AT_ONCE):
        async with begin(engine) as conn:
            now = await readers.clock(conn)
            names = [f"{prefix}_{number}" for number in range(first, min(first + AT_ONCE, count))]
            fired = [alert_of(name, now) for name in names]
            flows = [workflow_of(name, orchestrator, now) for name in names]
            await alerts.save(conn, fired)
            await conn.execute(insert(tables.workflows), [row_of(flow) for flow in flows])
            await workflow_store.place_holds(
                conn,
                [
                    workflow_store.make_hold(
                        flow, alert_id=alert.id, account=alert.account, scope="workflow", reason=SUMMARY, now=now
                    )
                    for flow, alert in zip(flows, fired, strict=True)
                ],
            )
            made += [Broken(alert.id, flow.workflow_id) for alert, flow in zip(fired, flows, strict=True)]
    return made


def alert_of(name: str, now: datetime) -> Alert:
    return Alert(
        id=new_id(),
        rule_id="account-disconnected-active-workflow",
        rule_version="1",
        severity="P2",
        account=AccountKey("scalekit", "env_1", f"ca_{name}"),
        connection_id=f"conn_{name}",
        group={"account_id": f"ca_{name}"},
        group_key=new_id(),
        episode=1,
        dedup_key=new_id(),
        state="firing",
        summary=SUMMARY,
        what_to_do="Ask the owner of the account to authorize it again.",
        opened_at=now,
        fired_at=now,
        evidence=(new_id(),),
    )


def workflow_of(name: str, orchestrator: str | None, now: datetime) -> Workflow:
    return Workflow(
        workflow_id=f"wf_{name}",
        name=f"Workflow {name}",
        account_ids=(f"ca_{name}",),
        connection_ids=(),
        active=True,
        pause="workflow",
        resume="auto",
        orchestrator_name=orchestrator,
        orchestrator_ref=f"flow_{name}" if orchestrator else None,
        orchestrator_held=orchestrator is not None,
        created_at=now,
        updated_at=now,
    )


def row_of(flow: Workflow) -> dict[str, object]:
    row: dict[str, object] = {column.name: getattr(flow, column.name, None) for column in tables.workflows.columns}
    known = {name: value for name, value in row.items() if value is not None}
    return known | {
        "account_ids": list(flow.account_ids),
        "connection_ids": list(flow.connection_ids),
        "orchestrator_name": flow.orchestrator_name,
        "orchestrator_ref": flow.orchestrator_ref,
    }


def message(broken: Broken, destination: str) -> NewAction:
    return NewAction(
        kind=NOTIFY,
        destination=destination,
        lane=f"{NOTIFY}:{destination}:{broken.alert_id}",
        alert_id=broken.alert_id,
    )


def pause(broken: Broken, destination: str) -> NewAction:
    return NewAction(
        kind=PAUSE,
        destination=destination,
        lane=f"workflow:{broken.workflow_id}",
        alert_id=broken.alert_id,
        workflow_id=broken.workflow_id,
        payload={"ref": broken.workflow_id, "reason": SUMMARY},
    )


async def open_all(engine: AsyncEngine, new: Sequence[NewAction]) -> datetime:
    """All of them due at once, from one commit on; the database's time just before it."""
    async with begin(engine) as conn:
        return await opened(conn, new)


async def opened(conn: AsyncConnection, new: Sequence[NewAction]) -> datetime:
    now = await readers.clock(conn)
    await actions.add(conn, new, now)
    return now
