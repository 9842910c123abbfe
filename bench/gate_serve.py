"""Ours with one call more, `GET /bench/select-1`: the control of the gate's answer, over the same connection in the same
process, by the same framework, behind the same check of the admin's token."""

from __future__ import annotations

import argparse

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service import serve
from service.api.http import presented
from service.store import gate

HOST = "127.0.0.1"
ONE = b"bench_one"
PATH = "/bench/select-1"


async def select_one(request: Request) -> Response:
    presented(request)
    [one] = await request.app.state.gate.row(ONE, [])
    return JSONResponse({"one": int(one)})


create_watched_app = serve.create_watched_app


def with_select_one() -> Starlette:
    app = create_watched_app()
    app.router.routes.append(Route(PATH, select_one, methods=["GET"]))
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    gate.PREPARE = (*gate.PREPARE, f"PREPARE {ONE.decode()} AS SELECT 1")
    serve.create_watched_app = with_select_one
    serve.serve(HOST, arguments.port, workers=1)


if __name__ == "__main__":
    main()
