"""What these rules would have made of the log that is stored: the evaluator's own judging, reading only.

Rules told from an account's story go account by account, the others in one pass by time. Both hold one account's, or the
groups', open windows and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from service.event import AccountKey, Event, order_key
from service.report import OUTWEIGHED_BY
from service.rules import Rule, Ruleset
from service.rules.folding import AccountFold, Fold, Past
from service.rules.lateness import samples_in_time
from service.rules.model import GROUP_MAX
from service.rules.simulate import group_of
from service.rules.story import REFRESHES, Step, believed_in_order
from service.store.backlog import Dependents, account_events, clock, events_in_time, snapshot

TIED_MAX = 20_000  # events of one instant that are put in order together
WORST_SHOWN = 5
WORST_KEPT_MAX = 20_000
EVERY_ROWS = 2_000
Progress = Callable[[int, int], None]  # rows done, about how many there are


@dataclass(slots=True)
class Tally:
    """What one rule would have made. `messages`: for each notifier, one post an episode and one edit when it ended."""

    rule: Rule
    episodes: int = 0
    discovered_late: int = 0
    open_at_end: int = 0
    longest: timedelta = timedelta(0)
    messages: int = 0
    pauses: int = 0
    groups_refused: int = 0
    objective_missed: int = 0  # episodes whose events came too late for the rule's `objective`
    worst: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[str, datetime, datetime | None, bool]] | None = None  # only where asked for

    def add(self, group: str, pasts: Iterable[Past], dependents: int, since: datetime, now: datetime) -> None:
        """`dependents`: how many active workflows depend on the account now."""
        for past in pasts:
            episode = past.episode
            if episode.ended_at is not None and episode.ended_at < since:
                continue
            self.episodes += 1
            self.worst[group] += 1
            self.discovered_late += past.discovered_late
            self.open_at_end += episode.ended_at is None
            if self.rule.objective is not None and past.told_after is not None:
                self.objective_missed += past.told_after > self.rule.objective.detect_within
            self.longest = max(self.longest, (episode.ended_at or now) - episode.opened_at)
            if self.spans is not None:
                self.spans.append((group, episode.opened_at, episode.ended_at, past.discovered_late))
            if past.discovered_late:
                continue
            if not self.rule.shadow:
                self.messages += (episode.opened_at >= since) + (episode.ended_at is not None)
            if self.rule.pauses and not self.rule.shadow:
                self.pauses += dependents
        if len(self.worst) > WORST_KEPT_MAX:
            self.worst = Counter(dict(self.worst.most_common(WORST_KEPT_MAX // 2)))


@dataclass(frozen=True, slots=True)
class Backtest:
    since: datetime
    until: datetime
    rows: int
    tallies: tuple[Tally, ...]
    not_in_the_log: tuple[str, ...]  # rules of what is measured live


def run(
    database_url: str,
    ruleset: Ruleset,
    since: Callable[[datetime], datetime],
    *,
    progress: Progress = lambda _done, _of: None,
    keep_spans: bool = False,
) -> Backtest:
    """`since`: from the database's clock. Raises psycopg.Error where the database cannot be read."""
    tallies = {rule.id: Tally(rule, spans=[] if keep_spans else None) for rule in (*ruleset.told, *ruleset.grouped)}
    rows = 0
    with snapshot(database_url) as conn:
        now = clock(conn)
        begin = since(now)
        dependents = Dependents(conn)
        if ruleset.told:
            kinds = kinds_of(ruleset.told)
            if kinds is not None and not set(REFRESHES).isdisjoint(kinds):
                kinds = sorted({*kinds, *OUTWEIGHED_BY})  # by which a reported refresh may be outweighed
            about, events = account_events(conn, kinds=kinds, details=reads_details(ruleset.told))
            rows += told(ruleset, counted(events, about, progress), dependents, tallies, begin, now)
        if ruleset.grouped:
            floor = begin - max(rule.lookback for rule in ruleset.grouped)
            about, events = events_in_time(
                conn, kinds=kinds_of(ruleset.grouped), since=floor, details=reads_details(ruleset.grouped)
            )
            rows += grouped(ruleset, counted(events, about, progress), dependents, tallies, begin, now)
    return Backtest(begin, now, rows, tuple(tallies.values()), tuple(rule.id for rule in ruleset.gauges))


def told(
    ruleset: Ruleset,
    events: Iterator[Event],
    dependents: Dependents,
    tallies: dict[str, Tally],
    since: datetime,
    now: datetime,
) -> int:
    rows, current = 0, None
    folds: dict[AccountKey, AccountFold] = {}

    def close() -> None:
        for key, fold in folds.items():
            for rule, pasts in fold.finish(now):
                tallies[rule.id].add(str(key), pasts, len(dependents.of(key, fold.connection_id)), since, now)
        folds.clear()

    def each() -> Iterator[Event]:
        nonlocal rows
        for event in in_order(events, by_account=True):
            rows += 1
            yield event

    for event in believed_in_order(each()):
        if event.account_id != current:  # accounts of one short id come mixed, and end together
            close()
            current = event.account_id
        key = event.account
        assert key is not None
        fold = folds.get(key)
        if fold is None:
            fold = folds[key] = AccountFold(
                ruleset.told,
                dependents=lambda connection_id, key=key: bool(dependents.of(key, connection_id)),  # type: ignore[misc]
            )
        fold.add(event, ruleset.told_for(Step(event, None, None)))
    close()
    return rows


@dataclass(slots=True)
class OfGroup:
    """A group of a rule: what it is kept by (`group_of`), and through which connection its account is."""

    fold: Fold
    values: Mapping[str, str]
    connection_id: str | None

    def short(self) -> str:
        return ", ".join(self.values[name] for name in self.fold.rule.group_by) or "all"

    def paused(self, dependents: Dependents) -> int:
        """How many active workflows an alert of this group pauses."""
        rule, source, environment = self.fold.rule, self.values.get("source", ""), self.values.get("environment_id", "")
        if rule.pauses_connection:
            return len(dependents.of_connection(source, environment, self.values["connection_id"]))
        if not rule.pauses:
            return 0
        return len(dependents.of(AccountKey(source, environment, self.values["account_id"]), self.connection_id))


def grouped(
    ruleset: Ruleset,
    events: Iterator[Event],
    dependents: Dependents,
    tallies: dict[str, Tally],
    since: datetime,
    now: datetime,
) -> int:
    rows = 0
    groups: dict[str, dict[tuple[str, ...], OfGroup]] = {rule.id: {} for rule in ruleset.grouped}
    for event in in_order(events, by_account=False):
        rows += 1
        step = Step(event, None, event.account_status)
        for rule in ruleset.grouped_for(step):
            samples, _too_late = samples_in_time(rule, step)
            if not samples or (values := group_of(rule, step)) is None:
                continue
            mine, key = groups[rule.id], tuple(values.values())
            group = mine.get(key)
            if group is None:
                if len(mine) >= GROUP_MAX:
                    tallies[rule.id].groups_refused += 1
                    continue
                group = mine[key] = OfGroup(Fold(rule), values, event.connection_id)
            for sample in samples:
                group.fold.add(sample, event)
    for rule in ruleset.grouped:
        names = Counter(group.short() for group in groups[rule.id].values())
        for key, group in groups[rule.id].items():
            # One id in several environments is several groups, and then each is said in full.
            name = group.short() if names[group.short()] == 1 else ":".join(key)
            tallies[rule.id].add(name, group.fold.finish(now), group.paused(dependents), since, now)
    return rows


def in_order(events: Iterator[Event], *, by_account: bool) -> Iterator[Event]:
    """What happened in one instant is put in the order of a story: a break after a recovery."""
    tied: list[Event] = []
    for event in events:
        if tied and (
            event.occurred_at != tied[0].occurred_at
            or (by_account and event.account_id != tied[0].account_id)
            or len(tied) >= TIED_MAX
        ):
            yield from tied if len(tied) == 1 else sorted(tied, key=order_key)
            tied = []
        tied.append(event)
    yield from sorted(tied, key=order_key)


def counted(events: Iterator[Event], about: int, progress: Progress) -> Iterator[Event]:
    done = 0
    for event in events:
        done += 1
        if done % EVERY_ROWS == 0:
            progress(done, max(about, done))
        yield event
    progress(done, done)


def kinds_of(rules: Iterable[Rule]) -> list[str] | None:
    """None where one of them may concern any kind; a status that changed comes in any case."""
    found: set[str] = set()
    for rule in rules:
        for _, matcher in rule.matchers:
            if matcher.kinds is None and "became" not in matcher.fields:
                return None
            found |= matcher.kinds or frozenset()
    return sorted(found)


def reads_details(rules: Iterable[Rule]) -> bool:
    """Whether the JSON of an event's details is needed at all: it is most of a row."""
    return "details." in "".join(str(rule.model_dump(exclude={"tests", "annotations"})) for rule in rules)
