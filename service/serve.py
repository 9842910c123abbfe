"""`authwatch serve`: the receiver, one or several processes on one port."""

from __future__ import annotations

import gc
import os
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from service.children import end_with_parent
from service.errors import ConfigError
from service.settings import load_settings
from service.sources import open_sources

if TYPE_CHECKING:
    from starlette.applications import Starlette

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 10
GRACEFUL_SECONDS = 10
HEALTH_CHECK_SECONDS = 30  # of one process of several: a machine under full load is slow, not dead
OPEN_FILES_WANTED = 65_536
RETRY_SECONDS = 2.0
STARTED_BY, MISTAKE_FILE = "AUTHWATCH_SERVE_PID", "AUTHWATCH_SERVE_MISTAKE"
STARTED_FILE = "AUTHWATCH_SERVE_STARTED"  # there once a process has served: what it could start with, it may go on with


def serve(host: str, port: int, workers: int) -> None:
    """Serves until SIGINT or SIGTERM; then answers what it has taken on, for a bounded time.

    A mistake in the configuration is raised as ConfigError, also when one of several processes found it.
    """
    import uvicorn

    from service.connections import BoundedProtocol

    _raise_open_files()
    # Before any process is started: what can be judged without opening anything.
    open_sources(load_settings(os.environ).sources)
    with tempfile.TemporaryDirectory(prefix="authwatch-serve-") as folder:
        mistake = Path(folder) / "mistake"
        os.environ[MISTAKE_FILE] = str(mistake)
        os.environ[STARTED_FILE] = str(Path(folder) / "started")
        os.environ[STARTED_BY] = str(os.getpid())
        if workers > 1 and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            # Several processes answer /metrics as one; prometheus_client wants to know before it is imported.
            metrics = Path(folder) / "metrics"
            metrics.mkdir()
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        try:
            uvicorn.run(
                "service.serve:create_process_app" if workers > 1 else create_watched_app(),
                factory=workers > 1,
                host=host,
                port=port,
                workers=workers,
                loop="uvloop",
                http=BoundedProtocol,
                lifespan="on",
                ws="none",
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACEFUL_SECONDS,
                timeout_worker_healthcheck=HEALTH_CHECK_SECONDS,
                access_log=False,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                date_header=False,
            )
        finally:  # uvicorn exits with a status of its own; the sentence says more
            if mistake.exists():
                raise ConfigError(mistake.read_text())


def create_process_app() -> Starlette:
    """The app in one of several processes: it ends with the process that started it, even by SIGKILL."""
    from uvicorn.config import STARTUP_FAILURE

    end_with_parent(int(os.environ[STARTED_BY]))
    try:
        return create_watched_app()
    except ConfigError as error:
        _note(error)
        sys.exit(STARTUP_FAILURE)  # by which uvicorn knows that starting it again can not help


def create_watched_app() -> Starlette:
    """The app; a mistake its start finds is noted, since uvicorn would only say that the start failed."""
    from service.app import create_app

    app = create_app()
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(of: Any) -> AsyncIterator[Any]:
        try:
            async with inner(of) as state:
                # What was made to stay is no longer looked through for garbage at every full collection.
                gc.collect()
                gc.freeze()
                _note_started()
                yield state
        except ConfigError as error:
            _note(error)
            raise

    app.router.lifespan_context = lifespan
    return app


def _note_started() -> None:
    Path(os.environ[STARTED_FILE]).touch()


def _end_and_be_started_again(error: ConfigError) -> NoReturn:
    """One of several processes died while the configuration holds a mistake. The others serve on with the last good one,
    and uvicorn would end them all for a start that failed; so this is no such end, and the next try comes soon."""
    from service.observe import log

    log.error("serve.not_started_again", problem=str(error))
    time.sleep(RETRY_SECONDS)
    os._exit(1)


def _note(error: ConfigError) -> None:
    if Path(os.environ[STARTED_FILE]).exists():
        _end_and_be_started_again(error)
    Path(os.environ[MISTAKE_FILE]).write_text(str(error))


def _raise_open_files() -> None:
    """A thousand idle connections must not be the end of it: the soft limit is often 1024, the hard one far above."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
