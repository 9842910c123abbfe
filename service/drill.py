"""A rule fired for practice, end to end: an alert marked as a drill, its messages, and a pause of a workflow meant for it.

A drill is a group of its own and belongs to no account, so that no judgement ever takes it for an episode. When it ends
is stored with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service import consequences
from service.consequences import Consequences
from service.errors import BadRequest, Conflict, NotFound
from service.event import new_id
from service.rules import Rule
from service.store import accounts as account_store
from service.store import actions as action_store
from service.store import alerts as alert_store
from service.store import log, readers
from service.store import notifications as notification_store
from service.store import workflows as workflow_store
from service.store.accounts import Account
from service.store.actions import NOTIFY
from service.store.alerts import Alert, dedup_key
from service.store.log import Decision
from service.store.workflows import Hold, Workflow

FOR_MAX = timedelta(hours=1)
MEANT_FOR_DRILLS = "drill"  # what the id of a workflow begins with that a drill may pause


@dataclass(frozen=True, slots=True)
class Told:
    """What became of the first message to one notifier; `seconds` from the alert to its being out."""

    notifier: str
    state: str
    seconds: float | None
    error: str | None

    @property
    def is_told(self) -> bool:
        return self.state == "done"


async def start(
    conn: AsyncConnection,
    rule: Rule,
    *,
    account: Account | None,
    lasts: timedelta,
    workflow_id: str | None,
    notifiers: Sequence[str],
    actor: str,
) -> Alert:
    """Fires it; the caller's commit makes it real. Raises BadRequest or NotFound for a workflow it may not pause."""
    if not timedelta(0) < lasts <= FOR_MAX:
        raise BadRequest(f"a drill lasts more than nothing and at most {FOR_MAX}", code="invalid_drill")
    workflow = await workflow_for(conn, workflow_id) if workflow_id is not None else None
    now = await readers.clock(conn)
    alert = make_alert(rule, account, now, lasts, pauses=workflow is not None)
    await alert_store.save(conn, [alert])
    out = Consequences()
    placed = await hold(conn, out, workflow, alert, now) if workflow is not None else []
    out.decisions.insert(0, decision(alert, "alert.firing", now, account, [held.workflow_id for held in placed]))
    out.decisions.append(
        Decision(
            kind="audit",
            subject_id=alert.id,
            occurred_at=now,
            details={"actor": actor, "action": "rule.drill", "subject": rule.id, "reason": None, "drill": True},
        )
    )
    await consequences.notify(conn, out, [alert.id], notifiers, now)
    await log.append(conn, out.decisions)
    return alert


async def end(conn: AsyncConnection, alert_id: str, notifiers: Sequence[str], *, reason: str) -> bool:
    """Resolves the drill and lets its workflow go; False when somebody has done so already."""
    for one in await workflow_store.open_holds(conn, alert_ids=[alert_id]):
        await lock(conn, one.workflow_id)
    alert = await alert_store.load_locked(conn, alert_id)
    if alert is None or not alert.drill or alert.drill_until is None:
        return False
    now = await readers.clock(conn)
    held = await workflow_store.open_holds(conn, alert_ids=[alert_id])
    if alert.condition_ended_at is not None and not held:
        return False
    out = Consequences()
    workflows = await workflow_store.load_many(conn, {one.workflow_id for one in held})
    before = await consequences.paused(conn, workflows)
    await workflow_store.release_holds(conn, [one.id for one in held], now, reason)
    await consequences.settle(conn, out, workflows, before, [], held, now, reason=reason)
    if alert.condition_ended_at is None:
        was_open = alert.state != "resolved"
        alert = replace(alert, condition_ended_at=now)
        if was_open:
            alert = replace(alert, state="resolved", resolved_at=now, resolved_reason=reason)
            out.decisions.append(decision(alert, "alert.resolved", now, None, ()))
        await alert_store.save(conn, [alert])
    await consequences.notify(conn, out, [alert.id], notifiers, now)
    await log.append(conn, out.decisions)
    return True


async def told(conn: AsyncConnection, alert: Alert) -> list[Told]:
    """How the first message to each notifier fared, by name."""
    first: dict[str, Told] = {}
    mine = await action_store.of_alert(conn, alert.id)
    for action in (*mine, *await notification_store.actions_about(conn, alert.id)):
        if action.kind == NOTIFY and action.destination not in first:
            seconds = (action.finished_at - alert.fired_at).total_seconds() if action.finished_at else None
            first[action.destination] = Told(action.destination, action.state, seconds, action.last_error)
    return [first[name] for name in sorted(first)]


async def workflow_for(conn: AsyncConnection, workflow_id: str) -> Workflow:
    if not workflow_id.startswith(MEANT_FOR_DRILLS):
        raise BadRequest(
            f'a drill pauses only a workflow meant for it: put one whose id begins with "{MEANT_FOR_DRILLS}"',
            code="not_for_drills",
        )
    await lock(conn, workflow_id)
    workflow = await workflow_store.load(conn, workflow_id)
    if workflow is None:
        raise NotFound(f"no workflow {workflow_id}; put it first", code="unknown_workflow")
    if not workflow.active:
        raise Conflict(f"workflow {workflow_id} is declared inactive; put it as active", code="workflow_inactive")
    return workflow


async def lock(conn: AsyncConnection, workflow_id: str) -> None:
    """As who changes a workflow takes them, before row locks: the workflow's, then those of what it depends on."""
    await workflow_store.lock(conn, workflow_id)
    depends = await workflow_store.dependencies_of(conn, workflow_id)
    await account_store.lock(conn, *workflow_store.names_of(depends))
    await consequences.lock(conn)


async def hold(conn: AsyncConnection, out: Consequences, workflow: Workflow, alert: Alert, now: datetime) -> list[Hold]:
    wanted = workflow_store.make_hold(
        workflow, alert_id=alert.id, account=None, scope="workflow", reason=alert.summary, now=now
    )
    before = await consequences.paused(conn, [workflow.workflow_id])
    placed = [wanted] if await workflow_store.place_holds(conn, [wanted]) else []
    await consequences.settle(
        conn, out, {workflow.workflow_id: workflow}, before, placed, [], now, reason=alert.summary
    )
    return placed


def make_alert(rule: Rule, account: Account | None, now: datetime, lasts: timedelta, *, pauses: bool) -> Alert:
    alert_id = new_id()
    group_key = f"drill:{alert_id}"
    values = {
        "account_id": account.key.account_id if account else "a practice account",
        "environment_id": account.key.environment_id if account else "a practice environment",
        "source": account.key.source if account else "a practice source",
        "connection_id": (account.connection_id if account else None) or "a practice connection",
        "provider": (account.provider if account else None) or "a practice provider",
        "identifier": (account.identifier or account.key.account_id) if account else "a practice account",
        "organization_id": (account.organization_id if account else None) or "a practice organization",
        "status": (account.status if account else None) or "BROKEN",
        "group": str(account.key) if account else "practice",
        "value": example_value(rule),
    }
    summary = rule.render(rule.summary, values)
    about = f" (as if of {account.key})" if account else ""
    return Alert(
        id=alert_id,
        rule_id=rule.id,
        rule_version=rule.version,
        severity=rule.severity,
        account=None,
        connection_id=None,
        group={"drill": str(account.key) if account else "practice"},
        group_key=group_key,
        episode=1,
        dedup_key=dedup_key(rule.id, group_key, 1),
        state="firing",
        summary=f"DRILL: {summary}{about}",
        what_to_do=rule.render(rule.what_to_do, values) if rule.what_to_do else None,
        opened_at=now,
        fired_at=now,
        pauses=pauses,
        drill=True,
        drill_until=now + lasts,
    )


def example_value(rule: Rule) -> str:
    """What the message would say at the least: the bound that is reached when it fires."""
    bounds = (getattr(rule.condition, name, None) for name in ("gte", "gt", "lte", "lt"))
    return f"{next((bound for bound in bounds if bound is not None), 1):g}"


def decision(alert: Alert, kind: str, now: datetime, account: Account | None, workflow_ids: Sequence[str]) -> Decision:
    made = consequences.alert_decision(alert, kind, now, None, workflow_ids)
    as_if = str(account.key) if account else None
    return replace(made, details={**made.details, "drill": True, "as_if_of": as_if})
