"""The control of the pull: a bare handler under the same uvicorn settings, one SELECT and one line of JSON for each row.

It asks for no token, shapes nothing, redacts nothing and knows no retention.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import psycopg
from psycopg.rows import dict_row
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.store.log import EVENT_COLUMNS

PATH = "/feed"
PAGE = f"SELECT {', '.join(EVENT_COLUMNS)} FROM events WHERE position > %s ORDER BY position LIMIT %s".encode()


async def feed(request: Request) -> Response:
    after, limit = int(request.query_params.get("after", 0)), int(request.query_params["limit"])
    rows = await (await request.app.state.conn.execute(PAGE, (after, limit))).fetchall()
    following = f'<{PATH}?after={rows[-1]["position"] if rows else after}&limit={limit}>; rel="next"'
    body = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    return Response(body, media_type="application/x-ndjson", headers={"link": following})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    url = os.environ["DATABASE_URL"]
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row) as conn:
        app.state.conn = conn
        yield


app = Starlette(routes=[Route(PATH, feed)], lifespan=lifespan)
