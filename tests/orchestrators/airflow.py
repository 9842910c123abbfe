"""A real Airflow 3 on loopback: its API server, its scheduler and its DAG processor, on SQLite.

What its DAGs do is nothing (an EmptyOperator, which the scheduler itself ends), so that a start by the schedule is a run of
the scheduler's and costs no process. A file that is written is parsed within seconds, and its tokens live for a few of them:
no scenario goes by without one that is too old.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.orchestrators.real import Process, clean_environment, free_port, install, run, venv

PINS = Path(__file__).with_suffix(".txt")
USERS = "authwatch:user,person:admin,onlooker:viewer"
PASSWORD, PASSWORD_VARIABLE = "Pw-0f-authwatch-1", "AIRFLOW_PASSWORD"
PERSONS_PASSWORD, ONLOOKERS_PASSWORD = "Pw-0f-a-person-1", "Pw-0f-an-onlooker-1"
TOKEN_SECONDS = 20
PERIOD_SECONDS = 4
READ_ANEW_SECONDS = 5.0
WAIT_SECONDS_MAX = 240.0  # on a busy machine
EACH_ITS_OWN = httpx.Limits(max_keepalive_connections=0)  # a server that is stopped now and then keeps none
LOOKS = ("dag_id", "is_paused", "is_stale", "tags", "timetable_summary", "max_active_runs", "owners")
HEAD = """
from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
"""
# Without `is_paused_upon_creation` a new DAG is paused: that is Airflow's own default.
BUSY = """
with DAG({name!r}, schedule=timedelta(seconds={period}), start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False,
         max_active_runs=1, is_paused_upon_creation=False, tags=["authwatch"]):
    EmptyOperator(task_id="work")
"""
# Switched on, and not due in the life of anybody's tests: two hundred runs at once would be the scheduler's, not ours.
RARE = """
for n in range({count}):
    with DAG({name!r}.format(n), schedule="@daily", start_date=datetime(2100, 1, 1, tzinfo=UTC), catchup=False,
             is_paused_upon_creation=False, tags=["authwatch"]):
        EmptyOperator(task_id="work")
"""


class Airflow:
    kind = "airflow"
    quiet_seconds = PERIOD_SECONDS * 3.0
    rename_keeps = False  # another dag_id is another DAG; the old one is stale from when its file is read again

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dags = folder / "dags"
        self.dags.mkdir()
        self._bin = install(self.kind, PINS, fill) / "venv" / "bin"
        pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", PINS.read_text(encoding="utf-8"), re.MULTILINE))
        self.versions: Mapping[str, str] = {
            name: pinned[name] for name in ("apache-airflow", "fastapi", "starlette", "sqlalchemy")
        }
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(trust_env=False, base_url=self.url, timeout=30.0, limits=EACH_ITS_OWN)
        self._passwords = folder / "passwords.json"
        self._let_in(PASSWORD)
        self.env = self._environment()
        self._token, self._token_until = "", 0.0
        self._files: dict[str, Path] = {}
        airflow = self._bin / "airflow"
        api: list[str | Path] = [airflow, "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        parts: list[tuple[str, list[str | Path], Callable[[], bool]]] = [
            ("api-server", api, self._answers),
            ("dag-processor", [airflow, "dag-processor"], lambda: self._healthy("dag_processor")),
            ("scheduler", [airflow, "scheduler"], lambda: self._healthy("scheduler")),
        ]
        self._parts = [Process(words, folder, self.env, ready, name=name) for name, words, ready in parts]
        run([airflow, "db", "migrate"], cwd=folder, log=folder / "migrate.log", env=self.env)

    def _environment(self) -> dict[str, str]:
        settings = {
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__DAGS_FOLDER": self.dags,
            "CORE__SIMPLE_AUTH_MANAGER_USERS": USERS,
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": self._passwords,
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "CORE__PARALLELISM": 2,
            "API_AUTH__JWT_SECRET": "a-secret-of-the-tests-and-of-nobody-else-" * 2,
            "API_AUTH__JWT_EXPIRATION_TIME": TOKEN_SECONDS,
            "API_AUTH__JWT_LEEWAY": 0,
            "DAG_PROCESSOR__REFRESH_INTERVAL": 1,
            "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": 1,
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 3600,  # a file that was changed is read at once all the same
            "DAG_PROCESSOR__STALE_DAG_THRESHOLD": 2,
            "DAG_PROCESSOR__PARSING_PROCESSES": 1,
            "SCHEDULER__PARSING_CLEANUP_INTERVAL": 2,
            "WORKERS__EXECUTION_API_TIMEOUT": 60.0,  # of a task that runs; five seconds are few on a busy machine
            "LOGGING__LOGGING_LEVEL": "WARNING",
            "USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        own = {f"AIRFLOW__{name}": str(value) for name, value in settings.items()}
        return clean_environment(AIRFLOW_HOME=str(self.folder / "home"), **own)

    def start(self) -> None:
        for part in self._parts:
            part.start()

    def stop(self) -> None:
        for part in reversed(self._parts):
            part.stop()

    def section(self, url: str) -> Mapping[str, Any]:
        return {"kind": self.kind, "url": url, "username": "authwatch", "password": f"${{{PASSWORD_VARIABLE}}}"}

    def environment(self) -> Mapping[str, str]:
        return {PASSWORD_VARIABLE: PASSWORD}

    def create(self, name: str, *, busy: bool = False) -> str:
        self.write(name, BUSY.format(name=name, period=PERIOD_SECONDS) if busy else RARE.format(count=1, name=name))
        return name

    def create_many(self, count: int, prefix: str) -> Sequence[str]:
        refs = [f"{prefix}_{n:04}" for n in range(count)]
        self.write(refs[-1], RARE.format(count=count, name=prefix + "_{:04}"))
        wait(lambda: all(self.dag(ref) is not None for ref in refs), f"{count} DAGs are there")
        return refs

    def write(self, dag_id: str, text: str, *, path: Path | None = None) -> None:
        """A file with this DAG in it, until it is known."""
        self._files[dag_id] = path or self.dags / f"{dag_id}.py"
        self._files[dag_id].write_text(HEAD + text, encoding="utf-8")
        wait(lambda: (self.dag(dag_id) or {"is_stale": True})["is_stale"] is False, f"{dag_id} is known")

    def dag(self, ref: str) -> Mapping[str, Any] | None:
        answer = self.ask("GET", f"/api/v2/dags/{ref}")
        return None if answer.status_code == 404 else answer.raise_for_status().json()

    def is_paused(self, ref: str) -> bool:
        dag = self.dag(ref)
        assert dag is not None, ref
        return bool(dag["is_paused"])

    def looks(self, ref: str) -> Any:
        dag = self.dag(ref)
        return dag and {name: dag[name] for name in LOOKS}

    def pause(self, ref: str) -> None:
        self._set(ref, True)

    def resume(self, ref: str) -> None:
        self._set(ref, False)

    def _set(self, ref: str, paused: bool) -> None:
        self.ask("PATCH", f"/api/v2/dags/{ref}?update_mask=is_paused", {"is_paused": paused}).raise_for_status()

    def rename(self, ref: str, name: str) -> str:
        text = RARE.format(count=1, name=name)
        self.write(name, text, path=self._files.pop(ref))
        wait(lambda: self._is_stale_by_now(ref, self._files[name]), f"{ref} is stale")
        return name

    def _is_stale_by_now(self, ref: str, path: Path) -> bool:
        """A reading too soon after the one before makes nothing stale, and there is none by itself for an hour."""
        if (self.dag(ref) or {"is_stale": True})["is_stale"] is True:
            return True
        if time.time() - path.stat().st_mtime > READ_ANEW_SECONDS:
            path.touch()
        return False

    def delete(self, ref: str) -> None:
        """Its file first: as long as that is there, a deleted DAG comes back when it is read."""
        self._files.pop(ref).unlink()
        wait(lambda: (self.dag(ref) or {"is_stale": True})["is_stale"] is True, f"{ref} is stale")
        wait(lambda: self.ask("DELETE", f"/api/v2/dags/{ref}").status_code in (204, 404), f"{ref} is deleted")

    def break_credentials(self) -> None:
        """Its password is another one; and what it holds is too old a little later."""
        self._let_in("an0ther-one-since")
        time.sleep(TOKEN_SECONDS)

    def mend_credentials(self) -> None:
        self._let_in(PASSWORD)

    def _let_in(self, password: str) -> None:
        of = {"authwatch": password, "person": PERSONS_PASSWORD, "onlooker": ONLOOKERS_PASSWORD}
        written = self._passwords.with_suffix(".new")
        written.write_text(json.dumps(of), encoding="utf-8")
        written.replace(self._passwords)

    def is_change(self, method: str, path: str) -> bool:
        return method == "PATCH" and path.startswith("/api/v2/dags/")

    def works(self, ref: str) -> int:
        started = "run_type=scheduled&state=running&state=success"
        return int(self.ask("GET", f"/api/v2/dags/{ref}/dagRuns?limit=1&{started}").json().get("total_entries", 0))

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """As a person who may do everything, at the server itself."""
        if time.monotonic() > self._token_until:
            self._token = self.get_token("person", PERSONS_PASSWORD)
            self._token_until = time.monotonic() + TOKEN_SECONDS / 2
        return self.http.request(method, path, json=body, headers={"authorization": f"Bearer {self._token}"})

    def get_token(self, username: str, password: str) -> str:
        answer = self.http.post("/auth/token", json={"username": username, "password": password})
        return str(answer.raise_for_status().json()["access_token"])

    def _answers(self) -> bool:
        try:
            return bool(self.get_token("authwatch", PASSWORD))
        except httpx.HTTPError:
            return False

    def _healthy(self, part: str) -> bool:
        try:
            said = self.http.get("/api/v2/monitor/health").json()
        except (httpx.HTTPError, ValueError):
            return False
        return bool(said.get(part, {}).get("status") == "healthy")


def fill(folder: Path) -> None:
    venv(folder, PINS)


def wait(until: Callable[[], bool], what: str, seconds_max: float = WAIT_SECONDS_MAX) -> None:
    began = time.monotonic()
    while not until():
        assert time.monotonic() - began < seconds_max, f"not in {seconds_max:g} s: {what}"
        time.sleep(0.25)
