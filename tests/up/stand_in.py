"""Small parts in the place of ours, so that the supervisor is tried on real processes, ports, Postgres and Redis.

Called as `stand_in.py up --port N ...` it runs the real `up` with itself as migration, receiver and worker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from service.embedded import Postgres


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def migrate() -> None:
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS heartbeats (part text PRIMARY KEY, at timestamptz NOT NULL)")
        connection.execute("CREATE TABLE IF NOT EXISTS migrations (at timestamptz NOT NULL DEFAULT now())")
        connection.execute("INSERT INTO migrations DEFAULT VALUES")
        connection.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num text PRIMARY KEY)")
        connection.execute("INSERT INTO alembic_version VALUES ('head') ON CONFLICT DO NOTHING")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Says which process answers, and what it was given."""
        names = (
            "SCALEKIT_WEBHOOK_SECRET",
            "AUTHWATCH_ADMIN_TOKEN",
            "AUTHWATCH_PUBLIC_URL",
            "DATABASE_URL",
            "REDIS_URL",
        )
        body = "\n".join([f"pid={os.getpid()}", *(f"{name}={os.environ.get(name, '')}" for name in names)]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        print(format % args, file=sys.stderr)


def receiver() -> None:
    if os.environ.get("STAND_IN_RECEIVER") == "misconfigured":
        print("authwatch: STAND_IN_RECEIVER is not a colour", file=sys.stderr)
        sys.exit(2)
    ThreadingHTTPServer((option("--host"), int(option("--port"))), Handler).serve_forever()


def worker() -> None:
    print("stand-in worker: an alert", file=sys.stderr, flush=True)
    while True:
        try:
            with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=2) as connection:
                connection.execute(
                    "INSERT INTO heartbeats VALUES ('worker', clock_timestamp())"
                    " ON CONFLICT (part) DO UPDATE SET at = excluded.at"
                )
        except psycopg.OperationalError:
            pass  # as ours: the database's absence is not the worker's end
        time.sleep(0.1)


def copied_from(made: Path) -> Callable[[Postgres], None]:
    """In the place of `Postgres._create`: a copy of a cluster that was made before, with this one's password."""

    def create(server: Postgres) -> None:
        from service.embedded_postgres import ROLE

        unfinished = server.folder / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        subprocess.run(["cp", "-a", made, unfinished], check=True)
        server._single_user(unfinished, f"ALTER ROLE {ROLE} PASSWORD '{server.password}'")
        unfinished.rename(server.cluster)

    return create


def up() -> None:
    from service import cli, embedded_postgres, parts, up

    embedded_postgres.Postgres._create = copied_from(Path(os.environ["STAND_IN_CLUSTER"]))  # type: ignore[method-assign, assignment]

    def here(part: str) -> tuple[str, ...]:
        return (sys.executable, __file__, part)

    stand_ins = parts.Commands(migrate=here("migrate"), receiver=here("receiver"), worker=here("worker"))
    options = up.Options

    def with_stand_ins(**given: object) -> up.Options:
        return options(**given, commands=stand_ins)  # type: ignore[arg-type]

    up.Options = with_stand_ins  # type: ignore[assignment,misc]
    cli.main()


if __name__ == "__main__":
    {"up": up, "migrate": migrate, "receiver": receiver, "worker": worker}[sys.argv[1]]()
