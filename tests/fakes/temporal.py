"""A Temporal frontend as far as schedules go, over real gRPC, from the messages that temporalio brings.

It refuses what the server of 1.32 refuses (service/frontend/workflow_handler.go): a wrong or missing key, unknown namespaces
and schedules, ids and notes too long, page tokens it never gave. In front of it stands a relay, so that a connection can be
broken off in place of an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as Packed
from temporalio.api.common.v1 import GrpcStatus, Memo, Payload, SearchAttributes, WorkflowType
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.namespace.v1 import NamespaceInfo
from temporalio.api.schedule.v1 import Schedule, ScheduleListEntry, ScheduleListInfo, ScheduleState
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeNamespaceResponse,
    DescribeScheduleRequest,
    DescribeScheduleResponse,
    GetSystemInfoRequest,
    GetSystemInfoResponse,
    ListSchedulesRequest,
    ListSchedulesResponse,
    PatchScheduleRequest,
    PatchScheduleResponse,
    WorkflowServiceServicer,
    add_WorkflowServiceServicer_to_server,
)

from tests.fakes import STOP_SECONDS_MAX

NAMESPACE = "ops.a1b2c"
KEY = "temporal-key-of-the-tests-0123456789"
READER = "temporal-key-that-may-only-read-0123"
REF = "nightly-import"
NOTE = "every night at two"
NOTE_BYTES_MAX = ID_BYTES_MAX = 1_000
PAGE_MAX = 1_000
RPCS = ("GetSystemInfo", "DescribeNamespace", "DescribeSchedule", "PatchSchedule", "ListSchedules")

Context = Any  # grpc.aio.ServicerContext, which brings no types


class FakeTemporal:
    """`schedules` is what is there; `calls` what was asked, by RPC; `patches` what was really changed, with its request id."""

    def __init__(self) -> None:
        self.schedules: dict[str, ScheduleState] = {REF: ScheduleState(notes=NOTE)}
        self.tags: dict[str, tuple[dict[str, Payload], dict[str, Payload]]] = {}
        self.calls: list[str] = []
        self.patches: list[PatchScheduleRequest] = []
        self.triggered: list[str] = []
        self.keys = {KEY: True, READER: False}  # whether it may write
        self.public_info = False  # GetSystemInfo without a key, as a server of one's own may answer it
        self.slow_seconds = 0.0
        self.break_next = False
        self._next: list[tuple[str, str]] = []
        self._always: tuple[str, str] | None = None
        self._seen: set[str] = set()
        self._tokens: set[bytes] = set()
        self._relay: Relay | None = None

    def answer_next(self, status: str, said: str = "", *, always: bool = False) -> None:
        """The next call, or each, the one of a connect excepted, is answered so before it does anything."""
        if always:
            self._always = (status, said)
        else:
            self._next.append((status, said))

    def by_hand(self, ref: str, *, paused: bool, notes: str | None = None) -> None:
        """As `temporal schedule toggle` does it."""
        note = notes or ("Paused via CLI" if paused else "Unpaused via CLI")
        self.schedules[ref].CopyFrom(ScheduleState(paused=paused, notes=note))

    def starts(self, ref: str) -> bool:
        """Whether its next time is a start."""
        return ref in self.schedules and not self.schedules[ref].paused

    async def GetSystemInfo(self, request: GetSystemInfoRequest, context: Context) -> GetSystemInfoResponse:
        self.calls.append("GetSystemInfo")
        if not self.public_info:
            await self._authorize(context)
        if self._always is not None:
            await refuse(context, *self._always)
        return GetSystemInfoResponse(server_version="1.32.0")

    async def DescribeNamespace(self, request: DescribeNamespaceRequest, context: Context) -> DescribeNamespaceResponse:
        await self._enter("DescribeNamespace", request.namespace, context)
        return DescribeNamespaceResponse(namespace_info=NamespaceInfo(name=request.namespace))

    async def DescribeSchedule(self, request: DescribeScheduleRequest, context: Context) -> DescribeScheduleResponse:
        await self._enter("DescribeSchedule", request.namespace, context)
        state = await self._found(request.schedule_id, context)
        return DescribeScheduleResponse(schedule=Schedule(state=state), conflict_token=b"1")

    async def PatchSchedule(self, request: PatchScheduleRequest, context: Context) -> PatchScheduleResponse:
        await self._enter("PatchSchedule", request.namespace, context, writes=True)
        if not request.HasField("patch"):
            await refuse(context, "INVALID_ARGUMENT", "Schedule patch is not set on request.")
        if len(request.request_id.encode()) > ID_BYTES_MAX:
            await refuse(context, "INVALID_ARGUMENT", "RequestId length exceeds limit.")
        if max(len(request.patch.pause.encode()), len(request.patch.unpause.encode())) > NOTE_BYTES_MAX:
            await refuse(context, "INVALID_ARGUMENT", "Schedule notes exceeds size limit.")
        state = await self._found(request.schedule_id, context)
        if request.request_id not in self._seen:
            self._seen.add(request.request_id)
            self._patch(state, request)
        if self.break_next:
            self.break_next = False
            assert self._relay is not None
            self._relay.break_off()
        if self.slow_seconds:
            await asyncio.sleep(self.slow_seconds)
        return PatchScheduleResponse()

    def _patch(self, state: ScheduleState, request: PatchScheduleRequest) -> None:
        before = state.SerializeToString(deterministic=True)
        if request.patch.HasField("trigger_immediately"):
            self.triggered.append(request.schedule_id)  # paused or not
        if request.patch.pause:  # an empty note is no pause
            state.paused, state.notes = True, request.patch.pause
        if request.patch.unpause:
            state.paused, state.notes = False, request.patch.unpause
        if state.SerializeToString(deterministic=True) != before:
            self.patches.append(request)

    async def ListSchedules(self, request: ListSchedulesRequest, context: Context) -> ListSchedulesResponse:
        await self._enter("ListSchedules", request.namespace, context)
        token = request.next_page_token
        if token and token not in self._tokens:
            await refuse(context, "INVALID_ARGUMENT", "Invalid NextPageToken.")
        size = request.maximum_page_size if 0 < request.maximum_page_size <= PAGE_MAX else PAGE_MAX
        first = int(token or b"0")
        refs = list(self.schedules)
        more = str(first + size).encode() if first + size < len(refs) else b""
        self._tokens.add(more)
        entries = [self._entry(ref) for ref in refs[first : first + size]]
        return ListSchedulesResponse(schedules=entries, next_page_token=more)

    def _entry(self, ref: str) -> ScheduleListEntry:
        attributes, memo = self.tags.get(ref, ({}, {}))
        state = self.schedules[ref]
        return ScheduleListEntry(
            schedule_id=ref,
            memo=Memo(fields=memo),
            search_attributes=SearchAttributes(indexed_fields=attributes),
            info=ScheduleListInfo(
                workflow_type=WorkflowType(name="ImportTickets"), paused=state.paused, notes=state.notes
            ),
        )

    async def _enter(self, rpc: str, namespace: str, context: Context, *, writes: bool = False) -> None:
        self.calls.append(rpc)
        answer = self._next.pop(0) if self._next else self._always
        if answer is not None:
            await refuse(context, *answer)
        await self._authorize(context, writes=writes)
        if not namespace:
            await refuse(context, "INVALID_ARGUMENT", "Namespace not set on request.")
        if namespace != NAMESPACE:
            said, detail = f"Namespace {namespace} is not found.", Packed()
            detail.Pack(NamespaceNotFoundFailure(namespace=namespace))
            status = GrpcStatus(code=grpc.StatusCode.NOT_FOUND.value[0], message=said, details=[detail])
            await refuse(context, "NOT_FOUND", said, (("grpc-status-details-bin", status.SerializeToString()),))

    async def _authorize(self, context: Context, *, writes: bool = False) -> None:
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        may_write = self.keys.get(str(given).removeprefix("Bearer "))
        if may_write is None or not str(given).startswith("Bearer "):
            await refuse(context, "UNAUTHENTICATED", "Request unauthorized.")
        if writes and not may_write:
            await refuse(context, "PERMISSION_DENIED", "Request unauthorized.")

    async def _found(self, ref: str, context: Context) -> ScheduleState:
        if not ref:
            await refuse(context, "INVALID_ARGUMENT", "ScheduleId is not set on request.")
        if len(ref.encode()) > ID_BYTES_MAX:
            await refuse(context, "INVALID_ARGUMENT", "ScheduleId length exceeds limit.")
        if ref not in self.schedules:
            await refuse(context, "NOT_FOUND", "schedule not found")
        return self.schedules[ref]


async def refuse(context: Context, status: str, said: str, trailing: tuple[tuple[str, bytes], ...] = ()) -> NoReturn:
    await context.abort(grpc.StatusCode[status], said, trailing)
    raise AssertionError("abort raises")


def text_payload(value: Any) -> Payload:
    return Payload(metadata={"encoding": b"json/plain"}, data=json.dumps(value).encode())


class Relay:
    """Passes bytes on, until it breaks every connection off."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: set[asyncio.StreamWriter] = set()

    def break_off(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self._port)
        self._open |= {writer, behind}
        try:
            await asyncio.gather(pass_on(reader, behind), pass_on(behind_reader, writer))
        finally:
            self._open -= {writer, behind}


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@contextlib.asynccontextmanager
async def serve(fake: FakeTemporal, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[str]:
    """Gives host:port."""
    server = grpc.aio.server()
    servicer: Any = cast(Any, WorkflowServiceServicer)()  # of it all the other calls are UNIMPLEMENTED
    for rpc in RPCS:
        setattr(servicer, rpc, getattr(fake, rpc))
    add_WorkflowServiceServicer_to_server(servicer, server)
    port = (
        server.add_secure_port("127.0.0.1:0", credentials) if credentials else server.add_insecure_port("127.0.0.1:0")
    )
    await server.start()
    fake._relay = Relay(port)
    front = await asyncio.start_server(fake._relay, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{front.sockets[0].getsockname()[1]}"
    finally:
        front.close()
        fake._relay.break_off()
        await asyncio.wait_for(front.wait_closed(), STOP_SECONDS_MAX)
        await asyncio.wait_for(server.stop(0), STOP_SECONDS_MAX)
