"""`authwatch serve`: the receiver, one or several processes on one port."""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
from typing import TYPE_CHECKING

from service.children import end_with_parent

if TYPE_CHECKING:
    from starlette.applications import Starlette

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 10
GRACEFUL_SECONDS = 10
HEALTH_CHECK_SECONDS = 30  # of one process of several: a machine under full load is slow, not dead
OPEN_FILES_WANTED = 65_536
STARTED_BY = "AUTHWATCH_SERVE_PID"


def serve(host: str, port: int, workers: int) -> None:
    """Serves until SIGINT or SIGTERM; then answers what it has taken on, for a bounded time."""
    import uvicorn

    _raise_open_files()
    with tempfile.TemporaryDirectory(prefix="authwatch-metrics-") as metrics_folder:
        if workers > 1:
            # Several processes answer /metrics as one; prometheus_client wants to know before it is imported.
            os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", metrics_folder)
            os.environ[STARTED_BY] = str(os.getpid())
        _configure_logging()
        asyncio.run(_judge_settings())
        uvicorn.run(
            "service.serve:create_process_app" if workers > 1 else _create_app(),
            factory=workers > 1,
            host=host,
            port=port,
            workers=workers,
            loop="uvloop",
            http="httptools",
            lifespan="on",
            ws="none",
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACEFUL_SECONDS,
            timeout_worker_healthcheck=HEALTH_CHECK_SECONDS,
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
        )


def create_process_app() -> Starlette:
    """The app in one of several processes: it ends with the process that started it, even by SIGKILL."""
    end_with_parent(int(os.environ[STARTED_BY]))
    return _create_app()


def _create_app() -> Starlette:
    from service.app import create_app

    return create_app()


def _configure_logging() -> None:
    from service.observe import configure_logging

    configure_logging()


async def _judge_settings() -> None:
    """A mistake ends us here with its sentence. Below uvicorn it would end as "startup failed" in the log."""
    from service.runtime import open_runtime
    from service.settings import load_settings

    async with open_runtime(load_settings(os.environ), connections_max=1):  # which opens no connection by itself
        return


def _raise_open_files() -> None:
    """A thousand idle connections must not be the end of it: the soft limit is often 1024, the hard one far above."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
