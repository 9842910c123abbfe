"""A strict OTLP/HTTP receiver of logs: parses the protobuf, refuses what a collector or the store behind it refuses."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tests.fakes.hec import Scripted
from tests.fakes.otlp import AHEAD_NS_MAX, Refused, labels
from tests.fakes.slack import BreakOff

BODY_BYTES_MAX = 20 * 1024 * 1024  # of the collector's HTTP receiver
PROTOBUF = "application/x-protobuf"


@dataclass
class FakeOtlpLogs:
    """`app` is served with `serve(fake.app)`. `wanted`: headers without which a request is a 401."""

    wanted: dict[str, str] = field(default_factory=dict)
    body_bytes_max: int = BODY_BYTES_MAX
    records: list[LogRecord] = field(default_factory=list)  # what was kept, in order
    resources: list[dict[str, str]] = field(default_factory=list)
    posts: list[tuple[int, int]] = field(default_factory=list)  # (records, bytes before gzip) of each that was read
    refusals: list[str] = field(default_factory=list)
    gzipped: list[bool] = field(default_factory=list)
    wire: list[str] = field(default_factory=list)
    drop_first: list[tuple[int, str]] = field(default_factory=list)  # of the next posts: so many are dropped, and why
    as_json: bool = False  # answers in JSON, whatever it was sent
    always: Scripted | None = None
    _slow_seconds: float = 0.0
    _break_off: bool = False

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/logs", self._export, methods=["POST"])])

    def slow_next(self, seconds: float) -> None:
        self._slow_seconds = seconds

    def break_off_next(self) -> None:
        self._break_off = True

    async def _export(self, request: Request) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=400)
        if self.always is not None:
            return Response(self.always.body, status_code=self.always.status, headers=self.always.headers)
        said = self._answer(request, body)
        if self._slow_seconds:
            seconds, self._slow_seconds = self._slow_seconds, 0.0
            await asyncio.sleep(seconds)
        if self._break_off:
            self._break_off = False
            return BreakOff()
        return said

    def _answer(self, request: Request, body: bytes) -> Response:
        if any(request.headers.get(name) != value for name, value in self.wanted.items()):
            return Response("unauthenticated", status_code=401)
        if request.headers.get("content-type") != PROTOBUF:
            return Response("415 unsupported media type, supported: [application/json, application/x-protobuf]", 415)
        encoding = request.headers.get("content-encoding", "identity")
        if encoding == "gzip":
            try:
                body = gzip.decompress(body)
            except (OSError, EOFError):
                return self._refuse("not gzip")
        elif encoding != "identity":
            return self._refuse(f"unknown content-encoding {encoding}")
        if len(body) > self.body_bytes_max:
            return Response("too large", status_code=413)
        try:
            found = self._read(body)
        except Refused as exc:
            return self._refuse(str(exc))
        answer = ExportLogsServiceResponse()
        if found:
            self.wire += [f"{record}{record.body.string_value}" for record in found]
            self.posts.append((len(found), len(body)))
            self.gzipped.append(encoding == "gzip")
            dropped, why = self.drop_first.pop(0) if self.drop_first else (0, "")
            self.records += found[min(dropped, len(found)) :]
            answer.partial_success.rejected_log_records = min(dropped, len(found))
            answer.partial_success.error_message = why
        if self.as_json:
            partial = answer.partial_success
            said = {"rejectedLogRecords": str(partial.rejected_log_records), "errorMessage": partial.error_message}
            return Response(json.dumps({"partialSuccess": said} if found else {}), media_type="application/json")
        return Response(answer.SerializeToString(), media_type=PROTOBUF)

    def _refuse(self, why: str) -> Response:
        self.refusals.append(why)
        return Response(why, status_code=400)

    def _read(self, body: bytes) -> list[LogRecord]:
        message = ExportLogsServiceRequest()
        try:
            message.ParseFromString(body)
        except DecodeError:
            raise Refused("not an ExportLogsServiceRequest") from None
        found: list[LogRecord] = []
        for of_resource in message.resource_logs:
            resource = dict(labels(of_resource.resource.attributes))
            if not resource.get("service.name"):
                raise Refused("a resource without service.name")
            for scope in of_resource.scope_logs:
                if not scope.scope.name:
                    raise Refused("a scope without a name")
                if not scope.log_records:
                    raise Refused("a scope without records")
                for record in scope.log_records:
                    judge(record)
                    found.append(record)
            self.resources.append(resource)
        return found


def judge(record: LogRecord) -> None:
    labels([attribute for attribute in record.attributes if attribute.value.WhichOneof("value") == "string_value"])
    names = [attribute.key for attribute in record.attributes]
    if len(set(names)) != len(names):
        raise Refused(f"attributes {names}: a key is given twice")
    if not 1 <= record.severity_number <= 24:
        raise Refused(f"severity {record.severity_number}")
    for at in (record.time_unix_nano, record.observed_time_unix_nano):
        if not 0 < at <= time.time_ns() + AHEAD_NS_MAX:
            raise Refused(f"its time is {at}")
    if record.body.WhichOneof("value") != "string_value" or not record.body.string_value:
        raise Refused("a record without a body")
    if not record.event_name:
        raise Refused("an event without a name")
    if record.trace_id or record.span_id or record.dropped_attributes_count:
        raise Refused("there is no trace here")


def attributes_of(record: LogRecord) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in record.attributes}
