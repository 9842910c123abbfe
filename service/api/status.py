"""How we are: `/v1/health`, `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import exposition, health, observe
from service.api.http import Call, runtime_of
from service.store.session import begin

READY_SECONDS_MAX = 2.0


async def get_health(request: Request) -> Response:
    runtime = runtime_of(request)
    async with begin(runtime.engine) as conn:
        return JSONResponse(await health.report(conn, list(runtime.sinks), list(runtime.notifiers)))


async def livez(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """503 only while this receiver cannot commit; a dead worker is an alert, not a reason to lose events."""
    await runtime_of(request).committer.ping(READY_SECONDS_MAX)
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """This process's counters, and what Postgres knows; a database that is away is a gauge and not an error."""
    runtime = runtime_of(request)
    stored = await runtime.seen.families(runtime.engine, list(runtime.sinks))
    return Response(observe.render_metrics() + exposition.to_text(stored), media_type=CONTENT_TYPE_LATEST)


CALLS = (
    Call("GET", "/v1/health", get_health, "read", "Evaluator, actions, sinks and sweep with their lag"),
    Call("GET", "/livez", livez, None, "This process answers"),
    Call("GET", "/readyz", readyz, None, "This receiver can commit"),
    Call("GET", "/metrics", metrics, None, "Prometheus text"),
)
