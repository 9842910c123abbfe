"""The real receiver and worker as processes of their own, to be killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from service.children import choose_port
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.forked import Forked
from tests.make_requests import signed

OURS = ("DATABASE_URL", "REDIS_URL", "SCALEKIT_", "SLACK_", "SPLUNK_", "AUTHWATCH_")
COMMAND = str(Path(sys.executable).with_name("authwatch"))
READY_SECONDS = 60
POLL_SECONDS = 0.05
# All of this is plain HTTP on loopback. A client left to itself reads the certificates, which takes it a tenth of a second,
# and a test that waits makes one for every look.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

# The shipped rules with waits a test can sit through.
RULES = """\
version: 1
rules:
- id: token-refresh-failing
  severity: P2
  count: {match: {kind: token.refresh_failed}, within: 15m, gte: 3}
  resolve:
    event:
    - kind: [token.refresh_succeeded, account.authorized]
    - became: ACTIVE
  actions: [{pause_workflows: {depends_on: account_id, stable_for: 1s}}]
  annotations: {summary: "Token refresh is failing", what_to_do: "Ask the owner to authorize it again."}
- id: account-disconnected-active-workflow
  severity: P2
  state:
    of: account
    match:
    - {status: [DISCONNECTED, DELETED], active_workflows: {gte: 1}}
    - {status: EXPIRED, active_workflows: {gte: 1}, for: 1s}
  actions: [{pause_workflows: {depends_on: account_id, stable_for: 1s}}]
  annotations: {summary: "Account is {{ status }}", what_to_do: "Ask the owner to authorize it again."}
"""


@dataclass
class Running:
    """`environment` is what both parts get; each part is started and killed by itself."""

    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=lambda: choose_port("127.0.0.1"))
    processes: dict[str, subprocess.Popen[bytes] | Forked] = field(default_factory=dict)
    serve_words: tuple[str, ...] = ()
    program: tuple[str, ...] = (COMMAND,)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *parts: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        serve = ["serve", "--port", str(self.port), *self.serve_words]
        words = {"serve": serve, "worker": ["worker"], "worker-2": ["worker"]}
        for part in parts:
            path, environment = self.folder / f"{part}.log", {**clean, **self.environment}
            # Several receiver processes set up their metrics before anything is imported: no fork for them.
            if self.program == (COMMAND,) and "--workers" not in words[part]:
                self.processes[part] = Forked(words[part], cwd=self.folder, env=environment, log=path)
                continue
            with path.open("ab") as log:
                self.processes[part] = subprocess.Popen(
                    [*self.program, *words[part]], cwd=self.folder, env=environment, stdout=log, stderr=log
                )

    async def ready(self) -> None:
        async def answers() -> bool:
            assert all(process.poll() is None for process in self.processes.values()), self.logs()
            try:
                async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as client:
                    return (await client.get(f"{self.url}/readyz")).status_code == 200
            except httpx.HTTPError:
                return False

        await until(answers, READY_SECONDS, self.logs)

    def kill(self, part: str, how: signal.Signals = signal.SIGKILL) -> None:
        self.processes[part].send_signal(how)
        if how in (signal.SIGKILL, signal.SIGTERM):
            self.processes[part].wait(20)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(20)

    def logs(self) -> str:
        """The last of each, to explain a failure: what shall be found or not found is looked for in `whole_logs`."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def whole_logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
            trust_env=False,
            verify=NO_TLS,
            timeout=20,
        )

    async def get(self, path: str) -> Any:
        async with self.client() as client:
            answer = await client.get(path)
            assert answer.status_code == 200, answer.text
            return answer.json()

    async def feed(self) -> list[dict[str, Any]]:
        """The whole pull feed, raw, page after page."""
        items: list[dict[str, Any]] = []
        cursor = ""
        async with self.client() as client:
            for _ in range(1000):
                page = (await client.get(f"/v1/siem/events?format=raw&limit=1000{cursor}")).json()
                items.extend(page["items"])
                cursor = f"&cursor={page['next_cursor']}"
                if not page["has_more"]:
                    return items
        raise AssertionError("the feed did not end")

    async def evaluated(self, seconds: float = 30) -> None:
        async def all_read() -> bool:
            return bool((await self.get("/v1/health"))["evaluator"]["lag_items"] == 0)

        await until(all_read, seconds, self.logs)


async def until(condition: Callable[[], Any], seconds: float, explain: Callable[[], str] = lambda: "") -> float:
    """Waits for an asynchronous condition, bounded; the seconds it took."""
    began = time.monotonic()
    while not await condition():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds} s\n{explain()}")
        await asyncio.sleep(POLL_SECONDS)
    return time.monotonic() - began


async def post(client: httpx.AsyncClient, body: bytes, *, message_id: str | None = None) -> httpx.Response:
    return await client.post(
        "/webhooks/scalekit",
        content=body,
        headers=signed(body, SECRET, message_id=message_id or json.loads(body)["id"]),
    )
