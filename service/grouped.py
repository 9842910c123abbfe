"""Judges what is grouped by something else than one account: rates and counts of a connection, a provider, a workflow.

Their samples are kept by the group, because no index of the log finds them again; the fold over them is the same pure one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from urllib.parse import urlencode

from sqlalchemy.ext.asyncio import AsyncConnection

from service import connection_holds
from service.consequences import Consequences
from service.episodes import Verdict, after_a_person, by_hand, covering, make_alert, of_condition, settle, transitions
from service.event import AccountKey, Event, order_key
from service.own_alerts import OwnAlert
from service.rule_failures import Failures
from service.rules import Rule, Ruleset
from service.rules.given import Episode, Given
from service.rules.latch import FLAPPING_WITHIN
from service.rules.lateness import samples_in_time
from service.rules.match import reader
from service.rules.story import Step
from service.rules.triggers.rolling import Rolling
from service.store import accounts as account_store
from service.store import alerts as alert_store
from service.store import groups as group_store
from service.store.accounts import Account
from service.store.alerts import Alert
from service.store.groups import GROUP_MAX, Group, Kept
from service.subjects import words_of

GROUP_KEY_BYTES_MAX = 400
TOO_MANY = "too-many-groups"
Name = tuple[str, str]  # rule id, group key


@dataclass(slots=True)
class News:
    """What a batch brings to one group."""

    group: Group
    kept: list[Kept] = field(default_factory=list)

    @property
    def start(self) -> datetime:
        return min(kept.sample.at for kept in self.kept)


@dataclass(slots=True)
class OfGroups:
    """`groups`: those judged, with when they are to be judged again. `own`: what we must say ourselves."""

    groups: dict[Name, Group] = field(default_factory=dict)
    own: list[OwnAlert] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)  # of whole connections


async def judge_groups(
    conn: AsyncConnection,
    rules: Ruleset,
    news: dict[Name, News],
    due: Sequence[Group],
    failures: Failures,
    *,
    as_of: datetime,
    now: datetime,
    verdict: Verdict,
) -> OfGroups:
    """Keeps the samples, judges every group concerned, and leaves what changed in `verdict`."""
    out = OfGroups()
    if not news and not due:
        return out
    known = await group_store.find(conn, news.keys())
    await refuse_too_many(conn, news, known, out)
    await keep(conn, rules, news)
    starts: dict[Name, datetime] = {}
    for name, of_group in news.items():
        starts[name] = of_group.start
        out.groups[name] = replace(of_group.group, last_at=max(kept.sample.at for kept in of_group.kept))
        if (old := known.get(name)) is not None and old.due_at is not None and old.due_at <= as_of:
            starts[name] = min(starts[name], old.due_at)
    grouped_now = {rule.id for rule in rules.grouped}  # the id may have become another sort of rule's
    for group in due:
        name = (group.rule_id, group.key)
        if group.rule_id not in grouped_now:
            out.groups.setdefault(name, replace(group, due_at=None))
            continue
        out.groups.setdefault(name, group)
        starts[name] = min(starts.get(name, as_of), group.due_at or as_of)
    judged = {name: out.groups[name] for name in starts}
    given = await gather(conn, rules, judged, starts, as_of)
    opened: list[tuple[Rule, Group, Episode]] = []
    for name, group in judged.items():
        rule = rules.by_id[group.rule_id]
        mine, one = given[name]
        judgement = failures.attempt(rule, partial(rule.judge, one))
        if judgement is None:
            out.groups[name] = replace(group, due_at=failures.retry_at(now))
            continue
        new = settle(
            judgement.episodes,
            mine,
            start=one.judge_from,
            never_was=lambda alert, rule=rule: alert.condition_ended_at is None or not by_hand(rule),  # type: ignore[misc]
            worst=rule.condition.worse,
            now=now,
            verdict=verdict,
        )
        opened.extend((rule, group, episode) for episode in new)
        out.groups[name] = replace(group, condition_version=rule.condition_version, due_at=judgement.wake_at)
        out.alerts.extend(verdict.changed.get(alert.id, alert) for alert in mine if rule.pauses_connection)
    await open_alerts(conn, opened, now, verdict, out)
    return out


async def close(
    conn: AsyncConnection,
    out: Consequences,
    of_groups: OfGroups,
    *,
    over: Collection[str],
    as_of: datetime,
    now: datetime,
    notifiers: Sequence[str],
) -> None:
    """After the accounts' holds: those of whole connections, and when each group is looked at again."""
    connections = {group.connection for group in of_groups.groups.values() if group.connection is not None}
    release_due = await connection_holds.follow(
        conn, out, connections, of_groups.alerts, over=over, as_of=as_of, now=now, notifiers=notifiers
    )
    changed = []
    for group in of_groups.groups.values():
        at = release_due.get(group.connection) if group.connection is not None else None
        changed.append(group if at is None else replace(group, due_at=min(at, group.due_at or at)))
    await group_store.save(conn, changed, now)


def read_news(rules: Ruleset, events: Iterable[Event], verdict: Verdict, *, of_account: bool) -> dict[Name, News]:
    """Which events are samples of which groups, of those about one account or of the others. One that lacks a field of
    `group_by` belongs to none."""
    news: dict[Name, News] = {}
    if not any(rule.of_account == of_account for rule in rules.grouped):
        return news
    for event in events:
        step = Step(event, None, None)
        concerned = [rule for rule in rules.grouped_for(step) if rule.of_account == of_account]
        if not concerned:
            continue
        _, broken, event_id, kind = order_key(event)
        order = f"{broken}:{event_id}:{kind}"
        for rule in concerned:
            found, too_late = samples_in_time(rule, step)
            verdict.too_late += too_late
            if not found or (group := group_of(rule, step)) is None:
                continue
            for sample in found:
                news.setdefault((rule.id, group.key), News(group)).kept.append(Kept(sample, order))
    return news


def group_of(rule: Rule, step: Step) -> Group | None:
    """A connection or an account is itself only within its source and environment: development never pauses production."""
    event, values = step.event, {}
    for name in rule.group_by:
        value = reader(name)(step)
        if value is None:
            return None
        values[name] = str(value)
    account = event.account if "account_id" in rule.group_by else None
    connection = None
    if "connection_id" in rule.group_by and event.connection_id is not None:
        connection = AccountKey(event.source, event.environment_id or "", event.connection_id)
    if account is not None or connection is not None:
        values.setdefault("source", event.source)
        values.setdefault("environment_id", event.environment_id or "")
    return Group(
        rule_id=rule.id,
        key=str(account) if rule.by_account else key_of(values),
        condition_version=rule.condition_version,
        values=values,
        account=account,
        connection=connection,
    )


def key_of(values: Mapping[str, str]) -> str:
    key = urlencode(sorted(values.items()))
    if len(key.encode()) <= GROUP_KEY_BYTES_MAX:
        return key
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


async def refuse_too_many(
    conn: AsyncConnection, news: dict[Name, News], known: Mapping[Name, Group], out: OfGroups
) -> None:
    """A field that names ever new groups must not fill the database: beyond the limit no more are made, those that are
    there are judged on, and we say so."""
    fresh = [name for name in news if name not in known]
    counts = await group_store.counts(conn, {rule_id for rule_id, _ in fresh})
    for name in fresh:
        rule_id = name[0]
        counts[rule_id] = counts.get(rule_id, 0) + 1
        if counts[rule_id] > GROUP_MAX:
            del news[name]
            out.own.append(
                OwnAlert(
                    rule_id=TOO_MANY,
                    about=rule_id,
                    severity="P2",
                    summary=f"Rule {rule_id} has more than {GROUP_MAX} groups; new ones are not judged",
                    what_to_do="Group it by something that has fewer values, or match fewer events. The groups that are"
                    " there are judged on; those that have been idle are let go of by themselves.",
                )
            )


async def keep(conn: AsyncConnection, rules: Ruleset, news: Mapping[Name, News]) -> None:
    samples, buckets = {}, {}
    for (rule_id, key), of_group in news.items():
        rule = rules.by_id[rule_id]
        name = (rule_id, key, rule.sample_version)
        if isinstance(rule.condition, Rolling):
            buckets[name] = rule.condition.in_buckets([kept.sample for kept in of_group.kept])
        else:
            samples[name] = of_group.kept
    await group_store.add_samples(conn, samples)
    await group_store.add_buckets(conn, buckets)


async def gather(
    conn: AsyncConnection, rules: Ruleset, judged: Mapping[Name, Group], starts: dict[Name, datetime], now: datetime
) -> dict[Name, tuple[list[Alert], Given]]:
    of_samples, of_buckets = {}, {}
    for name, group in judged.items():
        rule = rules.by_id[group.rule_id]
        # What was before is judged no more: what decided it may have been let go of.
        starts[name] = max(starts[name], now - rule.allowed_lateness)
        if isinstance(rule.condition, Rolling):
            starts[name] = rule.condition.bucket_of(starts[name])
            of_buckets[group.rule_id, group.key, rule.sample_version] = starts[name] - rule.lookback
        else:
            of_samples[group.rule_id, group.key, rule.sample_version] = starts[name] - rule.lookback
    samples = await group_store.read_samples(conn, of_samples)
    for name, of_group in samples.items():
        if len(of_group) >= group_store.SAMPLES_MAX:
            # Only the newest were read: what a window says is known once they fill it.
            filled = of_group[0].at + rules.by_id[name[0]].condition.lookback
            starts[name] = max(starts[name], min(filled, now))
    buckets = await group_store.read_buckets(conn, of_buckets)
    since = min(
        (start - max(rules.by_id[name[0]].lookback, FLAPPING_WITHIN) for name, start in starts.items()), default=now
    )
    stored = await alert_store.of_groups(conn, starts, since)
    given = {}
    for name in judged:
        mine = of_condition(rules.by_id[name[0]], stored[name])
        given[name] = (
            mine,
            Given(
                judge_from=starts[name],
                now=now,
                open_since=covering(rules.by_id[name[0]], mine, starts[name]),
                recent=transitions(mine),
                samples=after_a_person(rules.by_id[name[0]], mine, samples.get(name, ())),
                buckets=buckets.get(name, ()),
            ),
        )
    return given


async def open_alerts(
    conn: AsyncConnection,
    opened: Sequence[tuple[Rule, Group, Episode]],
    now: datetime,
    verdict: Verdict,
    out: OfGroups,
) -> None:
    if not opened:
        return
    numbers = await alert_store.last_episodes(conn, {(rule.id, group.key) for rule, group, _ in opened})
    rows = await account_store.load(conn, {group.account for _, group, _ in opened if group.account is not None})
    for rule, group, episode in opened:
        name = (rule.id, group.key)
        numbers[name] = numbers.get(name, 0) + 1
        row = rows.get(group.account) if group.account is not None else None
        alert = make_alert(
            rule,
            episode,
            number=numbers[name],
            now=now,
            values=words_of_group(group, row),
            group=group.values,
            group_key=group.key,
            account=group.account,
            connection_id=group.connection.account_id if group.connection else row.connection_id if row else None,
            late_seconds=None,
        )
        verdict.open(alert)
        if rule.pauses_connection:
            out.alerts.append(alert)


def words_of_group(group: Group, row: Account | None) -> dict[str, str]:
    words = {name: value for name, value in group.values.items() if not name.startswith("details.")}
    return {**words_of(row), **words} if row is not None else words
