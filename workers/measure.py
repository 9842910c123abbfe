"""Measures what gauges ask for: our own lags, and how our sources speak. None: it cannot be known just now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service import habits, health
from service.habits import Habit
from service.rules.gauging import Readings
from service.runtime import Runtime
from service.store import gauges as gauge_store
from service.store import habits as habit_store
from service.store import log, readers
from service.store.actions import NOTIFY, PAUSE, RESUME
from workers.ship import reader_name

HABITS_BEHIND_MAX = timedelta(seconds=15)  # what they have not read by then may be the very event that was missed
OF_HABITS = frozenset({"delivery_lag_seconds", "break_delivery_lag_seconds", "source_silence_seconds"})


@dataclass(slots=True)
class Look:
    """One look of one worker; what several metrics need is read once."""

    conn: AsyncConnection
    runtime: Runtime
    now: datetime
    _habits: dict[str, Habit] | None = field(default=None)

    async def habits(self) -> dict[str, Habit] | None:
        """None while the watch has not read the log up to what is nearly now: a source may have spoken meanwhile."""
        if self._habits is None:
            oldest = await log.oldest_after(self.conn, await readers.position(self.conn, habit_store.READER))
            if oldest is not None and self.now - oldest > HABITS_BEHIND_MAX:
                return None
            self._habits = await habit_store.load(self.conn)
        return self._habits

    def age_seconds(self, since: datetime | None) -> float:
        return max(0.0, (self.now - since).total_seconds()) if since is not None else 0.0


async def delivery_lag(look: Look) -> Readings | None:
    return await of_sources(look, lambda habit: lag_seconds(habit.late_at, habit.late_seconds, look.now))


async def break_delivery_lag(look: Look) -> Readings | None:
    return await of_sources(look, lambda habit: lag_seconds(habit.late_break_at, habit.late_break_seconds, look.now))


async def source_silence(look: Look) -> Readings | None:
    downs = await habit_store.downs(look.conn)
    return await of_sources(look, lambda habit: habits.silence_beyond_seconds(habit, downs.get(habit.source), look.now))


async def of_sources(look: Look, value_of: Callable[[Habit], float]) -> Readings | None:
    """Only of sources that are switched on: one that was taken out is silent on purpose."""
    known = await look.habits()
    if known is None:
        return None
    return {(name,): value_of(known[name]) if name in known else 0.0 for name in look.runtime.sources}


def lag_seconds(late_at: datetime | None, late_seconds: float | None, now: datetime) -> float:
    return late_seconds or 0.0 if habits.is_late(late_at, now) else 0.0


async def evaluator_lag(look: Look) -> Readings | None:
    return {(): await health.evaluation_lag_seconds(look.conn)}


async def actions_lag(look: Look) -> Readings | None:
    return await oldest_actions(look, look.runtime.orchestrators, (PAUSE, RESUME))


async def notifier_lag(look: Look) -> Readings | None:
    return await oldest_actions(look, look.runtime.notifiers, (NOTIFY,))


async def oldest_actions(look: Look, destinations: Iterable[str], kinds: tuple[str, ...]) -> Readings:
    return {
        (name,): look.age_seconds(await gauge_store.oldest_open_action(look.conn, name, kinds)) for name in destinations
    }


async def sink_lag(look: Look) -> Readings | None:
    return {
        (name,): look.age_seconds(
            await log.oldest_after(look.conn, await readers.position(look.conn, reader_name(name)))
        )
        for name in look.runtime.sinks
    }


MEASURES: dict[str, Callable[[Look], Awaitable[Readings | None]]] = {
    "delivery_lag_seconds": delivery_lag,
    "break_delivery_lag_seconds": break_delivery_lag,
    "source_silence_seconds": source_silence,
    "evaluator_lag_seconds": evaluator_lag,
    "actions_lag_seconds": actions_lag,
    "notifier_lag_seconds": notifier_lag,
    "sink_lag_seconds": sink_lag,
}
