"""Judges accounts: from their history and the rules to alerts, holds and actions, in the caller's transaction.

The evaluator calls it for a batch of the log, the sweep for deadlines that came, and PUT /v1/workflows for the accounts
of one workflow: whichever comes first, the loss or the dependence, one of them sees both, because all of them hold the
same locks on the accounts. It decides by `occurred_at` over the log up to a position, so that order of arrival,
duplicates, batches and crashes give the same episodes (design.md, rule 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service import consequences
from service.consequences import Consequences
from service.event import WELL, AccountKey, Event, new_id
from service.rules import Rule, RuleBook
from service.rules.story import Initial, Step, Story, tell
from service.rules.triggers import Episode, judge_rule
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import workflows as workflow_store
from service.store.accounts import BEGINNING, EVENTS_PER_ACCOUNT_MAX, Account
from service.store.alerts import EVIDENCE_MAX, Alert, dedup_key

KNOWN_STATUSES = frozenset({"ACTIVE", "EXPIRED", "PENDING_AUTH", "PENDING_VERIFICATION", "DISCONNECTED", "DELETED"})


@dataclass(frozen=True, slots=True)
class Subject:
    """One account under judgement: its row before and after, its story, and from when on it is judged."""

    before: Account | None
    after: Account
    story: Story
    initial: Initial
    new: Sequence[Event]
    judge_from: datetime


@dataclass(slots=True)
class Verdict:
    """What judging changed, gathered to be written: decisions go into the log last."""

    changed: dict[str, Alert] = field(default_factory=dict)
    fired: list[Alert] = field(default_factory=list)
    resolved: list[Alert] = field(default_factory=list)
    too_late: int = 0


async def judge(
    conn: AsyncConnection,
    rules: RuleBook,
    new_events: Mapping[AccountKey, Sequence[Event]],
    *,
    upto: int,
    now: datetime,
    notifiers: Sequence[str],
) -> Consequences:
    """Judges the accounts named, with the events (maybe none) that are new to them. Their locks must be held.

    Writes accounts, alerts, holds, actions and deadlines; the caller appends `decisions` to the log as its last act.
    """
    book = list(rules.rules)
    within_max = max((rule.within for rule in book), default=timedelta(0))
    subjects = await gather(conn, new_events, within_max, upto, now)
    await bind_new(conn, subjects)
    dependents = await workflow_store.dependents(
        conn, {key: subject.after.connection_id for key, subject in subjects.items()}
    )
    stored = await alert_store.of_accounts(
        conn, {key: subject.judge_from - within_max for key, subject in subjects.items()}
    )

    verdict = Verdict()
    due: dict[AccountKey, datetime | None] = {}
    opened: list[tuple[Rule, Subject, Episode]] = []
    for key, subject in subjects.items():
        wakes: list[datetime] = []
        for rule in book:
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
    own = await own_alerts(conn, subjects, now)
    verdict.fired.extend(own)
    await alert_store.save(conn, [*verdict.changed.values(), *own])

    standing = {
        key: [
            *(verdict.changed.get(old.id, old) for old in stored[key]),
            *(new for new in verdict.fired if new.account == key),
        ]
        for key in subjects
    }
    out = await consequences.follow(
        conn,
        accounts={key: subject.after for key, subject in subjects.items()},
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


async def gather(
    conn: AsyncConnection,
    new_events: Mapping[AccountKey, Sequence[Event]],
    within_max: timedelta,
    upto: int,
    now: datetime,
) -> dict[AccountKey, Subject]:
    """Reads each account's row and as much of its history as its verdict can depend on."""
    rows = await account_store.load(conn, list(new_events))
    judge_from = {
        key: min((event.occurred_at for event in new), default=now)
        for key, new in new_events.items()
        if new or key in rows
    }
    since: dict[AccountKey, datetime] = {}
    known: dict[AccountKey, Initial] = {}
    unknown: dict[AccountKey, datetime] = {}
    for key, start in judge_from.items():
        row, begin = rows.get(key), max(start - within_max, BEGINNING)
        if row is not None and (row.last_status_at is None or row.last_status_at < begin):
            # Nothing in the slice precedes what the row already knows: the row is where the story starts.
            since[key] = begin
            known[key] = Initial(status=row.status, status_since=row.status_since, not_well=row.not_well)
        else:
            unknown[key] = begin
    wells = await account_store.last_well(conn, unknown, upto)
    for key in unknown:
        # Told again from the last time it was well, so that the whole of a break is in sight.
        well, row = wells.get(key), rows.get(key)
        since[key] = well or BEGINNING
        known[key] = Initial()
        if well is not None:
            # It may have been well for longer than this slice shows.
            before = row.status_since if row is not None and row.status == WELL else None
            known[key] = Initial(status=WELL, status_since=min(well, before or well))
    events = await account_store.history(conn, since, upto)
    subjects: dict[AccountKey, Subject] = {}
    for key in judge_from:
        if len(events[key]) >= EVENTS_PER_ACCOUNT_MAX:
            # Only the newest were read: what lies before them was judged when it was new and stays as it is.
            judge_from[key] = max(judge_from[key], min(event.occurred_at for event in events[key]))
        story = tell(known[key], events[key])
        new = new_events[key]
        subjects[key] = Subject(
            before=rows.get(key),
            after=project(rows.get(key), key, story, new, now),
            story=story,
            initial=known[key],
            new=new,
            judge_from=judge_from[key],
        )
    return subjects


def project(row: Account | None, key: AccountKey, story: Story, new: Sequence[Event], now: datetime) -> Account:
    """The account's row after its events: state by the story, names by whoever spoke last."""
    account = row or Account(key=key, first_seen_at=now)
    if not new:
        return account
    steps = [step.event for step in story.steps]
    latest = max(new, key=lambda event: event.occurred_at)
    newer = account.last_event_at is None or latest.occurred_at >= account.last_event_at
    refreshes = [event for event in steps if event.kind in ("token.refresh_succeeded", "token.refresh_failed")]
    said = [event.occurred_at for event in steps if event.account_status is not None]
    account = replace(
        account,
        status=story.final.status,
        status_since=story.final.status_since,
        not_well=dict(story.final.not_well),
        last_status_at=max([*said, *([account.last_status_at] if account.last_status_at else [])], default=None),
        last_event_at=latest.occurred_at if newer else account.last_event_at,
        failures_in_a_row=failures_in_a_row(account, refreshes, new),
    )
    if refreshes:
        account = replace(
            account,
            last_refresh_at=refreshes[-1].occurred_at,
            last_refresh_outcome="success" if refreshes[-1].kind == "token.refresh_succeeded" else "failure",
        )
    for event in sorted(new, key=lambda event: event.occurred_at):
        if newer or account.connection_id is None:
            account = replace(
                account,
                connection_id=connection_of(account, event),
                provider=event.provider or account.provider,
                identifier=event.identifier or account.identifier,
                organization_id=event.organization_id or account.organization_id,
                token_expires_at=(event.details or {}).get("token_expires_at") or account.token_expires_at,
            )
    return account


def connection_of(account: Account, event: Event) -> str | None:
    """An event that names only the account holds its id in both columns: that never takes its connection away."""
    if event.connection_id is None or (event.connection_id == event.account_id and account.connection_id is not None):
        return account.connection_id
    return event.connection_id


def failures_in_a_row(account: Account, refreshes: Sequence[Event], new: Sequence[Event]) -> int:
    """Refresh failures since the last success. Counted on from the row when everything new is newer than it."""
    fresh = {event.id for event in new}
    tail = 0
    for event in reversed(refreshes):
        if event.kind == "token.refresh_succeeded":
            return tail
        tail += 1
    added = sum(1 for event in refreshes if event.id in fresh)
    return max(tail, account.failures_in_a_row + added)


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
    steps, too_late = in_time(rule, subject)
    verdict.too_late += too_late
    judged = judge_rule(
        rule,
        initial=subject.initial,
        open_since=covering[0].opened_at if covering else None,
        steps=steps,
        judge_from=start,
        now=now,
        dependents=depended_on,
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


def in_time(rule: Rule, subject: Subject) -> tuple[Sequence[Step], int]:
    """Windows are judged again up to `allowed_lateness`; what ends an episode, and the account's state, at any time."""
    limit = rule.allowed_lateness.total_seconds()
    if rule.kind == "state":
        return subject.story.steps, 0

    def too_late(step: Step) -> bool:
        lag_seconds = step.event.lag_seconds
        return lag_seconds is not None and lag_seconds > limit and rule.count_matches(step) and not rule.resolves(step)

    fresh = {event.id for event in subject.new}
    late = sum(1 for step in subject.story.steps if step.event.id in fresh and too_late(step))
    return [step for step in subject.story.steps if not too_late(step)], late


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


async def own_alerts(conn: AsyncConnection, subjects: Mapping[AccountKey, Subject], now: datetime) -> list[Alert]:
    """What we must say about ourselves: a status nobody taught us, a short id that came to mean two accounts."""
    made: list[Alert] = []
    said: set[str] = set()
    for key, subject in subjects.items():
        status = subject.after.status
        about = f"{key.source}:{status}"
        # Only where an event is new: then the one evaluator speaks, and two transactions never say the same at once.
        if subject.new and status is not None and status not in KNOWN_STATUSES and about not in said:
            said.add(about)
            alert = await own_alert(
                conn,
                "unknown-account-status",
                about,
                f'{key.source} reports the account status "{status}", which is unknown here; the gate treats it as not well',
                "Check the provider's release notes; the account keeps that status until the next event.",
                now,
            )
            made.extend(alert)
        if subject.before is None and subject.new and key.account_id not in said:
            others = [other for other in await account_store.namesakes(conn, key.account_id) if other.key != key]
            if others and (waiting := await workflow_store.written_short(conn, key.account_id)):
                said.add(key.account_id)
                made.extend(
                    await own_alert(
                        conn,
                        "ambiguous-account-id",
                        key.account_id,
                        f"{key.account_id} now names {len(others) + 1} accounts, and workflow {waiting[0]} names it by that short id",
                        f"Put the workflow again with the full form, such as {others[0].key} or {key}.",
                        now,
                    )
                )
    return made


async def own_alert(
    conn: AsyncConnection, rule_id: str, group_key: str, summary: str, what_to_do: str, now: datetime
) -> list[Alert]:
    if await alert_store.open_of_group(conn, rule_id, group_key) is not None:
        return []
    number = (await alert_store.last_episodes(conn, {(rule_id, group_key)})).get((rule_id, group_key), 0) + 1
    return [
        Alert(
            id=new_id(),
            rule_id=rule_id,
            rule_version=None,
            severity="P3",
            account=None,
            connection_id=None,
            group={"about": group_key},
            group_key=group_key,
            episode=number,
            dedup_key=dedup_key(rule_id, group_key, number),
            state="firing",
            summary=summary,
            what_to_do=what_to_do,
            opened_at=now,
            fired_at=now,
            pauses=False,
        )
    ]
