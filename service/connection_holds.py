"""Holds because a whole connection fails: on every active workflow that serves users through it, whatever its `pause` says.

The one user's revocation pauses the one user; the connector's own trouble pauses the workflow (contract.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service import consequences, silencing
from service.consequences import Consequences
from service.event import AccountKey
from service.store import alerts as alert_store
from service.store import dependents as dependent_store
from service.store import workflows as workflow_store
from service.store.alerts import Alert
from service.store.workflows import Hold


async def follow(
    conn: AsyncConnection,
    out: Consequences,
    connections: Collection[AccountKey],
    alerts: Sequence[Alert],
    *,
    over: Collection[str] = (),
    as_of: datetime,
    now: datetime,
    notifiers: Sequence[str],
) -> dict[AccountKey, datetime]:
    """From these alerts, as they now stand, and the holds there are because of these connections: places those and lets
    go of them; when the next one may go, by connection. `over`: ids of alerts whose condition has ended just now."""
    of_connections: dict[AccountKey, list[Alert]] = {key: [] for key in connections}
    for alert in alerts:
        if (key := connection_of(alert)) is not None:
            of_connections.setdefault(key, []).append(alert)
    if not of_connections:
        return {}
    existing = await workflow_store.connection_holds(conn, list(of_connections))
    dependents = await dependent_store.connection_dependents(conn, list(of_connections))
    have = {(hold.workflow_id, hold.alert_id) for hold in existing}
    missing = [
        workflow_store.make_hold(
            workflow, alert_id=alert.id, account=None, connection=key, scope="workflow", reason=alert.summary, now=now
        )
        for key, of_connection in of_connections.items()
        for alert in of_connection
        if alert.pauses and alert.condition_ended_at is None and not alert.discovered_late
        for workflow in dependents[key]
        if (workflow.workflow_id, alert.id) not in have
    ]
    known = {alert.id: alert for alert in alerts}
    known |= await alert_store.load_many(
        conn, {hold.alert_id for hold in existing if hold.alert_id and hold.alert_id not in known}
    )
    affected = await workflow_store.load_many(conn, {hold.workflow_id for hold in (*missing, *existing)})
    release: list[Hold] = []
    due: dict[AccountKey, datetime] = {}
    for hold in existing:
        at = release_at(hold, known, {name for name, workflow in affected.items() if workflow.resume == "auto"})
        if at is not None and at <= as_of:
            release.append(hold)
        elif at is not None and hold.connection is not None:
            due[hold.connection] = min(at, due.get(hold.connection, at))
    missing, quiet = await silencing.may_pause(conn, missing, known, now)
    for connection, until in quiet.items():
        due[connection] = min(until, due.get(connection, until))
    before = await consequences.paused(conn, affected)
    placed = await workflow_store.place_holds(conn, missing)
    await workflow_store.release_holds(conn, [hold.id for hold in release], now, "connection_well")
    new_holds = [hold for hold in missing if (hold.workflow_id, hold.alert_id) in placed]
    await consequences.settle(conn, out, affected, before, new_holds, release, now, reason="connection_well")
    loud = {hold.alert_id for hold in (*new_holds, *release) if hold.alert_id}
    # What stays paused until a person resumes it is asked for.
    loud |= {hold.alert_id for hold in existing if hold.alert_id and hold.alert_id in over}
    await consequences.notify(conn, out, loud, notifiers, now)
    return due


def connection_of(alert: Alert) -> AccountKey | None:
    if alert.account is not None or alert.connection_id is None:
        return None
    return AccountKey(alert.group.get("source", ""), alert.group.get("environment_id", ""), alert.connection_id)


def release_at(hold: Hold, alerts: Mapping[str, Alert], auto: Collection[str]) -> datetime | None:
    """A connection has no state of its own to be well in: its trouble has been over for `stable_for`."""
    alert = alerts.get(hold.alert_id or "")
    if alert is None or alert.condition_ended_at is None or hold.workflow_id not in auto:
        return None
    return alert.condition_ended_at + timedelta(seconds=alert.stable_for_seconds)
