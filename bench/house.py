"""What the bench stands on: a Postgres and a Redis of its own in a temporary folder, and our parts as real processes.

Only what the lock file installs is used, everything listens on loopback, and all of it ends with this process.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import psycopg

from service import children, migrate
from service.embedded import Postgres, Redis, start_postgres, start_redis
from service.signatures import make_secret

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 60
LOAD_SECONDS_MAX = 240
STOP: children.StopPlan = ((signal.SIGTERM, 15.0),)
NOTHING: Mapping[str, str] = {}
OURS = ("DATABASE_URL", "REDIS_URL", "SCALEKIT_", "SLACK_", "SPLUNK_", "AUTHWATCH_", "PROMETHEUS_")


class BenchFailed(Exception):
    """The bench itself broke; a figure that is not met is no such thing."""


def say(message: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)


@dataclass(slots=True)
class House:
    folder: Path
    postgres: Postgres
    redis: Redis
    short: bool
    secret: str = field(default_factory=make_secret)
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def database(self, name: str) -> str:
        """A new, migrated database; its URL."""
        with psycopg.connect(self.postgres.url, autocommit=True) as conn:
            conn.execute(f'CREATE DATABASE "{name}"'.encode())
        url = self.postgres.url.rsplit("/", 1)[0] + "/" + name
        migrate.upgrade(url)
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("SELECT ensure_partitions((now() AT TIME ZONE 'UTC')::date - 1, 9)")
        return url

    def environment(self, database_url: str, more: Mapping[str, str] = NOTHING) -> dict[str, str]:
        """No Slack, no sinks, the shipped rules; `more` comes on top."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        return clean | {
            "DATABASE_URL": database_url,
            "REDIS_URL": self.redis.url,
            "SCALEKIT_WEBHOOK_SECRET": self.secret,
            "AUTHWATCH_ADMIN_TOKEN": self.token,
            "AUTHWATCH_RULES": str(ROOT / "alert_rules"),
            "AUTHWATCH_DATA_DIR": str(self.folder / "nothing"),
            "PYTHONPATH": str(ROOT),
            **more,
        }

    def start(
        self, name: str, words: list[str], database_url: str, more: Mapping[str, str] = NOTHING
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = children.spawn(
                [sys.executable, *words],
                env=self.environment(database_url, more),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        self.processes.append(process)
        return process

    def server(self, kind: str, database_url: str, name: str = "", more: Mapping[str, str] = NOTHING) -> Server:
        """`ours`, or `control`, `plain` or `feed` under the same uvicorn settings; ready to answer."""
        port = children.choose_port(HOST)
        words = ["-m", "bench.serve", kind, "--port", str(port)]
        server = Server(
            kind, port, self.start(name or kind, words, database_url, more), self.folder / f"{name or kind}.log"
        )
        wait(server.answers, f"{name or kind} does not answer", server.log)
        return server

    def worker(
        self, database_url: str, name: str = "worker", more: Mapping[str, str] = NOTHING
    ) -> subprocess.Popen[bytes]:
        """A worker that has begun: it has said so, and its heartbeat is in the database. `name` is its alone."""
        process = self.start(name, [str(Path(sys.executable).with_name("authwatch")), "worker"], database_url, more)
        log = self.folder / f"{name}.log"

        def alive() -> bool:
            if process.poll() is not None:
                raise BenchFailed(f"{name} ended: {children.last_line(log)}")
            begun = b"worker.started" in log.read_bytes()
            return begun and one(database_url, "SELECT count(*) FROM heartbeats") > 0

        wait(alive, f"{name} does not begin", log)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGCONT)
        children.stop(process, STOP)
        self.processes.remove(process)

    def load(self, server: Server, count: int, *, connections: int = 64, rate: float | None = None) -> dict[str, Any]:
        """One load by a generator process; its JSON. Raises BenchFailed unless every request was answered with 202."""
        words = ["--port", str(server.port), "--count", str(count), "--connections", str(connections)]
        said = run_module("bench.load", [*words, *(["--rate", str(rate)] if rate else [])], self.secret)
        if said["lost"] or said["statuses"] != {"202": count}:
            raise BenchFailed(
                f"{server.kind}: {count} sent, answers {said['statuses']}, connections lost {said['lost']}"
            )
        return said


@dataclass(slots=True)
class Server:
    kind: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def answers(self) -> bool:
        if self.process.poll() is not None:
            raise BenchFailed(f"{self.kind} ended: {children.last_line(self.log)}")
        path = "/readyz" if self.kind == "ours" else "/"
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=2):
                return True
        except URLError as error:
            return getattr(error, "code", None) == 404  # the others serve one path only
        except OSError:
            return False


def generator(module: str, words: list[str], secret: str) -> subprocess.Popen[str]:
    """A generator process; the secret goes by the environment, since a command line can be read by everybody."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        env={**os.environ, "BENCH_SECRET": secret, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: children.die_with_parent(PID, signal.SIGKILL),
    )


PID = os.getpid()


def run_module(module: str, words: list[str], secret: str) -> dict[str, Any]:
    process = generator(module, words, secret)
    try:
        out, _ = process.communicate(timeout=LOAD_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"{module} did not end within {LOAD_SECONDS_MAX} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise BenchFailed(f"{module} ended with {process.returncode}")
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    return said


def wait(condition: Callable[[], bool], what: str, log: Path | None = None, seconds: float = READY_SECONDS) -> None:
    if not children.wait_until(condition, seconds):
        raise BenchFailed(f"{what} after {seconds:.0f} s" + (f": {children.last_line(log)}" if log else ""))


def one(database_url: str, statement: str, *values: object) -> Any:
    """The first column of the first row."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        row = conn.execute(statement.encode(), values or None).fetchone()
    return row[0] if row else None


def events_after(database_url: str, position: int) -> int:
    """Webhooks' rows in the log after a position: what was answered 202 must be among them."""
    counted = one(database_url, "SELECT count(*) FROM events WHERE position > %s AND origin = 'webhook'", position)
    return int(counted)


def position(database_url: str) -> int:
    return int(one(database_url, "SELECT coalesce(max(position), 0) FROM events"))


def cpu_seconds(pid: int, *, family: bool = False) -> float:
    """Processor time of a process, with `family` also of its children, living or ended; from /proc, 0.0 without one."""
    try:
        fields = re.sub(r".*\) ", "", Path(f"/proc/{pid}/stat").read_text()).split()
        ticks = sum(int(field) for field in (fields[11:15] if family else fields[11:13]))
        living = Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if family else []
    except (OSError, IndexError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK") + sum(cpu_seconds(int(child)) for child in living)


def rss_mib(pid: int) -> float:
    """Resident memory now."""
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    return int(shown) / 1024


@contextmanager
def open_house(short: bool) -> Iterator[House]:
    """Everything is stopped and the folder removed at the end, whatever happened."""
    folder = Path(tempfile.mkdtemp(prefix="authwatch-bench-"))
    try:
        postgres = start_postgres(folder, progress=say)
        try:
            redis = start_redis(folder, progress=say)
            house = House(folder, postgres, redis, short)
            try:
                yield house
            finally:
                for process in reversed(house.processes[:]):
                    house.stop(process)
                redis.remove()
        finally:
            postgres.remove()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
