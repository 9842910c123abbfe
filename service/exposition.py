"""What others scrape and are pushed, read out of Postgres: how we are, and the five metrics.

All of it comes from the database, so that it is the same from each receiver process and each worker. It is never waited
for longer than a scrape may take: what cannot be read in time is absent, and `authwatch_database_up` says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service import families, health
from service.errors import Unavailable
from service.observe import log as logger
from service.store import actions, alerts, credentials, readers, telemetry
from service.store.log import LAG_COUNTED_MAX
from service.store.session import begin

METRIC_VALUES_MAX = 2000
# Of each statement, by the server's own clock, and ours a little later for a server that says nothing any more. How we
# are and the five metrics have it each: Prometheus waits for 10 s unless told otherwise.
READ_SECONDS_MAX = 2.0
SILENT_SECONDS_MAX = 0.5
# How long what was read of the five metrics is given again. Two scrapes of one Prometheus must be further apart: its
# second may be answered by another process, whose reading must not be the older one, or counters would go back.
CACHE_SECONDS = 3.0


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that nobody waits for longer than that. Raises what `begin` raises."""
    async with begin(engine, seconds_max=READ_SECONDS_MAX + SILENT_SECONDS_MAX) as conn:
        await conn.execute(text(f"SET LOCAL statement_timeout = {int(READ_SECONDS_MAX * 1000)}"))
        yield conn


async def five_metrics(conn: AsyncConnection) -> list[Family]:
    """Raises what `begin` raises."""
    now = await readers.clock(conn)
    since = (now - families.WINDOW).replace(second=0, microsecond=0)
    names = await telemetry.provider_names(conn, families.PROVIDERS_NAMED_MAX)
    counted = await telemetry.providers(conn, since)
    worst = await telemetry.worst_accounts(conn, since)
    in_all = await telemetry.providers_in_all(conn, day_of(now))
    return [
        *families.by_account(families.whole(counted), worst),
        *families.by_provider(families.named_providers(counted, names)),
        *families.totals(families.named_providers(in_all, names)),
    ]


def day_of(now: datetime) -> datetime:
    """When the counters of `now` started at zero. `now` is UTC, as the database says it."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


async def how_we_are(conn: AsyncConnection, sinks: Sequence[str]) -> list[Family]:
    report = await health.report(conn, sinks)
    behind = {"evaluator": report["evaluator"], **{f"sink:{name}": value for name, value in report["sinks"].items()}}
    by_alert = GaugeMetricFamily(
        "authwatch_alerts", "Alerts by rule, severity and state", labels=["rule", "severity", "state"]
    )
    for rule, severity, state, count in (await alerts.counts(conn))[:METRIC_VALUES_MAX]:
        by_alert.add_metric([rule, severity, state], count)
    by_action = GaugeMetricFamily(
        "authwatch_action_attempts", "Attempts by kind of action and outcome", labels=["kind", "outcome"]
    )
    for kind, outcome, count in await actions.outcome_counts(conn):
        by_action.add_metric([kind, outcome], count)
    lag_events = GaugeMetricFamily(
        "authwatch_reader_lag_events",
        f"Rows of the log not yet read, counted up to {LAG_COUNTED_MAX}",
        labels=["reader"],
    )
    lag_seconds = GaugeMetricFamily(
        "authwatch_reader_lag_seconds", "Age of the oldest row not yet read", labels=["reader"]
    )
    for name, value in behind.items():
        lag_events.add_metric([name], value["lag_items"])
        lag_seconds.add_metric([name], value["lag_seconds"])
    sent_again = GaugeMetricFamily(
        "authwatch_sink_sent_again_items",
        "Items that a sink was ever sent once more, because they may have arrived or were replayed",
        labels=["sink"],
    )
    breaker = GaugeMetricFamily(
        "authwatch_sink_breaker_open",
        "1 while a sink that keeps failing is tried with a few items only",
        labels=["sink"],
    )
    for name, value in report["sinks"].items():
        sent_again.add_metric([name], value["sent_again"])
        breaker.add_metric([name], int(value["state"] == health.BREAKER_OPEN))
    seen = GaugeMetricFamily(
        "authwatch_part_last_seen_timestamp_seconds", "When a part last came to its end", labels=["part"]
    )
    for part, at in (await readers.beats(conn)).items():
        seen.add_metric([part], at.timestamp())
    refusing = GaugeMetricFamily(
        "authwatch_notifier_refusing_messages",
        "Messages that wait at a notifier that takes none until it is mended",
        labels=["notifier"],
    )
    for name, value in report["notifiers"].items():
        refusing.add_metric([name], value["waiting"])
    return [
        by_alert,
        by_action,
        refusing,
        refused_asks(await credentials.waiting_by_destination(conn)),
        lag_events,
        lag_seconds,
        sent_again,
        breaker,
        seen,
        GaugeMetricFamily(
            "authwatch_actions_open", "Actions waiting or under way", value=report["actions"]["lag_items"]
        ),
        GaugeMetricFamily(
            "authwatch_accounts_expired", "Accounts that are EXPIRED now", value=report["expired"]["accounts"]
        ),
        GaugeMetricFamily("authwatch_stranded", "Work that nobody will finish by itself", value=report["stranded"]),
    ]


def refused_asks(waiting: Mapping[str, int]) -> Family:
    """By orchestrator, as /v1/health counts them under `stranded`."""
    family = GaugeMetricFamily(
        "authwatch_orchestrator_refused_asks",
        "Pauses and resumes that wait at an orchestrator that does not take our credentials (401, 403)",
        labels=["orchestrator"],
    )
    for name, count in waiting.items():
        family.add_metric([name], count)
    return family


def database_up(up: bool) -> Family:
    return GaugeMetricFamily("authwatch_database_up", "Whether Postgres answered this scrape", value=int(up))


@dataclass(slots=True)
class Seen:
    """What one process last read of the five metrics; nothing here is truth."""

    _metrics: list[Family] = field(default_factory=list)
    _read_at: float | None = None  # by time.monotonic(), when the reading began
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def families(self, engine: AsyncEngine, sinks: Sequence[str]) -> list[Family]:
        """For a scrape: within twice what a reading may take, never raising for what the database does."""
        try:
            async with reading(engine) as conn:
                ours = await how_we_are(conn, sinks)
        except (Unavailable, DBAPIError) as exc:
            logger.warning("metrics.unread", error=type(exc).__name__)
            return [database_up(False), *families.bounds()]
        return [database_up(True), *ours, *families.bounds(), *await self._five_metrics(engine)]

    async def _five_metrics(self, engine: AsyncEngine) -> list[Family]:
        async with self._reading:
            if self._read_at is None or time.monotonic() - self._read_at >= CACHE_SECONDS:
                self._read_at, self._metrics = time.monotonic(), []
                try:
                    async with reading(engine) as conn:
                        self._metrics = await five_metrics(conn)
                except (Unavailable, DBAPIError) as exc:
                    logger.warning("metrics.unread", error=type(exc).__name__)
            return self._metrics


class Families(Collector):
    """Hands ready families to prometheus_client, which knows the text format."""

    def __init__(self, ready: Sequence[Family]) -> None:
        self._ready = ready

    def collect(self) -> Iterable[Family]:
        return self._ready


def to_text(ready: Sequence[Family]) -> bytes:
    registry = CollectorRegistry()
    registry.register(Families(ready))
    return generate_latest(registry)
