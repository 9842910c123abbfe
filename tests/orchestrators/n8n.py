"""A real n8n, from npm, with a database of its own.

2.8.4 is the newest that Node 20 runs. Its dependency `xlsx` is not on npm any more, so an older one stands in its place, which
is known to be unsafe and is never given a file here.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from tests.orchestrators.real import Process, clean_environment, free_port, install, run

PINS = Path(__file__).with_name("n8n.package.json")
SCOPES = ("workflow:read", "workflow:list", "workflow:activate", "workflow:deactivate")
# Our own way in has what a person at the editor may do.
EVERY_SCOPE = (*SCOPES, "workflow:create", "workflow:update", "workflow:delete", "execution:read", "execution:list")
KEYS = {"authwatch": SCOPES, "tests": EVERY_SCOPE}
OWNER = {"email": "owner@example.com", "firstName": "On", "lastName": "Call", "password": "Only-for-the-tests-1"}
SECRET = "N8N_API_KEY"
BUSY_SECONDS = 2
RARE_HOURS = 12
PAGE = 250
CALL_SECONDS_MAX = 60.0
NODE_HEAP_MIB = 1_024
CHANGES = re.compile(r"/api/v1/workflows/[^/]+/(activate|deactivate)")  # 2.8.4 answers 405 to the newer words


def install_n8n(folder: Path) -> None:
    shutil.copy(PINS, folder / "package.json")
    words = ["npm", "install", "--no-audit", "--no-fund", "--loglevel", "error"]
    run(
        words,
        cwd=folder,
        log=folder.parent / "install.log",
        env=clean_environment(npm_config_cache=str(folder / "npm")),
    )
    shutil.rmtree(folder / "npm", ignore_errors=True)


def every_seconds(count: int) -> dict[str, Any]:
    return schedule({"field": "seconds", "secondsInterval": count})


def every_hours(count: int) -> dict[str, Any]:
    return schedule({"field": "hours", "hoursInterval": count})


def schedule(interval: Mapping[str, Any]) -> dict[str, Any]:
    return node("Schedule", "n8n-nodes-base.scheduleTrigger", {"rule": {"interval": [dict(interval)]}}, 1.2)


def node(name: str, type_: str, parameters: Mapping[str, Any], version: float = 1) -> dict[str, Any]:
    said = {"id": name, "name": name, "type": type_, "typeVersion": version, "position": [0, 0]}
    return {**said, "parameters": dict(parameters)}


class N8n:
    kind = "n8n"
    quiet_seconds = 3.0 * BUSY_SECONDS
    rename_keeps = True

    def __init__(self, folder: Path) -> None:
        installed = install(self.kind, PINS, install_n8n)
        n8n = installed / "node_modules" / "n8n"
        node_version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
        self.versions: Mapping[str, str] = {
            "n8n": json.loads((n8n / "package.json").read_text())["version"],
            "node": node_version.lstrip("v"),
        }
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._cookies = httpx.Cookies()
        self._http = self._open()
        self._keys: dict[str, str] = {}
        self._starts = 0
        self._process = Process(
            words=["node", n8n / "bin" / "n8n", "start"],
            folder=folder,
            env=clean_environment(
                N8N_USER_FOLDER=str(folder),
                N8N_PORT=str(port),
                N8N_LISTEN_ADDRESS="127.0.0.1",
                N8N_RUNNERS_BROKER_PORT=str(free_port()),
                N8N_SECURE_COOKIE="false",
                N8N_DIAGNOSTICS_ENABLED="false",
                N8N_VERSION_NOTIFICATIONS_ENABLED="false",
                N8N_TEMPLATES_ENABLED="false",
                N8N_PERSONALIZATION_ENABLED="false",
                N8N_LOG_LEVEL="info",
                NODE_OPTIONS=f"--max-old-space-size={NODE_HEAP_MIB}",
            ),
            ready=self._is_ready,
            name="n8n",
        )

    def start(self) -> None:
        self._starts += 1
        self._process.start()
        self._http = self._open()
        if not self._keys:
            self._data("POST", "/rest/owner/setup", OWNER)
            self._keys = {label: self.make_key(label, scopes) for label, scopes in KEYS.items()}

    def stop(self) -> None:
        self._cookies = self._http.cookies
        self._http.close()
        self._process.stop()

    def section(self, url: str) -> Mapping[str, Any]:
        return {"kind": self.kind, "url": url, "api_key": f"${{{SECRET}}}"}

    def environment(self) -> Mapping[str, str]:
        return {SECRET: self._keys["authwatch"]}

    def create(self, name: str, *, busy: bool = False) -> str:
        return self.make(name, every_seconds(BUSY_SECONDS) if busy else every_hours(RARE_HOURS))

    def create_many(self, count: int, prefix: str) -> Sequence[str]:
        return [self.create(f"{prefix}{number}") for number in range(count)]

    def make(self, name: str, trigger: Mapping[str, Any], *after: Mapping[str, Any]) -> str:
        """One node after another, published."""
        nodes = [trigger, *(after or [node("Nothing", "n8n-nodes-base.noOp", {})])]
        links = {
            one["name"]: {"main": [[{"node": other["name"], "type": "main", "index": 0}]]}
            for one, other in pairwise(nodes)
        }
        made = self.api("POST", "/workflows", {"name": name, "nodes": nodes, "connections": links, "settings": {}})
        self.resume(made["id"])
        return str(made["id"])

    def is_paused(self, ref: str) -> bool:
        return self.api("GET", f"/workflows/{ref}")["active"] is False

    def looks(self, ref: str) -> Any:
        workflow = self.api("GET", f"/workflows/{ref}")
        return {
            key: workflow[key]
            for key in ("active", "activeVersionId", "versionId", "isArchived", "nodes", "connections")
        }

    def pause(self, ref: str) -> None:
        self.api("POST", f"/workflows/{ref}/deactivate")

    def resume(self, ref: str) -> None:
        """The newest version, as the button in the editor does."""
        self.api("POST", f"/workflows/{ref}/activate", {})

    def edit(self, ref: str, **changed: Any) -> None:
        """As the editor saves it: a draft, where something else is published."""
        workflow = self._data("GET", f"/rest/workflows/{ref}", None)
        self._data("PATCH", f"/rest/workflows/{ref}", {"versionId": workflow["versionId"], **changed})

    def rename(self, ref: str, name: str) -> str:
        self.edit(ref, name=name)
        return ref

    def delete(self, ref: str) -> None:
        self.api("DELETE", f"/workflows/{ref}")

    def break_credentials(self) -> None:
        """n8n cannot bring a revoked key back, so its row says another one for a while."""
        self.sql("UPDATE user_api_keys SET apiKey = 'revoked' WHERE label = 'authwatch'")

    def mend_credentials(self) -> None:
        self.sql("UPDATE user_api_keys SET apiKey = ? WHERE label = 'authwatch'", self._keys["authwatch"])

    def is_change(self, method: str, path: str) -> bool:
        return method == "POST" and CHANGES.fullmatch(path) is not None

    def works(self, ref: str) -> int:
        return sum(1 for one in self.executions(ref) if one["mode"] == "trigger")

    def executions(self, ref: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None:
            page = self.api(
                "GET", f"/executions?workflowId={ref}&limit={PAGE}" + (f"&cursor={cursor}" if cursor else "")
            )
            found += page["data"]
            cursor = page["nextCursor"]
        return found

    def execute(self, ref: str) -> str:
        """By hand, in the editor, as saved; the execution's id."""
        workflow = self._data("GET", f"/rest/workflows/{ref}", None)
        asked = {"workflowData": workflow, "triggerToStartFrom": {"name": workflow["nodes"][0]["name"]}}
        return str(self._data("POST", f"/rest/workflows/{ref}/run", asked)["executionId"])

    def call_webhook(self, path: str) -> int:
        return self._http.get(f"/webhook/{path}").status_code

    def archive(self, ref: str) -> None:
        self._data("POST", f"/rest/workflows/{ref}/archive", {})

    def tag(self, ref: str, name: str) -> None:
        made = self.api("POST", "/tags", {"name": name})
        self.api("PUT", f"/workflows/{ref}/tags", [{"id": made["id"]}])

    def make_key(self, label: str, scopes: Sequence[str], expires_at: int | None = None) -> str:
        """`expires_at` in Unix seconds."""
        asked = {"label": label, "scopes": scopes, "expiresAt": expires_at}
        return str(self._data("POST", "/rest/api-keys", asked)["rawApiKey"])

    def sql(self, statement: str, *values: str) -> list[Any]:
        """On its database, for what no call of n8n can do in the time of a test."""
        with closing(sqlite3.connect(self._folder / ".n8n" / "database.sqlite", timeout=30)) as database, database:
            return database.execute(statement, values).fetchall()

    def api(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(method, f"/api/v1{path}", json=body, headers={"X-N8N-API-KEY": self._keys["tests"]})
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json()

    def _data(self, method: str, path: str, body: Any) -> Any:
        """What the editor itself calls, as the owner who is logged in."""
        answer = self._http.request(method, path, json=body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json()["data"]

    def _open(self) -> httpx.Client:
        """Its owner stays logged in over a restart."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=CALL_SECONDS_MAX, cookies=self._cookies)

    def _is_ready(self) -> bool:
        """It answers before it knows its own paths; by its log it is done."""
        log = self._process.log.read_text(encoding="utf-8", errors="replace")
        return log.count("Editor is now accessible") >= self._starts
