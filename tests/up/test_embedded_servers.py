"""The embedded Postgres and Redis: private, durable, and started whatever the last crash left behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from service import placement
from service.children import command_line, wait_until
from service.embedded import EmbeddedFailed, Postgres, Redis, start_postgres, start_redis
from tests.up.stand_in import copied_from


@pytest.fixture
def postgres(data_dir: Path, made_cluster: Path) -> Iterator[Postgres]:
    with pytest.MonkeyPatch.context() as first_start:
        first_start.setattr(Postgres, "_create", copied_from(made_cluster))
        server = start_postgres(data_dir)
    yield server
    server.remove()


def ask(server: Postgres, question: str) -> object:
    with psycopg.connect(server.url) as connection:
        row = connection.execute(question).fetchone()
    assert row is not None
    return row[0]


def test_postgres_is_durable_utf8_utc_and_its_role_no_superuser(postgres: Postgres) -> None:
    for setting, value in {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "server_encoding": "UTF8",
        "timezone": "UTC",
        "listen_addresses": "127.0.0.1",
        "max_connections": "100",
        "idle_in_transaction_session_timeout": "1min",
    }.items():
        assert ask(postgres, f"SHOW {setting}") == value, setting
    assert ask(postgres, "SELECT datcollate FROM pg_database WHERE datname = current_database()") == "C"
    assert ask(postgres, "SELECT usesuper FROM pg_user WHERE usename = current_user") is False
    assert postgres.port not in (5432, 6379)


def test_nobody_gets_in_without_the_password_or_as_the_superuser(postgres: Postgres) -> None:
    for url in (postgres.url.replace(postgres.password, "wrong"), postgres.url.replace("authwatch:", "postgres:", 1)):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
    assert stat.S_IMODE((postgres.data_dir / "postgres.password").stat().st_mode) == 0o600


def test_the_data_the_port_and_the_password_are_kept(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    url = postgres.url
    postgres.stop()
    said: list[str] = []
    again = start_postgres(postgres.data_dir, progress=said.append)
    try:
        assert again.url == url
        assert ask(again, "SELECT answer FROM kept") == 42
        assert said == ["starting postgres"], "the cluster is created at the first start only"
    finally:
        again.stop()


def test_a_lost_password_is_made_anew_and_the_data_stay(postgres: Postgres) -> None:
    before = postgres.password
    postgres.stop()
    (postgres.data_dir / "postgres.password").unlink()
    postgres.start()
    assert postgres.password != before
    assert ask(postgres, "SELECT 1") == 1


@pytest.mark.parametrize("make", [Postgres, Redis])
def test_a_port_that_somebody_else_took_meanwhile_is_left_to_them(data_dir: Path, make: type[Postgres | Redis]) -> None:
    server = make(data_dir)
    server.start()
    server.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", server.port))
        other.listen()
        taken = server.port
        server.start()
        assert server.port != taken
        assert server.is_ready()
    server.remove()


def test_a_stale_pid_file_that_names_somebody_elses_process_does_not_block_the_start(postgres: Postgres) -> None:
    process = postgres.process
    assert process is not None
    pid_file = postgres.cluster / "postmaster.pid"
    rest = pid_file.read_text().split("\n", 1)[1]
    process.kill()
    process.wait()
    # A process of the servers' own user: Postgres itself would take this one for another postmaster.
    assert postgres.place is not None
    user = None if postgres.place.user is None else postgres.place.user.uid
    somebody = subprocess.Popen(["sleep", "60"], user=user, cwd="/")
    try:
        pid_file.write_text(f"{somebody.pid}\n{rest}")
        postgres.start()
        assert ask(postgres, "SELECT 1") == 1
        assert somebody.poll() is None, "somebody else's process is not touched"
    finally:
        somebody.kill()
        somebody.wait()


def test_a_start_that_was_interrupted_while_creating_the_cluster_begins_again(data_dir: Path) -> None:
    server = Postgres(data_dir)
    server.take_folder()
    half = server.folder / "cluster.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    server.start()
    try:
        assert ask(server, "SELECT 1") == 1
        assert not half.exists()
    finally:
        server.remove()


def test_a_predecessor_that_still_runs_is_ended_and_the_next_start_proceeds(postgres: Postgres) -> None:
    assert postgres.process is not None
    predecessor = postgres.process
    postgres._release()  # as if its parent had ended and it had not
    successor = Postgres(postgres.data_dir)
    successor.start()
    try:
        predecessor.wait(10)
        assert ask(successor, "SELECT 1") == 1
    finally:
        successor.stop()


def test_two_starts_on_one_cluster_are_refused(postgres: Postgres) -> None:
    with pytest.raises(EmbeddedFailed, match="in use"):
        Postgres(postgres.data_dir).start()
    assert ask(postgres, "SELECT 1") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start ends the left-over")
def test_both_die_with_a_parent_that_is_killed_with_9(data_dir: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from service.embedded import *\n"
        "d = Path(sys.argv[1]); a = start_postgres(d); b = start_redis(d)\n"
        "print(a.process.pid, b.process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(data_dir)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert all(command_line(pid) for pid in pids)
        assert len(pids) == 2
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert wait_until(lambda: not any(command_line(pid) for pid in pids), 5)


def test_redis_is_private_small_and_keeps_nothing(data_dir: Path) -> None:
    server = start_redis(data_dir)
    try:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
            settings = client.config_get("maxmemory", "maxmemory-policy", "appendonly", "save", "bind")
        assert settings == {
            "maxmemory": str(64 * 1024 * 1024),
            "maxmemory-policy": "noeviction",
            "appendonly": "no",
            "save": "",
            "bind": "127.0.0.1",
        }
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert server.password not in command_line(server.process.pid if server.process else 0)
    finally:
        server.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the servers to another user")
def test_below_a_folder_only_root_may_enter_servers_and_data_live_elsewhere_and_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(placement, "_wheels", _closed_copy_of_the_wheels(closed))
    server = start_postgres(closed / "data")
    try:
        assert server.place is not None
        assert server.place.user is not None
        assert not server.place.home.is_relative_to(tmp_path)
        assert not server.place.binaries.is_relative_to(tmp_path)
        assert server.cluster.stat().st_uid == server.place.user.uid
        assert stat.S_IMODE(server.cluster.stat().st_mode) == 0o700
        assert server.place.postgres.stat().st_uid == 0
        assert server.whereabouts()["AUTHWATCH_POSTGRES_DATA"] == str(server.folder)
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        server.stop()
        server.start()
        assert ask(server, "SELECT answer FROM kept") == 42
    finally:
        server.remove()


def _closed_copy_of_the_wheels(closed: Path) -> object:
    """The wheels as they lie in a virtual environment below such a folder."""
    real = placement._wheels()
    copy = closed / "wheels"
    placement._copy_servers(real, copy)
    return lambda: copy
