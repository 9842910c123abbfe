"""What may go and what must stay: decided from values, so that every clock and every lag can be tried in a test.

A day of `events` or `receipts` goes as a whole, once its retention is over and nobody still needs it. What Authwatch
decided itself (origin `authwatch`) lives longer than the provider's events and is carried over into `events_kept`
before its day goes (service/store/retention.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from service.settings import RetentionSettings

EVENTS, RECEIPTS = "events", "receipts"
DEDUP_LONGER = timedelta(hours=72)
# A day a day is the habit. More at once, or a clock that moved further since the last run, is a mistake to be
# confirmed by a person: a clock that jumped a year ahead would otherwise empty the log.
DAYS_AT_ONCE_MAX = 7
CLOCK_SLACK = timedelta(hours=1)
JUMP_MAX = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """One day's partition. The positions are those of the day's events, also for its receipts; None: it has none."""

    parent: str
    name: str
    day: date
    first_position: int | None = None
    last_position: int | None = None

    @property
    def end(self) -> datetime:
        return datetime.combine(self.day + timedelta(days=1), time(), UTC)


@dataclass(frozen=True, slots=True)
class Drop:
    """`lost_by`: the sinks that have not shipped all of it and have been waited for long enough."""

    day: Day
    lost_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    day: Day
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`refused` is a sentence: then nothing at all goes until a person confirms. The rest are times to cut before."""

    drops: tuple[Drop, ...]
    held: tuple[Held, ...]
    refused: str | None
    alerts_before: datetime
    audit_before: datetime
    events_before: datetime
    receipts_before: datetime
    dedup_before: datetime


def plan(
    days: Sequence[Day],
    *,
    now: datetime,
    keep: RetentionSettings,
    evaluator: int,
    sinks: Mapping[str, int],
    last_run_at: datetime,
    kept_from: date | None = None,
    jumped: timedelta | None = None,
    confirmed: bool = False,
) -> Plan:
    """`evaluator` and `sinks` are positions in the log; `now` and `last_run_at` are the database's clock; `jumped` is how
    far it moved beyond the time that passed since this process ran retention, None at its first run.

    `kept_from` is the first day that was carried over: what is carried over is one stretch of days without a hole.
    """
    lengths = {EVENTS: keep.events, RECEIPTS: keep.receipts}
    over = {day for day in days if day.end + lengths[day.parent] <= now}
    young = {
        parent: min(
            (
                day.first_position
                for day in days
                if day.parent == parent and day not in over and day.first_position is not None and day.day <= now.date()
            ),
            default=None,
        )
        for parent in lengths
    }
    drops: list[Drop] = []
    held: list[Held] = []
    begun, hole = kept_from or date.max, False
    for day in sorted(over, key=lambda day: (day.parent, day.day)):
        by = held_by(day, now, keep, evaluator, sinks, young[day.parent])
        if day.parent == EVENTS:
            if by is None and hole:
                by = "a day before it must stay"
            hole = hole or (by is not None and begun < day.day)
            begun = begun if by is not None else min(begun, day.day)
        if by is not None:
            held.append(Held(day, by))
        else:
            drops.append(Drop(day, tuple(behind(day, sinks)) if day.parent == EVENTS else ()))
    gone = {drop.day for drop in drops}
    # Dedup outlives the events that are there, and not only those that should be.
    staying = [day.end - timedelta(days=1) for day in days if day.parent == EVENTS and day not in gone]
    return Plan(
        drops=tuple(drops),
        held=tuple(held),
        refused=None if confirmed else too_much(drops, now, last_run_at, jumped),
        alerts_before=now - keep.alerts,
        audit_before=now - keep.audit,
        events_before=now - keep.events,
        receipts_before=now - keep.receipts,
        dedup_before=min([now - keep.events, *staying]) - DEDUP_LONGER,
    )


def held_by(
    day: Day, now: datetime, keep: RetentionSettings, evaluator: int, sinks: Mapping[str, int], young: int | None
) -> str | None:
    """Who still needs that day, in words; None when nobody does."""
    if day.last_position is None:
        return None
    if day.last_position > evaluator:
        return "the evaluator has not read it"
    # Positions are the order in which rows came, whatever the clock said: a day that is old by its date and holds rows
    # newer than those of a day that stays was written while the clock stood back.
    if young is not None and day.last_position > young:
        return "its rows came later than its date says: the clock stood back when they were written"
    if day.parent == RECEIPTS:
        return None
    late = behind(day, sinks)
    if late and now < day.end + keep.events + keep.sink_backlog_max:
        return f"not yet shipped by {', '.join(late)}"
    return None


def behind(day: Day, sinks: Mapping[str, int]) -> list[str]:
    return sorted(name for name, position in sinks.items() if position < (day.last_position or 0))


def too_much(drops: Sequence[Drop], now: datetime, last_run_at: datetime, jumped: timedelta | None) -> str | None:
    # Also where no day would go: what is cut row by row would.
    if jumped is not None and abs(jumped) > JUMP_MAX:
        return f"the clock moved {jumped.total_seconds() / 3600:+.0f} h beside the time that passed; unless it is put right, the next run believes it"
    if not drops:
        return None
    moved = now - last_run_at
    if abs(moved) > timedelta(days=DAYS_AT_ONCE_MAX):
        return f"the clock reads {moved.days} days after the last run of retention"
    days = len({drop.day.day for drop in drops if drop.day.parent == EVENTS})
    days = max(days, len({drop.day.day for drop in drops if drop.day.parent == RECEIPTS}))
    if days > DAYS_AT_ONCE_MAX:
        return f"{days} days would go at once, where one a day is usual"
    return None


def recover_since_min(now: datetime, keep: RetentionSettings, dedup_before: datetime | None = None) -> datetime:
    """How far back a recovery may go: further, dedup no longer knows what was here, and events would come twice.

    An event may be received up to 5 minutes before it "occurred", and dedup is cut on while a recovery runs.
    `dedup_before` is what it was cut to already, perhaps when less was configured to be kept.
    """
    by_now = now - keep.events - DEDUP_LONGER
    return (by_now if dedup_before is None else max(by_now, dedup_before)) + CLOCK_SLACK
