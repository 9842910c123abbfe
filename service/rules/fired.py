"""Alerts as people would have had them, and what judging anew makes of those there are. Pure.

`service/judge.py` does the same with the alerts in the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from service.rules.given import Episode


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """An alert as people would have had it: the episode by event time, and when it was told by ours.

    `first_value`: what it had reached when it was told. `retracted`: a late event showed that it never was, or that it had not ended and is now another's first part.
    """

    rule_id: str
    group: Mapping[str, str]
    episode: Episode
    fired_at: datetime
    resolved_at: datetime | None = None
    first_value: float = 0.0
    retracted: bool = False

    @property
    def discovered_late(self) -> bool:
        """It was over before anybody was told: it pauses and pages nobody."""
        return self.resolved_at == self.fired_at and not self.retracted

    def shares(self, episode: Episode) -> bool:
        mine = self.episode
        return (
            not self.retracted
            and (mine.ended_at is None or mine.ended_at >= episode.opened_at)
            and (episode.ended_at is None or mine.opened_at <= episode.ended_at)
            and (episode.ended_at is not None or mine.ended_at is None)
        )


def reconcile(
    before: Sequence[Fired],
    episodes: Sequence[Episode],
    rule_id: str,
    group: Mapping[str, str],
    start: datetime,
    now: datetime,
) -> list[Fired]:
    """The alerts of a group after it was judged from `start` on: begun, gone on, ended, or shown never to have been."""
    fired = [one for one in before if one.retracted]
    unmatched = [one for one in before if not one.retracted]
    for episode in episodes:
        sharing = [one for one in unmatched if one.shares(episode)]
        if not sharing:
            if episode.ended_at is None or episode.ended_at >= start:
                over = now if episode.ended_at is not None else None
                fired.append(
                    Fired(
                        rule_id=rule_id,
                        group=group,
                        episode=episode,
                        fired_at=now,
                        resolved_at=over,
                        first_value=episode.value,
                    )
                )
            continue
        one = max(sharing, key=lambda old: (old.episode.opened_at == episode.opened_at, old.resolved_at is None))
        unmatched.remove(one)
        old = one.episode
        merged = replace(
            episode,
            evidence=tuple(dict.fromkeys((*old.evidence, *episode.evidence))),
            value=episode.value or old.value,
            trigger_event_id=old.trigger_event_id or episode.trigger_event_id,
        )
        over = one.resolved_at or (now if episode.ended_at is not None else None)
        fired.append(replace(one, episode=merged, resolved_at=over))
    for one in unmatched:
        old = one.episode
        if old.ended_at is not None and any(overlap(old, episode) for episode in episodes):
            # It went on after all, and what goes on is told anew: this one is a part of that.
            fired.append(replace(one, retracted=True))
            continue
        if old.opened_at >= start and old.end_reason != "no_active_workflow":
            never = replace(old, ended_at=old.opened_at, end_reason="late_arrival")
            one = replace(one, episode=never, resolved_at=one.resolved_at or now, retracted=True)
        fired.append(one)
    return sorted(fired, key=lambda one: one.fired_at)


def transitions(fired: Sequence[Fired]) -> list[datetime]:
    return sorted(at for one in fired if not one.retracted for at in ends_of(one.episode))


def ends_of(episode: Episode) -> list[datetime]:
    return [episode.opened_at] if episode.ended_at is None else [episode.opened_at, episode.ended_at]


def overlap(one: Episode, other: Episode) -> bool:
    return (one.ended_at is None or one.ended_at >= other.opened_at) and (
        other.ended_at is None or one.opened_at <= other.ended_at
    )
