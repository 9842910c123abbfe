"""What a rule means, said again: slow, obvious, from the whole history at once. It shares nothing with `judge` or `Latch`
but the fields of a rule and `Rule.samples`.

For each group every instant at which something could change is visited in order. At an instant first its events are
told, in their order; then the condition is looked at as it is from here on; then the timers that run out are honoured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import ceil, floor
from typing import Any

from service.event import BREAK_KINDS, Event
from service.rules import Rule
from service.rules.given import Sample
from service.rules.story import Step

ZERO, EPOCH = timedelta(0), datetime(1970, 1, 1, tzinfo=UTC)
FLAPPING_WITHIN, FLAPPING_TRANSITIONS, FLAPPING_QUIET = timedelta(minutes=15), 4, timedelta(minutes=5)


@dataclass(frozen=True)
class Span:
    opened: datetime
    ended: datetime | None = None
    reason: str | None = None
    flapping: bool = False


@dataclass
class Timeline:
    """Truth told in order of time becomes episodes: `for`, `keep_firing_for`, flapping."""

    for_: timedelta
    keep: timedelta
    flaps: bool = True
    spans: list[Span] = field(default_factory=list)
    since: datetime | None = None  # the condition is true since
    ending: tuple[datetime, str] | None = None
    instants: set[datetime] = field(default_factory=set)  # still to be visited

    @property
    def open(self) -> Span | None:
        return self.spans[-1] if self.spans and self.spans[-1].ended is None else None

    @property
    def held(self) -> bool:
        return self.since is not None

    def true(self, at: datetime) -> None:
        self.ending = None
        if self.since is None:
            self.since = at
            self.instants.add(at + self.for_)

    def false(self, at: datetime, reason: str, *, at_once: bool = False) -> None:
        """`at_once`: something said that it is over, so `keep_firing_for` does not hold it; flapping does."""
        self.since = None
        if self.open is not None and self.ending is None:
            quiet = max(self.keep, FLAPPING_QUIET) if self.open.flapping else ZERO if at_once else self.keep
            self.ending = (at + quiet, reason)
            self.instants.add(at + quiet)
            if at_once:
                self.timers(at)

    def visit(self, now: datetime) -> Iterable[datetime]:
        """The instants in order, with those that come up on the way; timers run out after each was looked at."""
        while self.instants and (at := min(self.instants)) <= now:
            yield at
            self.timers(at)
            self.instants.discard(at)

    def timers(self, at: datetime) -> None:
        if self.open is not None and self.ending is not None and self.ending[0] <= at:
            self.spans[-1] = replace(self.open, ended=self.ending[0], reason=self.ending[1])
            self.ending = None
        if self.open is None and self.since is not None and self.since + self.for_ <= at:
            edges = [edge for span in (*self.spans, Span(at)) for edge in (span.opened, span.ended) if edge]
            near = sum(edge > at - FLAPPING_WITHIN for edge in edges)
            self.spans.append(Span(at, flapping=self.flaps and near > FLAPPING_TRANSITIONS))


def episodes(rule: Rule, events: Iterable[Event], now: datetime) -> dict[Any, list[Span]]:
    """Every episode there is by `now`, by group, whenever and however often the events arrived."""
    found, groups = dict[Any, Timeline](), dict[Any, dict[str, Event]]()
    for event in events:
        group = tuple(getattr(event, name) for name in rule.group_by)
        groups.setdefault(group, {})[event.id] = event
    for group, unordered in groups.items():
        steps = told(sorted(unordered.values(), key=order))
        timeline = found[group] = Timeline(rule.for_, rule.keep_firing_for)
        what: Any = steps if rule.kind == "state" else [sample for step in steps for sample in rule.samples(step)]
        MEANING[rule.kind](rule, rule.condition, what, timeline, now)
    return {group: timeline.spans for group, timeline in found.items()}


def order(event: Event) -> tuple[Any, ...]:
    broken = event.kind in BREAK_KINDS or event.account_status not in (None, "ACTIVE")
    return (event.occurred_at, broken, event.event_id, event.type)


def told(events: Sequence[Event]) -> list[Step]:
    steps, status = [], None
    for event in events:
        became = event.account_status if event.account_status not in (None, status) else None
        status = became or status
        steps.append(Step(event, became, status))
    return steps


def count(rule: Rule, it: Any, samples: list[Sample], timeline: Timeline, now: datetime) -> None:
    quiet = rule.resolve.after if rule.resolve is not None else None
    samples = [s for s in samples if s.role == "resolve" or it.distinct is None or s.distinct is not None]
    timeline.instants |= {s.at + wait for s in samples for wait in (ZERO, it.within, quiet or ZERO)}

    def enough(before: list[Sample], begin: datetime, *, inclusive: bool) -> bool:
        """Whether enough matches, or different values, lie in the window and were not resolved afterwards."""
        values: set[str | None] = set()
        for sample in before:
            if sample.role == "resolve":
                values = set() if it.distinct is None else values - {sample.distinct}
            elif sample.at > begin or (inclusive and sample.at == begin):
                values.add(sample.id if it.distinct is None else sample.distinct)
        return len(values) >= int(it.gte)

    for at in timeline.visit(now):
        for number, sample in enumerate(samples):
            if sample.at == at:
                holds = enough(samples[: number + 1], at - it.within, inclusive=True)
                if sample.role == "match" and holds:
                    timeline.true(at)
                elif sample.role == "resolve" and not holds:
                    timeline.false(at, "recovered", at_once=True)
        past = [sample for sample in samples if sample.at <= at]
        if timeline.held and rule.resolve is None and not enough(past, at - it.within, inclusive=False):
            timeline.timers(at)  # the last instant of the window belonged to it
            timeline.false(at, "subsided")
        if timeline.held and quiet is not None and max(s.at for s in past if s.role == "match") + quiet <= at:
            timeline.false(at, "quiet", at_once=True)


def rolling(rule: Rule, it: Any, samples: list[Sample], timeline: Timeline, now: datetime) -> None:
    width = timedelta(seconds=max(1, ceil(it.within.total_seconds() / 600)))
    ends = [EPOCH + ((sample.at - EPOCH) // width + 1) * width for sample in samples]
    judged = {at for end in ends for at in (end, end + it.within)}
    timeline.instants |= judged
    for at in timeline.visit(now):
        if at not in judged:
            continue
        values = sorted(s.value for s, end in zip(samples, ends, strict=True) if at - it.within < end <= at)
        if len(values) < it.min_total:
            continue  # unknown: it neither fires nor resolves
        ratio = rule.kind == "ratio"
        value = sum(values) / len(values) if ratio else values[floor(it.q * (len(values) - 1))]
        breached = value < it.lt if ratio else value > it.gt
        if timeline.open is not None and rule.resolve is not None:
            breached = rule.resolve.manual or not rule.resolve.met(value)
        timeline.true(at) if breached else timeline.false(at, "recovered")


def absence(rule: Rule, it: Any, samples: list[Sample], timeline: Timeline, now: datetime) -> None:
    manual = rule.resolve is not None and rule.resolve.manual
    timeline.instants |= {at for sample in samples for at in (sample.at, sample.due) if at is not None}
    samples, due = sorted(samples, key=lambda s: (s.at, ("unless", "expect", "after").index(s.role))), None
    for at in timeline.visit(now):
        for sample in (sample for sample in samples if sample.at == at):
            off = sample.role == "unless"
            if (sample.role != "after" or it.deadline is not None) and timeline.held and not manual:
                timeline.false(at, "called_off" if off else "recovered", at_once=off)
            if sample.role != "after":
                due = None
            elif it.deadline is not None:
                due = sample.due  # the newest says when; with `within` the first does
            elif due is None and not timeline.held:
                due = sample.due
        if due is not None and due <= at:
            due = None
            timeline.true(at)


def state(rule: Rule, it: Any, steps: list[Step], timeline: Timeline, now: datetime) -> None:
    timeline.for_, timeline.keep, timeline.flaps = ZERO, ZERO, False  # each alternative has a `for` of its own
    waits = [ZERO, *(max(rule.for_, one.for_) for one in it.match)]
    timeline.instants |= {step.event.occurred_at + wait for step in steps for wait in waits}
    chain: dict[str, datetime] = {}  # what has been wrong since it was last well, and since when
    for at in timeline.visit(now):
        for step in (step for step in steps if step.event.occurred_at == at and step.became is not None):
            gone = step.became == "DELETED" and not any("DELETED" in one.status for one in it.match)
            chain = {} if gone or step.became == "ACTIVE" else {str(step.became): at} | chain
            if not chain:
                timeline.false(at, "called_off" if gone else "recovered", at_once=True)
        for wait, one in zip(waits[1:], it.match, strict=True):
            if any(status in one.status and since + wait <= at for status, since in chain.items()):
                timeline.true(at)


MEANING: dict[str, Any] = {"count": count, "ratio": rolling, "quantile": rolling, "absence": absence, "state": state}
