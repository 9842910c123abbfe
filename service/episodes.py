"""From the episodes that a history shows to the alerts that are stored: which goes on, which ended, which never was, and
which is new. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from service.event import AccountKey, Event, new_id
from service.playbook import with_playbook
from service.rules import Rule
from service.rules.given import Episode, Sample
from service.store.alerts import EVIDENCE_MAX, Alert, dedup_key

# An absence that is found so long after its deadline was not missed by the provider: we were away.
LATE_DETECTION = timedelta(seconds=30)


@dataclass(slots=True)
class Verdict:
    """What judging changed, gathered to be written: decisions go into the log last."""

    changed: dict[str, Alert] = field(default_factory=dict)
    fired: list[Alert] = field(default_factory=list)
    resolved: list[Alert] = field(default_factory=list)
    over: set[str] = field(
        default_factory=set
    )  # ids of those whose condition ended, resolved by a person before or not
    too_late: int = 0

    def open(self, alert: Alert) -> None:
        self.changed[alert.id] = alert
        self.fired.append(alert)
        if alert.state == "resolved":
            self.resolved.append(alert)


def of_condition(rule: Rule, stored: Sequence[Alert]) -> list[Alert]:
    """Those that were opened under the condition the rule has now. The others are closed by who publishes a change."""
    return [alert for alert in stored if alert.condition_version in (None, rule.condition_version)]


def after_a_person(rule: Rule, stored: Sequence[Alert], samples: Sequence[Sample]) -> Sequence[Sample]:
    """Of a rule that only a person resolves, what came after the last resolve: what was before has been dealt with."""
    if not by_hand(rule):
        return samples
    last = max((alert.condition_ended_at for alert in stored if alert.condition_ended_at is not None), default=None)
    return samples if last is None else [sample for sample in samples if sample.at > last]


def by_hand(rule: Rule) -> bool:
    return rule.resolve is not None and rule.resolve.manual


def covering(rule: Rule, stored: Sequence[Alert], start: datetime) -> datetime | None:
    """Since when an episode was open as `start` came. What a person ended is over, whatever the history says."""
    return next(
        (
            alert.opened_at
            for alert in stored
            if alert.opened_at < start
            and (alert.condition_ended_at is None or (alert.condition_ended_at >= start and not by_hand(rule)))
        ),
        None,
    )


def transitions(alerts: Sequence[Alert]) -> list[datetime]:
    """When episodes opened and ended, oldest first."""
    return sorted(
        at
        for alert in alerts
        if alert.resolved_reason != "late_arrival"
        for at in (alert.opened_at, alert.condition_ended_at)
        if at is not None
    )


def settle(
    episodes: Sequence[Episode],
    stored: Sequence[Alert],
    *,
    start: datetime,
    never_was: Callable[[Alert], bool],
    worst: Callable[[float, float], float] = max,
    now: datetime,
    verdict: Verdict,
) -> list[Episode]:
    """Brings the stored alerts of one rule and group in line with these episodes; those that need an alert of their own."""
    unmatched, new = list(stored), []
    for episode in episodes:
        match = alert_of(episode, unmatched)
        if match is None:
            if episode.ended_at is None or episode.ended_at >= start:
                new.append(episode)
            continue
        unmatched.remove(match)
        change(verdict, match, episode, worst, now)
    for alert in unmatched:
        if alert.opened_at >= start and never_was(alert):
            # A late event showed that this never was: say so, and let go.
            end(verdict, alert, alert.opened_at, "late_arrival", now)
    return new


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


def change(
    verdict: Verdict, alert: Alert, episode: Episode, worst: Callable[[float, float], float], now: datetime
) -> None:
    evidence = tuple(dict.fromkeys((*alert.evidence, *episode.evidence)))
    if len(evidence) > EVIDENCE_MAX:
        evidence = (*evidence[:10], *evidence[-(EVIDENCE_MAX - 10) :])
    updated = replace(
        alert,
        evidence=evidence,
        value=episode.value if alert.value is None else worst(alert.value, episode.value),
        opened_at=episode.opened_at,
        flapping=alert.flapping or episode.flapping,
    )
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
    verdict.over.add(alert.id)


def make_alert(
    rule: Rule,
    episode: Episode,
    *,
    number: int,
    now: datetime,
    values: Mapping[str, str],
    group: Mapping[str, str],
    group_key: str,
    account: AccountKey | None,
    connection_id: str | None,
    late_seconds: float | None,
    trigger: Event | None = None,
) -> Alert:
    """`values` are what the rule's texts may name; `late_seconds` how late the event that opened it came; `trigger` that
    event: where its provider gave a reason, the alert says what the playbook has for it."""
    over = episode.ended_at is not None
    words = {**values, "value": f"{episode.value:g}", "group": ", ".join(f"{k} {v}" for k, v in group.items())}
    to_do = rule.render(rule.what_to_do, words) if rule.what_to_do else None
    if trigger is not None:
        to_do = with_playbook(to_do, trigger.kind, trigger.details, trigger.provider)
    known = {name: values[name] for name in ("organization_id", "provider") if values.get(name)}
    return Alert(
        id=new_id(),
        rule_id=rule.id,
        rule_version=rule.version,
        severity=rule.severity,
        account=account,
        connection_id=connection_id,
        group=dict(group),
        group_key=group_key,
        episode=number,
        dedup_key=dedup_key(rule.id, group_key, number),
        state="resolved" if over else "firing",
        summary=rule.render(rule.summary, words),
        what_to_do=to_do,
        opened_at=episode.opened_at,
        fired_at=now,
        condition_ended_at=episode.ended_at,
        resolved_at=now if over else None,
        resolved_reason=(episode.end_reason or "recovered") if over else None,
        discovered_late=over,  # already over when discovered: kept and forwarded, pauses and pages nobody
        late_seconds=late_seconds,
        value=episode.value,
        evidence=tuple(episode.evidence[:EVIDENCE_MAX]),
        stable_for_seconds=rule.stable_for.total_seconds(),
        pauses=rule.pauses and not rule.shadow,
        condition_version=rule.condition_version,
        labels={**known, **rule.labels},
        shadow=rule.shadow,
        late_detection=rule.kind == "absence" and not over and now - episode.opened_at > LATE_DETECTION,
        flapping=episode.flapping,
    )
