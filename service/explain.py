"""Why did I get this alert, and why did I not: the rule, the account's story told again, and what was done about it.

Reads only. What the conditions say of themselves is in `service/rules/explaining.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from service import views
from service.errors import BadRequest, Conflict, NotFound
from service.event import Event, rfc3339
from service.explain_kept import explain_reading, without_alert
from service.explain_routing import explain_routing
from service.routing.tree import Routing
from service.rules import Rule, Ruleset
from service.rules.explaining import Explanation, rule_words, seconds, when
from service.rules.given import Given
from service.rules.lateness import samples_in_time
from service.rules.story import Initial, tell
from service.rules.triggers.rolling import Rolling
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import dependents as dependent_store
from service.store import events as event_store
from service.store import groups as group_store
from service.store import notifications as notification_store
from service.store import shards
from service.store import workflows as workflow_store
from service.store.accounts import BEGINNING, EVENTS_PER_ACCOUNT_MAX, Account
from service.store.alerts import Alert
from service.store.workflows import Hold, Workflow

ALERTS_MAX = 20
KNOWN_RULES_MAX = 50
CANDIDATES_MAX = 10
RELEASE_WORDS = {
    "account_well": "the account has been well for long enough",
    "person": "a person resumed it",
    "dependency_dropped": "it no longer depends on the account",
    "workflow_inactive": "it was declared inactive",
    "workflow_deleted": "it was deleted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is asked about: one account or one group of a rule, at an instant."""

    rule: Rule
    account: Account | None
    group: Mapping[str, str]
    at: datetime


async def explain_alert(conn: AsyncConnection, alert_id: str, rules: Ruleset, routing: Routing) -> dict[str, Any]:
    """Why this alert: what fired it, by which rule, what it paused and why not more, who was told of it and who was not,
    and how long each step took."""
    alert = await alert_store.load(conn, alert_id)
    if alert is None:
        raise NotFound("no alert of that id", code="unknown_alert")
    rule = rules.by_id.get(alert.rule_id)
    account = (await account_store.load(conn, [alert.account])).get(alert.account) if alert.account else None
    said: Explanation | None = None
    notes = notes_of_alert(alert, rule)
    if (
        rule is not None and not alert.drill and rule.condition_version == alert.condition_version
    ):  # words may be others
        about = About(rule=rule, account=account, group=alert.group, at=alert.opened_at)
        said, more = await judge_again(conn, about)
        notes += more
    events = await event_store.load_many(conn, (said.event_ids if said else ()) + alert.evidence)
    shown = await views.alert_with_actions(conn, alert)
    return {
        "alert": shown,
        "rule": rule_json(rule, alert.rule_version),
        "at": rfc3339(alert.opened_at),
        "state": alert.state,
        "because": list(said.because) if said else [alert.summary],
        "missing": [],
        "notes": notes,
        "value": said.value if said and said.value is not None else alert.value,
        "needs": said.needs if said else None,
        "window": window_json(said),
        "events": [event_json(event) for event in events],
        "workflows": await workflows_json(conn, account, alert, rule),
        "actions": shown["actions"],
        "routing": await explain_routing(conn, alert, routing),
        "objective": objective_json(rule, alert),
        "timings": await timings_json(conn, alert, events),
    }


async def explain(conn: AsyncConnection, about: About, routing: Routing) -> dict[str, Any]:
    """Why, or why not: what the rule says of this account or group at that instant, by all that is evaluated now; and who
    was told of the alert that stands for it, since what fired may have been muted."""
    rule, account, at = about.rule, about.account, about.at
    said, notes = await judge_again(conn, about)
    if rule.kind == "gauge":
        said = await explain_reading(conn, rule, account, about.group, at) or said
    key = str(account.key) if account is not None and rule.by_account else None
    stored = await alert_store.of_group(conn, rule.id, key, about.group, before=at, limit=ALERTS_MAX)
    covering = [alert for alert in stored if alert.covers(at, at)]
    state, because = said.state, list(said.because)
    for alert in covering:
        notes += notes_of_alert(alert, rule)
        if alert.fired_at > at:
            notes.append(f"alert {alert.id} was judged at {when(alert.fired_at)}, {seconds(alert.fired_at - at)} later")
    if covering and state == "unknown":
        # Nothing to judge again: what the alert's row says is all there is.
        state = "firing"
        because.append(f"alert {covering[0].id} has held since {when(covering[0].opened_at)}")
    if said.state == "firing" and not covering:
        state, note = without_alert(rule, stored)
        notes.append(note)
    events = await event_store.load_many(conn, said.event_ids or (covering[0].evidence if covering else ()))
    return {
        "rule": rule_json(rule, None),
        "account_id": str(account.key) if account else None,
        "group": dict(about.group),
        "at": rfc3339(at),
        "state": state,
        "because": because,
        "missing": list(said.missing),
        "notes": notes,
        "value": said.value,
        "needs": said.needs,
        "window": window_json(said),
        "events": [event_json(event) for event in events],
        "alerts": [{"id": alert.id, "state": alert.state, "opened_at": rfc3339(alert.opened_at)} for alert in covering],
        "workflows": await workflows_json(conn, account, covering[0] if covering else None, rule),
        "routing": await explain_routing(conn, covering[0], routing) if covering else None,
    }


async def find(
    conn: AsyncConnection,
    rules: Ruleset,
    *,
    rule_id: str,
    account_id: str | None,
    group: Mapping[str, str] | None,
    at: datetime,
) -> About:
    """Raises NotFound for a rule or an account nobody knows, Conflict for a short id of several, BadRequest for a group
    that is not the rule's."""
    rule = rules.by_id.get(rule_id)
    if rule is None and rule_id in rules.known_ids:
        raise NotFound(f'"{rule_id}" is switched off (enabled: false) and judges nothing', code="unknown_rule")
    if rule is None:
        known = ", ".join(sorted(rules.by_id)[:KNOWN_RULES_MAX]) or "none"
        raise NotFound(f"no rule of that id is in force; in force: {known}", code="unknown_rule")
    if group is not None and rule.by_account and set(group) == {"account_id"}:
        account_id, group = group["account_id"], None
    account: Account | None = None
    if account_id is not None:
        account = await account_store.find(conn, account_id)
        if account is None:
            raise NotFound("no event has named this account yet", code="unknown_account")
        group = group_of(rule, account)
        if group is None:
            raise BadRequest(
                f'"{rule.id}" groups by {", ".join(rule.group_by)}, which an account does not tell; give "group"',
                code="invalid_group",
            )
    assert group is not None
    may_say = {*rule.group_by, *implied(rule)}
    if not set(rule.group_by) <= set(group) <= may_say:
        raise BadRequest(f'group: "{rule.id}" groups by {", ".join(rule.group_by) or "nothing"}', code="invalid_group")
    return About(rule=rule, account=account, group=await in_full(conn, rule, group), at=at)


def implied(rule: Rule) -> tuple[str, ...]:
    """What a group is kept by beside what the rule says: an account or a connection is itself only within these two."""
    if rule.by_account or rule.kind == "gauge" or not {"account_id", "connection_id"} & set(rule.group_by):
        return ()
    return tuple(name for name in ("source", "environment_id") if name not in rule.group_by)


async def in_full(conn: AsyncConnection, rule: Rule, group: Mapping[str, str]) -> Mapping[str, str]:
    """With what is implied, from the groups there are. Raises Conflict where that is several."""
    if set(implied(rule)) <= set(group):
        return group
    found = await group_store.alike(conn, rule.id, group, CANDIDATES_MAX)
    if len(found) > 1:
        said = "; ".join(", ".join(f"{name}={one[name]}" for name in implied(rule)) for one in found)
        raise Conflict(f"several groups are called so; say which, in group: {said}", code="ambiguous_group")
    return found[0] if found else group


def group_of(rule: Rule, account: Account) -> dict[str, str] | None:
    """The group this account belongs to, None where its row does not tell."""
    values = {
        "account_id": account.key.account_id,
        "source": account.key.source,
        "environment_id": account.key.environment_id,
        "connection_id": account.connection_id,
        "provider": account.provider,
        "organization_id": account.organization_id,
    }
    found = {name: values.get(name) for name in (*rule.group_by, *implied(rule))}
    return None if None in found.values() else {name: value for name, value in found.items() if value is not None}


async def judge_again(conn: AsyncConnection, about: About) -> tuple[Explanation, list[str]]:
    """The condition's own word as of that instant, and what to know about it."""
    rule, account, at = about.rule, about.account, about.at
    if rule.told and account is not None:
        return await tell_again(conn, rule, account, at)
    given = await samples_of_group(conn, rule, about.group, at)
    if given is None and rule.kind != "gauge":
        return Explanation(
            state="unknown",
            missing=("what was counted of this group then is not kept; its alerts say what they measured",),
        ), []
    return rule.condition.explain(rule, given or Given(judge_from=BEGINNING, now=at)), []


async def tell_again(
    conn: AsyncConnection, rule: Rule, account: Account, at: datetime
) -> tuple[Explanation, list[str]]:
    """The account's story up to then, by all that is known of it now, as the evaluator would judge it."""
    notes: list[str] = []
    upto = min(await shards.evaluated(conn, [account.key.account_id]), default=0)
    events = await event_store.story_of(conn, account.key, at, EVENTS_PER_ACCOUNT_MAX)
    waiting = [event for event in events if event.position > upto]
    if waiting:
        notes.append(f"{len(waiting)} of its events are not evaluated yet; they are left out here")
        events = [event for event in events if event.position <= upto]
    if len(events) >= EVENTS_PER_ACCOUNT_MAX:
        notes.append(f"only its newest {EVENTS_PER_ACCOUNT_MAX} events up to then are looked at")
    story = tell(Initial(), events)
    samples, too_late = [], 0
    for step in story.steps:
        found, late = samples_in_time(rule, step)
        samples += found
        too_late += late
    if too_late:
        notes.append(f"{too_late} of its events came later than allowed_lateness and did not count")
    depended_on = await dependent_store.dependents(conn, {account.key: account.connection_id})
    given = Given(
        judge_from=BEGINNING,
        now=at,
        samples=samples,
        steps=story.steps,
        dependents=bool(depended_on[account.key]),
    )
    if rule.kind == "state":
        notes.append("which workflows depend on it is read as of now, not as of then")
    return rule.condition.explain(rule, given), notes


async def samples_of_group(conn: AsyncConnection, rule: Rule, group: Mapping[str, str], at: datetime) -> Given | None:
    """What is kept of a group for a rule that is not told from one account's story, up to `at`; None where nothing is."""
    name = await group_store.named(conn, rule.id, group)
    if name is None or rule.kind == "gauge":
        return None
    since = {(rule.id, name, rule.sample_version): at - rule.lookback - rule.allowed_lateness}
    if isinstance(rule.condition, Rolling):
        buckets = (await group_store.read_buckets(conn, since)).get((rule.id, name), [])
        known = [bucket for bucket in buckets if bucket.at <= at]
        return Given(judge_from=BEGINNING, now=at, buckets=known) if known else None
    samples = (await group_store.read_samples(conn, since)).get((rule.id, name), [])
    kept = [sample for sample in samples if sample.at <= at]
    return Given(judge_from=BEGINNING, now=at, samples=kept) if kept else None


def notes_of_alert(alert: Alert, rule: Rule | None) -> list[str]:
    """What explains that someone did, or did not, hear of it."""
    notes: list[str] = []
    if alert.drill:
        notes.append("this is a drill: somebody fired it for practice, and no event has a part in it")
    if rule is None:
        notes.append(f"no rule {alert.rule_id} is in force now: it is our own alert, or its rule was taken out")
    elif rule.version != alert.rule_version:
        notes.append(f"it was fired by version {alert.rule_version} of the rule; {rule.version} is in force now")
    if alert.discovered_late:
        notes.append("it was over already when we learned of it: kept and forwarded, it pauses and pages nobody")
    if alert.resolved_reason == "manual":
        lasts = (
            ""
            if alert.condition_ended_at is not None
            else "; its condition lasts, and fires anew only after it has ended"
        )
        notes.append(f"a person resolved it at {when(alert.resolved_at or alert.fired_at)}{lasts}")
    elif alert.resolved_reason == "rule_changed":
        notes.append("it was closed because the rule's condition was changed, not because anything recovered")
    elif alert.resolved_reason == "late_arrival":
        notes.append("an event that came late showed that it never was")
    if alert.acknowledged_by is not None:
        notes.append(f"{alert.acknowledged_by} acknowledged it: no repeats, pauses stay")
    if alert.snoozed_until is not None:
        notes.append(f"it was snoozed until {when(alert.snoozed_until)}")
    if alert.shadow:
        notes.append("the rule is in shadow: it records and sends nothing")
    return notes


async def workflows_json(
    conn: AsyncConnection, account: Account | None, alert: Alert | None, rule: Rule | None
) -> list[dict[str, Any]]:
    """Each workflow that depends on the account or was held by the alert, and why it is paused or is not."""
    held = {hold.workflow_id: hold for hold in await workflow_store.holds_of_alert(conn, alert.id)} if alert else {}
    concerned = await workflow_store.load_many(conn, held)
    if account is not None:
        depends = await dependent_store.dependents(conn, {account.key: account.connection_id}, only_active=False)
        concerned |= {workflow.workflow_id: workflow for workflow in depends[account.key]}
    return [
        {
            "workflow_id": workflow_id,
            "paused": workflow_id in held and held[workflow_id].released_at is None,
            "scope": held[workflow_id].scope if workflow_id in held else None,
            "placed_at": rfc3339(held[workflow_id].placed_at) if workflow_id in held else None,
            "released_at": rfc3339(held[workflow_id].released_at) if workflow_id in held else None,
            "why": why(concerned.get(workflow_id), held.get(workflow_id), alert, rule),
        }
        for workflow_id in sorted({*held, *concerned})
    ]


def why(workflow: Workflow | None, hold: Hold | None, alert: Alert | None, rule: Rule | None) -> str:
    if hold is not None and hold.released_at is None:
        account_only = "; for this account only" if hold.scope == "account" else ""
        return f"paused by this alert since {when(hold.placed_at)}{account_only}"
    if hold is not None:
        reason = RELEASE_WORDS.get(hold.release_reason or "", hold.release_reason or "released")
        return f"was paused by this alert from {when(hold.placed_at)}, let go at {when(hold.released_at or hold.placed_at)}: {reason}"
    if workflow is not None and not workflow.active:
        return "not paused: it is declared inactive"
    if alert is None:
        if rule is not None and not rule.pauses:
            return "not paused: the rule pauses nothing"
        return "not paused: no alert of this rule held then"
    if not alert.pauses:
        return "not paused: the rule pauses nothing"
    if alert.discovered_late:
        return "not paused: it was over already when we learned of it"
    if workflow is not None and alert.condition_ended_at is not None and workflow.created_at > alert.condition_ended_at:
        return "not paused: it was put after the trouble had ended"
    if alert.condition_ended_at is not None:
        return "not paused: it did not depend on the account while the trouble lasted"
    return "not paused yet: the evaluator has not judged the account since the two came together"


def rule_json(rule: Rule | None, fired_by: str | None) -> dict[str, Any] | None:
    if rule is None:
        return None
    return {
        "id": rule.id,
        "version": rule.version,
        "fired_by_version": fired_by,
        "kind": rule.kind,
        "severity": rule.severity,
        "enabled": rule.enabled,
        "condition": rule_words(rule),
        "reason": rule.annotations.reason,
    }


def window_json(said: Explanation | None) -> dict[str, Any] | None:
    if said is None or said.until is None:
        return None
    return {"from": rfc3339(said.since), "to": rfc3339(said.until)}


def event_json(event: Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "kind": event.kind,
        "status": event.account_status,
        "occurred_at": rfc3339(event.occurred_at),
        "received_at": rfc3339(event.received_at),
        "lag_seconds": event.lag_seconds,
    }


def objective_json(rule: Rule | None, alert: Alert) -> dict[str, Any] | None:
    """`detect_within`: from the instant at which the trouble was an alert by its own clock to our judging it."""
    if rule is None or rule.objective is None:
        return None
    took = (alert.fired_at - alert.opened_at).total_seconds()
    within = rule.objective.detect_within.total_seconds()
    return {"detect_within_seconds": within, "took_seconds": took, "met": took <= within}


async def timings_json(conn: AsyncConnection, alert: Alert, events: Sequence[Event]) -> dict[str, Any]:
    """occurred -> received -> fired -> first message, each with the seconds since the one before it."""
    trigger = trigger_of(alert, events)
    message_at = await notification_store.first_message_at(conn, alert.id)
    instants = {
        "occurred_at": trigger.occurred_at if trigger else None,
        "received_at": trigger.received_at if trigger else None,
        "opened_at": alert.opened_at,
        "fired_at": alert.fired_at,
        "message_at": message_at,
    }
    steps = (
        ("occurred_to_received", instants["occurred_at"], instants["received_at"]),
        ("received_to_fired", instants["received_at"], alert.fired_at),
        ("opened_to_fired", alert.opened_at, alert.fired_at),
        ("fired_to_message", alert.fired_at, message_at),
    )
    spans = {
        name: (late - early).total_seconds() if early is not None and late is not None else None
        for name, early, late in steps
    }
    return {name: rfc3339(at) for name, at in instants.items()} | {"seconds": spans}


def trigger_of(alert: Alert, events: Sequence[Event]) -> Event | None:
    """The newest of its evidence that had happened when it opened: the one that made it true."""
    mine = [event for event in events if event.id in alert.evidence and event.occurred_at <= alert.opened_at]
    return max(mine, key=lambda event: (event.occurred_at, event.position), default=None)
