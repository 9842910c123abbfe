"""How processes are started and ended, with ones that do nothing."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from workers import processes
from workers.processes import ACT, COPY, JUDGE

ESCAPED = 7


@pytest.fixture(autouse=True)
def children() -> Iterator[None]:
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


class Full:
    """A stream on a disk that is full."""

    def write(self, _text: str) -> int:
        return 0

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def until_told(_name: str, line_to: Mapping[str, socket.socket]) -> None:
    line = line_to[JUDGE]
    line.setblocking(True)
    while line.recv(100):
        pass


def test_they_are_waited_for_where_our_parent_ignored_the_ends_of_its_children() -> None:
    """That is handed down to us, and the system would then keep no child's status."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    others = processes.fork(until_told)
    for other in others:
        processes.end(other.line)
    ends = processes.stop(others)
    assert set(ends) == {ACT, COPY}
    assert set(ends.values()) <= {0, -signal.SIGTERM}


@pytest.mark.parametrize("full", ["stdout", "stderr"])
def test_where_its_last_words_do_not_fit_it_ends_all_the_same(monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    def run(name: str, line_to: Mapping[str, socket.socket]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        setattr(sys, full, Full())
        until_told(name, line_to)

    ours = os.getpid()
    try:
        others = processes.fork(run)
    except OSError:
        os._exit(ESCAPED)  # a child that goes on with what is its parent's to do
    assert os.getpid() == ours
    for other in others:
        processes.end(other.line)
    ends: dict[str, Any] = {}
    for other in others:
        _, status = os.waitpid(other.pid, 0)
        ends[other.name] = os.waitstatus_to_exitcode(status)
        other.line.close()
    assert ends == {ACT: 0, COPY: 0}


def test_who_does_not_end_is_ended_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS_MAX", 0.2)
    ready, started = os.pipe()

    def run(name: str, line_to: Mapping[str, socket.socket]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(started, b".")
        if name == COPY:
            signal.pause()
        until_told(name, line_to)

    others = processes.fork(run)
    got = b""
    while len(got) < len(others):
        got += os.read(ready, 10)
    for other in others:
        processes.end(other.line)
    assert processes.stop(others) == {ACT: 0, COPY: -signal.SIGKILL}
    os.close(ready)
    os.close(started)


interrupting = False


def interrupt() -> None:
    if interrupting:
        signal.raise_signal(signal.SIGINT)


os.register_at_fork(after_in_parent=interrupt)


def test_an_interrupt_in_the_middle_of_it_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised in what the interpreter does around a fork is printed there, and goes no further."""
    pids: list[int] = []
    fork = os.fork

    def forked() -> int:
        pid = fork()
        if pid:
            pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", forked)
    monkeypatch.setitem(globals(), "interrupting", True)
    with pytest.raises(KeyboardInterrupt):
        processes.fork(until_told)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(pids) == 2, "it is heard once all of them are there"
