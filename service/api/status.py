"""How we are: `/v1/health`, `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import health, observe
from service.api.http import Call, runtime_of
from service.errors import Unavailable
from service.store import actions, alerts, readers
from service.store.session import begin

METRIC_VALUES_MAX = 2000
READY_SECONDS_MAX = 2.0


async def get_health(request: Request) -> Response:
    runtime = runtime_of(request)
    async with begin(runtime.engine) as conn:
        return JSONResponse(await health.report(conn, list(runtime.sinks)))


async def livez(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """503 only while this receiver cannot commit; a dead worker is an alert, not a reason to lose events."""
    await runtime_of(request).committer.ping(READY_SECONDS_MAX)
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """This process's counters, and what Postgres knows; a database that is away is a gauge and not an error."""
    runtime = runtime_of(request)
    stored: list[GaugeMetricFamily] = []
    up = GaugeMetricFamily("authwatch_database_up", "Whether Postgres answered this scrape", value=1)
    try:
        async with begin(runtime.engine) as conn:
            stored = await stored_metrics(conn, list(runtime.sinks))
    except Unavailable:
        up = GaugeMetricFamily("authwatch_database_up", "Whether Postgres answered this scrape", value=0)
    registry = CollectorRegistry()
    registry.register(Families([up, *stored]))
    return Response(observe.render_metrics() + generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class Families(Collector):
    """Hands ready families to prometheus_client, which knows the text format."""

    def __init__(self, families: Sequence[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._families


async def stored_metrics(conn: AsyncConnection, sinks: Sequence[str]) -> list[GaugeMetricFamily]:
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
    lag_events = GaugeMetricFamily("authwatch_reader_lag_events", "Rows of the log not yet read", labels=["reader"])
    lag_seconds = GaugeMetricFamily(
        "authwatch_reader_lag_seconds", "Age of the oldest row not yet read", labels=["reader"]
    )
    for name, value in behind.items():
        lag_events.add_metric([name], value["lag_items"])
        lag_seconds.add_metric([name], value["lag_seconds"])
    seen = GaugeMetricFamily(
        "authwatch_part_last_seen_timestamp_seconds", "When a part last came to its end", labels=["part"]
    )
    for part, at in (await readers.beats(conn)).items():
        seen.add_metric([part], at.timestamp())
    return [
        by_alert,
        by_action,
        lag_events,
        lag_seconds,
        seen,
        GaugeMetricFamily(
            "authwatch_actions_open", "Actions waiting or under way", value=report["actions"]["lag_items"]
        ),
        GaugeMetricFamily("authwatch_stranded", "Work that nobody will finish by itself", value=report["stranded"]),
    ]


CALLS = (
    Call("GET", "/v1/health", get_health, "read", "Evaluator, actions, sinks and sweep with their lag"),
    Call("GET", "/livez", livez, None, "This process answers"),
    Call("GET", "/readyz", readyz, None, "This receiver can commit"),
    Call("GET", "/metrics", metrics, None, "Prometheus text"),
)
