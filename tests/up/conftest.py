"""A data dir whose servers and data are gone after the test, and an `up` that never outlives it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from service.children import choose_port
from service.embedded import Postgres

STAND_IN = Path(__file__).with_name("stand_in.py")
READY_SECONDS = 60
END_SECONDS = 60
OURS = ("DATABASE_URL", "REDIS_URL", "SCALEKIT_", "SLACK_", "SPLUNK_", "AUTHWATCH_")


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "data dir"
    yield path
    note = path / "home"
    if note.exists() and (home := Path(note.read_text().strip())).is_absolute():
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def made_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster as a first start makes it, which takes seconds. Those who are not about that begin with a copy."""
    server = Postgres(tmp_path_factory.mktemp("cluster"))
    server.prepare()
    yield server.cluster
    server.remove()


class Up:
    """A running `authwatch up`."""

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *words: str,
        program: tuple[str, ...],
        terminal: int | None = None,
        **environment: str,
    ) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        self.data_dir, self.port, self.url = data_dir, port, f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [*program, "up", "--port", str(port), "--data-dir", str(data_dir), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean, **environment},
            start_new_session=True,
            stdin=terminal,
            preexec_fn=None if terminal is None else partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0),
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: object, lines: list[str]) -> None:
        for line in pipe:  # type: ignore[attr-defined]
            lines.append(line.rstrip("\n"))

    def wait_ready(self) -> Up:
        self.wait(lambda: bool(self.out) or self.process.poll() is not None, READY_SECONDS)
        assert self.out, f"ended with {self.process.poll()}: {self.err}"
        return self

    def wait(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s; stderr so far: {self.err}"
            time.sleep(0.05)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        status = self.process.wait(END_SECONDS)
        for reader in self._readers:
            reader.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return status

    def get(self, path: str = "/readyz") -> dict[str, str]:
        with urllib.request.urlopen(self.url + path, timeout=2) as answer:
            return dict(line.split("=", 1) for line in answer.read().decode().splitlines())

    def answers(self) -> bool:
        try:
            self.get()
        except OSError:
            return False
        return True

    def env(self) -> dict[str, str]:
        lines = (self.data_dir / "env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if not line.startswith("#"))

    def pid(self, part: str) -> int | None:
        """The process of a part, by the file that part writes itself; None while it is being started anew."""
        env = self.env()
        files = {
            "postgres": Path(env["AUTHWATCH_POSTGRES_DATA"]) / "cluster" / "postmaster.pid",
            "redis": Path(env["AUTHWATCH_REDIS_DATA"]) / "redis.pid",
        }
        try:
            written = files.get(part, self.data_dir / "run" / f"{part}.pid").read_text()
        except FileNotFoundError:
            return None  # a server that starts after a kill takes the old file away first
        found = re.match(r"\d+", written)
        return int(found[0]) if found else None

    def running(self, part: str) -> int:
        pid = self.pid(part)
        assert pid is not None
        return pid


@pytest.fixture
def program(made_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """What is started: `up` on stand-in parts."""
    monkeypatch.setenv("STAND_IN_CLUSTER", str(made_cluster))
    return (sys.executable, str(STAND_IN))


@pytest.fixture
def start(data_dir: Path, program: tuple[str, ...]) -> Iterator[Callable[..., Up]]:
    """Starts an `up`; all of them are ended after the test."""
    port = choose_port("127.0.0.1")
    started: list[Up] = []

    def start_up(
        *words: str, to: Path = data_dir, at: int = port, terminal: int | None = None, **environment: str
    ) -> Up:
        started.append(Up(to, at, *words, program=program, terminal=terminal, **environment))
        return started[-1]

    yield start_up
    for up in started:
        up.end(signal.SIGTERM)
