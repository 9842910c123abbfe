"""Judges accounts: from their history and the rules to alerts, holds and actions, in the caller's transaction.

The evaluator calls it for a batch of the log, the sweep for deadlines that came, and PUT /v1/workflows for the accounts
of one workflow: whichever comes first, the loss or the dependence, one of them sees both, because all of them hold the
same locks on the accounts. It decides by `occurred_at` over the log up to a position, so that order of arrival,
duplicates, batches and crashes give the same episodes (design.md, rule 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from service import consequences, own_alerts
from service.consequences import Consequences
from service.event import AccountKey, Event, new_id
from service.rules import Rule, Ruleset
from service.rules.given import Episode, Given, Sample
from service.rules.story import Step
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import workflows as workflow_store
from service.store.accounts import Account
from service.store.alerts import EVIDENCE_MAX, Alert, dedup_key
from service.subjects import Subject, by_row, gather


@dataclass(slots=True)
class Verdict:
    """What judging changed, gathered to be written: decisions go into the log last."""

    changed: dict[str, Alert] = field(default_factory=dict)
    fired: list[Alert] = field(default_factory=list)
    resolved: list[Alert] = field(default_factory=list)
    too_late: int = 0


async def judge(
    conn: AsyncConnection,
    rules: Ruleset,
    new_events: Mapping[AccountKey, Sequence[Event]],
    *,
    upto: int,
    now: datetime,
    notifiers: Sequence[str],
    rows: Mapping[AccountKey, Account] | None = None,
) -> Consequences:
    """Judges the accounts named, with the events (maybe none) that are new to them. Their locks must be held.

    Writes accounts, alerts, holds, actions and deadlines; the caller appends `decisions` to the log as its last act.
    `rows` are the accounts' rows where the caller has read them already, which only the evaluator can: it alone writes.
    """
    within_max = rules.lookback
    if rows is None:
        rows = await account_store.load(conn, list(new_events))
    starts = {
        key: min((event.occurred_at for event in new), default=now)
        for key, new in new_events.items()
        if new or key in rows
    }
    since = min(starts.values(), default=now) - within_max
    watched = await account_store.watched(conn, starts, since)
    subjects = {
        key: subject
        for key in starts
        if key not in watched and (subject := by_row(key, rows.get(key), new_events[key], rules, now)) is not None
    }
    untroubled = {
        key for key, subject in subjects.items() if not any(may_open(rules, step) for step in subject.story.steps)
    }
    troubled = [key for key in starts if key not in untroubled]
    stored = await alert_store.of_accounts(conn, dict.fromkeys(troubled, since))
    told = {key: start for key, start in starts.items() if key not in subjects}
    subjects |= await gather(conn, rows, new_events, told, within_max, upto, now)
    subjects = {key: subjects[key] for key in starts}  # in the log's order: of namesakes the first is bound
    await bind_new(conn, subjects)
    dependents = await workflow_store.dependents(conn, {key: subjects[key].after.connection_id for key in troubled})

    verdict = Verdict()
    due: dict[AccountKey, datetime | None] = {}
    opened: list[tuple[Rule, Subject, Episode]] = []
    for key in troubled:
        subject = subjects[key]
        wakes: list[datetime] = []
        for rule in rules.told:
            mine = [alert for alert in stored[key] if alert.rule_id == rule.id]
            wake = judge_one(rule, subject, mine, bool(dependents[key]), now, verdict, opened)
            if wake is not None:
                wakes.append(wake)
        due[key] = min(wakes, default=None)

    numbers = await alert_store.last_episodes(conn, {(rule.id, str(subject.after.key)) for rule, subject, _ in opened})
    for rule, subject, episode in opened:
        pair = (rule.id, str(subject.after.key))
        numbers[pair] = numbers.get(pair, 0) + 1
        alert = make_alert(rule, subject, episode, numbers[pair], now)
        verdict.changed[alert.id] = alert
        verdict.fired.append(alert)
        if alert.state == "resolved":
            verdict.resolved.append(alert)
    await account_store.save(conn, [subject.after for subject in subjects.values() if subject.new])
    own = await own_alerts.about_accounts(conn, subjects, now)
    verdict.fired.extend(own)
    await alert_store.save(conn, [*verdict.changed.values(), *own])

    standing = {
        key: [
            *(verdict.changed.get(old.id, old) for old in stored[key]),
            *(new for new in verdict.fired if new.account == key),
        ]
        for key in troubled
    }
    out = await consequences.follow(
        conn,
        accounts={key: subjects[key].after for key in troubled},
        alerts=standing,
        dependents=dependents,
        fired=verdict.fired,
        resolved=verdict.resolved,
        now=now,
        notifiers=notifiers,
    )
    for key, at in out.release_due.items():
        due[key] = min((instant for instant in (due.get(key), at) if instant is not None), default=None)
    await account_store.set_deadlines(conn, due)
    out.too_late = verdict.too_late
    return out


def judge_one(
    rule: Rule,
    subject: Subject,
    mine: Sequence[Alert],
    depended_on: bool,
    now: datetime,
    verdict: Verdict,
    opened: list[tuple[Rule, Subject, Episode]],
) -> datetime | None:
    """One rule, one account: the episodes the history says there are, against the alerts that are stored."""
    start = subject.judge_from
    covering = [
        alert
        for alert in mine
        if alert.opened_at < start and (alert.condition_ended_at is None or alert.condition_ended_at >= start)
    ]
    samples, too_late = in_time(rule, subject)
    verdict.too_late += too_late
    judged = rule.judge(
        Given(
            initial=subject.initial,
            open_since=covering[0].opened_at if covering else None,
            recent=transitions(mine),
            samples=samples,
            steps=subject.story.steps,
            judge_from=start,
            now=now,
            dependents=depended_on,
        )
    )
    unmatched = list(mine)
    for episode in judged.episodes:
        match = alert_of(episode, unmatched)
        if match is None:
            if episode.ended_at is None or episode.ended_at >= start:
                opened.append((rule, subject, episode))
            continue
        unmatched.remove(match)
        change(verdict, match, episode, now)
    for alert in unmatched:
        if alert.opened_at >= start and never_was(rule, alert, judged.episodes, depended_on):
            # A late event showed that this never was: say so, and let go.
            end(verdict, alert, alert.opened_at, "late_arrival", now)
    return judged.wake_at


def alert_of(episode: Episode, stored: Sequence[Alert]) -> Alert | None:
    """The stored alert that stands for this episode: of several that share an instant with it, the one that began with
    it, then the one still open. What was over and goes on again is a new episode, so that someone hears of it."""
    sharing = [
        alert
        for alert in stored
        if alert.covers(episode.opened_at, episode.ended_at)
        and (episode.ended_at is not None or alert.condition_ended_at is None)
    ]
    return max(
        sharing,
        key=lambda alert: (alert.opened_at == episode.opened_at, alert.condition_ended_at is None),
        default=None,
    )


def never_was(rule: Rule, alert: Alert, episodes: Sequence[Episode], depended_on: bool) -> bool:
    """Whether an alert that no episode accounts for is contradicted by the history, rather than by what depends on it."""
    if alert.condition_ended_at is None or rule.kind == "count":
        return True
    return depended_on and not any(alert.covers(episode.opened_at, episode.ended_at) for episode in episodes)


def in_time(rule: Rule, subject: Subject) -> tuple[list[Sample], int]:
    """Windows are judged again up to `allowed_lateness`; what ends an episode, and the account's state, at any time."""
    limit = rule.allowed_lateness.total_seconds()
    fresh = {event.id for event in subject.new}
    samples: list[Sample] = []
    too_late = 0
    for step in subject.story.steps:
        lag_seconds = step.event.delivery_lag_seconds
        late = lag_seconds is not None and lag_seconds > limit
        for sample in rule.samples(step):
            if late and sample.role == "match":
                too_late += step.event.id in fresh
            else:
                samples.append(sample)
    return samples, too_late


def transitions(alerts: Sequence[Alert]) -> list[datetime]:
    """When episodes opened and ended, oldest first."""
    return sorted(at for alert in alerts for at in (alert.opened_at, alert.condition_ended_at) if at is not None)


def may_open(rules: Ruleset, step: Step) -> bool:
    return (step.became is not None and any(rule.may_open(step) for rule in rules.states)) or any(
        rule.may_open(step) for rule in rules.told_of(step.event.kind)
    )


def change(verdict: Verdict, alert: Alert, episode: Episode, now: datetime) -> None:
    evidence = tuple(dict.fromkeys((*alert.evidence, *episode.evidence)))
    if len(evidence) > EVIDENCE_MAX:
        evidence = (*evidence[:10], *evidence[-(EVIDENCE_MAX - 10) :])
    updated = replace(alert, evidence=evidence, value=max(alert.value or 0, episode.value), opened_at=episode.opened_at)
    if alert.condition_ended_at is not None and episode.end_reason != "no_active_workflow":
        updated = replace(updated, condition_ended_at=episode.ended_at)  # a late event moved its end
    if updated != alert:
        verdict.changed[alert.id] = updated
    if episode.ended_at is not None and alert.condition_ended_at is None:
        end(verdict, updated, episode.ended_at, episode.end_reason or "recovered", now)


def end(verdict: Verdict, alert: Alert, at: datetime, reason: str, now: datetime) -> None:
    ended = replace(alert, condition_ended_at=at)
    if alert.state != "resolved":
        ended = replace(ended, state="resolved", resolved_at=now, resolved_reason=reason)
        verdict.resolved.append(ended)
    verdict.changed[alert.id] = ended


def make_alert(rule: Rule, subject: Subject, episode: Episode, number: int, now: datetime) -> Alert:
    account = subject.after
    trigger = next((step.event for step in subject.story.steps if step.event.id == episode.trigger_event_id), None)
    late = trigger.lag_seconds if trigger is not None else None
    values = {
        "account_id": account.key.account_id,
        "environment_id": account.key.environment_id,
        "source": account.key.source,
        "connection_id": account.connection_id or "",
        "provider": account.provider or "",
        "identifier": account.identifier or account.key.account_id,
        "organization_id": account.organization_id or "",
        "status": account.status or "",
        "value": f"{episode.value:g}",
    }
    over = episode.ended_at is not None
    return Alert(
        id=new_id(),
        rule_id=rule.id,
        rule_version=rule.version,
        condition_version=rule.condition_version,
        severity=rule.severity,
        account=account.key,
        connection_id=account.connection_id,
        group={"account_id": account.key.account_id},
        group_key=str(account.key),
        episode=number,
        dedup_key=dedup_key(rule.id, str(account.key), number),
        state="resolved" if over else "firing",
        summary=rule.render(rule.summary, values),
        what_to_do=rule.render(rule.what_to_do, values) if rule.what_to_do else None,
        opened_at=episode.opened_at,
        fired_at=now,
        condition_ended_at=episode.ended_at,
        resolved_at=now if over else None,
        resolved_reason=(episode.end_reason or "recovered") if over else None,
        discovered_late=over,  # already over when discovered: kept and forwarded, pauses and pages nobody
        late_seconds=late,
        value=episode.value,
        evidence=tuple(episode.evidence[:EVIDENCE_MAX]),
        stable_for_seconds=rule.stable_for.total_seconds(),
        pauses=rule.pauses,
    )


async def bind_new(conn: AsyncConnection, subjects: Mapping[AccountKey, Subject]) -> None:
    await workflow_store.bind(conn, [key for key, subject in subjects.items() if subject.before is None])
