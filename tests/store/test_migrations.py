"""The schema: from empty and back, without drift, while somebody else migrates too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import psycopg
from alembic import command

from service import migrate


def test_models_and_migrations_agree(database_url: str) -> None:
    command.check(migrate.config(database_url))
    assert migrate.pending(database_url) == []


def test_down_and_up_again(database_url: str) -> None:
    migrate.downgrade(database_url, "base")
    with psycopg.connect(database_url) as conn:
        left = conn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname !~ '^alembic'"
        ).fetchall()
        functions = conn.execute("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace").fetchall()
    assert (left, functions) == ([], [])
    assert migrate.pending(database_url)[-1] == "0001_first"
    migrate.upgrade(database_url)
    command.check(migrate.config(database_url))


def test_two_at_once_wait_for_each_other(make_database: Callable[[], str]) -> None:
    url = make_database()
    migrate.downgrade(url, "base")
    program = "import sys; from service import migrate; migrate.upgrade(sys.argv[1])"
    processes = [subprocess.Popen([sys.executable, "-c", program, url]) for _ in range(4)]
    try:
        assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
    assert migrate.pending(url) == []


def test_migrations_set_a_lock_time_out(database_url: str) -> None:
    """A migration that cannot have its lock gives up instead of queueing everybody behind it."""
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE accounts IN ACCESS SHARE MODE")
        try:
            migrate.downgrade(database_url, "base")
            gave_up = False
        except Exception as exc:  # noqa: BLE001 - whichever wrapper alembic raises, the cause is Postgres's 55P03
            gave_up = getattr(getattr(exc, "orig", None), "sqlstate", None) == "55P03"
    assert gave_up
