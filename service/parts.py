"""How `authwatch up` starts each of our own parts, and how it sees that one answers."""

from __future__ import annotations

import hashlib
import http.client
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from service import children
from service.datadir import DataDir
from service.supervise import Part, PartFailed

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
READY_ANSWER_SECONDS = 2
DATABASE_CONNECT_SECONDS = 3
MIGRATE_SECONDS = 600
STOP: children.StopPlan = ((signal.SIGTERM, 15.0),)
LEFTOVER_STOP: children.StopPlan = ((signal.SIGTERM, 5.0),)
# -P: what happens to be named `service` in the current folder is not us.
_OURSELVES = (sys.executable, "-P", "-m", "service.cli")


@dataclass(frozen=True)
class Commands:
    """The command lines of our parts. Tests put others in their place."""

    migrate: Sequence[str] = (*_OURSELVES, "migrate")
    receiver: Sequence[str] = (*_OURSELVES, "serve")
    worker: Sequence[str] = (*_OURSELVES, "worker")


def migrate(
    command: Sequence[str], data: DataDir, environment: Mapping[str, str], *, say: Callable[[str], None]
) -> None:
    """Brings the schema up to date, in a process of its own: what it imports need not stay in memory.

    Asking takes a second, so what it came to is noted; the database itself says whether that still holds.
    """
    note, files = data.path / "run" / "migrated", _migration_files()
    database_url = environment["DATABASE_URL"]
    if note.exists() and note.read_text() == f"{files} {_revision(database_url)}":
        return
    note.unlink(missing_ok=True)
    say("migrating the database")
    log = data.log("migrate")
    children.rotate_log(log)
    with children.open_log(log) as out:
        written = log.stat().st_size
        process = children.spawn(_words(command, data), env=environment, stdout=out, stderr=out)
        try:
            status = process.wait(MIGRATE_SECONDS)
        except subprocess.TimeoutExpired:
            children.stop(process, STOP)
            raise PartFailed(f"the migrations did not end within {MIGRATE_SECONDS} s, see {log}") from None
    if status != 0:
        raise PartFailed(f"the migrations failed: {children.last_line(log, written)} (see {log})")
    if (revision := _revision(database_url)) is not None:
        note.write_text(f"{files} {revision}")


def _migration_files() -> str:
    """A digest of the migrations this code brings."""
    digest = hashlib.sha256()
    for path in sorted(MIGRATIONS.rglob("*.py")):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _revision(database_url: str) -> str | None:
    """Where the database's schema stands, by its own word; None when it does not say."""
    import psycopg

    try:
        with psycopg.connect(database_url, connect_timeout=DATABASE_CONNECT_SECONDS) as connection:
            rows = connection.execute("SELECT version_num FROM alembic_version ORDER BY version_num").fetchall()
    except psycopg.Error:
        return None
    return ",".join(str(row[0]) for row in rows) or None


def receiver(
    command: Sequence[str],
    data: DataDir,
    environment: Mapping[str, str],
    *,
    host: str,
    port: int,
    workers: int,
    url: str,
) -> Part:
    """All it says goes to its log."""
    log = data.log("receiver")
    children.rotate_log(log)
    options = ("--host", host, "--port", str(port), "--workers", str(workers))

    def spawn() -> subprocess.Popen[bytes]:
        with children.open_log(log) as out:
            own = {**environment, "AUTHWATCH_LOG_FILE": str(log)}
            return _noted(
                data, "receiver", children.spawn(_words(command, data, *options), env=own, stdout=out, stderr=out)
            )

    written = log.stat().st_size if log.exists() else 0
    return Part(
        name="receiver",
        spawn=spawn,
        is_ready=lambda: answers(url, "/readyz"),
        last_words=lambda: children.last_line(log, written),
        stop_plan=STOP,
    )


def worker(command: Sequence[str], data: DataDir, environment: Mapping[str, str]) -> Part:
    """Its stderr is ours, for the alerts it prints; its log goes to a file."""
    log = data.log("worker")
    children.rotate_log(log)

    def spawn() -> subprocess.Popen[bytes]:
        with children.open_log(log) as out:
            own = {**environment, "AUTHWATCH_LOG_FILE": str(log)}
            return _noted(data, "worker", children.spawn(_words(command, data), env=own, stdout=out, stderr=None))

    return Part(
        name="worker",
        spawn=spawn,
        is_ready=heartbeat_since_now(environment["DATABASE_URL"], "worker"),
        stop_plan=STOP,
    )


def answers(url: str, path: str) -> bool:
    """Whether a GET there is answered with 200, in a bounded time."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=READY_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def heartbeat_since_now(database_url: str, part: str) -> Callable[[], bool]:
    """A question: has this part written its heartbeat since now? Now and then are both the database's clock."""
    import psycopg

    def connect() -> psycopg.Connection:
        return psycopg.connect(database_url, autocommit=True, connect_timeout=DATABASE_CONNECT_SECONDS)

    with connect() as connection:
        now = connection.execute("SELECT clock_timestamp()").fetchone()
    assert now is not None

    def beats() -> bool:
        try:
            with connect() as connection:
                found = connection.execute("SELECT 1 FROM heartbeats WHERE part = %s AND at > %s", (part, now[0]))
                return found.fetchone() is not None
        except psycopg.Error:
            return False

    return beats


def _words(command: Sequence[str], data: DataDir, *options: str) -> list[str]:
    # The data dir in the command line is also how a left-over of a killed `up` is known for ours.
    return [*command, *options, "--data-dir", str(data.path)]


def _noted(data: DataDir, part: str, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    data.pid_file(part).write_text(f"{process.pid}\n")
    return process
