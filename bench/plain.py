"""What one would write first: a Starlette handler that verifies, reads, inserts and commits each request by itself.

The same tables and the same verification as ours, from a pool of 16 connections; only the group commit is missing.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.errors import SignatureInvalid
from service.receive import open_receipt
from service.settings import load_settings
from service.sources import open_sources
from service.store import log
from service.store.session import begin, open_engine

CONNECTIONS_MAX = 16


async def keep(request: Request) -> Response:
    body = await request.body()
    source = request.app.state.sources[request.path_params["source"]]
    try:
        receipt = open_receipt(source, request.headers.raw, body, datetime.now(UTC))
    except SignatureInvalid:
        return Response(status_code=401)
    async with begin(request.app.state.engine) as conn:
        [kept] = await log.accept(conn, [receipt])
    return JSONResponse({"status": "accepted", "id": kept.id}, 202 if kept.accepted else 200)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    settings = load_settings(os.environ)
    app.state.sources = open_sources(settings.sources)
    app.state.engine = open_engine(settings.database_url.get_secret_value(), connections_max=CONNECTIONS_MAX)
    yield
    await app.state.engine.dispose()


app = Starlette(routes=[Route("/webhooks/{source}", keep, methods=["POST"])], lifespan=lifespan)
