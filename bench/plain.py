"""The other control: the same tables and the same checks, with one INSERT and one commit for each request."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.receive import open_receipt
from service.settings import load_settings
from service.sources import open_sources
from service.store import log
from service.store.session import begin, open_engine

CONNECTIONS = 16
settings = load_settings(os.environ)
source = open_sources(settings.sources)["scalekit"]


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.engine = open_engine(settings.database_url.get_secret_value(), connections_max=CONNECTIONS)
    yield
    await app.state.engine.dispose()


async def receive(request: Request) -> Response:
    body = await request.body()
    receipt = open_receipt(source, request.scope["headers"], body, datetime.now(UTC))
    async with begin(request.app.state.engine) as conn:
        kept = (await log.accept(conn, [receipt]))[0]
    return JSONResponse({"status": "accepted", "id": kept.id}, status_code=202)


app = Starlette(routes=[Route("/webhooks/{source}", receive, methods=["POST"])], lifespan=lifespan)
