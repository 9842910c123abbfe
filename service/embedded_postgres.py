"""A private PostgreSQL cluster: created once and whole, started whatever the last crash left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from service import children
from service.embedded_server import HOST, EmbeddedFailed, Progress, Server, quiet, write_private
from service.errors import ConfigError
from service.placement import POSTGRES_MAJOR

DATABASE = ROLE = "authwatch"
CREATE_SECONDS = 180.0

# Fast shutdown, then immediate (recovers at the next start), then what cannot be refused.
STOP: children.StopPlan = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0))
LEFTOVER_STOP: children.StopPlan = ((signal.SIGQUIT, 5.0),)

# Durability stays at Postgres' own defaults, which are on.
SETTINGS: Mapping[str, str] = {
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


class Postgres(Server):
    """PostgreSQL with the role and database `authwatch`; the role may make further databases (tests do)."""

    name = "postgres"
    stop_plan = STOP

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        progress: Progress = quiet,
    ) -> None:
        super().__init__(data_dir, port=port, progress=progress)
        self.settings = {**SETTINGS, **(settings or {})}

    @property
    def url(self) -> str:
        return f"postgresql://{ROLE}:{self.password}@{HOST}:{self.port}/{DATABASE}"

    @property
    def cluster(self) -> Path:
        return self.folder / "cluster"

    def prepare(self) -> None:
        self.take_folder()
        # The predecessor goes before the port is chosen: it may still sit on it.
        children.end_leftover(self._postmaster_pid(), str(self.cluster), LEFTOVER_STOP)
        known_password = (self.data_dir / f"{self.name}.password").exists()
        self.settle_port_and_password()
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
        return self.run_server([self.place.postgres, "-D", self.cluster, *options], signal.SIGQUIT)

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
                env=self.environment(),
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
        write_private(path, text, self.place)
