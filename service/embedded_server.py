"""What the embedded servers have in common: a folder of their own, a port and a password that are kept, one start at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO

from service import children
from service.datadir import make_private
from service.errors import AuthwatchError
from service.placement import Place, give_folder, place

HOST = "127.0.0.1"
START_SECONDS = 60.0
LOCK_SECONDS = 2.0

Progress = Callable[[str], None]


class EmbeddedFailed(AuthwatchError):
    """An embedded server did not come up; the message carries its own last words."""

    code = "embedded_failed"
    permanent = False


def quiet(message: str) -> None:
    del message


class Server:
    """What both have in common: a folder of their own, a port and a password that are kept, one start at a time."""

    name = ""
    stop_plan: children.StopPlan = ()

    def __init__(self, data_dir: Path, *, port: int | None = None, progress: Progress = quiet) -> None:
        self.data_dir = data_dir.resolve()
        self.log = self.data_dir / "log" / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.progress = progress
        self._wanted_port = port
        self._lock: IO[bytes] | None = None
        self.place: Place | None = None
        self.port = 0
        self.password = ""

    @property
    def folder(self) -> Path:
        assert self.place is not None, "prepare() comes first"
        return self.place.home / self.name

    def take_folder(self) -> None:
        """Finds the place and holds it: two starts on one folder, even from two data dirs, would ruin it."""
        make_private(self.data_dir)
        self.place = place(self.data_dir)
        give_folder(self.folder, self.place.user)
        if self._lock is None:
            self._lock = open(self.place.home / f"{self.name}.lock", "ab")  # held while we live
            if not children.wait_until(self._locked, LOCK_SECONDS):
                self._release()
                raise EmbeddedFailed(f"the {self.name} in {self.folder} is in use by another process")

    def _locked(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def settle_port_and_password(self) -> None:
        note = self.data_dir / f"{self.name}.port"
        self.port = children.choose_port(HOST, self._wanted_port or children.read_pid(note))
        write_private(note, f"{self.port}\n")
        kept = self.data_dir / f"{self.name}.password"
        if not kept.exists():
            write_private(kept, f"{secrets.token_urlsafe(24)}\n")
        self.password = kept.read_text().strip()

    def prepare(self) -> None:
        """Everything before the first start of the process. Repeats harmlessly."""
        raise NotImplementedError

    def spawn(self) -> subprocess.Popen[bytes]:
        """Starts the process, on the same port each time; `prepare()` comes first."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Prepares, starts and waits until it answers, or says why it does not."""
        self.prepare()
        children.rotate_log(self.log)
        written = self.log.stat().st_size if self.log.exists() else 0
        self.progress(f"starting {self.name}")
        process = self.spawn()
        if not children.wait_until(lambda: self.is_ready() or process.poll() is not None, START_SECONDS):
            self.stop()
            raise EmbeddedFailed(f"{self.name} did not become ready within {START_SECONDS:.0f} s, see {self.log}")
        if process.poll() is not None:
            self._release()
            raise EmbeddedFailed(f"{self.name} did not start: {children.last_line(self.log, written)}")

    def stop(self) -> None:
        """Ends the process, its data kept. Bounded by the stop plan."""
        if self.process is not None:
            children.stop(self.process, self.stop_plan)
            self.process = None
        self._release()

    def remove(self) -> None:
        """Stops it and deletes its data, wherever they are: for tests."""
        self.stop()
        if self.place is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.place.home != self.data_dir:
                (self.place.home / f"{self.name}.lock").unlink(missing_ok=True)
                if not any(self.place.home.iterdir()):
                    self.place.home.rmdir()
                    (self.data_dir / "home").unlink(missing_ok=True)

    def whereabouts(self) -> dict[str, str]:
        """Where its data and binaries are, for the env file."""
        assert self.place is not None
        return {
            f"AUTHWATCH_{self.name.upper()}_DATA": str(self.folder),
            "AUTHWATCH_SERVER_BINARIES": str(self.place.binaries),
        }

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def environment(self) -> dict[str, str]:
        """Nothing of ours: no secrets, and no PG* variables that would redirect it."""
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}

    def run_server(self, argv: list[str | Path], death_signal: signal.Signals) -> subprocess.Popen[bytes]:
        assert self.place is not None
        with children.open_log(self.log) as log:
            self.process = children.spawn(
                argv,
                env=self.environment(),
                stdout=log,
                stderr=log,
                user=self.place.user,
                death_signal=death_signal,
                cwd="/",
            )
        return self.process


def write_private(path: Path, text: str, for_place: Place | None = None) -> None:
    """Writes a file whole or not at all, mode 600, owned by the servers' user where it is theirs."""
    beside = path.with_name(f"{path.name}.tmp")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        if for_place is not None and for_place.user is not None:
            os.fchown(file.fileno(), for_place.user.uid, for_place.user.gid)
    beside.replace(path)
