"""A rule folded over a whole log: samples in, in order of time; episodes out. Pure, and bounded however long the log.

The judging is the evaluator's own (`Rule.samples`, `Rule.judge`). When a group has brought many samples, those that no
window can reach any more are judged and let go, as the evaluator judges what is new and keeps what fills windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from service.event import Event
from service.rules.given import EVIDENCE_MAX, Armed, Bucket, Episode, Given, Sample
from service.rules.latch import FLAPPING_WITHIN
from service.rules.lateness import samples_in_time
from service.rules.model import Rule
from service.rules.story import Initial, Step, chain
from service.rules.triggers.rolling import Rolling

HELD_MAX = 5_000  # samples, steps or buckets of one group; then it is judged so far
BEGINNING = datetime(1999, 1, 1, tzinfo=UTC)  # before every `occurred_at` that can be stored
TICK = timedelta(microseconds=1)  # the smallest step of a clock here


@dataclass(frozen=True, slots=True)
class Past:
    """An episode, and whether it was over before we could have known of it. `told_after`: how long after it began what it
    rests on had all arrived; None where that is not kept."""

    episode: Episode
    discovered_late: bool
    told_after: timedelta | None = None


class Fold:
    """One rule and one group, told in order of time."""

    def __init__(
        self,
        rule: Rule,
        *,
        dependents: Callable[[], bool] = lambda: True,
        held_max: int = HELD_MAX,
    ) -> None:
        self.rule = rule
        self.pasts: list[Past] = []
        self._judge_from, self._dependents, self._held_max = BEGINNING, dependents, held_max
        self._limit = held_max
        self._samples: list[Sample] = []
        self._steps: list[Step] = []
        self._buckets: list[Bucket] = []
        self._initial = Initial()
        self._armed: Armed | None = None
        self._open: Episode | None = None
        self._open_told_after: timedelta | None = None
        self._recent: list[datetime] = []
        self._arrived: dict[str, tuple[datetime, datetime]] = {}  # id -> occurred_at, received_at
        # Whether an earlier quiet has emptied the window shows only where that quiet's own window is in sight.
        quiet = rule.resolve is not None and rule.resolve.after is not None
        self._lookback = rule.lookback + (rule.condition.lookback if quiet else timedelta(0))
        self._rolling = rule.condition if isinstance(rule.condition, Rolling) else None

    def add(self, sample: Sample, event: Event) -> None:
        if self._rolling is not None:
            self._add_to_bucket(self._rolling, sample)
            return
        if not self._samples and self._open is None and self._armed is None and sample.role in ("resolve", "expect"):
            return  # there is nothing yet that it could end or answer
        if len(self._samples) >= self._limit and sample.at > self._samples[-1].at:
            self._settle(self._samples[-1].at)
        self._samples.append(sample)
        self._arrived[sample.id] = (event.occurred_at, event.received_at)

    def moved(self, step: Step, before: Initial) -> None:
        """The account's status changed; `before` is what it was until then."""
        at = step.event.occurred_at
        if len(self._steps) >= self._limit and at > self._steps[-1].event.occurred_at:
            self._settle(self._steps[-1].event.occurred_at)
        if not self._steps:
            self._initial = before
        self._steps.append(step)
        self._arrived[step.event.id] = (at, step.event.received_at)

    def finish(self, now: datetime) -> list[Past]:
        """Every episode there was, the last of them perhaps open."""
        self._judge(now)
        if self._open is not None:
            self.pasts.append(Past(self._open, False, self._open_told_after))
        return self.pasts

    def _add_to_bucket(self, rolling: Rolling, sample: Sample) -> None:
        at = rolling.bucket_of(sample.at)
        if not self._buckets or self._buckets[-1].at != at:
            if len(self._buckets) >= self._limit:
                self._settle(self._buckets[-1].at + rolling.width)
            self._buckets.append(Bucket(at))
        rolling.add(self._buckets[-1], sample)

    def _settle(self, at: datetime) -> None:
        """Judged up to `at`, inclusive; what fills later windows is kept."""
        self._judge(at)
        self._judge_from = at + TICK
        since = at - self._lookback
        # An absence waits in `armed`; its samples have said what they had to say.
        keep = self.rule.kind != "absence"
        self._samples = [sample for sample in self._samples if keep and sample.at >= since]
        self._buckets = [bucket for bucket in self._buckets if bucket.at >= since]
        if self._steps:
            self._initial, self._steps = self._after(self._steps[-1]), []
        kept = {sample.id for sample in self._samples}
        self._arrived = {id_: seen for id_, seen in self._arrived.items() if id_ in kept}
        # A window that is itself that full is not judged again for every sample.
        self._limit = max(self._held_max, 2 * max(len(self._samples), len(self._buckets)))

    def _after(self, last: Step) -> Initial:
        not_well = dict(self._initial.not_well)
        for step in self._steps:
            if step.became is not None:
                not_well = chain(not_well, step.became, step.event.occurred_at)
        return Initial(status=last.status, status_since=last.event.occurred_at, not_well=not_well)

    def _given(self, now: datetime) -> Given:
        return Given(
            judge_from=self._judge_from,
            now=now,
            open_since=self._open.opened_at if self._open is not None else None,
            recent=tuple(self._recent),
            samples=self._samples,
            buckets=self._buckets,
            initial=self._initial,
            steps=self._steps,
            dependents=self._dependents(),
            armed=self._armed,
        )

    def _judge(self, now: datetime) -> None:
        judged = self.rule.judge(self._given(now))
        self._armed = judged.armed
        carried, self._open = self._open, None
        for found in judged.episodes:
            episode = found
            if carried is not None and found.opened_at == carried.opened_at:
                episode, carried, told_after = continued(carried, found), None, self._open_told_after
            else:
                told_after = self._told_after(episode)
                self._recent.append(episode.opened_at)
            if episode.ended_at is None:
                self._open, self._open_told_after = episode, told_after
            else:
                self._recent.append(episode.ended_at)
                self.pasts.append(Past(episode, self._late(episode), told_after))
        # Whether an open episode flaps is asked as of the last transition, however long ago that is.
        self._recent = [at for at in sorted(self._recent) if at > max(self._recent) - FLAPPING_WITHIN]

    def _begun(self, episode: Episode) -> list[datetime]:
        """When what began it arrived."""
        known = (self._arrived[id_] for id_ in episode.evidence if id_ in self._arrived)
        return [received for occurred, received in known if occurred <= episode.opened_at]

    def _told_after(self, episode: Episode) -> timedelta | None:
        begun = self._begun(episode)
        return max([*begun, episode.opened_at]) - episode.opened_at if begun else None

    def _late(self, episode: Episode) -> bool:
        """Whether what ended it had come before the last of what began it: then nobody could have been told in time."""
        assert episode.ended_at is not None
        ended = [received for occurred, received in self._arrived.values() if occurred == episode.ended_at]
        known = max([*self._begun(episode), episode.opened_at])
        return known >= min(ended, default=episode.ended_at)


def continued(earlier: Episode, later: Episode) -> Episode:
    evidence = tuple(dict.fromkeys((*earlier.evidence, *later.evidence)))
    return replace(
        later,
        evidence=evidence[-EVIDENCE_MAX:],
        value=max(earlier.value, later.value),
        trigger_event_id=earlier.trigger_event_id,
        flapping=earlier.flapping or later.flapping,
    )


class AccountFold:
    """All told rules over one account's story, event by event in the order of `order_key`."""

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        dependents: Callable[[str | None], bool] = lambda _connection_id: True,
        held_max: int = HELD_MAX,
    ) -> None:
        self._dependents, self._held_max = dependents, held_max
        self._states = tuple(rule for rule in rules if rule.kind == "state")
        self._folds: dict[str, Fold] = {}
        self._now = Initial()
        self.connection_id: str | None = None

    def add(self, event: Event, rules: Iterable[Rule]) -> None:
        """`rules`: those whose samples this event may be."""
        if event.connection_id is not None and (event.connection_id != event.account_id or self.connection_id is None):
            self.connection_id = event.connection_id
        status, became, before = event.account_status, None, self._now
        if status is not None and status != before.status:
            became, at = status, event.occurred_at
            self._now = Initial(status=status, status_since=at, not_well=chain(before.not_well, status, at))
        step = Step(event, became, self._now.status)
        if became is not None:
            for rule in self._states:
                self._fold(rule).moved(step, before)
        for rule in rules:
            samples, _too_late = samples_in_time(rule, step)
            for sample in samples:
                self._fold(rule).add(sample, event)

    def finish(self, now: datetime) -> list[tuple[Rule, list[Past]]]:
        return [(fold.rule, fold.finish(now)) for fold in self._folds.values()]

    def _fold(self, rule: Rule) -> Fold:
        fold = self._folds.get(rule.id)
        if fold is None:
            fold = self._folds[rule.id] = Fold(
                rule,
                dependents=lambda: self._dependents(self.connection_id),
                held_max=self._held_max,
            )
        return fold
