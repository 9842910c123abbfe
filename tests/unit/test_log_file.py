"""One log file of several processes: nothing of it is lost when it is put aside, and no line stands in another one."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import structlog

from service.observe import configure_logging

BYTES_MAX = 2_000


def test_who_comes_second_keeps_what_the_first_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.observe.LOG_FILE_BYTES_MAX", BYTES_MAX)
    first, second = handlers(tmp_path / "worker.log", 2)
    said = 0
    while not (tmp_path / "worker.log.1").exists():
        said += 1
        first.emit(record(said))
    second.emit(record(said + 1))
    first.emit(record(said + 2))
    second.emit(record(said + 3))
    assert numbers(tmp_path / "worker.log.1") == [*range(1, said)]
    assert numbers(tmp_path / "worker.log") == [*range(said, said + 4)]
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, "readable by us alone"


def test_of_many_processes_each_line_is_whole_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked with one descriptor among them, as the worker's are. Lines longer than a buffer, as a traceback is."""
    monkeypatch.setattr("service.observe.LOG_FILE_BYTES_MAX", 800_000)
    (handler,) = handlers(tmp_path / "worker.log", 1)
    pids = []
    for process in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                for number in range(20):
                    handler.emit(record(process * 100 + number, "x" * 20_000))
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    kept = numbers(tmp_path / "worker.log.1") + numbers(tmp_path / "worker.log")
    assert sorted(kept) == [process * 100 + number for process in range(3) for number in range(20)]


def handlers(path: Path, count: int) -> list[logging.Handler]:
    """As that many processes have them."""
    root = logging.getLogger()
    before, level, config = root.handlers[:], root.level, structlog.get_config()
    found = []
    try:
        for _ in range(count):
            configure_logging({"AUTHWATCH_LOG_FILE": str(path)})
            found += root.handlers
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        structlog.configure(**config)
    return found


def record(number: int, more: str = "") -> logging.LogRecord:
    return logging.LogRecord("authwatch", logging.INFO, __file__, 1, f"{number} {more}", None, None)


def numbers(path: Path) -> list[int]:
    return [int(json.loads(line)["event"].split()[0]) for line in path.read_text().splitlines()]
