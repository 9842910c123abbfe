"""`authwatch worker` is three processes that live and end together: how the end of one ends the others."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.children import command_line, wait_until
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import COMMAND, OURS
from workers.processes import PROCESSES

SECONDS_MAX = 30


class Worker:
    """In a process group of its own, as a terminal starts it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.log = folder / "worker.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [COMMAND, "worker"],
                cwd=folder,
                env={**clean, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def others(self) -> list[int]:
        """Once all are at work, the pids of the processes that it started, in their order."""
        assert wait_until(lambda: "worker.started" in self.log.read_text(), SECONDS_MAX), self.log.read_text()
        listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        pids = sorted(pid for pid, parent in pairs if parent == self.process.pid)
        assert len(pids) == len(PROCESSES) - 1
        return pids

    def ended(self) -> int:
        return self.process.wait(SECONDS_MAX)


@pytest.fixture
def environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "rules").mkdir()
    return {
        "DATABASE_URL": database_url,
        "AUTHWATCH_RULES": str(tmp_path / "rules"),
        "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
        "SCALEKIT_WEBHOOK_SECRET": SECRET,
    }


@pytest.fixture
def worker(environment: dict[str, str], tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path, **environment)
    yield worker
    if worker.process.poll() is None:
        worker.process.kill()
        worker.process.wait(SECONDS_MAX)


def gone(pids: list[int]) -> bool:
    return wait_until(lambda: not any(command_line(pid) for pid in pids), SECONDS_MAX)


@pytest.mark.parametrize(("number", "name"), [(0, "act"), (1, "copy")])
def test_none_goes_on_without_the_others_and_it_is_said_which_ended(worker: Worker, number: int, name: str) -> None:
    others = worker.others()
    os.kill(others[number], signal.SIGKILL)
    assert worker.ended() == 1
    assert gone(others)
    assert f'"process": "{name}", "status": -9, "event": "worker.process_ended"' in worker.log.read_text()


def test_kill_9_leaves_nothing_behind(worker: Worker) -> None:
    others = worker.others()
    worker.process.kill()
    worker.ended()
    assert gone(others)


@pytest.mark.parametrize("asked", ["terminate", "interrupt from a terminal"])
def test_asked_to_stop_all_do(worker: Worker, asked: str) -> None:
    others = worker.others()
    if asked == "terminate":
        worker.process.terminate()
    else:
        os.killpg(worker.process.pid, signal.SIGINT)
    assert worker.ended() == 0, worker.log.read_text()
    assert gone(others)
    said = worker.log.read_text()
    assert said.count("worker.stopped") == 1
    assert "Traceback" not in said


def test_a_hangup_is_passed_on(worker: Worker) -> None:
    """It means "look at your files now", whichever of them has what to look at."""
    worker.others()
    worker.process.send_signal(signal.SIGHUP)
    assert wait_until(lambda: worker.log.read_text().count("sources.asked_to_look") == 2, SECONDS_MAX)


def test_a_mistake_in_its_configuration_is_told_once(environment: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("sinks: {siem: {kind: no_such}}")
    worker = Worker(tmp_path, **environment, AUTHWATCH_CONFIG=str(config))
    assert worker.ended() == 2
    (line,) = worker.log.read_text().splitlines()
    assert line.startswith("authwatch: sinks.siem.kind is missing or unknown")
