"""Child processes that do not outlive us: started, found again after a crash, and stopped within a bounded time."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypedDict

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_SECONDS = 0.05
PARENT_LOOK_SECONDS = 1.0
LEFTOVER_WAIT_SECONDS = 1.0  # on Linux a predecessor's children are already dying: let them, before we push
# Below the range from which systems take the local ports of outgoing connections: nobody's connection sits on our
# port while a server restarts, and a client that retries can not connect to itself.
PORTS = range(15_000, 30_000)
PORT_TRIES = 200
LOG_BYTES_MAX = 20 * 1024 * 1024

# What to send, and how long to wait for the end after it, in this order.
StopPlan = Sequence[tuple[signal.Signals, float]]
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class SystemUser:
    """The system user a server runs as, when we are root and it must not be."""

    name: str
    uid: int
    gid: int


def die_with_parent(parent_pid: int, death_signal: signal.Signals) -> None:
    """Run in the child, after it changed user (changing user clears the wish): the kernel ends it with its parent.

    The parent's *thread* counts, so children are started from a thread that lives as long as they shall.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent_pid:  # the parent ended before the wish was made
            os._exit(1)


def spawn(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int | None,
    user: SystemUser | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
    cwd: str | Path | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a child in our process group. `stderr=None` hands it our own."""
    parent_pid = os.getpid()

    def in_child() -> None:
        die_with_parent(parent_pid, death_signal)

    return subprocess.Popen(
        [str(word) for word in argv],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        preexec_fn=in_child,
        **as_user(user),
    )


def end_with_parent(parent_pid: int) -> None:
    """The same from within a running Python process, on every system."""
    if _libc is not None:
        die_with_parent(parent_pid, signal.SIGKILL)
        return

    def look() -> None:
        while os.getppid() == parent_pid:
            time.sleep(PARENT_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, name="parent", daemon=True).start()


class AsUser(TypedDict):
    user: int | None
    group: int | None
    extra_groups: list[str | int] | None


def as_user(user: SystemUser | None) -> AsUser:
    """The subprocess arguments that make a child this user, with none of our groups; None changes nothing."""
    if user is None:
        return {"user": None, "group": None, "extra_groups": None}
    return {"user": user.uid, "group": user.gid, "extra_groups": []}


def stop(process: subprocess.Popen[bytes], plan: StopPlan) -> int:
    """Ends a child of ours by the plan, and at the latest by SIGKILL; gives its exit status."""
    for how, wait_seconds in plan:
        if process.poll() is not None:
            break
        process.send_signal(how)
        try:
            process.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            continue
    if process.poll() is None:
        process.kill()
    return process.wait()


def read_pid(path: Path) -> int | None:
    """The first line of a pid file, None where there is none to be had."""
    try:
        return int(path.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def command_line(pid: int) -> str:
    """How a process was started, "" for one that is gone (a zombie is gone too)."""
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            return proc.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    shown = subprocess.run(["ps", "-wwo", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


def end_leftover(pid: int | None, mark: str, plan: StopPlan) -> bool:
    """Waits for, then ends, what a killed predecessor left running. `mark` must stand in its command line, so that
    a pid given to somebody else's process meanwhile is never touched. True if there was one."""
    if pid is None or mark not in command_line(pid):
        return False

    def gone() -> bool:
        return mark not in command_line(pid)

    if wait_until(gone, LEFTOVER_WAIT_SECONDS):
        return True
    for how, wait_seconds in (*plan, (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            return True
        if wait_until(gone, wait_seconds):
            return True
    return True


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Polls a condition for a bounded time; its last answer."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def listen_error(host: str, port: int) -> OSError | None:
    """Why a server could not listen there now, None if it could (remains of closed connections do not count)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error
    return None


def port_is_free(host: str, port: int) -> bool:
    return listen_error(host, port) is None


def choose_port(host: str, kept: int | None = None) -> int:
    """The port kept from the last start if it is free, else another of PORTS."""
    if kept is not None and port_is_free(host, kept):
        return kept
    for port in random.sample(PORTS, PORT_TRIES):
        if port_is_free(host, port):
            return port
    raise OSError(f"no free port found on {host} in {PORTS.start} to {PORTS.stop - 1}")


def open_log(path: Path) -> IO[bytes]:
    """Opens a child's log for appending, readable by us alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)


def rotate_log(path: Path) -> None:
    """At the start a log that has grown too large becomes `.1`, in place of the one before."""
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_name(path.name + ".1"))


def last_line(path: Path, since_byte: int = 0) -> str:
    """The last line with anything in it that was written after `since_byte`, "" if none was."""
    try:
        with path.open("rb") as log:
            log.seek(max(since_byte, path.stat().st_size - 65_536))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
