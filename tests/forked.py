"""`authwatch serve` and `authwatch worker` for tests that start many of them: forked from a server that has imported once
what they import, so that a start costs a tenth of a second of a processor and not one and a half.

Otherwise they are what the command starts: processes of their own, with all of their environment given, that any signal
ends. tests/up and tests/end_to_end/test_worker_processes.py start the command itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.rules import RuleBook

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["pytest", "service.serve", "service.app", "workers.main", "uvicorn", __name__])

RuleBook(Path(__file__).resolve().parent.parent / "alert_rules").reload()  # these texts are known to whoever is forked


class Forked:
    """As `subprocess.Popen([COMMAND, *words], cwd=, env=)` with both outputs appended to `log`."""

    def __init__(self, words: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self._words = [*words]
        self._process = forks.Process(target=run, args=([*words], str(cwd), dict(env), str(log)), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._words, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def run(words: Sequence[str], folder: str, environment: Mapping[str, str], log: str) -> None:
    """In the new process."""
    from service import cli

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = ["authwatch", *words]
    cli.main()
