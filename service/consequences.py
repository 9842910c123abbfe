"""What follows from a verdict or a person's word: holds placed and let go, workflows paused and resumed, actions queued.

All of it in the caller's transaction: the pause is real at its commit, telling the orchestrator follows from a row.
`Consequences.decisions` is for the log, which the caller appends last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service import silencing
from service.event import AccountKey, rfc3339
from service.report import is_well
from service.store import actions as action_store
from service.store import alerts as alert_store
from service.store import asks as ask_store
from service.store import workflows as workflow_store
from service.store.accounts import BEGINNING, Account
from service.store.actions import PAUSE, RESUME, NewAction
from service.store.alerts import Alert
from service.store.asks import Place
from service.store.log import Decision
from service.store.workflows import Hold, Workflow
from service.tell import announce


@dataclass(slots=True)
class Consequences:
    decisions: list[Decision] = field(default_factory=list)
    acted: bool = False  # some action was queued: whoever acts should look now
    release_due: dict[AccountKey, datetime] = field(default_factory=dict)
    fired: int = 0
    too_late: int = 0


LOCK = 7_305_201_013


async def lock(conn: AsyncConnection) -> None:
    """Of who judges, between the accounts' locks and the log's: two accounts that are judged beside each other may hold
    the same workflow, and only one of them pauses it."""
    await conn.execute(TAKE_LOCK)


TAKE_LOCK = select(func.pg_advisory_xact_lock(LOCK))


async def follow(
    conn: AsyncConnection,
    *,
    accounts: Mapping[AccountKey, Account],
    alerts: Mapping[AccountKey, Sequence[Alert]],
    dependents: Mapping[AccountKey, Sequence[Workflow]],
    fired: Sequence[Alert],
    resolved: Sequence[Alert],
    over: Collection[str] = (),
    well_again: Collection[AccountKey] = (),
    as_of: datetime,
    now: datetime,
    notifiers: Sequence[str],
) -> Consequences:
    """From the alerts of these accounts as they now stand. Their locks must be held. `as_of`: up to when the log has been
    read, which is what lets go of a hold. `over`: ids of alerts whose condition has ended just now, and `well_again`: accounts that
    have just become well, so that a person is asked to resume what only a person resumes."""
    out = Consequences(fired=sum(1 for alert in fired if not alert.discovered_late))
    existing = await workflow_store.account_holds(conn, list(accounts))
    wanted = [
        workflow_store.make_hold(
            workflow, alert_id=alert.id, account=key, scope=workflow.pause, reason=alert.summary, now=now
        )
        for key in accounts
        for alert in alerts[key]
        if alert.pauses and alert.condition_ended_at is None and not alert.discovered_late
        for workflow in dependents[key]
    ]
    have = {(hold.workflow_id, hold.alert_id) for hold in existing}
    missing = [hold for hold in wanted if (hold.workflow_id, hold.alert_id) not in have]
    known = {alert.id: alert for of_account in alerts.values() for alert in of_account}
    known |= await alert_store.load_many(
        conn, {hold.alert_id for hold in existing if hold.alert_id and hold.alert_id not in known}
    )
    affected = await workflow_store.load_many(conn, {hold.workflow_id for hold in (*missing, *existing)})
    release: list[Hold] = []
    for hold in existing:
        at = release_at(hold, known, affected, accounts)
        if at is None:
            continue
        if at <= as_of:
            release.append(hold)
        else:
            assert hold.account is not None
            out.release_due[hold.account] = min(at, out.release_due.get(hold.account, at))

    missing, quiet = await silencing.may_pause(conn, missing, known, now)
    for key, at in quiet.items():
        out.release_due[key] = min(at, out.release_due.get(key, at))
    before = await paused(conn, affected)
    placed = await workflow_store.place_holds(conn, missing)
    await workflow_store.release_holds(conn, [hold.id for hold in release], now, "account_well")
    new_holds = [hold for hold in missing if (hold.workflow_id, hold.alert_id) in placed]
    await settle(conn, out, affected, before, new_holds, release, now, reason="account_well")

    held_by: dict[str, list[str]] = {}
    for hold in new_holds:
        held_by.setdefault(hold.alert_id or "", []).append(hold.workflow_id)
    for alert in fired:
        if alert.shadow:
            continue  # recorded, and told to nobody
        account = accounts.get(alert.account) if alert.account else None
        out.decisions.append(alert_decision(alert, "alert.firing", now, account, held_by.get(alert.id, ())))
    for alert in resolved:
        if alert.shadow:
            continue
        account = accounts.get(alert.account) if alert.account else None
        out.decisions.append(alert_decision(alert, "alert.resolved", now, account))
    loud = {alert.id for alert in (*fired, *resolved) if not alert.discovered_late and not alert.shadow}
    loud |= {hold.alert_id for hold in (*new_holds, *release) if hold.alert_id}
    loud |= {
        hold.alert_id
        for hold in existing
        if hold.alert_id
        and (hold.alert_id in over or hold.account in well_again)
        and waits(hold, known, affected, accounts)
    }
    await notify(conn, out, loud, notifiers, now)
    return out


def well_since(account: Account) -> datetime | None:
    """Since when it has been well; None where it is not."""
    if not is_well(account.key.source, account.status, account.last_refresh_outcome):
        return None
    return (account.status_since if account.status is not None else account.last_refresh_at) or BEGINNING


def release_at(
    hold: Hold, alerts: Mapping[str, Alert], workflows: Mapping[str, Workflow], accounts: Mapping[AccountKey, Account]
) -> datetime | None:
    """When this hold may go by itself: once its trouble is over and the account has been well for `stable_for`."""
    alert = alerts.get(hold.alert_id or "")
    workflow = workflows.get(hold.workflow_id)
    account = accounts.get(hold.account) if hold.account else None
    well_at = well_since(account) if account is not None else None
    if alert is None or alert.condition_ended_at is None or well_at is None:
        return None
    if workflow is not None and workflow.resume != "auto":
        return None
    return max(alert.condition_ended_at, well_at) + timedelta(seconds=alert.stable_for_seconds)


def waits(
    hold: Hold, alerts: Mapping[str, Alert], workflows: Mapping[str, Workflow], accounts: Mapping[AccountKey, Account]
) -> bool:
    """Whether nothing but a person's word is missing for this hold to go."""
    alert, workflow = alerts.get(hold.alert_id or ""), workflows.get(hold.workflow_id)
    account = accounts.get(hold.account) if hold.account else None
    if alert is None or workflow is None or account is None or workflow.resume == "auto":
        return False
    return alert.condition_ended_at is not None and well_since(account) is not None


async def paused(conn: AsyncConnection, workflows: Collection[str]) -> set[str]:
    """Which of these are paused as a whole right now."""
    return {hold.workflow_id for hold in await open_holds(conn, workflows) if hold.scope == "workflow"}


async def open_holds(conn: AsyncConnection, workflows: Collection[str]) -> list[Hold]:
    return await workflow_store.open_holds(conn, workflow_ids=list(workflows)) if workflows else []


async def settle(
    conn: AsyncConnection,
    out: Consequences,
    workflows: Mapping[str, Workflow],
    before: set[str],
    placed: Sequence[Hold],
    released: Sequence[Hold],
    now: datetime,
    *,
    reason: str,
) -> None:
    """Holds have changed: say which workflows are paused or resumed by it, and have their orchestrators told."""
    held_by = by_workflow([hold for hold in await open_holds(conn, workflows) if hold.scope == "workflow"])
    after = set(held_by)
    placed_on, released_from, asks = by_workflow(placed), by_workflow(released), list[Ask]()
    for workflow_id, workflow in sorted(workflows.items()):
        mine, gone = placed_on.get(workflow_id, []), released_from.get(workflow_id, [])
        if workflow_id in after and workflow_id not in before:
            # None is new where what its holds stop is now the whole of it.
            because = [hold for hold in mine if hold.scope == "workflow"] or held_by[workflow_id]
            out.decisions.append(
                workflow_decision(workflow, "workflow.paused", because, now, because[0].reason, "workflow")
            )
            # Still held there from before it was declared inactive: asked twice, it would remember our own pause as its past.
            if workflow.orchestrator_name is not None and not workflow.orchestrator_held:
                asks.append(Ask(workflow, PAUSE, because, because[0].reason))
        elif workflow_id in before and workflow_id not in after:
            out.decisions.append(workflow_decision(workflow, "workflow.resumed", gone, now, reason, "workflow"))
            if workflow.orchestrator_held and workflow.active:
                asks.append(Ask(workflow, RESUME, gone, reason))
        for hold in mine:
            if hold.scope == "account":
                out.decisions.append(
                    workflow_decision(workflow, "workflow.paused", [hold], now, hold.reason, "account")
                )
        for hold in gone:
            if hold.scope == "account":
                out.decisions.append(workflow_decision(workflow, "workflow.resumed", [hold], now, reason, "account"))
    await ask_orchestrators(conn, out, asks, now)


def by_workflow(holds: Sequence[Hold]) -> dict[str, list[Hold]]:
    found: dict[str, list[Hold]] = {}
    for hold in holds:
        found.setdefault(hold.workflow_id, []).append(hold)
    return found


@dataclass(frozen=True, slots=True)
class Ask:
    """PAUSE or RESUME of a workflow at its orchestrator, because of these holds."""

    workflow: Workflow
    kind: str
    holds: Sequence[Hold]
    reason: str


async def ask_orchestrators(conn: AsyncConnection, out: Consequences, asks: Sequence[Ask], now: datetime) -> None:
    """One row each. What waits and is the opposite is taken back; what a resume has to undo is found out when it is done
    (workers/ask.py), so it is asked wherever we asked for a pause, arrived or not."""
    if not asks:
        return
    await ask_store.take_back(conn, {place_of(ask): ask.kind for ask in asks}, now)
    await workflow_store.set_orchestrator_held(conn, {ask.workflow.workflow_id: ask.kind == PAUSE for ask in asks})
    await action_store.add(conn, [action_of(ask) for ask in asks], now)
    out.acted = True


def place_of(ask: Ask) -> Place:
    workflow = ask.workflow
    assert workflow.orchestrator_name is not None
    ref = workflow.orchestrator_ref or workflow.workflow_id
    return Place(f"workflow:{workflow.workflow_id}", workflow.orchestrator_name, ref)


def action_of(ask: Ask) -> NewAction:
    place = place_of(ask)
    return NewAction(
        kind=ask.kind,
        destination=place.destination,
        lane=place.lane,
        alert_id=next((hold.alert_id for hold in ask.holds if hold.alert_id), None),
        workflow_id=ask.workflow.workflow_id,
        payload={"ref": place.ref, "reason": ask.reason},
    )


async def ask_orchestrator(
    conn: AsyncConnection,
    out: Consequences,
    workflow: Workflow,
    kind: str,
    holds: Sequence[Hold],
    now: datetime,
    reason: str,
) -> None:
    await ask_orchestrators(conn, out, [Ask(workflow, kind, holds, reason)], now)


async def notify(
    conn: AsyncConnection, out: Consequences, alert_ids: Collection[str | None], notifiers: Sequence[str], now: datetime
) -> None:
    """People may have to hear of these alerts; who does, and when, is decided by a worker (service/tell.py), which knows
    the routes: `notifiers` says no more than that there are some."""
    concerned = {alert_id for alert_id in alert_ids if alert_id}
    if concerned:
        await announce(conn, concerned, now)
        out.acted = True


def alert_decision(
    alert: Alert,
    kind: str,
    now: datetime,
    account: Account | None,
    workflow_ids: Sequence[str] = (),
    reason: str | None = None,
) -> Decision:
    """An alert's change as a row of the log; SIEM copies and the feed read it from there."""
    return Decision(
        kind=kind,
        subject_id=alert.id,
        occurred_at=now,
        account=alert.account,
        connection_id=alert.connection_id,
        provider=account.provider if account else None,
        identifier=account.identifier if account else None,
        status=account.status if account else None,
        details={
            "alert_id": alert.id,
            "rule_id": alert.rule_id,
            "rule_version": alert.rule_version,
            "severity": alert.severity,
            "group": dict(alert.group),
            "labels": dict(alert.labels),
            "value": alert.value,
            "summary": alert.summary,
            "state": alert.state,
            "reason": reason or alert.resolved_reason,
            "opened_at": rfc3339(alert.opened_at),
            "discovered_late": alert.discovered_late,
            "workflow_ids": list(workflow_ids),
            "dedup_key": alert.dedup_key,
            "drill": alert.drill,
        },
    )


def workflow_decision(
    workflow: Workflow, kind: str, holds: Sequence[Hold], now: datetime, reason: str, scope: str
) -> Decision:
    account = next((hold.account for hold in holds if hold.account), None)
    return Decision(
        kind=kind,
        subject_id=workflow.workflow_id,
        occurred_at=now,
        account=account,
        details={
            "workflow_id": workflow.workflow_id,
            "alert_ids": [hold.alert_id for hold in holds if hold.alert_id],
            "reason": reason,
            "scope": scope,
        },
    )
