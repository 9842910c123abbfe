"""The parts a benchmark needs, started and stopped: embedded servers, a receiver, a worker, the control, the load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import ProxyHandler, build_opener

import psutil
import psycopg

from service import migrate
from service.children import choose_port
from service.embedded import start_postgres, start_redis
from service.signatures import make_secret

TOKEN = "token-of-the-benchmark"
READY_SECONDS_MAX = 30
LOAD_SECONDS_MAX = 900
TICKS = os.sysconf("SC_CLK_TCK")
UVICORN = "loop='uvloop', access_log=False, log_config=None, server_header=False, date_header=False"
no_proxy = build_opener(ProxyHandler({}))


@dataclass
class Part:
    """A process of ours and the port it answers on."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rss_mib(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1024**2


@dataclass
class Bench:
    """`url_of(database)` is a migrated database; every part of one bench talks to the same servers."""

    folder: Path
    database_url: str
    redis_url: str
    postgres_pid: int
    secret: str = field(default_factory=make_secret)
    parts: list[Part] = field(default_factory=list)

    def database(self, name: str) -> str:
        with psycopg.connect(self.database_url, autocommit=True) as conn:
            conn.execute(f'CREATE DATABASE "{name}"'.encode())
        url = urlunsplit(urlsplit(self.database_url)._replace(path=f"/{name}"))
        migrate.upgrade(url)
        return url

    def receiver(self, database_url: str) -> Part:
        port = choose_port("127.0.0.1")
        return self._start(
            port, "/readyz", f"from service.serve import serve; serve('127.0.0.1', {port}, 1)", database_url
        )

    def plain(self, database_url: str) -> Part:
        port = choose_port("127.0.0.1")
        run = f"import uvicorn; uvicorn.run('bench.plain:app', port={port}, http='httptools', {UVICORN})"
        return self._start(port, "/", run, database_url)

    def control(self) -> Part:
        """The same uvicorn settings and protocol class as the receiver's."""
        port = choose_port("127.0.0.1")
        run = (
            "import uvicorn; from service.connections import BoundedProtocol; "
            f"uvicorn.run('bench.control:app', port={port}, http=BoundedProtocol, lifespan='off', {UVICORN})"
        )
        return self._start(port, "/", run, self.database_url)

    def worker(self, database_url: str) -> Part:
        return self._start(0, "", "from workers.main import main; main()", database_url)

    def _start(self, port: int, path: str, program: str, database_url: str) -> Part:
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("AUTHWATCH", "SLACK", "SPLUNK"))
        }
        environment = clean | {
            "DATABASE_URL": database_url,
            "REDIS_URL": self.redis_url,
            "SCALEKIT_WEBHOOK_SECRET": self.secret,
            "AUTHWATCH_ADMIN_TOKEN": TOKEN,
            "AUTHWATCH_LOG_LEVEL": "WARNING",
        }
        with (self.folder / "parts.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=log, stderr=log)
        part = Part(process, port)
        self.parts.append(part)
        if port:
            self._await(part, path)
        return part

    def _await(self, part: Part, path: str) -> None:
        for _ in range(READY_SECONDS_MAX * 20):
            if part.process.poll() is not None:
                break
            try:
                no_proxy.open(part.url + path, timeout=2)
                return
            except OSError as exc:
                if getattr(exc, "code", 503) != 503:  # an answer, if not a friendly one
                    return
            time.sleep(0.05)
        raise RuntimeError(
            f"a part did not start; the end of its log: {(self.folder / 'parts.log').read_text()[-2000:]}"
        )

    def stop(self, *parts: Part) -> None:
        for part in parts or list(self.parts):
            part.process.terminate()
        for part in parts or list(self.parts):
            try:
                part.process.wait(20)
            except subprocess.TimeoutExpired:
                part.process.kill()
            self.parts.remove(part)

    def load(self, part: Part, count: int, *, connections: int = 64, rate: float | None = None) -> dict[str, Any]:
        """One run of `bench.load`; what it printed, with the processor time that each part took for a request."""
        words = [
            "--port",
            str(part.port),
            "--secret",
            self.secret,
            "--count",
            str(count),
            "--connections",
            str(connections),
        ]
        if rate is not None:
            words += ["--rate", str(rate)]
        receiver, postgres = cpu_seconds(part.process.pid), self.postgres_cpu_seconds()
        done = subprocess.run(
            [sys.executable, "-m", "bench.load", *words],
            capture_output=True,
            text=True,
            timeout=LOAD_SECONDS_MAX,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the load failed: {done.stderr[-1000:]}")
        said: dict[str, Any] = json.loads(done.stdout)
        said["server_cpu_us"] = (cpu_seconds(part.process.pid) - receiver) / count * 1e6
        said["postgres_cpu_us"] = (self.postgres_cpu_seconds() - postgres) / count * 1e6
        return said

    def postgres_cpu_seconds(self) -> float:
        """Of the postmaster and everything under it that is alive."""
        return sum(cpu_seconds(pid) for pid in [self.postgres_pid, *children_of(self.postgres_pid)])


def cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def children_of(pid: int) -> Sequence[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


@contextmanager
def open_bench() -> Iterator[Bench]:
    """Servers of our own in a folder of our own; everything is stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="authwatch-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server may run as another user below it
        postgres, redis = start_postgres(folder), start_redis(folder)
        try:
            with psycopg.connect(postgres.url) as conn:
                row = conn.execute("SELECT pg_backend_pid()").fetchone()
                assert row is not None
                postmaster = psutil.Process(row[0]).ppid()
            bench = Bench(folder, postgres.url, redis.url, postmaster)
            try:
                yield bench
            finally:
                bench.stop()
        finally:
            redis.stop()
            postgres.stop()
