"""Rules on a virtual clock: events and their arrival in, alerts out, in memory. Pure.

It judges as the evaluator does, with the same `samples`, `judge` and `tell`: each group an arrival touches, and each
group at the instant it asked to be woken at. Inline tests and backtests run on it. It holds of each group what
`lookback` and `allowed_lateness` can still ask for, and drops the rest.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count

from service.event import WELL, AccountKey, Event, order_key
from service.rules.fired import Fired, reconcile, transitions
from service.rules.given import Armed, Bucket, Given, Judged, Sample
from service.rules.latch import Latch
from service.rules.lateness import counts
from service.rules.match import reader
from service.rules.model import GROUP_MAX, ZERO, Rule
from service.rules.ruleset import Ruleset
from service.rules.story import Initial, Step, chain, tell
from service.rules.triggers.absence import Absence
from service.rules.triggers.gauge import Gauge
from service.rules.triggers.rolling import Rolling

EVENTS_PER_ACCOUNT_MAX = 2_000  # of a broken account all since it was well is kept, up to so many
READINGS_MAX = 1_000
TICK = timedelta(seconds=1)  # the sweep's: nothing is looked at twice in less
BEGINNING = frozenset({"match", "after"})  # without one of these, what is idle stays so

Dependents = Callable[[AccountKey, str | None], bool]  # whether an active workflow depends on the account


@dataclass(slots=True, kw_only=True)
class Account:
    """`initial` and `armed` are where the kept events start; `dropped_upto`: the last of those before them."""

    key: AccountKey
    connection_id: str | None = None
    initial: Initial = field(default_factory=Initial)
    armed: dict[str, Armed | None] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    dropped_upto: datetime | None = None


@dataclass(slots=True, kw_only=True)
class Cell:
    """One rule and one group."""

    rule: Rule
    group: Mapping[str, str]
    account: Account | None = None
    samples: list[Sample] = field(default_factory=list)
    buckets: dict[datetime, Bucket] = field(default_factory=dict)
    series: dict[tuple[str, ...], float] = field(default_factory=dict)
    readings: list[tuple[datetime, float]] = field(default_factory=list)
    fired: list[Fired] = field(default_factory=list)
    wake_at: datetime | None = None
    pending: bool = False
    value: float | None = None

    def is_idle(self, start: datetime) -> bool:
        """Whether nothing waits here and nothing was true at `start` or later."""
        if self.wake_at is not None or self.pending:
            return False
        return all((one.episode.ended_at or start) < start for one in self.fired)

    @property
    def state(self) -> str:
        if self.fired and self.fired[-1].resolved_at is None:
            return "firing"
        if self.pending:
            return "pending"
        return "resolved" if self.fired else "inactive"


class Simulation:
    """`now` only moves forward. Timers that run out before events arrive are honoured first, each at its instant.

    `too_late`: events behind what is kept. `capped`: of each rule, how many events found its groups at their limit.
    """

    def __init__(self, rules: Iterable[Rule], *, began: datetime, dependents: Dependents | bool = True) -> None:
        self.ruleset = Ruleset(rules)
        self.now = began
        self._began = began
        self._dependents: Dependents = dependents if callable(dependents) else lambda _account, _connection: dependents
        self._accounts: dict[AccountKey, Account] = {}
        self._cells: dict[tuple[str, str], Cell] = {}
        self._groups: dict[str, int] = {}
        self._due: list[tuple[datetime, int, tuple[str, str]]] = []
        self._number = count()
        self._seen: OrderedDict[tuple[str, ...], datetime] = OrderedDict()
        self._told_back = self.ruleset.lookback + lateness(self.ruleset.told)
        self._back = max((rule.lookback for rule in self.ruleset.rules), default=ZERO) + lateness(self.ruleset.rules)
        self.too_late = 0
        self.capped: dict[str, int] = {}

    def feed(self, events: Sequence[Event], now: datetime) -> None:
        """Events that arrive together at `now`; one that has arrived before is nothing new."""
        self._run(now, inclusive=False)
        self.now = max(self.now, now)
        fresh = [event for event in events if self._is_new(event)]
        of_account: dict[AccountKey, list[Event]] = {}
        for event in fresh:
            if event.account is not None:
                of_account.setdefault(event.account, []).append(event)
        for key, new in of_account.items():
            self._tell(key, new)
        self._gather(fresh)
        self._run(self.now, inclusive=True)

    def measure(self, metric: str, labels: Mapping[str, str], value: float, now: datetime) -> None:
        """A reading of a gauge. It stands until the next one."""
        self._run(now, inclusive=False)
        self.now = max(self.now, now)
        for rule in self.ruleset.gauges:
            gauge = rule.condition
            if not isinstance(gauge, Gauge) or gauge.metric != metric:
                continue
            cell = self._cell(rule, {name: labels.get(name, "") for name in rule.group_by})
            if cell is not None:
                cell.series[tuple(labels.get(name, "") for name in gauge.labels)] = value
                worst = max if gauge.gt is not None or gauge.gte is not None else min
                cell.readings.append((self.now, worst(cell.series.values())))
                del cell.readings[:-READINGS_MAX]
                self._judge(cell, self.now)
        self._run(self.now, inclusive=True)

    def depend(self, dependents: Dependents | bool) -> None:
        """From now on other accounts are depended on: the other side of a state rule changes."""
        self._dependents = dependents if callable(dependents) else lambda _account, _connection: dependents
        for cell in list(self._cells.values()):
            if cell.rule.kind == "state":
                self._judge(cell, self.now)

    def advance(self, now: datetime) -> None:
        """Nothing arrives until then; what runs out on the way does so at its instant."""
        self._run(now, inclusive=True)
        self.now = max(self.now, now)

    def sleep(self, now: datetime) -> None:
        """Nobody looks until then, as if everything were down: what ran out is found with the next call."""
        self.now = max(self.now, now)

    def episodes(self) -> list[Fired]:
        """All alerts that were not `taken`, in the order in which they were told."""
        return sorted(
            (fired for cell in self._cells.values() for fired in cell.fired), key=lambda fired: fired.fired_at
        )

    def take(self) -> list[Fired]:
        """Those that nothing can change any more; they are forgotten, so that a long run takes no more memory."""
        horizon, taken = self.now - self._back, []
        for name, cell in list(self._cells.items()):
            over = [one for one in cell.fired if one.resolved_at is not None and one.resolved_at < horizon]
            over = [one for one in over if (one.episode.ended_at or horizon) < horizon]
            if over:
                taken += over
                cell.fired = [one for one in cell.fired if one not in over]
            self._trim(cell)
            if not (cell.fired or cell.samples or cell.buckets or cell.readings or cell.wake_at):
                del self._cells[name]
                self._groups[cell.rule.id] -= 1
        return sorted(taken, key=lambda fired: fired.fired_at)

    def cells(self, rule_id: str) -> list[Cell]:
        return [cell for cell in self._cells.values() if cell.rule.id == rule_id]

    # Arrivals.

    def _is_new(self, event: Event) -> bool:
        names = [(event.id,)]
        if event.event_id is not None:
            names.append((event.source, event.environment_id or "", event.event_id, event.type))  # type: ignore[arg-type]
        known = any(name in self._seen for name in names)
        for name in names:
            self._seen.setdefault(name, self.now)
        while self._seen and next(iter(self._seen.values())) < self.now - self._back:
            self._seen.popitem(last=False)
        return not known

    def _tell(self, key: AccountKey, new: Sequence[Event]) -> None:
        """The rules that are judged from the account's own story."""
        account = self._accounts.setdefault(key, Account(key=key))
        taken: list[Event] = []
        for event in new:
            if account.dropped_upto is not None and event.occurred_at < account.dropped_upto:
                self.too_late += 1
                continue
            insort(account.events, event, key=order_key)
            taken.append(event)
            if event.connection_id is not None and event.connection_id != event.account_id:
                account.connection_id = event.connection_id
        if not taken:
            return
        concerned = {rule.id: rule for event in taken for rule in self.ruleset.told_for(Step(event, None, None))}
        if any(event.account_status is not None for event in taken):
            concerned |= {rule.id: rule for rule in self.ruleset.told if reads_status(rule)}
        start = min(event.occurred_at for event in taken)
        if concerned:
            steps = tell(account.initial, account.events).steps
            late = [step for step in steps if step.event.occurred_at >= start]
            for rule in concerned.values():
                known = self._cells.get((rule.id, str(key)))
                if (known is None or known.is_idle(start)) and not any(may_begin(rule, step) for step in late):
                    continue
                cell = self._cell(rule, {"account_id": key.account_id}, account)
                if cell is not None:
                    self._judge(cell, min(start, self.now), steps)
        self._forget(account)

    def _gather(self, events: Sequence[Event]) -> None:
        """The rules that are judged from samples kept for a group."""
        touched: dict[int, tuple[Cell, datetime]] = {}
        for event in events:
            step = Step(event, None, None)
            for rule in self.ruleset.grouped_for(step):
                samples = [sample for sample in rule.samples(step) if counts(rule, event, sample)]
                group = group_of(rule, step) if samples else None
                cell = self._cell(rule, group) if group is not None else None
                if cell is None:
                    continue
                condition = rule.condition
                for sample in samples:
                    if isinstance(condition, Rolling):
                        at = condition.bucket_of(sample.at)
                        condition.add(cell.buckets.setdefault(at, Bucket(at)), sample)
                    else:
                        insort(cell.samples, sample, key=lambda one: one.at)
                before = touched.get(id(cell), (cell, event.occurred_at))[1]
                touched[id(cell)] = (cell, min(before, event.occurred_at))
        for cell, start in touched.values():
            self._trim(cell)
            self._judge(cell, min(start, self.now))

    def _cell(self, rule: Rule, group: Mapping[str, str], account: Account | None = None) -> Cell | None:
        name = (rule.id, str(account.key) if account is not None else "\x1f".join(group.values()))
        cell = self._cells.get(name)
        if cell is None:
            if account is None and self._groups.get(rule.id, 0) >= GROUP_MAX:
                self.capped[rule.id] = self.capped.get(rule.id, 0) + 1
                return None
            self._groups[rule.id] = self._groups.get(rule.id, 0) + 1
            cell = self._cells[name] = Cell(rule=rule, group=group, account=account)
        return cell

    # Judging.

    def _run(self, until: datetime, *, inclusive: bool) -> None:
        while self._due and (self._due[0][0] < until or (inclusive and self._due[0][0] == until)):
            at, _, name = heapq.heappop(self._due)
            cell = self._cells.get(name)
            if cell is None or cell.wake_at != at:
                continue  # it has been judged since, and asked for another instant
            self.now = max(self.now, at)
            self._judge(cell, at)

    def _judge(self, cell: Cell, start: datetime, steps: Sequence[Step] | None = None) -> None:
        """From `start` on; what lies before was judged when it was new."""
        rule = cell.rule
        judged = (
            self._judge_gauge(cell)
            if isinstance(rule.condition, Gauge)
            else rule.judge(self._given(cell, start, steps))
        )
        start = self._began if isinstance(rule.condition, Gauge) else start
        cell.fired = reconcile(cell.fired, judged.episodes, rule.id, cell.group, start, self.now)
        cell.value = judged.value
        is_open = any(episode.ended_at is None for episode in judged.episodes)
        cell.pending = not is_open and waits(rule, judged)
        cell.wake_at = judged.wake_at
        if cell.wake_at is not None:
            cell.wake_at = cell.wake_at if cell.wake_at > self.now else self.now + TICK
            account = cell.account
            name = (rule.id, str(account.key) if account is not None else "\x1f".join(cell.group.values()))
            heapq.heappush(self._due, (cell.wake_at, next(self._number), name))

    def _given(self, cell: Cell, start: datetime, steps: Sequence[Step] | None) -> Given:
        rule, account = cell.rule, cell.account
        covering = [
            one.episode.opened_at
            for one in cell.fired
            if one.episode.opened_at < start
            and not one.retracted
            and (one.episode.ended_at is None or one.episode.ended_at >= start)
        ]
        given = Given(
            judge_from=start,
            now=self.now,
            open_since=covering[0] if covering else None,
            recent=transitions(cell.fired),
        )
        since = start - rule.lookback
        if account is None:
            return replace(
                given,
                samples=[sample for sample in cell.samples if sample.at >= since],
                buckets=[bucket for bucket in cell.buckets.values() if bucket.at >= since],
            )
        if steps is None:
            steps = tell(account.initial, account.events).steps
        whole = rule.kind in ("state", "absence")  # a break, and what was promised, may be older than any window
        samples = [
            sample
            for step in steps
            if whole or step.event.occurred_at >= since
            for sample in rule.samples(step)
            if counts(rule, step.event, sample)
        ]
        return replace(
            given,
            initial=account.initial,
            steps=steps,
            samples=samples,
            armed=account.armed.get(rule.id),
            dependents=self._dependents(account.key, account.connection_id),
        )

    def _judge_gauge(self, cell: Cell) -> Judged:
        rule, gauge = cell.rule, cell.rule.condition
        assert isinstance(gauge, Gauge)
        began = cell.readings[0][0]
        latch = Latch(Given(judge_from=began, now=self.now), for_=rule.for_, keep=rule.keep_firing_for)
        for at, value in cell.readings:
            if gauge.holds(rule, value, is_open=latch.open_at(at)):
                latch.true(at, value)
            else:
                latch.false(at, "recovered")
        episodes, wake = latch.finish()
        return Judged(episodes, wake, value=cell.readings[-1][1])

    # Forgetting.

    def _forget(self, account: Account) -> None:
        """Moves the begin of what is kept forward; of an account that is not well, all since it was well is kept."""
        horizon, events = self.now - self._told_back, account.events
        if not events or (events[0].occurred_at >= horizon and len(events) <= EVENTS_PER_ACCOUNT_MAX):
            return
        upto = next((n for n, event in enumerate(events) if event.occurred_at >= horizon), len(events))
        not_well, well_upto = account.initial.not_well, 0
        for number, step in enumerate(tell(account.initial, events[:upto]).steps, start=1):
            if step.became is not None:
                not_well = chain(not_well, step.became, step.event.occurred_at)
            if not not_well:
                well_upto = number
        if not_well:
            upto = max(well_upto, len(events) - EVENTS_PER_ACCOUNT_MAX)
        if not upto:
            return
        gone = tell(account.initial, events[:upto])
        for rule in self.ruleset.absences:
            condition, armed = rule.condition, account.armed.get(rule.id)
            assert isinstance(condition, Absence)
            for step in gone.steps:
                for sample in rule.samples(step):
                    armed = condition.step(armed, sample)
            account.armed[rule.id] = armed
        account.initial, account.dropped_upto = gone.final, events[upto - 1].occurred_at
        del events[:upto]

    def _trim(self, cell: Cell) -> None:
        horizon = self.now - cell.rule.lookback - cell.rule.allowed_lateness
        if cell.samples and cell.samples[0].at < horizon:
            cell.samples = [sample for sample in cell.samples if sample.at >= horizon]
        if cell.buckets and min(cell.buckets) < horizon:
            cell.buckets = {at: bucket for at, bucket in cell.buckets.items() if at >= horizon}


def may_begin(rule: Rule, step: Step) -> bool:
    """Most events only end something, and nearly always nothing is there to be ended."""
    if rule.kind == "state":
        return step.became not in (None, WELL)
    return any(sample.role in BEGINNING for sample in rule.samples(step))


def waits(rule: Rule, judged: Judged) -> bool:
    """Whether the condition is true and only `for` has not passed."""
    if rule.kind == "state":
        return judged.wake_at is not None
    value = judged.value
    if value is None:
        return False
    condition = rule.condition
    if isinstance(condition, Rolling | Gauge):
        return condition.breached(value)
    return value >= (getattr(condition, "gte", 1))


def group_of(rule: Rule, step: Step) -> dict[str, str] | None:
    """Its values, None where one is not said. An account or a connection is one only within its source and environment."""
    group = {}
    if not {"account_id", "connection_id"}.isdisjoint(rule.group_by):
        group = {"source": step.event.source, "environment_id": step.event.environment_id or ""}
    for name in rule.group_by:
        value = reader(name)(step)
        if value is None:
            return None
        group[name] = str(value)
    return group


def reads_status(rule: Rule) -> bool:
    """Whether a status that came late can change what its other events mean."""
    return rule.kind == "state" or any("became" in matcher.fields for _, matcher in rule.matchers)


def lateness(rules: Sequence[Rule]) -> timedelta:
    return max((rule.allowed_lateness for rule in rules), default=ZERO)
