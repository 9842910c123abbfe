"""Stored rows as people and scripts see them: the workflow, the account, the alert of contract.md, and a message's view."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import rfc3339
from service.notify.base import AlertView, StopFacts, WorkflowLine
from service.redact import redact_text
from service.store import actions as action_store
from service.store import asks as ask_store
from service.store import hold_history, owned, showing
from service.store import notifications as notification_store
from service.store import workflows as workflow_store
from service.store.accounts import Account
from service.store.actions import PAUSE, Action
from service.store.alerts import Alert
from service.store.hold_history import Held
from service.store.owned import Owner
from service.store.showing import Shown
from service.store.workflows import Hold, Workflow

MASKED_KEPT_MAX = 2_000
HOLDS_SHOWN_MAX = 100  # of one workflow, the oldest; the history has them all
# What became of an ask that changed nothing there, as a message says it.
NOTHING_CHANGED = {
    ask_store.LEFT: "left as a person had it",
    ask_store.NOT_PAUSED: "nothing to resume",
    ask_store.ALREADY: "paused there already, by a person",
    ask_store.GONE: "nothing to resume, it is gone there",
    ask_store.DOUBTFUL: "left as it is: a person or we paused it there, and which cannot be told; start it there by hand",
}


def workflow_json(
    workflow: Workflow, holds: Sequence[Hold], asked: Action | None, rules: Mapping[str, str]
) -> dict[str, Any]:
    """`holds`: this workflow's open ones. `state` is `paused` while one of scope `workflow` is among them. `rules`: by
    alert id, of the holds that are shown."""
    whole = [hold for hold in holds if hold.scope == "workflow"]
    return {
        "workflow_id": workflow.workflow_id,
        "name": workflow.name,
        "account_ids": list(workflow.account_ids),
        "connection_ids": list(workflow.connection_ids),
        "active": workflow.active,
        "pause": workflow.pause,
        "resume": workflow.resume,
        "orchestrator": {"name": workflow.orchestrator_name, "ref": workflow.orchestrator_ref}
        if workflow.orchestrator_name
        else None,
        "state": "inactive" if not workflow.active else "paused" if whole else "active",
        "paused_by": list(dict.fromkeys(hold.alert_id or "manual" for hold in whole)),
        "paused_at": rfc3339(min((hold.placed_at for hold in whole), default=None)),
        "paused_accounts": sorted(
            {hold.account.account_id for hold in holds if hold.scope == "account" and hold.account}
        ),
        "holds": [hold_json(hold, rules.get(hold.alert_id or "")) for hold in holds[:HOLDS_SHOWN_MAX]],
        "stops": stops_json(stop_facts(workflow.orchestrator_name, of_action(asked))) if whole else None,
        "orchestrator_answer": asked_json(asked),
        "updated_at": rfc3339(workflow.updated_at),
    }


def asked_json(asked: Action | None) -> dict[str, Any] | None:
    """The last thing the orchestrator was asked, and what it said."""
    if asked is None:
        return None
    pause = asked.kind == PAUSE
    return {
        "asked": "pause" if pause else "resume",
        "orchestrator": asked.destination,
        "state": asked.state,
        "attempts": asked.attempts,
        "answer": dict(asked.result) if asked.result else None,
        "error": asked.last_error,
        "asked_at": rfc3339(asked.created_at),
        "answered_at": rfc3339(asked.finished_at),
        "stops": stops_json(stop_facts(asked.destination, of_action(asked))) if pause else None,
    }


async def workflows_json(conn: AsyncConnection, workflows: Sequence[Workflow]) -> list[dict[str, Any]]:
    ids = [workflow.workflow_id for workflow in workflows]
    holds = await workflow_store.open_holds(conn, workflow_ids=ids) if ids else []
    asked = await action_store.newest_for_workflows(conn, ids)
    held: dict[str, list[Hold]] = {}
    for hold in holds:
        held.setdefault(hold.workflow_id, []).append(hold)
    shown = {hold.alert_id for of_one in held.values() for hold in of_one[:HOLDS_SHOWN_MAX] if hold.alert_id}
    rules = await hold_history.rules_of(conn, shown)
    return [
        workflow_json(workflow, held.get(workflow.workflow_id, ()), asked.get(workflow.workflow_id), rules)
        for workflow in workflows
    ]


def hold_json(hold: Hold, rule_id: str | None) -> dict[str, Any]:
    """Whose it is: an alert's with its rule, or a person's."""
    about = hold.account or hold.connection
    return {
        "id": hold.id,
        "alert_id": hold.alert_id,
        "rule": rule_id,
        "person": (hold.placed_by or "unknown") if hold.alert_id is None else None,
        "scope": hold.scope,
        "account_id": hold.account.account_id if hold.account else None,
        "connection_id": hold.connection.account_id if hold.connection else None,
        "source": about.source if about else None,
        "environment_id": (about.environment_id or None) if about else None,
        "reason": hold.reason,
        "placed_at": rfc3339(hold.placed_at),
        "expires_at": rfc3339(hold.expires_at),
    }


async def history_json(conn: AsyncConnection, workflow_id: str, page: Sequence[Held]) -> list[dict[str, Any]]:
    """Each hold with who let go of it and what the orchestrator was asked while it stood, its two ends included."""
    if not page:
        return []
    open_ended = any(one.hold.released_at is None for one in page)
    until = None if open_ended else max(one.hold.released_at for one in page if one.hold.released_at)
    asked = await ask_store.between(conn, workflow_id, min(one.hold.placed_at for one in page), until)
    return [
        hold_json(one.hold, one.rule_id)
        | {
            "released_at": rfc3339(one.hold.released_at),
            "release_reason": one.hold.release_reason,
            "released_by": one.hold.released_by,
            "release_note": one.hold.release_note,
            "orchestrator": [asked_json(action) for action in asked if is_within(one.hold, action)],
        }
        for one in page
    ]


def is_within(hold: Hold, action: Action) -> bool:
    return hold.placed_at <= action.created_at and (hold.released_at is None or action.created_at <= hold.released_at)


def of_action(asked: Action | None) -> Shown | None:
    """What a workflow's orchestrator was last asked, as messages know it too."""
    if asked is None:
        return None
    return Shown(None, asked.destination, asked.kind, asked.state, asked.last_error, asked.last_code, asked.result)


def stop_facts(orchestrator: str | None, asked: Shown | None) -> StopFacts:
    """What the pause at the orchestrator stops, from the last thing that it was asked and said."""
    if orchestrator is None or asked is None or asked.asked != PAUSE:
        return StopFacts(null_means="not_told")
    if asked.state != "done":
        return StopFacts(null_means="pause_failed" if asked.state == "failed" else "not_answered")
    said = (asked.result or {}).get("stops") or {}
    facts = {name: said.get(name) for name in ("scheduled_starts", "manual_starts", "running_work")}
    return StopFacts(**facts, null_means="does_not_say" if None in facts.values() else None)


def stops_json(facts: StopFacts) -> dict[str, Any]:
    return asdict(facts)


def account_json(account: Account, alerts: Sequence[str], workflows: Sequence[str]) -> dict[str, Any]:
    return {
        "account_id": account.key.account_id,
        "source": account.key.source,
        "environment_id": account.key.environment_id or None,
        "full_id": str(account.key),
        "connection_id": account.connection_id,
        "provider": account.provider,
        "identifier": account.identifier,
        "organization_id": account.organization_id,
        "status": account.status,
        "status_since": rfc3339(account.status_since),
        "last_event_at": rfc3339(account.last_event_at),
        "last_refresh_at": rfc3339(account.last_refresh_at),
        "last_refresh_outcome": account.last_refresh_outcome,
        "failures_in_a_row": account.failures_in_a_row,
        "token_expires_at": account.token_expires_at,
        "first_seen_at": rfc3339(account.first_seen_at),
        "alerts": list(alerts),
        "workflows": list(workflows),
    }


def alert_json(alert: Alert) -> dict[str, Any]:
    return {
        "id": alert.id,
        "rule": alert.rule_id,
        "rule_version": alert.rule_version,
        "severity": alert.severity,
        "account_id": alert.account.account_id if alert.account else None,
        "source": alert.account.source if alert.account else None,
        "environment_id": (alert.account.environment_id or None) if alert.account else None,
        "connection_id": alert.connection_id,
        "group": dict(alert.group),
        "labels": dict(alert.labels),
        "shadow": alert.shadow,
        "episode": alert.episode,
        "dedup_key": alert.dedup_key,
        "state": alert.state,
        "summary": alert.summary,
        "what_to_do": alert.what_to_do,
        "opened_at": rfc3339(alert.opened_at),
        "fired_at": rfc3339(alert.fired_at),
        "condition_ended_at": rfc3339(alert.condition_ended_at),
        "acknowledged_at": rfc3339(alert.acknowledged_at),
        "acknowledged_by": alert.acknowledged_by,
        "snoozed_until": rfc3339(alert.snoozed_until),
        "resolved_at": rfc3339(alert.resolved_at),
        "resolved_reason": alert.resolved_reason,
        "discovered_late": alert.discovered_late,
        "drill": alert.drill,
        "late_detection": alert.late_detection,
        "flapping": alert.flapping,
        "late_seconds": alert.late_seconds,
        "value": alert.value,
        "evidence": list(alert.evidence),
    }


async def alert_with_actions(conn: AsyncConnection, alert: Alert) -> dict[str, Any]:
    """One alert with what was done about it, every attempt included."""
    done = await action_store.of_alert(conn, alert.id)
    done += await notification_store.actions_about(conn, alert.id)
    attempts = await action_store.attempts_of(conn, [action.id for action in done])
    return alert_json(alert) | {
        "actions": [
            {
                "id": action.id,
                "kind": action.kind,
                "destination": action.destination,
                "workflow_id": action.workflow_id,
                "state": action.state,
                "created_at": rfc3339(action.created_at),
                "finished_at": rfc3339(action.finished_at),
                "result": dict(action.result) if action.result else None,
                "attempts": [
                    {
                        "number": row.number,
                        "started_at": rfc3339(row.started_at),
                        "finished_at": rfc3339(row.finished_at),
                        "outcome": row.outcome,
                        "code": row.code,
                        "detail": row.detail,
                    }
                    for row in attempts[action.id]
                ],
            }
            for action in done
        ]
    }


@dataclass(frozen=True, slots=True)
class AlertParts:
    """What a message about one alert is made of. `workflows` is by workflow id."""

    alert: Alert
    account: Owner | None
    held: Sequence[Hold]
    workflows: Mapping[str, Shown]


async def alert_parts(conn: AsyncConnection, alert_ids: Collection[str]) -> dict[str, AlertParts]:
    """By alert id, in the same few statements however many they are; an alert that is gone is not in it."""
    found = await owned.load(conn, alert_ids)
    held = await workflow_store.holds_of_alerts(conn, list(found))
    workflows = await showing.workflows(conn, {hold.workflow_id for of_one in held.values() for hold in of_one})
    return {
        alert_id: AlertParts(alert, owner, held.get(alert_id, ()), workflows)
        for alert_id, (alert, owner) in found.items()
    }


async def alert_view(conn: AsyncConnection, alert_id: str, *, public_url: str) -> AlertView | None:
    """The alert as the on-call should see it at this moment."""
    parts = (await alert_parts(conn, [alert_id])).get(alert_id)
    return view_of(parts, public_url=public_url) if parts else None


def view_of(parts: AlertParts, *, public_url: str) -> AlertView:
    alert, account, held, workflows = parts.alert, parts.account, parts.held, parts.workflows
    lines = [
        WorkflowLine(
            workflow_id=hold.workflow_id,
            name=masked(workflows[hold.workflow_id].name) if hold.workflow_id in workflows else None,
            state="paused" if hold.released_at is None else "active",
            scope="account" if hold.scope == "account" else "workflow",
            orchestrator=workflows[hold.workflow_id].orchestrator_name if hold.workflow_id in workflows else None,
            orchestrator_state=asked_words(workflows.get(hold.workflow_id)),
            stops=stops_of(hold, workflows.get(hold.workflow_id)),
        )
        for hold in held
    ]
    return AlertView(
        id=alert.id,
        rule_id=alert.rule_id,
        severity=alert.severity,
        state="resolved"
        if alert.state == "resolved"
        else "acknowledged"
        if alert.state == "acknowledged"
        else "firing",
        summary=masked(alert.summary) or "",
        opened_at=alert.opened_at,
        fired_at=alert.fired_at,
        what_to_do=alert.what_to_do,
        account_id=alert.account.account_id if alert.account else None,
        connection_id=alert.connection_id,
        environment_id=(alert.account.environment_id or None) if alert.account else None,
        source=alert.account.source if alert.account else None,
        provider=masked(account.provider) if account else None,
        identifier=masked(account.identifier) if account else None,
        account_status=account.status if account else None,
        group=()
        if alert.account
        else tuple((name, masked(value) or "") for name, value in sorted(alert.group.items())),
        resolved_at=alert.resolved_at,
        resolved_reason=alert.resolved_reason,
        acknowledged_by=alert.acknowledged_by,
        late_seconds=alert.late_seconds,
        evidence_count=len(alert.evidence),
        discovered_late=alert.discovered_late,
        late_detection=alert.late_detection,
        flapping=alert.flapping,
        drill=alert.drill,
        workflows=tuple(lines),
        url=f"{public_url}/v1/alerts/{alert.id}" if public_url else None,
    )


@lru_cache(maxsize=MASKED_KEPT_MAX)  # what breaks together is told in the same words
def masked(text: str | None) -> str | None:
    """What came from outside, for people: a name may hold anything, a token too."""
    return redact_text(text) if text else text


def stops_of(hold: Hold, shown: Shown | None) -> StopFacts | None:
    if hold.released_at is not None or hold.scope != "workflow":
        return None
    return stop_facts(shown.orchestrator_name if shown else None, shown)


def asked_words(shown: Shown | None) -> str | None:
    if shown is None or shown.asked is None:
        return None
    verb = "pause" if shown.asked == PAUSE else "resume"
    result = shown.result or {}
    if (status := result.get("status", "")) in NOTHING_CHANGED:
        return NOTHING_CHANGED[status]
    if result.get("sent") is False:
        return "nothing sent"
    if shown.state == "done":
        return f"{verb}d"
    if shown.state == "failed":
        return f"{verb} failed: {shown.last_error or shown.last_code}"
    if shown.last_code in ask_store.OF_CREDENTIALS:
        return f"{verb} refused so far, and tried again: {shown.last_error or shown.last_code}"
    return f"{verb} asked"
