"""What a person or a script says of a workflow or an alert, in one transaction: put, delete, pause, resume, acknowledge,
snooze, resolve. The same locks and the same judgement as the evaluator's, so that neither order of the two misses a break.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service import connection_holds, consequences
from service.consequences import Consequences
from service.errors import BadRequest, Conflict, NotFound
from service.event import WELL, AccountKey, Event, rfc3339
from service.judge import Work, judge
from service.rules import Ruleset
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import deadlines as deadline_store
from service.store import groups as group_store
from service.store import hold_history, log, readers, shards
from service.store import workflows as workflow_store
from service.store.actions import PAUSE, RESUME
from service.store.alerts import Alert
from service.store.log import Decision
from service.store.tables import accounts as accounts_table
from service.store.tables import alerts as alerts_table
from service.store.workflows import Dependency, Hold, Workflow

CONNECTION_ACCOUNTS_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Who steers, with what: plain values the transaction needs. `ruleset` is what is in force, for who judges: put and
    delete of a workflow; they cannot do without."""

    actor: str
    notifiers: Sequence[str]
    orchestrators: Sequence[str]
    ruleset: Ruleset | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A workflow as PUT describes it."""

    workflow_id: str
    name: str | None
    account_ids: tuple[str, ...]
    connection_ids: tuple[str, ...]
    active: bool
    pause: str
    resume: str
    orchestrator_name: str | None
    orchestrator_ref: str | None


async def put_workflow(conn: AsyncConnection, wanted: Wanted, context: Context) -> Workflow:
    """Idempotent. Never resumes; joins the open episode of an account that is already broken."""
    if wanted.orchestrator_name is not None and wanted.orchestrator_name not in context.orchestrators:
        known = ", ".join(context.orchestrators) or "none is configured"
        raise BadRequest(
            f'no orchestrator named "{wanted.orchestrator_name}"; known: {known}', code="unknown_orchestrator"
        )
    await workflow_store.lock(conn, wanted.workflow_id)
    old_dependencies = await workflow_store.dependencies_of(conn, wanted.workflow_id)
    await account_store.lock(conn, *lock_ids(wanted.account_ids, wanted.connection_ids, old_dependencies))
    await consequences.lock(conn)  # before the first row is written: who judges beside us takes it before his
    # Read under the accounts' locks: until then the evaluator may say that it had the orchestrator pause it.
    old = await workflow_store.load(conn, wanted.workflow_id)
    now = await readers.clock(conn)
    new_dependencies = await resolve(conn, wanted)
    workflow = Workflow(
        workflow_id=wanted.workflow_id,
        name=wanted.name,
        account_ids=wanted.account_ids,
        connection_ids=wanted.connection_ids,
        active=wanted.active,
        pause=wanted.pause,
        resume=wanted.resume,
        orchestrator_name=wanted.orchestrator_name,
        orchestrator_ref=wanted.orchestrator_ref,
        orchestrator_held=old.orchestrator_held if old else False,
        created_at=old.created_at if old else now,
        updated_at=now,
    )
    out = Consequences()
    before = await consequences.paused(conn, [workflow.workflow_id])
    moved = (
        old is not None
        and old.orchestrator_held
        and (old.orchestrator_name, old.orchestrator_ref) != (wanted.orchestrator_name, wanted.orchestrator_ref)
    )
    if moved and old is not None:
        # What we paused at the old place is put back there before the new place is told.
        await consequences.ask_orchestrator(
            conn, out, old, RESUME, [], now, "the workflow moved to another orchestrator"
        )
        workflow = replace(workflow, orchestrator_held=False)
    await workflow_store.save(conn, workflow, new_dependencies)
    if old is not None and old.pause != workflow.pause:
        await workflow_store.rescope(conn, workflow.workflow_id, workflow.pause)
    dropped = await drop_holds(conn, workflow, new_dependencies, now, context.actor)
    await consequences.settle(
        conn, out, {workflow.workflow_id: workflow}, before, [], dropped, now, reason="dependency_dropped"
    )
    out.decisions.append(audit(context.actor, "workflow.put", workflow.workflow_id, now))
    await rejudge(conn, [*old_dependencies, *new_dependencies], context, out)
    if old is not None and old.resume != "auto" and workflow.resume == "auto":
        await look_at_holds(conn, workflow.workflow_id, now)
    paused = workflow.workflow_id in await consequences.paused(conn, [workflow.workflow_id])
    current = await workflow_store.load(conn, workflow.workflow_id)
    assert current is not None
    if current.active and current.orchestrator_name is not None and paused and not current.orchestrator_held:
        await consequences.ask_orchestrator(conn, out, current, PAUSE, [], now, "the workflow is paused")
    elif current.active and current.orchestrator_held and not paused:
        await consequences.ask_orchestrator(conn, out, current, RESUME, [], now, "nothing holds the workflow any more")
    await log.append(conn, out.decisions)
    return current


async def delete_workflow(conn: AsyncConnection, workflow_id: str, context: Context) -> None:
    """Its holds go, and what we paused at its orchestrator is put back."""
    workflow, dependencies, now = await open_workflow(conn, workflow_id)
    out = Consequences()
    before = await consequences.paused(conn, [workflow_id])
    open_holds = await workflow_store.open_holds(conn, workflow_ids=[workflow_id])
    await workflow_store.release_holds(
        conn, [hold.id for hold in open_holds], now, "workflow_deleted", by=context.actor
    )
    # Put back even when it was declared inactive meanwhile: nobody else will remember that we paused it.
    await consequences.settle(
        conn, out, {workflow_id: replace(workflow, active=True)}, before, [], open_holds, now, reason="workflow_deleted"
    )
    if workflow.orchestrator_held and workflow_id not in before:
        # Nothing holds it, yet it was not put back: it was inactive when the last hold went.
        await consequences.ask_orchestrator(conn, out, workflow, RESUME, [], now, "workflow_deleted")
    await workflow_store.remove(conn, workflow_id)
    out.decisions.append(audit(context.actor, "workflow.delete", workflow_id, now))
    await rejudge(conn, dependencies, context, out)
    await log.append(conn, out.decisions)


async def pause_workflow(
    conn: AsyncConnection, workflow_id: str, reason: str, context: Context, *, lasts: timedelta | None = None
) -> Workflow:
    """A person's hold, which goes by itself after `lasts`. A second one changes no more than when it goes: the last word
    counts, and without a time it stays until a person lets go."""
    workflow, _, now = await open_workflow(conn, workflow_id)
    out = Consequences()
    before = await consequences.paused(conn, [workflow_id])
    until = now + lasts if lasts is not None else None
    hold = workflow_store.make_hold(
        workflow,
        alert_id=None,
        account=None,
        scope="workflow",
        reason=reason,
        now=now,
        placed_by=context.actor,
        expires_at=until,
    )
    placed = [hold] if await workflow_store.place_holds(conn, [hold]) else []
    if placed:
        await consequences.settle(conn, out, {workflow_id: workflow}, before, placed, [], now, reason=reason)
    if placed or await hold_history.set_expiry(conn, workflow_id, until):
        said = f"{reason} (until {rfc3339(until)})" if until is not None else reason
        out.decisions.append(audit(context.actor, "workflow.pause", workflow_id, now, said))
    await log.append(conn, out.decisions)
    return workflow


async def resume_workflow(
    conn: AsyncConnection,
    workflow_id: str,
    reason: str,
    context: Context,
    *,
    which: Callable[[Hold], bool] = lambda _hold: True,
) -> Workflow:
    """Lifts the holds of now, whoever placed them; the same episodes do not hold it again. `which`: only those."""
    workflow, _, now = await open_workflow(conn, workflow_id)
    out = Consequences()
    before = await consequences.paused(conn, [workflow_id])
    lifted = list(filter(which, await workflow_store.open_holds(conn, workflow_ids=[workflow_id])))
    await workflow_store.release_holds(conn, [hold.id for hold in lifted], now, "person", by=context.actor, note=reason)
    if lifted:
        await consequences.settle(conn, out, {workflow_id: workflow}, before, [], lifted, now, reason=reason)
        out.decisions.append(audit(context.actor, "workflow.resume", workflow_id, now, reason))
        await consequences.notify(conn, out, {hold.alert_id for hold in lifted}, context.notifiers, now)
    await log.append(conn, out.decisions)
    return workflow


async def acknowledge_alert(conn: AsyncConnection, alert_id: str, context: Context) -> Alert:
    alert, now = await open_alert(conn, alert_id)
    if alert.state == "resolved":
        raise Conflict("this alert is already resolved", code="already_resolved")
    if alert.state == "acknowledged":
        return alert
    alert = replace(alert, state="acknowledged", acknowledged_at=now, acknowledged_by=context.actor)
    return await change_alert(conn, alert, "alert.acknowledged", now, context)


async def snooze_alert(conn: AsyncConnection, alert_id: str, until: datetime, context: Context) -> Alert:
    """Quiets repeats until then. Pauses, holds and the gate are untouched."""
    alert, now = await open_alert(conn, alert_id)
    if alert.state == "resolved":
        raise Conflict("this alert is already resolved", code="already_resolved")
    alert = replace(alert, snoozed_until=until)
    await alert_store.save(conn, [alert])
    if not alert.shadow:
        await consequences.notify(conn, Consequences(), [alert.id], context.notifiers, now)
    await log.append(conn, [audit(context.actor, "alert.snooze", alert.id, now)])
    return alert


async def resolve_alert(conn: AsyncConnection, alert_id: str, context: Context) -> Alert:
    """Closes the alert by hand. Its holds stay until the account is well or a person resumes."""
    alert, now = await open_alert(conn, alert_id)
    if alert.state == "resolved":
        return alert
    rule = context.ruleset.by_id.get(alert.rule_id) if context.ruleset is not None else None
    by_hand = rule is not None and rule.resolve is not None and rule.resolve.manual
    # An alert of our own about no account has no condition that could end by itself.
    ours = alert.rule_version is None and alert.account is None
    ended = now if ours or by_hand else alert.condition_ended_at
    if ended is not None and alert.condition_ended_at is None:
        # Its holds may go from now on, and no event need come to say so.
        await deadline_store.bring_forward(conn, {alert.account: now} if alert.account is not None else {})
        await group_store.set_due(conn, [alert.id], now)
    alert = replace(alert, state="resolved", resolved_at=now, resolved_reason="manual", condition_ended_at=ended)
    return await change_alert(conn, alert, "alert.resolved", now, context)


async def change_alert(conn: AsyncConnection, alert: Alert, kind: str, now: datetime, context: Context) -> Alert:
    await alert_store.save(conn, [alert])
    out = Consequences()
    if not alert.shadow:  # nobody was told of it, so nobody hears what became of it
        await consequences.notify(conn, out, [alert.id], context.notifiers, now)
        account = (await account_store.load(conn, [alert.account])).get(alert.account) if alert.account else None
        out.decisions.append(consequences.alert_decision(alert, kind, now, account))
    out.decisions.append(audit(context.actor, kind, alert.id, now))
    await log.append(conn, out.decisions)
    return alert


async def open_workflow(conn: AsyncConnection, workflow_id: str) -> tuple[Workflow, list[Dependency], datetime]:
    await workflow_store.lock(conn, workflow_id)
    dependencies = await workflow_store.dependencies_of(conn, workflow_id)
    await account_store.lock(conn, *lock_ids((), (), dependencies))
    await consequences.lock(conn)
    workflow = await workflow_store.load(conn, workflow_id)
    if workflow is None:
        raise NotFound("no workflow of that id; put it first", code="unknown_workflow")
    return workflow, dependencies, await readers.clock(conn)


async def open_alert(conn: AsyncConnection, alert_id: str) -> tuple[Alert, datetime]:
    alert = await alert_store.load(conn, alert_id)
    if alert is None:
        raise NotFound("no alert of that id", code="unknown_alert")
    if alert.account is not None:
        await account_store.lock(conn, [alert.account.account_id], [alert.connection_id])
        alert = await alert_store.load(conn, alert_id) or alert
    else:
        alert = await alert_store.load_locked(conn, alert_id) or alert
    return alert, await readers.clock(conn)


def lock_ids(
    account_ids: Iterable[str], connection_ids: Iterable[str], dependencies: Sequence[Dependency]
) -> tuple[set[str], set[str]]:
    """Short ids of accounts and of connections, as the evaluator takes them: of a full form, its last part too."""
    of_old = workflow_store.names_of(dependencies)
    return short(account_ids) | of_old[0], short(connection_ids) | of_old[1]


def short(written: Iterable[str]) -> set[str]:
    names = set(written)
    return names | {name.split(":", 2)[2] for name in names if name.count(":") >= 2}


async def resolve(conn: AsyncConnection, wanted: Wanted) -> list[Dependency]:
    """Each id bound to its account where there is one; Conflict when a short id means several."""
    found: list[Dependency] = []
    for written in wanted.account_ids:
        account = await account_store.find(conn, written)
        if account is not None:
            key: AccountKey | None = account.key
        else:
            key = account_store.parse_key(written) if written.count(":") >= 2 else None
        found.append(
            Dependency(
                kind="account",
                written=written,
                source=key.source if key else None,
                environment_id=key.environment_id if key else None,
                target_id=key.account_id if key else written,
            )
        )
    for written in wanted.connection_ids:
        full = account_store.parse_key(written) if written.count(":") >= 2 else None
        found.append(
            Dependency(
                kind="connection",
                written=written,
                source=full.source if full else None,
                environment_id=full.environment_id if full else None,
                target_id=full.account_id if full else written,
            )
        )
    return found


async def drop_holds(
    conn: AsyncConnection, workflow: Workflow, depends_on: Sequence[Dependency], now: datetime, actor: str
) -> list[Hold]:
    """Alerts' holds whose account this workflow no longer depends on, or all of them when it is no longer active."""
    mine = [
        hold
        for hold in await workflow_store.open_holds(conn, workflow_ids=[workflow.workflow_id])
        if hold.alert_id is not None
    ]
    rows = await account_store.load(conn, list({hold.account for hold in mine if hold.account}))
    gone = [
        hold
        for hold in mine
        if not workflow.active or not any(holds_through(dependency, hold, rows) for dependency in depends_on)
    ]
    reason = "dependency_dropped" if workflow.active else "workflow_inactive"
    await workflow_store.release_holds(conn, [hold.id for hold in gone], now, reason, by=actor)
    return gone


async def look_at_holds(conn: AsyncConnection, workflow_id: str, now: datetime) -> None:
    """Its holds may go by themselves from now on: the evaluator decides at once which; a PUT itself never resumes."""
    held = await workflow_store.open_holds(conn, workflow_ids=[workflow_id])
    await deadline_store.put(conn, {hold.account: now for hold in held if hold.account is not None})
    await group_store.set_due(conn, [hold.alert_id for hold in held if hold.connection and hold.alert_id], now)


def holds_through(dependency: Dependency, hold: Hold, rows: dict[AccountKey, account_store.Account]) -> bool:
    """Whether this dependency is why the hold may stand."""
    if hold.connection is not None:
        return (
            dependency.kind == "connection"
            and dependency.target_id == hold.connection.account_id
            and dependency.source in (None, hold.connection.source)
            and dependency.environment_id in (None, hold.connection.environment_id)
        )
    return hold.account is not None and meets(dependency, hold.account, rows)


def meets(dependency: Dependency, key: AccountKey, rows: dict[AccountKey, account_store.Account]) -> bool:
    row = rows.get(key)
    target = key.account_id if dependency.kind == "account" else row.connection_id if row else None
    return (
        dependency.target_id == target
        and dependency.source in (None, key.source)
        and dependency.environment_id in (None, key.environment_id)
    )


async def rejudge(
    conn: AsyncConnection, dependencies: Sequence[Dependency], context: Context, out: Consequences
) -> None:
    """Judges the accounts these dependencies name, as far as anything may be wrong with them, in this transaction."""
    by_account = {dependency.target_id for dependency in dependencies if dependency.kind == "account"}
    by_connection = {dependency.target_id for dependency in dependencies if dependency.kind == "connection"}
    if not by_account and not by_connection:
        return
    assert context.ruleset is not None, "who judges reads the set in force before it takes the accounts' locks"
    troubled = (
        select(alerts_table.c.account_id)
        .where(
            alerts_table.c.condition_ended_at.is_(None),
            alerts_table.c.account_id == accounts_table.c.account_id,
            alerts_table.c.source == accounts_table.c.source,
            alerts_table.c.environment_id == accounts_table.c.environment_id,
        )
        .exists()
    )
    rows = await conn.execute(
        select(accounts_table.c.source, accounts_table.c.environment_id, accounts_table.c.account_id)
        .where(
            or_(accounts_table.c.account_id.in_(by_account), accounts_table.c.connection_id.in_(by_connection)),
            or_(accounts_table.c.status.is_distinct_from(WELL), troubled),
        )
        .limit(CONNECTION_ACCOUNTS_MAX)
    )
    keys = [AccountKey(*row) for row in rows]
    now = await readers.clock(conn)
    # Read after the accounts' locks: what the evaluator has judged by now is what this judgement stands on.
    for upto, of_position in (await shards.evaluated(conn, {key.account_id for key in keys})).items():
        new: dict[AccountKey, list[Event]] = {key: [] for key in keys if key.account_id in of_position}
        work = Work(new=new, upto=upto, now=now, as_of=now)
        judged = await judge(conn, context.ruleset, work, notifiers=context.notifiers)
        out.decisions.extend(judged.decisions)
        out.acted = out.acted or judged.acted
    failing = await alert_store.open_of_connections(conn, by_connection)
    await connection_holds.follow(conn, out, (), failing, as_of=now, now=now, notifiers=context.notifiers)


def audit(actor: str, action: str, subject: str, now: datetime, reason: str | None = None) -> Decision:
    return Decision(
        kind="audit",
        subject_id=subject,
        occurred_at=now,
        details={"actor": actor, "action": action, "subject": subject, "reason": reason},
    )
