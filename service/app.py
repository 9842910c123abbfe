"""The receiver: its routes, its lifespan, and what an error becomes. The first file to open.

The front door is `service/receive.py`; the API is `service/api/`, a file per noun; what is built at start is
`service/runtime.py`. The workers (`workers/`) read what this process commits.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service import gate_asking, gate_stream, intake, interactions, problem, siem_feed
from service.api import slack
from service.api.http import Call, Handler, guarded
from service.api.openapi import document
from service.api.routes import CALLS
from service.connections import FRONT_DOOR
from service.errors import AuthwatchError
from service.observe import configure_logging, log
from service.receive import PATH, FrontDoor
from service.reload import kept_current
from service.runtime import RECEIVER_CONNECTIONS_MAX, last_words, open_runtime, stop
from service.settings import Settings, load_settings
from service.store import retention


def routes_of(calls: Sequence[Call]) -> list[Route]:
    """One route for each path, so that a 405 lists every method the path has."""
    paths: dict[str, dict[str, Handler]] = {}
    for call in calls:
        paths.setdefault(call.path, {})[call.method] = guarded(call)
    return [Route(path, by_method(handlers), methods=list(handlers)) for path, handlers in paths.items()]


def by_method(handlers: Mapping[str, Handler]) -> Handler:
    async def endpoint(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


class Receiver(Starlette):
    """Webhooks go to the front door before anything else is asked; everything else goes the framework's way."""

    def __init__(self, front_door: FrontDoor, **framework: Any) -> None:
        super().__init__(**framework)
        self._front_door = front_door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(PATH):
            await self._front_door(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings | None = None, variables: Mapping[str, str] = os.environ) -> Starlette:
    """What uvicorn serves. Settings that cannot be right raise ConfigError here, before a port is open."""
    configure_logging(variables)
    known = settings or load_settings(variables)
    front_door = FrontDoor()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with open_runtime(known, connections_max=RECEIVER_CONNECTIONS_MAX) as runtime:
            app.state.runtime = front_door.runtime = runtime
            starting = asyncio.create_task(retention.ensure_at_start(runtime.engine), name="partitions")
            log.info("receiver.started", sources=list(runtime.sources))
            watching = asyncio.create_task(front_door.watch(), name="front_door")
            keeping = asyncio.create_task(runtime.rejections.run(runtime.engine), name="rejections")
            try:
                async with (
                    kept_current(runtime, None if settings else variables),
                    intake.watched(runtime.engine, runtime.sources),
                    gate_asking.opened(runtime.engine, known.database_url.get_secret_value()) as asker,
                    gate_stream.opened(runtime.engine, asker) as streams,
                    siem_feed.opened(asker) as app.state.siem_feed,
                    interactions.answered(runtime) as app.state.interactions,
                ):
                    app.state.gate, app.state.gate_streams = asker, streams
                    yield {
                        FRONT_DOOR: front_door,
                        gate_stream.STREAMS: streams,
                        siem_feed.FEED: app.state.siem_feed,
                    }
            finally:
                front_door.runtime = None
                await stop(watching)
                await stop(keeping)
                await last_words(runtime.rejections.write(runtime.engine))
                await stop(starting)

    async def openapi(_request: Request) -> Response:
        return JSONResponse(document(CALLS, server=known.public_url or ""))

    return Receiver(
        front_door,
        routes=[
            Route(PATH + "{source:path}", front_door, methods=["POST"]),  # for whoever asks by another method
            *routes_of(CALLS),
            Route(slack.PATH, slack.interact, methods=["POST"]),
            Route("/openapi.json", openapi, methods=["GET"]),
        ],
        lifespan=lifespan,
        exception_handlers={
            AuthwatchError: problem.on_authwatch_error,
            HTTPException: problem.on_http_exception,
            Exception: problem.on_unexpected,
        },
    )
