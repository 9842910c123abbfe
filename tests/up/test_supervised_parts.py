"""`authwatch up` on real Postgres, real Redis and stand-ins of our own parts: start, heal, stop, start again."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from service.children import command_line

Start = Callable[..., Any]  # the fixture: starts an `up`, see conftest.py
PARTS = ("receiver", "worker", "redis", "postgres")


def alive(data_dir: Path) -> list[str]:
    """The command lines of all processes that name this data dir or the place its servers live in."""
    note = data_dir / "home"
    places = {str(data_dir), str(data_dir / note.read_text().strip()) if note.exists() else str(data_dir)}
    if Path("/proc/self").exists():
        lines = [command_line(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    else:
        lines = subprocess.run(
            ["ps", "-ewwo", "command="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    return [line for line in lines if any(place in line for place in places)]


def test_the_first_start_says_what_it_made_once_and_the_second_start_keeps_it(start: Start, data_dir: Path) -> None:
    first = start().wait_ready()
    given, env = first.get(), first.env()
    assert first.end() == 0
    assert first.out == [f"ready: {first.url}"]
    said = "\n".join(first.err)
    assert env["SCALEKIT_WEBHOOK_SECRET"] in said
    assert env["AUTHWATCH_ADMIN_TOKEN"] in said
    assert f"{first.url}/webhooks/scalekit" in said
    assert f"send token.refresh_failed --account-id ca_1 --count 3 --data-dir '{data_dir}'" in said
    assert "stand-in worker: an alert" in said
    for name in ("SCALEKIT_WEBHOOK_SECRET", "AUTHWATCH_ADMIN_TOKEN", "DATABASE_URL", "REDIS_URL"):
        assert given[name] == env[name] != ""
    assert given["AUTHWATCH_PUBLIC_URL"] == env["AUTHWATCH_URL"] == first.url
    assert stat.S_IMODE((data_dir / "env").stat().st_mode) == 0o600

    second = start().wait_ready()
    again = second.env()
    with psycopg.connect(again["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT count(*) FROM migrations").fetchone() == (1,), "nothing to bring up to date"
    assert second.end() == 0
    assert again == env
    said = "\n".join(second.err)
    assert env["SCALEKIT_WEBHOOK_SECRET"] not in said
    assert env["AUTHWATCH_ADMIN_TOKEN"] not in said


def test_a_schema_that_is_not_where_it_was_left_is_migrated_again(start: Start, data_dir: Path) -> None:
    servers = start("--parts", "postgres").wait_ready()
    with psycopg.connect(servers.env()["DATABASE_URL"]) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of an older backup'")
    assert servers.end() == 0
    again = start("--parts", "postgres").wait_ready()
    with psycopg.connect(again.env()["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT count(*) FROM migrations").fetchone() == (2,)
    assert again.end() == 0


def test_a_signal_stops_every_part_and_the_exit_status_is_0(start: Start, data_dir: Path) -> None:
    up = start().wait_ready()
    assert len(alive(data_dir)) >= 5
    assert up.end(signal.SIGTERM) == 0
    assert alive(data_dir) == []


def test_a_hangup_ends_it_only_with_its_terminal(start: Start, data_dir: Path) -> None:
    master, slave = os.openpty()
    up = start(terminal=slave).wait_ready()
    os.close(slave)
    up.process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert up.process.poll() is None
    assert up.answers()
    os.close(master)
    assert up.process.wait(30) == 0
    assert alive(data_dir) == []


def test_a_hangup_without_a_terminal_ends_nothing(start: Start) -> None:
    up = start().wait_ready()
    up.process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert up.answers()
    assert up.end() == 0


def test_ctrl_c_which_reaches_every_process_of_the_group_still_ends_with_0(start: Start, data_dir: Path) -> None:
    up = start().wait_ready()
    groups = {os.getpgid(up.running(part)) for part in PARTS}
    assert groups == {up.process.pid}, "the parts are in one process group"
    os.killpg(up.process.pid, signal.SIGINT)
    assert up.process.wait(30) == 0
    assert alive(data_dir) == []
    assert not [line for line in up.err if "starting it again" in line]


def test_a_part_killed_with_9_is_back_in_the_same_place(start: Start) -> None:
    up = start().wait_ready()
    before = up.env()
    for part in PARTS:
        killed = up.running(part)
        os.kill(killed, signal.SIGKILL)
        up.wait(lambda part=part, killed=killed: up.pid(part) not in (None, killed) and up.answers())
        up.wait(lambda part=part: any(line.startswith(f"{part} ended (SIGKILL)") for line in up.err))

    def database_and_redis_answer() -> bool:
        try:
            with psycopg.connect(before["DATABASE_URL"], connect_timeout=2) as connection:
                fresh = "SELECT at > clock_timestamp() - interval '1 s' FROM heartbeats"
                return connection.execute(fresh).fetchone() == (True,)
        except psycopg.OperationalError:
            return False

    up.wait(database_and_redis_answer)
    assert up.env() == before
    assert up.end() == 0


def test_up_killed_with_9_leaves_nothing_that_blocks_the_next_start(start: Start, data_dir: Path) -> None:
    first = start().wait_ready()
    env = first.env()
    first.end(signal.SIGKILL)
    second = start().wait_ready()
    assert second.env() == env
    assert second.get()["pid"] == str(second.running("receiver"))
    assert second.end() == 0
    assert alive(data_dir) == []


def test_a_second_up_on_the_same_data_dir_says_so_and_the_first_is_untouched(start: Start, data_dir: Path) -> None:
    first = start().wait_ready()
    second = start(at=first.port + 1)
    assert second.end(signal.SIGCONT) == 1
    assert len(second.err) == 1
    assert str(data_dir) in second.err[0]
    assert "--data-dir" in second.err[0]
    assert first.answers()
    assert first.end() == 0


def test_a_port_that_is_taken_is_named_in_one_sentence(start: Start, data_dir: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        up = start(at=port)
        assert up.end(signal.SIGCONT) == 1
    assert len(up.err) == 1
    assert f"port {port} " in up.err[0]
    assert "--port" in up.err[0]
    assert not (data_dir / "env").exists()
    assert alive(data_dir) == []


def test_a_part_with_a_configuration_error_ends_the_start_with_its_last_line(start: Start, data_dir: Path) -> None:
    up = start(STAND_IN_RECEIVER="misconfigured")
    assert up.process.wait(30) == 2
    up.end()
    assert up.out == []
    assert up.err[-1].endswith("STAND_IN_RECEIVER is not a colour")
    assert alive(data_dir) == []


@pytest.mark.parametrize("name", ["AUTHWATCH_ADMIN_TOKEN", "DATABASE_URL"])
def test_a_setting_that_cannot_be_right_ends_the_start_before_anything_is_made(
    start: Start, data_dir: Path, name: str
) -> None:
    up = start(**{name: "x"})
    assert up.end(signal.SIGCONT) == 2
    assert len(up.err) == 1
    assert name in up.err[0]
    assert not (data_dir / "env").exists()
    assert not (data_dir / "home").exists()


def test_parts_of_one_data_dir_run_in_two_ups_and_find_each_other(start: Start, data_dir: Path) -> None:
    servers = start("--parts", "postgres,redis").wait_ready()
    ours = start("--parts", "receiver,worker").wait_ready()
    assert ours.get()["DATABASE_URL"] == servers.env()["DATABASE_URL"]
    ours.end(signal.SIGKILL)
    again = start("--parts", "receiver,worker").wait_ready()
    assert again.end() == 0
    assert servers.end() == 0


def test_parts_without_a_database_say_what_is_missing(start: Start) -> None:
    up = start("--parts", "receiver")
    assert up.end(signal.SIGCONT) == 2
    assert len(up.err) == 1
    assert up.err[0].startswith("authwatch: DATABASE_URL is missing")


def test_without_redis_the_rest_runs_all_the_same(start: Start) -> None:
    up = start("--parts", "postgres,receiver,worker").wait_ready()
    assert up.get()["REDIS_URL"] == ""
    assert up.end() == 0


def test_databases_that_are_given_are_used_and_none_is_started(start: Start, data_dir: Path, tmp_path: Path) -> None:
    servers = start("--parts", "postgres,redis").wait_ready()
    given = {name: servers.env()[name] for name in ("DATABASE_URL", "REDIS_URL")}
    up = start(to=tmp_path / "other", **given).wait_ready()
    assert {name: up.env()[name] for name in given} == given, "the other commands find them by the env file"
    assert not (tmp_path / "other" / "postgres").exists()
    assert not (tmp_path / "other" / "home").exists()
    assert up.end() == 0
    assert servers.end() == 0


def test_the_command_line_waits_for_no_import_it_does_not_need() -> None:
    heavy = "{'sqlalchemy', 'starlette', 'pydantic', 'psycopg', 'redis', 'alembic', 'httpx'}"
    script = f"import sys, service.cli; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("command", ["serve", "worker", "migrate"])
def test_a_part_of_its_own_without_a_database_exits_with_2_and_one_sentence(command: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "service.cli", command, "--data-dir", str(tmp_path)]
    clean = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "DATABASE_URL_FILE")}
    ran = subprocess.run(words, capture_output=True, text=True, check=False, env=clean)
    assert ran.returncode == 2
    assert ran.stderr.startswith("authwatch: DATABASE_URL is missing")
    assert ran.stderr.count("\n") == 1


def test_make_without_a_suitable_python_says_so_in_one_sentence(tmp_path: Path) -> None:
    makefile = Path(__file__).parents[2] / "Makefile"
    words = ["make", "-f", str(makefile), "run", "PYTHON=/nonexistent/python3"]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    said = [line for line in ran.stderr.splitlines() if "***" not in line]
    assert len(said) == 1
    assert "/nonexistent/python3" in said[0]
    assert "3.11" in said[0]
    assert list(tmp_path.iterdir()) == []
