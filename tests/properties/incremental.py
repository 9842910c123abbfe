"""The evaluator without its database: batches as they arrive, judged from their earliest event on, and deadlines."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from service.event import Event, order_key
from service.rules import Rule
from service.rules.given import Armed, Episode, Given, Sample
from service.rules.story import Initial, Step, tell
from service.rules.triggers.rolling import Rolling
from tests.properties.histories import History

TICK = timedelta(microseconds=1)
WAKES_MAX = 500


class Restless(Exception):
    """It asks to be woken for what has come already."""


@dataclass
class Kept:
    """What is known of one group."""

    events: dict[str, Event] = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)
    wake_at: datetime | None = None


class Incremental:
    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.groups: dict[Any, Kept] = {}

    def run(self, history: History, see: Any = None) -> dict[Any, list[Episode]]:
        """`see(now)` is called before each batch and at the end, when all that was due by then has been judged."""
        for arrival in history.arrivals:
            self.wake(arrival.at)
            if see is not None:
                see(arrival.at)
            new: dict[Any, list[Event]] = {}
            for event in arrival.events:
                new.setdefault(tuple(getattr(event, name) for name in self.rule.group_by), []).append(event)
            for group, events in new.items():
                kept = self.groups.setdefault(group, Kept())
                fresh = [event for event in events if event.id not in kept.events]
                if fresh:
                    kept.events |= {event.id: event for event in fresh}
                    self.judge(kept, min(event.occurred_at for event in fresh), arrival.at)
        self.wake(history.now)
        return {group: kept.episodes for group, kept in self.groups.items()}

    def wake(self, until: datetime) -> None:
        for kept in self.groups.values():
            for _ in range(WAKES_MAX):
                if kept.wake_at is None or kept.wake_at > until:
                    break
                at = kept.wake_at
                self.judge(kept, at, at)
                if kept.wake_at is not None and kept.wake_at <= at:
                    raise Restless(f"judged after {at}, it asks to be woken at {kept.wake_at}")
            else:
                raise Restless(f"it was woken {WAKES_MAX} times before {until}")

    def judge(self, kept: Kept, judge_from: datetime, now: datetime) -> None:
        open_ = [
            episode
            for episode in kept.episodes
            if episode.opened_at < judge_from and (episode.ended_at is None or episode.ended_at >= judge_from)
        ]
        steps = self.steps(kept)
        since = judge_from - self.rule.lookback
        samples = [sample for step in steps for sample in self.rule.samples(step)]
        near = [sample for sample in samples if sample.at >= since]
        condition = self.rule.condition
        given = Given(
            judge_from=judge_from,
            now=now,
            open_since=open_[0].opened_at if open_ else None,
            recent=sorted(at for one in kept.episodes for at in (one.opened_at, one.ended_at) if at is not None),
            samples=near,
            buckets=condition.in_buckets(near) if isinstance(condition, Rolling) else (),
            initial=Initial(),
            steps=steps,
            armed=self.armed_before(samples, since),
        )
        judged = self.rule.judge(given)
        over = [one for one in kept.episodes if one.ended_at is not None and one.ended_at < judge_from]
        # What was open may turn out to have ended a moment before it was looked at.
        again = [
            one
            for one in judged.episodes
            if one.ended_at is None or one.ended_at >= judge_from or one.opened_at == given.open_since
        ]
        kept.episodes = [*over, *again]
        kept.wake_at = judged.wake_at

    def steps(self, kept: Kept) -> list[Step]:
        if self.rule.by_account:
            return list(tell(Initial(), kept.events.values()).steps)
        return [Step(event, None, event.status) for event in sorted(kept.events.values(), key=order_key)]

    def armed_before(self, samples: list[Sample], since: datetime) -> Armed | None:
        """What waited when the slice begins, as whoever keeps it would know."""
        if self.rule.kind != "absence":
            return None
        earlier = [sample for sample in samples if sample.at < since]
        if not earlier:
            return None
        return self.rule.judge(Given(judge_from=earlier[0].at, now=since - TICK, samples=earlier)).armed
