"""Measures what gauges ask for: our own lags, and how our sources speak. None: it cannot be known just now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service import habits, health
from service.habits import Habit
from service.metrics import METRICS
from service.rules.gauging import Readings
from service.rules.triggers.quantile import quantiles_of
from service.runtime import Runtime
from service.store import decisions, log, pollers, readers, series, shipping
from service.store import gauges as gauge_store
from service.store import habits as habit_store
from service.store.accounts import parse_key
from service.store.actions import NOTIFY, PAUSE, RESUME
from service.store.refusals import REFUSING
from service.store.shipping import reader_name

HABITS_BEHIND_MAX = timedelta(seconds=15)  # what they have not read by then may be the very event that was missed
CALLS_WITHIN, REFRESHES_WITHIN = timedelta(minutes=5), timedelta(minutes=15)
CALLS_FAILED_MIN = 2  # one failed call is an incident of its own (tool_call.completed), and no rate
# Who calls seldom never has so many within minutes: there the last calls are looked at, all of which failed. Those of one
# burst had their rate when they came.
SELDOM_WITHIN, SELDOM_CALLS, SELDOM_SPREAD = timedelta(hours=1), 3, timedelta(minutes=2)
REFRESHES_MIN, TIMED_MIN = 5, 20
HELD_FOR = timedelta(hours=1)
POISON_WITHIN = timedelta(hours=1)
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
    """What was refused for good and still stands waits as well: nobody has heard of it there. Of a notifier that takes
    nothing until it is mended another alert tells, at once (workers/refusals.py)."""
    refusing = set((await look.conn.execute(REFUSING)).scalars())
    waiting = await oldest_actions(look, [name for name in look.runtime.notifiers if name not in refusing], (NOTIFY,))
    refused = await decisions.never_arrived(look.conn)
    return dict.fromkeys(((name,) for name in refusing if name in look.runtime.notifiers), 0.0) | {
        key: max(age, look.age_seconds(refused.get(key[0]))) for key, age in waiting.items()
    }


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


async def sink_items(look: Look) -> Readings | None:
    """By positions, which have gaps where a transaction was rolled back: to count rows would take time each second."""
    head, _ = await log.head(look.conn)
    return {
        (name,): float(max(0, head - await readers.position(look.conn, reader_name(name))))
        for name in look.runtime.sinks
    }


async def sink_poison(look: Look) -> Readings | None:
    since = look.now - POISON_WITHIN
    counts = await shipping.put_aside_since(look.conn, since)
    return {(name,): float(counts.get(name, 0)) for name in look.runtime.sinks}


async def poller_silence(look: Look) -> Readings | None:
    """Of live tokens alone: one that was revoked is silent on purpose."""
    return {
        (f"{poller.name} ({poller.token_id})",): poller.silence(look.now).total_seconds()
        for poller in await pollers.live(look.conn)
    }


async def success_rate_of_accounts(look: Look) -> Readings | None:
    """Of accounts with failed calls, also where they call seldom and all their last calls failed. What is open keeps its last
    value while nobody calls: silence is no recovery."""
    failing = await series.worst(look.conn, look.now - CALLS_WITHIN)
    found = {one.key: one.succeeded / one.calls for one in failing if one.failed >= CALLS_FAILED_MIN}
    seldom = await series.failing_seldom(look.conn, look.now - SELDOM_WITHIN, least=SELDOM_CALLS, spread=SELDOM_SPREAD)
    found |= dict.fromkeys((key for key in seldom if key not in found), 0.0)
    standing = await gauge_store.readings_of(look.conn, "account_id", look.now - HELD_FOR)
    lasting = {parse_key(name): (value, at) for name, (value, at) in standing.items() if name.count(":") >= 2}
    latest = await series.calls_of(
        look.conn, [key for key in lasting if key not in found], look.now - CALLS_WITHIN, look.now - HELD_FOR
    )
    for key, (calls, succeeded) in latest.items():
        found[key] = succeeded / calls if calls else lasting[key][0]
    return {(str(key),): value for key, value in found.items()}


async def success_rate_of_refreshes(look: Look) -> Readings | None:
    sums = await series.by_provider(look.conn, METRICS["refresh_success_rate"], since=look.now - REFRESHES_WITHIN)
    return {
        (provider,): one["refreshes_succeeded"] / one["refreshes"]
        for provider, one in sums.items()
        if provider and one["refreshes"] >= REFRESHES_MIN
    }


async def latency_of_refreshes(look: Look) -> Readings | None:
    sums = await series.by_provider(look.conn, METRICS["refresh_success_rate"], since=look.now - REFRESHES_WITHIN)
    timed = {provider: one.sketch for provider, one in sums.items() if sum(one.sketch[1]) >= TIMED_MIN}
    slow = {provider: quantiles_of(*sketch, (0.99,))[0] for provider, sketch in timed.items()}
    return {(provider,): value for provider, value in slow.items() if provider and value is not None}


MEASURES: dict[str, Callable[[Look], Awaitable[Readings | None]]] = {
    "delivery_lag_seconds": delivery_lag,
    "break_delivery_lag_seconds": break_delivery_lag,
    "source_silence_seconds": source_silence,
    "evaluator_lag_seconds": evaluator_lag,
    "actions_lag_seconds": actions_lag,
    "notifier_lag_seconds": notifier_lag,
    "sink_lag_seconds": sink_lag,
    "sink_lag_items": sink_items,
    "sink_poison_items": sink_poison,
    "siem_poller_silence_seconds": poller_silence,
    "tool_call_success_rate": success_rate_of_accounts,
    "refresh_success_rate": success_rate_of_refreshes,
    "refresh_p99_seconds": latency_of_refreshes,
}
