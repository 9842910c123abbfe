"""A worker process that begins without importing anything again: a server process has done that once, and forks.

Otherwise it is what `authwatch worker` starts: a process of its own, with its own environment, that SIGKILL ends.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.end_to_end.running import OURS
from tests.forked import forks, run

END_SECONDS_MAX = 20.0
LOG_CHARS_MAX = 3000


@dataclass(slots=True)
class Worker:
    """`environment` is all it gets of ours; `log` is what it says."""

    folder: Path
    environment: Mapping[str, str]
    process: ForkServerProcess | None = None

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    def start(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        arguments = ({**clean, **self.environment}, str(self.folder), str(self.log))
        self.process = forks.Process(target=work, args=arguments, daemon=True)
        self.process.start()

    def kill(self) -> None:
        """SIGKILL; it is gone when this returns. One that has ended by itself is a finding."""
        assert self.process is not None, "start() comes first"
        assert self.process.exitcode is None, f"the worker ended by itself\n{self.logs()}"
        self.stop()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join(END_SECONDS_MAX)

    def logs(self) -> str:
        return self.log.read_text()[-LOG_CHARS_MAX:] if self.log.exists() else "the worker has said nothing"


def work(environment: dict[str, str], folder: str, log: str) -> None:
    """In the new process. Edits go out at once: who waits for the next one is killed by a test, not by a clock."""
    from service.store import actions

    actions.EDIT_EVERY = timedelta(0)
    run(["worker"], folder, environment, log)
