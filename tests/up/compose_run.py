"""`make compose-test`: builds the image, runs docker-compose.yml for real, breaks it, and leaves nothing behind.

It needs a Docker engine and `docker compose` (or `docker-compose` 1.29); every wait and every command is bounded.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from service.children import choose_port
from service.queue import QUEUE_NAME

ROOT = Path(__file__).resolve().parents[2]
AUTHWATCH = str(Path(sys.executable).with_name("authwatch"))
OURS = ("DATABASE_URL", "REDIS_URL", "SCALEKIT_", "SLACK_", "SPLUNK_", "AUTHWATCH_", "POSTGRES_", "COMPOSE_")
BUILD_SECONDS_MAX = 900
COMMAND_SECONDS_MAX = 180
HEALTHY_SECONDS_MAX = 90
PAUSED_SECONDS_MAX = 10  # a second from receipt is the aim and is printed; a machine that just built an image is slow
USER = "10001:10001"


class Compose:
    """A project of its own: name, port, secrets and image belong to this run."""

    def __init__(self, empty: Path) -> None:
        self.empty = empty  # a folder without anybody's .env or .authwatch
        self.name = f"authwatch-run-{os.getpid()}"
        self.port = choose_port("127.0.0.1")
        self.token = secrets.token_urlsafe(16)
        self.image = f"authwatch:{self.name}"
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(OURS)} | {
            "AUTHWATCH_ADMIN_TOKEN": self.token,
            "AUTHWATCH_PORT": str(self.port),
            "AUTHWATCH_VERSION": self.name,
            "POSTGRES_PASSWORD": "p@ss/w:rd %40#?",  # what a URL could not carry as it is
            "SCALEKIT_WEBHOOK_SECRET": "whsec_" + b64encode(secrets.token_bytes(32)).decode(),
        }
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=COMMAND_SECONDS_MAX)
        self._words = ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]
        self.api = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=10,
            trust_env=False,
        )

    def __call__(self, *words: str, seconds: float = COMMAND_SECONDS_MAX) -> str:
        nothing = self.empty / "no.env"
        nothing.touch()
        fixed = ["-p", self.name, "-f", str(ROOT / "docker-compose.yml"), "--env-file", str(nothing)]
        return command([*self._words, *fixed, *words], self.environment, seconds)

    def inspect(self, service: str) -> dict[str, Any]:
        ids = self("ps", "-q", service).split()
        assert len(ids) == 1, f"{service} has {len(ids)} containers"
        found: list[dict[str, Any]] = json.loads(command(["docker", "inspect", ids[0]], self.environment))
        return found[0]

    def health(self, service: str) -> str:
        return str(self.inspect(service)["State"]["Health"]["Status"])

    def wait_healthy(self) -> None:
        for service in ("postgres", "redis", "receiver", "worker"):
            wait(f"{service} healthy", lambda service=service: self.health(service) == "healthy")  # type: ignore[misc]

    def send(self, kind: str, account_id: str, count: int = 1) -> subprocess.CompletedProcess[str]:
        words = [
            AUTHWATCH,
            "send",
            kind,
            "--account-id",
            account_id,
            "--count",
            str(count),
            "--url",
            str(self.api.base_url),
        ]
        return subprocess.run(
            words, cwd=self.empty, env=self.environment, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX
        )

    def break_account(self, number: int) -> None:
        """A workflow, three failures of its account, and the workflow is paused."""
        put = self.api.put(f"/v1/workflows/w{number}", json={"name": f"W{number}", "account_ids": [f"ca_{number}"]})
        assert put.json()["state"] == "active", put.text
        sent = self.send("token.refresh_failed", f"ca_{number}", count=3)
        assert sent.returncode == 0, sent.stdout + sent.stderr
        wait(f"w{number} paused", lambda: self.state(number) == "paused", PAUSED_SECONDS_MAX)
        gate = self.api.get("/v1/gate", params={"workflow_id": f"w{number}"}).json()
        assert (gate["allow"], gate["reason"]) == (False, "workflow_paused"), gate

    def state(self, number: int) -> str:
        return str(self.api.get(f"/v1/workflows/w{number}").json()["state"])

    def woken_by_redis(self) -> bool:
        """The worker's arq has signed on; a Redis without persistence has forgotten that at its next start."""
        return self("exec", "-T", "redis", "redis-cli", "exists", f"{QUEUE_NAME}:health-check").strip() == "1"

    def ready(self) -> int:
        return self.api.get("/readyz").status_code


def command(words: list[str], environment: Mapping[str, str], seconds: float = COMMAND_SECONDS_MAX) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def wait(what: str, condition: Callable[[], bool], seconds: float = HEALTHY_SECONDS_MAX) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not {what} within {seconds} s"
        time.sleep(0.05)
    print(f"  {what} after {time.monotonic() - began:.1f} s", flush=True)


def check_containers(compose: Compose) -> None:
    for service in ("migrate", "receiver", "worker"):
        found = compose.inspect(service)
        host = found["HostConfig"]
        assert found["Config"]["User"] == USER
        assert host["ReadonlyRootfs"] is True
        assert host["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        ports = [binding["HostIp"] for bound in (host["PortBindings"] or {}).values() for binding in bound]
        assert ports == (["127.0.0.1"] if service == "receiver" else [])
    assert compose.inspect("migrate")["State"]["ExitCode"] == 0
    for service in ("postgres", "redis"):
        assert not compose.inspect(service)["HostConfig"]["PortBindings"]
    inside = "id -u; touch /app/x 2>&1; touch /tmp/x && echo written; command -v gcc cc pip uv"
    said = compose("exec", "-T", "receiver", "sh", "-c", f"{inside}; true").splitlines()
    assert said[0] == "10001"
    assert "Read-only file system" in said[1]
    assert said[2:] == ["written"], f"the image has a tool it does not need: {said[3:]}"
    assert "SLACK_" not in compose("exec", "-T", "worker", "env"), "what is unset stays unset"
    empty = ["docker", "run", "--rm", "-e", "DATABASE_URL=postgresql://a@b/c", "-e", "SCALEKIT_WEBHOOK_SECRET="]
    done = subprocess.run([*empty, compose.image], capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "SCALEKIT_WEBHOOK_SECRET is set but empty" in done.stderr


def exercise(compose: Compose) -> None:
    print("built; starting", flush=True)
    compose("up", "-d")
    compose.wait_healthy()
    check_containers(compose)
    made = compose("exec", "-T", "receiver", "authwatch", "tokens", "create", "--name", "run", "--scope", "read")
    assert compose.api.get("/v1/accounts", headers={"Authorization": f"Bearer {made.strip()}"}).status_code == 200
    print(compose("exec", "-T", "receiver", "authwatch", "doctor", "--url", "http://127.0.0.1:8080"))  # ends with 0
    print("everything runs", flush=True)
    wait("redis in use", compose.woken_by_redis)
    compose.break_account(1)

    print("redis stopped", flush=True)
    compose("stop", "redis")
    compose.break_account(2)
    compose("start", "redis")
    wait("redis in use again", compose.woken_by_redis)

    print("postgres stopped", flush=True)
    compose("stop", "postgres")
    wait("not ready", lambda: compose.ready() == 503)
    refused = compose.send("token.refresh_failed", "ca_3")
    assert refused.returncode == 1, refused
    assert refused.stdout.startswith("503"), refused
    wait("receiver unhealthy", lambda: compose.health("receiver") == "unhealthy")
    wait("worker unhealthy", lambda: compose.health("worker") == "unhealthy")
    compose("start", "postgres")
    wait("ready again", lambda: compose.ready() == 200)
    compose.break_account(3)
    compose.wait_healthy()

    print("everything taken down and started again", flush=True)
    compose("down")
    compose("up", "-d")
    compose.wait_healthy()
    assert [compose.state(number) for number in (1, 2, 3)] == ["paused"] * 3
    failures = compose.api.get("/v1/events", params={"kind": "token.refresh_failed"}).json()["items"]
    assert len({event["id"] for event in failures}) == len(failures) == 9, "each accepted event once, no refused one"
    alerts = compose.api.get("/v1/alerts").json()["items"]
    assert sorted(alert["account_id"] for alert in alerts) == ["ca_1", "ca_2", "ca_3"]
    rotate(compose)


def rotate(compose: Compose) -> None:
    print("the secret from a file, changed while it runs", flush=True)
    folder = compose.empty / "secrets"
    folder.mkdir(mode=0o755)
    old = compose.environment.pop("SCALEKIT_WEBHOOK_SECRET")
    new = "whsec_" + b64encode(secrets.token_bytes(32)).decode()

    def write(text: str) -> None:
        fresh = folder / "new"
        fresh.write_text(text)
        fresh.chmod(0o644)  # the container's user is another
        fresh.replace(folder / "webhook-secrets")

    def answered(secret: str) -> str:
        compose.environment["SCALEKIT_WEBHOOK_SECRET"] = secret
        try:
            return compose.send("account.updated", "ca_4").stdout[:3]
        finally:
            del compose.environment["SCALEKIT_WEBHOOK_SECRET"]

    write(old)
    compose.environment |= {
        "AUTHWATCH_SECRETS": str(folder),
        "SCALEKIT_WEBHOOK_SECRET_FILE": "/run/authwatch/webhook-secrets",
    }
    compose("up", "-d")
    compose.wait_healthy()
    started = compose.inspect("receiver")["State"]["StartedAt"]
    assert (answered(old), answered(new)) == ("202", "401")
    write(f"{new},{old}")
    wait("the new one taken", lambda: answered(new) == "202", PAUSED_SECONDS_MAX)
    assert answered(old) == "202"
    write(new)
    wait("the old one refused", lambda: answered(old) == "401", PAUSED_SECONDS_MAX)
    assert compose.inspect("receiver")["State"]["StartedAt"] == started


def main() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode:
        sys.exit("compose-test: no Docker engine answers here: install and start one")
    with TemporaryDirectory() as empty:
        compose = Compose(Path(empty))
        print(f"building {compose.image}", flush=True)
        try:
            compose("build", seconds=BUILD_SECONDS_MAX)
            try:
                exercise(compose)
            except (AssertionError, httpx.HTTPError):
                print(compose("logs", "--no-color", "--tail", "40"), file=sys.stderr)
                raise
        finally:
            compose("down", "-v", "--remove-orphans")
            subprocess.run(["docker", "image", "rm", compose.image], capture_output=True, timeout=COMMAND_SECONDS_MAX)
    left = command(["docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={compose.name}"], os.environ)
    assert not left, f"containers are left: {left}"
    print("compose-test: all of it holds")


if __name__ == "__main__":
    main()
