"""Serves ours, the no-op control, the plain form or the bare feed, each in one process; all but ours as uvicorn serves
anybody's."""

from __future__ import annotations

import argparse
import gc

import uvicorn

from service import serve

HOST = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("ours", "control", "plain", "feed"))
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    if arguments.kind == "ours":
        serve.serve(HOST, arguments.port, workers=1)
        return
    if arguments.kind == "control":
        from bench.control import app
    elif arguments.kind == "feed":
        from bench.siem_feed import app
    else:
        from bench.plain import app
    gc.collect()
    gc.freeze()  # as ours does
    uvicorn.run(
        app,
        host=HOST,
        port=arguments.port,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        ws="none",
        backlog=serve.BACKLOG,
        timeout_keep_alive=serve.KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=serve.GRACEFUL_SECONDS,
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
    )


if __name__ == "__main__":
    main()
