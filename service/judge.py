"""Judges accounts and groups: from their history and the rules to alerts, holds and actions, in the caller's transaction.

The evaluator calls it for a batch of the log, the sweep for deadlines that came, and PUT /v1/workflows for the accounts
of one workflow: whichever comes first, the loss or the dependence, one of them sees both, because all of them hold the
same locks on the accounts. It decides by `occurred_at` over the log up to a position, so that order of arrival,
duplicates, batches and crashes give the same episodes (design.md, rule 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from sqlalchemy.ext.asyncio import AsyncConnection

from service import consequences, grouped, own_alerts
from service.consequences import Consequences
from service.episodes import Verdict, after_a_person, by_hand, covering, make_alert, of_condition, settle, transitions
from service.event import WELL, AccountKey, Event
from service.rule_failures import Failures
from service.rules import Rule, Ruleset
from service.rules.given import Episode, Given, Sample
from service.rules.latch import FLAPPING_WITHIN
from service.rules.lateness import is_late, samples_in_time
from service.rules.model import ZERO
from service.rules.story import Step
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import armed as armed_store
from service.store import deadlines as deadline_store
from service.store import dependents as dependent_store
from service.store import rule_sets as rule_set_store
from service.store import workflows as workflow_store
from service.store.accounts import Account
from service.store.alerts import Alert
from service.store.armed import Owed
from service.store.groups import Group
from service.store.workflows import Workflow
from service.subjects import Subject, by_row, gather, words_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be judged.

    `new`: events by account, maybe none. `of_groups`: those that may concern groups which are not about one account; such
    that are, are judged with the account's own events. `as_of`: up to when the log is known;
    while there is more to read, it is when the last of the batch was received, since what has not been read yet may be
    just what a deadline waits for. `due`: since when an account's deadline has passed. `groups`: those whose time has
    come. `rows`: the accounts' rows where the caller has read them already, which only the evaluator can: it alone writes.
    """

    new: Mapping[AccountKey, Sequence[Event]]
    upto: int
    now: datetime
    as_of: datetime
    of_groups: Sequence[Event] = ()
    due: Mapping[AccountKey, datetime] = field(default_factory=dict)
    groups: Sequence[Group] = ()
    rows: Mapping[AccountKey, Account] | None = None


async def judge(conn: AsyncConnection, rules: Ruleset, work: Work, *, notifiers: Sequence[str]) -> Consequences:
    """The accounts' locks must be held.

    Writes accounts, alerts, holds, actions and deadlines; the caller appends `decisions` to the log as its last act.
    """
    now, verdict = work.now, Verdict()
    case = await open_case(conn, rules, work)
    subjects, troubled = case.subjects, case.troubled
    await workflow_store.bind(conn, [key for key, subject in subjects.items() if subject.before is None])
    dependents = await dependent_store.dependents(conn, {key: subjects[key].after.connection_id for key in troubled})

    due: dict[AccountKey, datetime | None] = {}
    opened: list[tuple[Rule, Subject, Episode]] = []
    for key in troubled:
        due[key] = judge_account(rules, case, key, dependents[key], work, verdict, opened)
    await name_and_open(conn, opened, now, verdict)
    await account_store.save(conn, [subject.after for subject in subjects.values() if subject.new])
    await armed_store.change(conn, case.armed_changes)
    news = grouped.read_news(rules, work.of_groups, verdict, of_account=False)
    of_accounts = (event for events in work.new.values() for event in events)
    news |= grouped.read_news(rules, of_accounts, verdict, of_account=True)
    of_groups = await grouped.judge_groups(
        conn, rules, news, work.groups, case.failures, as_of=work.as_of, now=now, verdict=verdict
    )
    await consequences.lock(conn)
    own = await own_alerts.about_accounts(conn, subjects, now)
    own += await own_alerts.make(conn, of_groups.own, now)
    verdict.fired.extend(own)
    await alert_store.save(conn, [*verdict.changed.values(), *own])

    concerned = {key: subjects[key].after for key in troubled}
    others = {alert.account for alert in verdict.changed.values() if alert.account is not None} - set(concerned)
    if others:  # accounts of which only a group's rule has something to say
        more = await account_store.load(conn, others)
        concerned |= more
        case.stored |= await alert_store.of_accounts(conn, dict.fromkeys(more, now))
        dependents |= await dependent_store.dependents(conn, {key: row.connection_id for key, row in more.items()})
    standing: dict[AccountKey, list[Alert]] = {
        key: [verdict.changed.get(old.id, old) for old in case.stored.get(key, ())] for key in concerned
    }
    for alert in (*verdict.changed.values(), *own):
        if alert.account in standing and all(alert.id != other.id for other in standing[alert.account]):
            standing[alert.account].append(alert)
    out = await consequences.follow(
        conn,
        accounts=concerned,
        alerts=standing,
        dependents=dependents,
        fired=verdict.fired,
        resolved=verdict.resolved,
        over=verdict.over,
        well_again=[key for key in troubled if became_well(subjects[key])],
        as_of=work.as_of,
        now=now,
        notifiers=notifiers,
    )
    for key in due:
        at = out.release_due.pop(key, None)
        due[key] = min((instant for instant in (due[key], at) if instant is not None), default=None)
    await deadline_store.put(conn, {key: at for key, at in due.items() if at is not None or key in case.waited})
    await deadline_store.bring_forward(conn, out.release_due)  # of accounts that were not judged themselves
    await rule_set_store.record_failures(conn, case.failures.found, now)
    await grouped.close(conn, out, of_groups, over=verdict.over, as_of=work.as_of, now=now, notifiers=notifiers)
    out.too_late = verdict.too_late
    return out


@dataclass(slots=True)
class Case:
    """Everything read that a verdict about accounts needs. `troubled`: those whose rules have anything to say."""

    subjects: dict[AccountKey, Subject]
    troubled: list[AccountKey]
    stored: dict[AccountKey, list[Alert]]
    owed: Mapping[AccountKey, Mapping[str, Owed]]
    concerned: dict[AccountKey, dict[str, Rule] | None] = field(default_factory=dict)  # None: every rule
    pending: dict[AccountKey, datetime | None] = field(default_factory=dict)  # what others may wait for
    waited: frozenset[AccountKey] = frozenset()  # those that had a deadline of their own
    armed_changes: dict[tuple[AccountKey, str], Owed | None] = field(default_factory=dict)
    failures: Failures = field(default_factory=Failures)


async def open_case(conn: AsyncConnection, rules: Ruleset, work: Work) -> Case:
    """Reads as little as each account allows: of nearly every one its row tells all."""
    now, new, lookback = work.as_of, work.new, rules.lookback
    rows = work.rows if work.rows is not None else await account_store.load(conn, list(new))
    starts = {
        key: min([event.occurred_at for event in of_account] or [min(work.due.get(key, now), now)])
        for key, of_account in new.items()
        if of_account or key in rows
    }
    since = min(starts.values(), default=now) - lookback
    watched = await account_store.watched(conn, starts, since)
    # Of a set without absences too there may be deadlines left, and who is due is due by one of them.
    owed = await armed_store.of_accounts(conn, starts) if rules.absences or work.due else {}
    case = Case({}, [], {}, owed, waited=frozenset(key for key, at in watched.items() if at is not None))
    came: set[AccountKey] = set()
    for key in starts:
        due = watched.get(key)
        if key in watched:
            if due is not None and due <= now:
                # An event from before it may be read after it, and concerns other rules than those that waited.
                came.add(key)
                starts[key] = min(starts[key], due)
            continue
        subject = by_row(key, rows.get(key), new[key], rules, now)
        if subject is not None and keep_arms(rules, case, key, subject, now):
            case.subjects[key] = subject
    for key, of_account in owed.items():
        if key not in case.subjects:
            starts[key] = min(
                [starts[key], *(waits.armed.due for waits in of_account.values() if waits.armed.due <= now)]
            )
    case.troubled = [
        key
        for key in starts
        if key not in case.subjects
        or any(rule.may_open(step) for step in case.subjects[key].story.steps if step.became for rule in rules.states)
    ]
    case.stored = await alert_store.of_accounts(
        conn, dict.fromkeys(case.troubled, min(starts.values(), default=now) - max(lookback, FLAPPING_WITHIN))
    )
    told = {key: start for key, start in starts.items() if key not in case.subjects}
    for key in case.troubled:
        case.concerned[key] = concerned_rules(rules, case, key, new[key], whole=not new[key] or key in came)
        some = case.concerned[key]
        if some is not None and any(rule.id not in some for rule in rules.told):
            case.pending[key] = watched.get(key)
    lookbacks = {
        key: rules.lookback if some is None else max((rule.lookback for rule in some.values()), default=ZERO)
        for key, some in case.concerned.items()
    }
    case.subjects |= await gather(conn, rows, new, told, lookbacks, rules, work.upto, now)
    case.subjects = {key: case.subjects[key] for key in starts}  # in the log's order: of namesakes the first is bound
    return case


def concerned_rules(
    rules: Ruleset, case: Case, key: AccountKey, new: Sequence[Event], *, whole: bool
) -> dict[str, Rule] | None:
    """Of which rules the verdict can change: those of the events' kinds and those that have something open. All of them,
    None, where time has passed that some rule waited for."""
    if whole:
        return None
    found = {rule.id: rule for rule in rules.states}
    for event in new:
        found |= {rule.id: rule for rule in rules.told_for(Step(event, None, None))}
    for rule_id in (*(alert.rule_id for alert in case.stored.get(key, ())), *case.owed.get(key, ())):
        if (rule := rules.by_id.get(rule_id)) is not None and rule.told:
            found[rule_id] = rule
    return found


def keep_arms(rules: Ruleset, case: Case, key: AccountKey, subject: Subject, now: datetime) -> bool:
    """Moves the deadlines of an account of which nothing else has a say; False where one of them was missed."""
    waits = case.owed.get(key, {})
    changes: dict[tuple[AccountKey, str], Owed | None] = {}
    samples = subject.arms
    for rule_id, owed in waits.items():
        if rule_id not in samples and owed.armed.due <= now:
            return False
    for rule_id, of_rule in samples.items():
        rule = rules.by_id[rule_id]
        owed_now = waits.get(rule_id)
        armed = before = (
            owed_now.armed if owed_now is not None and owed_now.condition_version == rule.condition_version else None
        )
        for sample in of_rule:
            if armed is not None and armed.due < sample.at:
                return False
            armed = rule.arm(armed, sample)
        if armed is not None and armed.due <= now:
            return False
        if armed != before:
            changes[key, rule_id] = None if armed is None else Owed(rule.condition_version, armed)
    case.armed_changes |= changes
    return True


def judge_account(
    rules: Ruleset,
    case: Case,
    key: AccountKey,
    dependents: Sequence[Workflow],
    work: Work,
    verdict: Verdict,
    opened: list[tuple[Rule, Subject, Episode]],
) -> datetime | None:
    """Every rule that anything of this account concerns; when it is to be judged again with no event."""
    subject, stored, waits = case.subjects[key], case.stored.get(key, []), case.owed.get(key, {})
    some = case.concerned[key]
    known = {alert.rule_id for alert in stored}
    # A window that all of these events could not fill needs no telling; most of many rules are such.
    concerned = {
        rule.id: rule
        for rule in (rules.told if some is None else some.values())
        if rule.events_needed <= len(subject.story.steps) or rule.id in known
    }
    samples = samples_of(rules, subject, concerned, verdict)
    wakes: list[datetime] = [at for at in [case.pending.get(key)] if at is not None and at > work.as_of]
    for rule in concerned.values():
        mine = of_condition(rule, [alert for alert in stored if alert.rule_id == rule.id])
        if not mine and rule.id not in samples and rule.id not in waits and rule.kind != "state":
            continue
        given = Given(
            initial=subject.initial,
            open_since=covering(rule, mine, subject.judge_from),
            recent=transitions(mine),
            samples=after_a_person(rule, mine, samples.get(rule.id, ())),
            steps=subject.story.steps,
            judge_from=subject.judge_from,
            now=work.as_of,
            dependents=bool(dependents),
            armed=subject.armed.get(rule.id),
        )
        judged = case.failures.attempt(rule, partial(rule.judge, given))
        if judged is None:  # its alerts stay as they are, and it is judged again
            wakes.append(case.failures.retry_at(work.now))
            continue
        episodes = judged.episodes
        new = settle(
            episodes,
            mine,
            start=subject.judge_from,
            never_was=lambda alert, rule=rule, episodes=episodes: never_was(rule, alert, episodes, bool(dependents)),  # type: ignore[misc]
            worst=rule.condition.worse,
            now=work.now,
            verdict=verdict,
        )
        opened.extend((rule, subject, episode) for episode in new)
        if rule.kind == "absence":
            waiting = judged.armed if judged.armed is not None and judged.armed.due > work.as_of else None
            owes = Owed(rule.condition_version, waiting) if waiting is not None else None
            if owes != waits.get(rule.id):
                case.armed_changes[key, rule.id] = owes
            if judged.wake_at is not None and waiting is not None and judged.wake_at == waiting.due:
                continue  # its own row wakes it
        if judged.wake_at is not None:
            wakes.append(judged.wake_at)
    for rule_id in waits:
        if rule_id not in rules.by_id or rules.by_id[rule_id].kind != "absence":
            case.armed_changes[key, rule_id] = None
    return min(wakes, default=None)


def samples_of(
    rules: Ruleset, subject: Subject, concerned: Mapping[str, Rule], verdict: Verdict
) -> dict[str, list[Sample]]:
    """What the account's story means to each rule concerned."""
    fresh = {event.id for event in subject.new}
    found: dict[str, list[Sample]] = {}
    for step in subject.story.steps:
        for rule in rules.told_for(step):
            if rule.id not in concerned and not (step.event.id in fresh and is_late(rule, step.event)):
                continue
            samples, too_late = samples_in_time(rule, step)
            if samples and rule.id in concerned:
                found.setdefault(rule.id, []).extend(samples)
            if too_late and step.event.id in fresh:
                verdict.too_late += too_late
    return found


def became_well(subject: Subject) -> bool:
    return subject.after.status == WELL and (subject.before is None or subject.before.status != WELL)


def never_was(rule: Rule, alert: Alert, episodes: Sequence[Episode], depended_on: bool) -> bool:
    """Whether an alert that no episode accounts for is contradicted by the history, rather than by what depends on it."""
    if by_hand(rule) and alert.condition_ended_at is not None:
        return False
    if alert.condition_ended_at is None or rule.kind != "state":
        return True
    return depended_on and not any(alert.covers(episode.opened_at, episode.ended_at) for episode in episodes)


async def name_and_open(
    conn: AsyncConnection, opened: Sequence[tuple[Rule, Subject, Episode]], now: datetime, verdict: Verdict
) -> None:
    numbers = await alert_store.last_episodes(conn, {(rule.id, str(subject.after.key)) for rule, subject, _ in opened})
    for rule, subject, episode in opened:
        account = subject.after
        pair = (rule.id, str(account.key))
        numbers[pair] = numbers.get(pair, 0) + 1
        trigger = next((step.event for step in subject.story.steps if step.event.id == episode.trigger_event_id), None)
        verdict.open(
            make_alert(
                rule,
                episode,
                number=numbers[pair],
                now=now,
                values=words_of(account),
                group={"account_id": account.key.account_id},
                group_key=str(account.key),
                account=account.key,
                connection_id=account.connection_id,
                late_seconds=trigger.lag_seconds if trigger is not None else None,
                trigger=trigger,
            )
        )
