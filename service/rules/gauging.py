"""One reading of a gauge against what is remembered of it: pending, firing, over. Pure; takes `now`.

All that is remembered between two readings is a `Held`, which is stored: a process that was started anew in between
goes on as if it had not been, and `for` goes on counting while nobody looked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from service.rules.latch import FLAPPING_QUIET, FLAPPING_TRANSITIONS, FLAPPING_WITHIN
from service.rules.model import Rule
from service.rules.triggers.gauge import Gauge

# A metric's readings, by the values of its labels in their order; None where it cannot be known just now.
Readings = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Held:
    """`pending_since`: breached since then, and not fired. `is_open`: fired. `false_since`: open, and no longer true."""

    is_open: bool = False
    pending_since: datetime | None = None
    false_since: datetime | None = None
    flapping: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """An episode `opens` at that instant, or ends at it."""

    opens: bool
    at: datetime


def step(rule: Rule, held: Held, value: float, now: datetime, *, by_hand: bool = False) -> tuple[Held, Turn | None]:
    """What is held after this reading, and whether an episode began or ended with it.

    `by_hand`: a person has resolved what is open. It still is, so that nobody hears of it again before it was over.
    """
    gauge = gauge_of(rule)
    true = gauge.holds(rule, value, is_open=held.is_open, by_hand=by_hand)
    if held.is_open:
        if true:
            return replace(held, false_since=None), None
        # A clock that was put back does not make anyone wait for it to come to there again.
        since = min(held.false_since or now, now)
        over = since + quiet(rule, held)
        return (Held(), Turn(False, over)) if over <= now else (replace(held, false_since=since), None)
    if not true:
        return Held(), None
    since = min(held.pending_since or now, now)
    due = since + rule.for_
    return (Held(is_open=True), Turn(True, due)) if due <= now else (Held(pending_since=since), None)


def quiet(rule: Rule, held: Held) -> timedelta:
    return max(rule.keep_firing_for, FLAPPING_QUIET) if held.flapping else rule.keep_firing_for


def flaps(turns: Iterable[datetime], opened_at: datetime) -> bool:
    """`turns`: when earlier episodes of the group began and ended. One that flaps is held open until it was quiet."""
    return 1 + sum(1 for at in turns if at > opened_at - FLAPPING_WITHIN) > FLAPPING_TRANSITIONS


def grouped(rule: Rule, readings: Readings) -> dict[str, tuple[dict[str, str], float]]:
    """Group key -> (its labels, its value): of series that differ in what `group_by` leaves out, the worst."""
    gauge = gauge_of(rule)
    worst = max if gauge.looks_up else min
    found: dict[str, tuple[dict[str, str], float]] = {}
    for values, value in readings.items():
        labels = dict(zip(gauge.labels, values, strict=True))
        group = {name: labels[name] for name in rule.group_by}
        key = ",".join(group.values())
        found[key] = (group, worst(value, found[key][1]) if key in found else value)
    return found


def gauge_of(rule: Rule) -> Gauge:
    condition = rule.condition
    assert isinstance(condition, Gauge)
    return condition
