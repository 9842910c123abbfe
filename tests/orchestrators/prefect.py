"""A real Prefect server, and a real worker of it that runs the flow below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from tests.end_to_end.running import NO_TLS
from tests.orchestrators.real import Process, clean_environment, free_port, install, venv

PINS = Path(__file__).with_suffix(".txt")
AUTH_STRING, OTHER_AUTH_STRING = "admin:of-the-tests-4711", "admin:rotated-meanwhile-0815"
SECRET_NAME = "PREFECT_AUTH_STRING_OF_THE_TESTS"
POOL = "tests"
BUSY_SECONDS = 30  # a run is a process of Python that imports all of Prefect
RARE_SECONDS = 7 * 86400
CALL_SECONDS_MAX = 60.0
TRIES_MAX = 5
FLOW = """\
import time
from pathlib import Path
from prefect import flow, task

@task
def step(file: str):
    with Path(file).open("a") as out:
        out.write("step\\n")
    time.sleep(1)

@flow
def long_work(file: str):
    for _ in range(600):
        step(file)

@flow
def work(file: str):
    with Path(file).open("a") as out:
        out.write("begun\\n")
"""


def installed() -> Path:
    """The `bin` of a virtual environment with Prefect, made where there is none of these pins."""
    return install("prefect", PINS, lambda folder: (venv(folder, PINS), None)[1]) / "venv" / "bin"


class Prefect:
    kind = "prefect"
    quiet_seconds = 2.5 * BUSY_SECONDS
    rename_keeps = False  # a deployment's name cannot be changed: one under another name is another deployment

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bin = installed()
        self.versions: Mapping[str, str] = {
            "prefect": version_in(PINS, "prefect"),
            "sqlalchemy": version_in(PINS, "sqlalchemy"),
        }
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._auth_string = AUTH_STRING
        self._flows: dict[str, str] = {}
        words: list[str | Path] = [self._bin / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self._server = Process(words, folder, self._environment(), self._is_ready, name="prefect-server")
        words = [self._bin / "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
        self._worker = Process(words, folder, self._environment(), lambda: True, name="prefect-worker")
        (folder / "flow.py").write_text(FLOW)

    def start(self) -> None:
        self._server.env = self._environment()
        self._server.start()

    def stop(self) -> None:
        self._worker.stop()
        self._server.stop()

    def _environment(self) -> dict[str, str]:
        return clean_environment(
            PREFECT_HOME=str(self._folder / "home"),
            PREFECT_API_URL=f"{self.url}/api",
            PREFECT_API_AUTH_STRING=self._auth_string,
            PREFECT_SERVER_API_AUTH_STRING=self._auth_string,
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            PREFECT_SERVER_UI_ENABLED="false",
            # Its log of events is nothing to us, and most of what it writes.
            PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED="false",
            PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED="false",
            PREFECT_WORKER_QUERY_SECONDS="5",
            DO_NOT_TRACK="1",
        )

    def _is_ready(self) -> bool:
        try:
            return self._call("POST", "/deployments/count", {}).status_code == 200
        except httpx.TransportError:
            return False

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        user, _, password = self._auth_string.partition(":")
        with httpx.Client(trust_env=False, verify=NO_TLS, timeout=CALL_SECONDS_MAX) as client:
            return client.request(method, f"{self.url}/api{path}", json=body, auth=(user, password))

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        answer = self._heard(method, path, body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def _heard(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Its SQLite is locked for a minute now and then, on a busy machine; all that is asked here may be asked twice."""
        answer = httpx.Response(504, text="no answer in time")
        for _ in range(TRIES_MAX):
            try:
                answer = self._call(method, path, body)
            except httpx.TimeoutException:
                continue
            if answer.status_code < 500:
                break
        return answer

    def section(self, url: str) -> Mapping[str, Any]:
        return {"kind": "prefect", "url": f"{url}/api", "auth_string": f"${{{SECRET_NAME}}}"}

    def environment(self) -> Mapping[str, str]:
        return {SECRET_NAME: AUTH_STRING}

    def create(self, name: str, *, busy: bool = False) -> str:
        if busy:
            self._start_worker()
        every_seconds = BUSY_SECONDS if busy else RARE_SECONDS
        return self._deploy("flow-of-" + name, name, every_seconds, entrypoint="flow.py:work" if busy else None)

    def create_long(self, name: str) -> str:
        """Of work that goes on for minutes, a task a second, each of which writes a line."""
        self._start_worker()
        return self._deploy("flow-of-" + name, name, RARE_SECONDS, entrypoint="flow.py:long_work")

    def _start_worker(self) -> None:
        pool = self._call("POST", "/work_pools/", {"name": POOL, "type": "process", "concurrency_limit": 2})
        assert pool.status_code in (201, 409), pool.text  # 409: it is there
        self._worker.start()

    def create_many(self, count: int, prefix: str) -> Sequence[str]:
        return [self._deploy(f"flow-of-{prefix}", f"{prefix}-{number}", RARE_SECONDS) for number in range(count)]

    def _deploy(self, flow: str, name: str, every_seconds: int, *, entrypoint: str | None = None) -> str:
        """With a second schedule that is switched off: a resume must not switch it on."""
        if flow not in self._flows:
            self._flows[flow] = self._ask("POST", "/flows/", {"name": flow})["id"]
        schedules = [
            {"schedule": {"interval": float(every_seconds)}, "active": True},
            {"schedule": {"cron": "0 4 * * *", "timezone": "UTC"}, "active": False},
        ]
        runnable = {
            "path": str(self._folder),
            "entrypoint": entrypoint,
            "work_pool_name": POOL,
            "parameters": {"file": str(self._folder / f"{name}.runs")},
        }
        body = {"name": name, "flow_id": self._flows[flow], "schedules": schedules, "tags": ["authwatch", name]}
        self._ask("POST", "/deployments/", body | (runnable if entrypoint else {}))
        return f"{flow}/{name}"

    def deployment(self, ref: str) -> dict[str, Any]:
        flow, _, name = ref.partition("/")
        found: dict[str, Any] = self._ask("GET", f"/deployments/name/{quote(flow)}/{quote(name)}")
        return found

    def is_paused(self, ref: str) -> bool:
        return bool(self.deployment(ref)["paused"])

    def looks(self, ref: str) -> Any:
        now = self.deployment(ref)
        schedules = sorted((str(one["schedule"]), one["active"]) for one in now["schedules"])
        return {"schedules": schedules} | {name: now[name] for name in ("id", "paused", "tags", "parameters", "path")}

    def pause(self, ref: str) -> None:
        self._ask("POST", f"/deployments/{self.deployment(ref)['id']}/pause_deployment")

    def resume(self, ref: str) -> None:
        self._ask("POST", f"/deployments/{self.deployment(ref)['id']}/resume_deployment")

    def rename(self, ref: str, name: str) -> str:
        """As `prefect deploy` under another name, and the old one deleted."""
        new = self._deploy(ref.partition("/")[0], name, RARE_SECONDS)
        self.delete(ref)
        return new

    def delete(self, ref: str) -> None:
        gone = self._heard("DELETE", f"/deployments/{self.deployment(ref)['id']}")
        assert gone.status_code in (204, 404), gone.text

    def break_credentials(self) -> None:
        self._restart_with(OTHER_AUTH_STRING)

    def mend_credentials(self) -> None:
        self._restart_with(AUTH_STRING)

    def _restart_with(self, auth_string: str) -> None:
        self.stop()
        self._auth_string = auth_string
        self.start()

    def is_change(self, method: str, path: str) -> bool:
        return method == "POST" and path.endswith(("/pause_deployment", "/resume_deployment"))

    def works(self, ref: str) -> int:
        """What the flow itself wrote."""
        runs = self._folder / f"{ref.partition('/')[2]}.runs"
        return len(runs.read_text().splitlines()) if runs.exists() else 0

    def booked(self, ref: str) -> list[dict[str, Any]]:
        """Its runs that have not begun."""
        asked = {
            "deployments": {"id": {"any_": [self.deployment(ref)["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        }
        found: list[dict[str, Any]] = self._ask("POST", "/flow_runs/filter", asked)
        return found

    def start_by_hand(self, ref: str) -> dict[str, Any]:
        """A run, as a person or an API client asks for one."""
        run: dict[str, Any] = self._ask("POST", f"/deployments/{self.deployment(ref)['id']}/create_flow_run", {})
        return run

    def run_state(self, run_id: str) -> tuple[str, str]:
        state = self._ask("GET", f"/flow_runs/{run_id}")["state"]
        return state["type"], state["name"]


def version_in(pins: Path, package: str) -> str:
    lines = pins.read_text(encoding="utf-8").splitlines()
    return next(line.split("==")[1].split()[0] for line in lines if line.startswith(f"{package}=="))
