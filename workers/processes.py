"""The worker's processes: who judges shares no interpreter with who acts, and neither with the copy for a SIEM.

Postgres is where they meet. Beside it there is one socket to each, which says "now" for a story there and ends with its
process: no process goes on alone. They are forked before anything is open, so what is imported is in memory once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from service import queue
from service.children import end_with_parent
from service.observe import log

# The first of them starts the others, hears Redis, and is the one that is signalled.
JUDGE, ACT, COPY = "judge", "act", "copy"
# What must not wait for each other is apart; what shares memory (`sweep` learns who refuses, `act` minds it) is together;
# that much comes in, which `evaluate` says and `act` minds, is a byte that a fork shares: service/runtime.py, Pace.
PROCESSES: Mapping[str, Sequence[str]] = {
    JUDGE: (queue.EVALUATE,),
    ACT: (queue.ACT, "sweep"),
    COPY: (queue.SHIP, "retain", "recover", "expired", "rollup", "import", "otlp"),
}
PROCESS_OF = {story: name for name, stories in PROCESSES.items() for story in stories}
# No alert waits for these: where processors are few, the others have them first.
NICER = {COPY: 10}
OPEN = "open"  # said by each once its connections are: the others open theirs after the first one
HANGUP = "hangup"
STOP_SECONDS_MAX, LOOK_SECONDS = 12.0, 0.02
WAKE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Other:
    """A process that we started; `line` is our end of the socket to it."""

    name: str
    pid: int
    line: socket.socket


def fork(run: Callable[[str, Mapping[str, socket.socket]], object]) -> list[Other]:
    """Starts all but the first; each calls `run(its name, the socket to the first one)` and ends with it. Nothing may be
    open yet, and no thread be running."""
    us = os.getpid()
    # Who started us may have ignored the ends of its children; that is handed down, and no status would be kept for us.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    flush()
    lines = {name: socket.socketpair() for name in PROCESSES if name != JUDGE}
    others: list[Other] = []
    # What an interrupt raises in the middle of a fork, the interpreter prints and forgets.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for name, (ours, _) in lines.items():
            pid = os.fork()
            if pid == 0:
                live(name, us, lines, held, run)
            others.append(Other(name, pid, ours))
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    except BaseException:  # those that are there end with their lines
        for ours, theirs in lines.values():
            ours.close()
            theirs.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        raise
    for ours, theirs in lines.values():
        theirs.close()
        ours.setblocking(False)
    return others


def live(
    name: str,
    parent_pid: int,
    lines: Mapping[str, tuple[socket.socket, socket.socket]],
    signals_held: Collection[int],
    run: Callable[[str, Mapping[str, socket.socket]], object],
) -> NoReturn:
    """All of a process that was just forked; what its parent has to do from there on is not its own to do."""
    status = 1
    try:
        become(name, parent_pid, lines)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals_held)
        run(name, {JUDGE: lines[name][1]})
        status = 0
    except Exception as exc:  # noqa: BLE001 - the process's edge: logged whole, and all of them end
        log.error("worker.process_crashed", process=name, error=type(exc).__name__, exc_info=exc)
    finally:
        flush()
        os._exit(status)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk, a reader that has gone: there is nobody to tell
            stream.flush()


def become(name: str, parent_pid: int, lines: Mapping[str, tuple[socket.socket, socket.socket]]) -> None:
    end_with_parent(parent_pid)
    for other, (ours, theirs) in lines.items():
        ours.close()
        if other != name:
            theirs.close()
    lines[name][1].setblocking(False)
    # A terminal's goes to all: it is the first of us who says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if name in NICER:
        os.nice(NICER[name])


def say(line: socket.socket, what: str) -> None:
    try:
        line.send(f"{what}\n".encode())
    except BlockingIOError:
        pass  # so much was said already that it looks in any case
    except OSError as exc:
        log.debug("worker.line_cut", error=type(exc).__name__)  # it ends, and so do we


def end(line: socket.socket) -> None:
    """Tells the other side to stop; what it has to say is still heard."""
    try:
        line.shutdown(socket.SHUT_WR)
    except OSError as exc:
        log.debug("worker.line_cut", error=type(exc).__name__)


def listen(line: socket.socket, heard: Callable[[str], None], ended: Callable[[], None]) -> None:
    """In the running loop: calls `heard` with each name that comes, and `ended` once the other side is gone."""
    loop = asyncio.get_running_loop()
    rest = b""

    def read() -> None:
        nonlocal rest
        try:
            came = line.recv(WAKE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came:
            loop.remove_reader(line)
            ended()
            return
        *names, rest = (rest + came).split(b"\n")
        for name in dict.fromkeys(names):
            heard(name.decode())

    loop.add_reader(line, read)


def stop(others: Sequence[Other]) -> dict[str, int]:
    """Ends them, at the latest by SIGKILL; their exit statuses, where a signal is a negative one."""
    for other in others:
        send(other.pid, signal.SIGTERM)
    ends: dict[str, int] = {}
    until = time.monotonic() + STOP_SECONDS_MAX
    while len(ends) < len(others):
        late = time.monotonic() > until
        for other in others:
            if other.name in ends:
                continue
            if late:
                send(other.pid, signal.SIGKILL)
            pid, status = os.waitpid(other.pid, 0 if late else os.WNOHANG)
            if pid:
                ends[other.name] = os.waitstatus_to_exitcode(status)
        time.sleep(LOOK_SECONDS)
    for other in others:
        other.line.close()
    return ends


def send(pid: int, number: signal.Signals) -> None:
    """To a child that was not waited for yet, so its number is still its own."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        log.debug("worker.gone", pid=pid)
