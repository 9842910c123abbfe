"""A strict OTLP/HTTP receiver: parses the protobuf, refuses what a collector or the store behind it refuses, keeps the rest.

Stricter than most: a Prometheus behind a collector drops what goes back in time or comes twice, Datadog what has no
service, and both without a word to whoever sent it. Here it is a 400.
"""

from __future__ import annotations

import asyncio
import gzip
import math
import re
import time
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric, NumberDataPoint
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

BODY_BYTES_MAX = 4 * 1024 * 1024
HANG_SECONDS = 30.0
# OpenTelemetry's instrument name syntax.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{0,254}")
UNIT = re.compile(r"[\x20-\x7e]{0,63}")
AHEAD_NS_MAX = 60 * 10**9

Labels = tuple[tuple[str, str], ...]


class Refused(Exception):
    """Why a request is a 400."""


@dataclass
class FakeOtlp:
    """`app` is served with `serve(otlp.app)`. `wanted`: headers without which a request is a 401."""

    wanted: dict[str, str] = field(default_factory=dict)
    pushes: list[dict[str, dict[Labels, float]]] = field(default_factory=list)  # metric -> attributes -> value
    requests: list[ExportMetricsServiceRequest] = field(default_factory=list)
    arrived_at: list[float] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    always: Response | None = None  # given to everybody, and nothing kept
    echo: bool = False  # a 400 that says back what it was sent in confidence
    hang: bool = False
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    partly: tuple[int, str] | None = None
    _last: dict[tuple[str, Labels], NumberDataPoint] = field(default_factory=dict)

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/metrics", self._export, methods=["POST"])])

    async def _export(self, request: Request) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=400)
        self.asked.set()
        self.arrived_at.append(time.monotonic())
        if self.hang:
            await asyncio.sleep(HANG_SECONDS)
        if self.echo:
            return Response(str(dict(request.headers)), status_code=400)
        if self.always is not None:
            return self.always
        if any(request.headers.get(name) != value for name, value in self.wanted.items()):
            return Response("unauthenticated", status_code=401)
        if request.headers.get("content-type") != "application/x-protobuf":
            return Response("415 unsupported media type", status_code=415)
        encoding = request.headers.get("content-encoding", "identity")
        if encoding == "gzip":
            try:
                body = gzip.decompress(body)
            except (OSError, EOFError):
                return self._refuse("not gzip")
        elif encoding != "identity":
            return self._refuse(f"unknown content-encoding {encoding}")
        if len(body) > BODY_BYTES_MAX:
            return Response("too large", status_code=413)
        try:
            self._keep(body)
        except Refused as exc:
            return self._refuse(str(exc))
        answer = ExportMetricsServiceResponse()
        if self.partly is not None:
            answer.partial_success.rejected_data_points, answer.partial_success.error_message = self.partly
        return Response(answer.SerializeToString(), media_type="application/x-protobuf")

    def _refuse(self, why: str) -> Response:
        self.refusals.append(why)
        return Response(why, status_code=400)

    def _keep(self, body: bytes) -> None:
        message = ExportMetricsServiceRequest()
        try:
            message.ParseFromString(body)
        except DecodeError:
            raise Refused("not an ExportMetricsServiceRequest") from None
        if not message.resource_metrics:
            raise Refused("no metrics")
        found: dict[str, dict[Labels, float]] = {}
        last: dict[tuple[str, Labels], NumberDataPoint] = {}
        for of_resource in message.resource_metrics:
            resource = dict(labels(of_resource.resource.attributes))
            if not resource.get("service.name"):
                raise Refused("a resource without service.name")
            for scope in of_resource.scope_metrics:
                if not scope.scope.name:
                    raise Refused("a scope without a name")
                for metric in scope.metrics:
                    if metric.name in found:
                        raise Refused(f"{metric.name} is given twice")
                    found[metric.name] = self._judge(metric, last)
        self._last.update(last)
        self.requests.append(message)
        self.pushes.append(found)

    def _judge(self, metric: Metric, last: dict[tuple[str, Labels], NumberDataPoint]) -> dict[Labels, float]:
        name, kind = metric.name, metric.WhichOneof("data")
        if not NAME.fullmatch(name) or not UNIT.fullmatch(metric.unit):
            raise Refused(f"{name!r} in {metric.unit!r} is no name and unit of a metric")
        if kind == "sum":
            if metric.sum.aggregation_temporality != AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE:
                raise Refused(f"{name}: only cumulative sums are taken here")
            points = list(metric.sum.data_points)
        elif kind == "gauge":
            points = list(metric.gauge.data_points)
        else:
            raise Refused(f"{name}: {kind} is not taken here")
        if not points:
            raise Refused(f"{name} has no points")
        found: dict[Labels, float] = {}
        for point in points:
            key = labels(point.attributes)
            value = point.as_double if point.WhichOneof("value") == "as_double" else float(point.as_int)
            if key in found:
                raise Refused(f"{name}{key} is given twice")
            if point.WhichOneof("value") is None or not math.isfinite(value):
                raise Refused(f"{name}{key} has no finite value")
            if not 0 < point.time_unix_nano <= time.time_ns() + AHEAD_NS_MAX:
                raise Refused(f"{name}{key}: its time is {point.time_unix_nano}")
            before = self._last.get((name, key))
            if before is not None and before.time_unix_nano >= point.time_unix_nano:
                raise Refused(f"{name}{key} is out of order")
            if kind == "sum":
                if not 0 < point.start_time_unix_nano <= point.time_unix_nano:
                    raise Refused(f"{name}{key} does not say since when it counts")
                if (
                    before is not None
                    and metric.sum.is_monotonic
                    and before.start_time_unix_nano == point.start_time_unix_nano
                    and before.as_double > value
                ):
                    raise Refused(f"{name}{key} went back")
            found[key] = value
            last[name, key] = point
        return found


def labels(attributes: Any) -> Labels:
    names = [attribute.key for attribute in attributes]
    if len(set(names)) != len(names) or not all(names):
        raise Refused(f"attributes {names}: a key is empty or given twice")
    return tuple(sorted((attribute.key, attribute.value.string_value) for attribute in attributes))
