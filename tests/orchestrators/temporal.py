"""A real Temporal server, built from source by Go: its services in one process, in one SQLite file, asking for signed tokens.

It is spoken to by gRPC, so the scenarios, which put an HTTP door in front of a server, are not for it: test_temporal.py has
its own. Where there is no Go it is not built, and they are skipped.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from google.protobuf.duration_pb2 import Duration
from jwt.algorithms import RSAAlgorithm
from temporalio.api.common.v1 import Memo, WorkflowType
from temporalio.api.enums.v1 import ScheduleOverlapPolicy
from temporalio.api.schedule.v1 import (
    IntervalSpec,
    Schedule,
    ScheduleAction,
    ScheduleInfo,
    SchedulePatch,
    SchedulePolicies,
    ScheduleSpec,
    ScheduleState,
    TriggerImmediatelyRequest,
)
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflow.v1 import NewWorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    CreateScheduleRequest,
    DeleteScheduleRequest,
    DescribeNamespaceRequest,
    DescribeScheduleRequest,
    DescribeScheduleResponse,
    PatchScheduleRequest,
    RegisterNamespaceRequest,
)
from temporalio.service import ConnectConfig, RPCError, ServiceClient

from service.orchestrators.temporal_client import sdk_runtime
from tests.fakes.temporal import text_payload
from tests.orchestrators.real import Process, clean_environment, free_port, install, run

PINS = Path(__file__).with_name("temporal.txt")
NAMESPACE = "ops"
KEY_ID = "authwatch-tests"
PERIOD_SECONDS = 1
SERVICES = ("frontend", "internal-frontend", "history", "matching", "worker")
READY_SECONDS_MAX = 60.0


def no_go() -> str | None:
    """Why it cannot be had here."""
    return None if shutil.which("go") else "no Temporal server: it is built from source, and there is no `go` here"


def build(folder: Path) -> None:
    """About 700 packages; what they were built from is 3 GB, and is not kept."""
    scratch = folder / "scratch"
    own = clean_environment(
        GOBIN=str(folder), GOMODCACHE=str(scratch / "mod"), GOCACHE=str(scratch / "build"), GOFLAGS="-modcacherw"
    )
    words = ["go", "install", PINS.read_text(encoding="utf-8").strip()]
    run(words, cwd=folder, log=folder.parent / "install.log", env=own)
    shutil.rmtree(scratch)


class Temporal:
    kind = "temporal"

    def __init__(self, folder: Path) -> None:
        self.versions = {"temporal server": PINS.read_text(encoding="utf-8").strip().rpartition("@")[2]}
        self._folder = folder
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        ports = {name: (free_port(), free_port()) for name in SERVICES}
        self.address = f"127.0.0.1:{ports['frontend'][0]}"
        public = json.loads(RSAAlgorithm.to_jwk(self._key.public_key())) | {"kid": KEY_ID, "alg": "RS256", "use": "sig"}
        (folder / "keys.json").write_text(json.dumps({"keys": [public]}))
        # JSON is YAML as well.
        (folder / "server.yaml").write_text(json.dumps(server_config(folder, ports)))
        binary = install(self.kind, PINS, build) / "server"
        words: list[str | Path] = [binary, "--config-file", folder / "server.yaml", "start"]
        for name in SERVICES:
            words += ["--service", name]
        self._process = Process(words, folder, clean_environment(), self._listens, READY_SECONDS_MAX, "temporal")
        self._admin: ServiceClient | None = None

    def _listens(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=1.0):
                return True
        except OSError:
            return False

    def token(self, *permissions: str, seconds: float = 3_600.0) -> str:
        """As a person's or a program's identity provider signs it; `seconds` below zero: it has expired."""
        claims = {"sub": "tests", "permissions": list(permissions), "exp": int(time.time() + seconds)}
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": KEY_ID})

    def start(self) -> None:
        self._process.start()

    def stop(self) -> None:
        self._process.stop()
        self._admin = None

    async def admin(self) -> ServiceClient:
        if self._admin is None:
            key = self.token("temporal-system:admin")
            config = ConnectConfig(target_host=self.address, api_key=key, tls=False, runtime=sdk_runtime())
            self._admin = await ServiceClient.connect(config)
        return self._admin

    async def ready(self) -> None:
        """Once its namespace is there, and a schedule can be made in it: its parts find each other after a while."""
        service = (await self.admin()).workflow_service
        keep = Duration(seconds=86_400)
        await eventually(
            lambda: service.register_namespace(
                RegisterNamespaceRequest(namespace=NAMESPACE, workflow_execution_retention_period=keep)
            ),
            but="already",
        )
        await eventually(lambda: service.describe_namespace(DescribeNamespaceRequest(namespace=NAMESPACE)))
        await eventually(lambda: self.create("first"), but="already")
        await eventually(lambda: self.describe("first"))

    async def create(self, ref: str, *, notes: str = "", workflow: str = "Import") -> str:
        """It starts a workflow every second, and lets them run beside each other, so that each start is one more."""
        service = (await self.admin()).workflow_service
        start = NewWorkflowExecutionInfo(
            workflow_id=f"{ref}-run", workflow_type=WorkflowType(name=workflow), task_queue=TaskQueue(name="nobody")
        )
        schedule = Schedule(
            spec=ScheduleSpec(interval=[IntervalSpec(interval=Duration(seconds=PERIOD_SECONDS))]),
            action=ScheduleAction(start_workflow=start),
            policies=SchedulePolicies(overlap_policy=ScheduleOverlapPolicy.SCHEDULE_OVERLAP_POLICY_ALLOW_ALL),
            state=ScheduleState(notes=notes),
        )
        memo = Memo(fields={"owner": text_payload("billing")})
        request = CreateScheduleRequest(
            namespace=NAMESPACE, schedule_id=ref, schedule=schedule, memo=memo, request_id=f"create-{ref}"
        )
        await service.create_schedule(request, timeout=timedelta(seconds=10))
        return ref

    async def describe(self, ref: str) -> DescribeScheduleResponse:
        service = (await self.admin()).workflow_service
        request = DescribeScheduleRequest(namespace=NAMESPACE, schedule_id=ref)
        return await service.describe_schedule(request, timeout=timedelta(seconds=10))

    async def info(self, ref: str) -> ScheduleInfo:
        return (await self.describe(ref)).info

    async def works(self, ref: str) -> int:
        """How many workflows it has started."""
        return int((await self.info(ref)).action_count)

    async def looks(self, ref: str) -> Schedule:
        """All of it: what is not its state, a pause must not touch either."""
        return (await self.describe(ref)).schedule

    async def by_hand(self, ref: str, **patch: Any) -> None:
        service = (await self.admin()).workflow_service
        request = PatchScheduleRequest(
            namespace=NAMESPACE, schedule_id=ref, patch=SchedulePatch(**patch), request_id=f"hand-{time.time_ns()}"
        )
        await service.patch_schedule(request, timeout=timedelta(seconds=10))

    async def trigger(self, ref: str) -> None:
        await self.by_hand(ref, trigger_immediately=TriggerImmediatelyRequest())

    async def delete(self, ref: str) -> None:
        service = (await self.admin()).workflow_service
        await service.delete_schedule(DeleteScheduleRequest(namespace=NAMESPACE, schedule_id=ref))


async def eventually(call: Any, *, but: str | None = None, seconds_max: float = READY_SECONDS_MAX) -> None:
    """Until it is answered; `but`: what in a refusal is as good."""
    began = time.monotonic()
    while True:
        try:
            await call()
            return
        except RPCError as exc:
            if but is not None and but in exc.message.lower():
                return
            if time.monotonic() - began > seconds_max:
                raise
        await asyncio.sleep(0.2)


def server_config(folder: Path, ports: dict[str, tuple[int, int]]) -> dict[str, Any]:
    store = {
        "pluginName": "sqlite",
        "databaseName": str(folder / "temporal.db"),
        "connectAddr": "localhost",
        "connectProtocol": "tcp",
        "connectAttributes": {"cache": "private", "setup": "true", "journal_mode": "wal", "synchronous": "1"},
        "maxConns": 1,
        "maxIdleConns": 1,
        "maxConnLifetime": "1h",
    }
    port = ports["frontend"][0]
    active = {"enabled": True, "initialFailoverVersion": 1, "rpcName": "frontend", "rpcAddress": f"127.0.0.1:{port}"}
    return {
        "log": {"stdout": True, "level": "warn"},
        "persistence": {
            "defaultStore": "sqlite",
            "visibilityStore": "sqlite",
            "numHistoryShards": 1,
            "datastores": {"sqlite": {"sql": store}},
        },
        "global": {
            "membership": {"maxJoinDuration": "30s", "broadcastAddress": "127.0.0.1"},
            "authorization": {
                "authorizer": "default",
                "claimMapper": "default",
                "jwtKeyProvider": {"keySourceURIs": [(folder / "keys.json").as_uri()]},
            },
        },
        "services": {
            name: {"rpc": {"grpcPort": grpc, "membershipPort": membership, "bindOnLocalHost": True}}
            for name, (grpc, membership) in ports.items()
        },
        "clusterMetadata": {
            "enableGlobalNamespace": False,
            "failoverVersionIncrement": 10,
            "masterClusterName": "active",
            "currentClusterName": "active",
            "clusterInformation": {"active": active},
        },
        "dcRedirectionPolicy": {"policy": "noop"},
    }
