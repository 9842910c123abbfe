"""The receiver: its routes, its lifespan, and what an error becomes. The first file to open.

The front door is `service/receive.py`; the API is `service/api/`, a file per noun; what is built at start is
`service/runtime.py`. The workers (`workers/`) read what this process commits.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service import problem
from service.api.http import guarded
from service.api.openapi import document
from service.api.routes import CALLS
from service.errors import AuthwatchError
from service.observe import configure_logging, log
from service.receive import receive
from service.runtime import RECEIVER_CONNECTIONS_MAX, open_runtime
from service.settings import Settings, load_settings


def create_app(settings: Settings | None = None, variables: Mapping[str, str] = os.environ) -> Starlette:
    """What uvicorn serves. Settings that cannot be right raise ConfigError here, before a port is open."""
    configure_logging(variables)
    known = settings or load_settings(variables)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_runtime(known, connections_max=RECEIVER_CONNECTIONS_MAX) as runtime:
            app.state.runtime = runtime
            log.info("receiver.started", sources=list(runtime.sources))
            yield

    async def openapi(_request: Request) -> Response:
        return JSONResponse(document(CALLS, server=known.public_url or ""))

    return Starlette(
        routes=[
            Route("/webhooks/{source}", receive, methods=["POST"]),
            *(Route(call.path, guarded(call), methods=[call.method]) for call in CALLS),
            Route("/openapi.json", openapi, methods=["GET"]),
        ],
        lifespan=lifespan,
        exception_handlers={
            AuthwatchError: problem.on_authwatch_error,
            HTTPException: problem.on_http_exception,
            Exception: problem.on_unexpected,
        },
    )
