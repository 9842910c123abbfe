"""Inline tests: what a rule file says should be seen, against what a simulation saw. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from service.event import WELL, Event, judge_clock, rfc3339
from service.rules.fired import Fired
from service.rules.inline_model import OFFSET, RuleTest, TestEvent, TestExpectation, offset
from service.rules.match import FIELDS
from service.rules.model import Rule
from service.rules.simulate import Cell, Simulation, group_of
from service.rules.story import Step
from service.rules.triggers.gauge import Gauge

BEGAN = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
VALUE_ERROR = 0.02  # a quantile is known to within so much of itself
# The status an event gives its account (contract.md, "Account status"), where the test does not say.
STATUSES = {
    "account.created": "PENDING_AUTH",
    "account.authorized": WELL,
    "account.reauth_started": "PENDING_AUTH",
    "account.reauth_required": "EXPIRED",
    "account.disconnected": "DISCONNECTED",
    "token.refresh_succeeded": WELL,
}
# Of an event, beside its kind, account and status.
SHOWN = frozenset(
    {"type", "old_status", "connection_id", "provider", "identifier", "organization_id", "environment_id", "source"}
)
SILENT_KINDS = frozenset({"token.refresh_failed", "tool_call.completed", "other"})
# The worst that one of several groups is in is what all of them are in.
ORDER = ("firing", "pending", "resolved", "inactive")


@dataclass(frozen=True, slots=True)
class Missed:
    """An expectation that was not met: what was expected, and what was seen."""

    at: timedelta
    expected: str
    seen: str


@dataclass(slots=True)
class Outcome:
    """How one test went. `timeline`: of the groups that went wrong, what arrived and what came of it."""

    rule: Rule
    test: RuleTest
    missed: list[Missed] = field(default_factory=list)
    timeline: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.missed


def run(rule: Rule, test: RuleTest) -> Outcome:
    """The test on a clock of its own; of a disabled rule too."""
    enabled = rule.model_copy(update={"enabled": True}) if rule.enabled is False else rule
    simulation = Simulation([enabled], began=BEGAN, dependents=bool(test.active_workflows))
    out = Outcome(rule, test)
    lines: list[tuple[timedelta, int, str]] = []
    arrived: list[tuple[timedelta, Event]] = []
    asked: list[dict[str, str]] = []  # the groups whose story is told when a test failed
    for now, what in happenings(test):
        since = now - BEGAN
        if isinstance(what, TestExpectation):
            simulation.advance(now)
            if (seen := unmet(simulation, rule, what)) is not None:
                out.missed.append(Missed(since, in_words(what), seen))
                asked.append(what.group or {})
        elif isinstance(what, list):
            simulation.feed(what, now)
            arrived += [(since, event) for event in what]
        else:
            assert isinstance(rule.condition, Gauge)
            simulation.measure(rule.condition.metric, what.labels, what.value, now)
            lines.append((since, 1, f"reads {what.value:g} {listed(what.labels)}".rstrip()))
    shown = fields_shown(rule, test)
    for since, event in arrived:
        group = group_of(rule, Step(event, None, None)) or {}
        if any(wanted.items() <= group.items() for wanted in asked):
            lines.append((since, 1, told(event, BEGAN + since, shown)))
    for fired in simulation.episodes():
        if any(wanted.items() <= fired.group.items() for wanted in asked):
            lines += turns(fired)
    out.timeline = [f"{clock(since):>9}  {text}" for since, _, text in sorted(lines)]
    return out


def happenings(test: RuleTest) -> Iterator[tuple[datetime, Any]]:
    """In the order of our clock: what arrives at an instant comes before what is asked of it."""
    arriving: dict[datetime, list[Event]] = {}
    for number, told_event in enumerate(test.events):
        for event in events_of(told_event, number):
            arriving.setdefault(event.received_at, []).append(event)
    all_: list[tuple[datetime, int, Any]] = [(now, 0, events) for now, events in arriving.items()]
    all_ += [(BEGAN + reading.at, 0, reading) for reading in test.readings]
    all_ += [(BEGAN + expected.at, 1, expected) for expected in test.expect]
    for now, _, what in sorted(all_, key=lambda one: one[:2]):
        yield now, what


def events_of(told_event: TestEvent, number: int) -> Iterator[Event]:
    for turn in range(told_event.repeat):
        shift = turn * told_event.every
        for account_id in told_event.account_id:
            said_at = BEGAN + told_event.at + shift
            received_at = BEGAN + (told_event.at if told_event.arrives is None else told_event.arrives) + shift
            occurred_at, suspect = judge_clock(said_at, received_at)
            event_id = told_event.event_id or f"evt_{number}_{turn}_{account_id}"
            yield Event(
                id=f"{event_id}_{number}_{turn}",
                position=0,
                source=told_event.source,
                origin="webhook",
                event_id=event_id,
                type=told_event.type or told_event.kind,
                kind=told_event.kind,
                account_id=account_id,
                connection_id=told_event.connection_id,
                provider=told_event.provider,
                identifier=told_event.identifier,
                organization_id=told_event.organization_id,
                environment_id=told_event.environment_id,
                status=told_event.status or STATUSES.get(told_event.kind),
                old_status=told_event.old_status,
                occurred_at=occurred_at or received_at,
                received_at=received_at,
                lag_seconds=None if suspect else max(0.0, (received_at - said_at).total_seconds()),
                clock_suspect=suspect,
                account_status=status_of(told_event),
                details={name: instant(name, value) for name, value in told_event.details.items()},
            )


def status_of(told_event: TestEvent) -> str | None:
    if told_event.kind in SILENT_KINDS:
        return None
    if told_event.kind == "account.deleted":
        return "DELETED"
    return told_event.status or STATUSES.get(told_event.kind)


def instant(name: str, value: Any) -> Any:
    if name.endswith("_at") and isinstance(value, str) and OFFSET.fullmatch(value):
        return rfc3339(BEGAN + offset(value))
    return value


def unmet(simulation: Simulation, rule: Rule, expected: TestExpectation) -> str | None:
    """What was seen instead; None where it was as expected."""
    wanted = expected.group or {}
    cells = [cell for cell in simulation.cells(rule.id) if wanted.items() <= cell.group.items()]
    cells.sort(key=lambda cell: ORDER.index(cell.state))
    state = cells[0].state if cells else "inactive"
    fired = [one for cell in cells for one in cell.fired]
    value = value_of(cells[0]) if cells else None
    reason = max(fired, key=lambda one: one.resolved_at or BEGAN).episode.end_reason if fired else None
    right = (
        state == expected.state
        and (expected.episodes is None or len(fired) == expected.episodes)
        and (expected.value is None or is_near(expected.value, value))
        and (expected.reason is None or expected.reason == reason)
    )
    if right:
        return None
    said = [state]
    if value is not None:
        said.append(f"value {value:g}")
    if expected.episodes is not None:
        said.append(f"episodes {len(fired)}")
    if expected.reason is not None:
        said.append(f"reason {reason}")
    if cells and expected.group is None and (group := listed(cells[0].group)):
        said[-1] += f" of {group}"
    return ", ".join(said)


def value_of(cell: Cell) -> float | None:
    return cell.fired[-1].episode.value if cell.fired and cell.state != "pending" else cell.value


def is_near(wanted: float, value: float | None) -> bool:
    return value is not None and abs(value - wanted) <= VALUE_ERROR * max(abs(wanted), abs(value))


def in_words(expected: TestExpectation) -> str:
    said: list[str] = [expected.state]
    if expected.value is not None:
        said.append(f"value {expected.value:g}")
    if expected.episodes is not None:
        said.append(f"episodes {expected.episodes}")
    if expected.reason is not None:
        said.append(f"reason {expected.reason}")
    return ", ".join(said) + (f" of {listed(expected.group)}" if expected.group else "")


def fields_shown(rule: Rule, test: RuleTest) -> dict[str, bool]:
    """The fields of an event that say which group it fed, and whether it matched; the details are shown anyway. True for
    those without which it feeds none."""
    asked = {name for _, match in rule.matches_of(rule.condition) for name in match}
    asked |= {name for event in test.events for name in event.model_fields_set}
    return {
        name: name in rule.group_by for name in FIELDS if name in SHOWN and (name in asked or name in rule.group_by)
    }


def told(event: Event, now: datetime, shown: Mapping[str, bool]) -> str:
    said = [event.kind, event.account_id or ""]
    if event.account_status is not None:
        said.append(event.account_status)
    for name, is_needed in shown.items():
        if (value := getattr(event, name)) is not None:
            said.append(f"{name}={value}")
        elif is_needed:
            said.append(f"(no {name}: in no group)")
    said += [f"{name}={value}" for name, value in (event.details or {}).items()]
    if event.occurred_at != now:
        said.append(f"(happened at {clock(event.occurred_at - BEGAN)})")
    return " ".join(said)


def turns(fired: Fired) -> list[tuple[timedelta, int, str]]:
    episode, group = fired.episode, listed(fired.group)
    group = f" {group}" if group else ""
    begun = f"-> firing{group}, value {fired.first_value:g}"
    if episode.opened_at != fired.fired_at:
        begun += f" (true since {clock(episode.opened_at - BEGAN)})"
    found = [(fired.fired_at - BEGAN, 2, begun)]
    if fired.resolved_at is not None:
        ended = f" ({clock(episode.ended_at - BEGAN)})" if episode.ended_at not in (None, fired.resolved_at) else ""
        found.append((fired.resolved_at - BEGAN, 3, f"-> resolved{group}: {episode.end_reason}{ended}"))
    return found


def listed(group: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in group.items() if value)


def clock(since: timedelta) -> str:
    """`1h5m`, as durations are written."""
    seconds = since.total_seconds()
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole % 86400 // 3600, "h"), (whole % 3600 // 60, "m")]
    rest = round(seconds - whole + whole % 60, 3)
    words = [f"{number}{unit}" for number, unit in parts if number]
    return sign + "".join([*words, *([f"{rest:g}s"] if rest or not words else [])])
