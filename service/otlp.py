"""OTLP over HTTP: what the standard variables ask for, and metrics as the protobuf message that a collector takes.

The messages are those of opentelemetry-proto and the call is our own: the SDK's exporter follows redirects with the
configured headers in hand, waits in a thread, and logs what a collector answers. Values come from rows and not from
instruments, so that nothing else of the SDK would be used.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from urllib.parse import unquote, urlsplit, urlunsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Gauge,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from prometheus_client.metrics_core import Metric as Family
from pydantic import SecretStr

from service.errors import ConfigError
from service.redact import redact_text
from service.settings import Environment
from service.strict import Strict

PATH = "v1/metrics"
SERVICE_NAME = "authwatch"
INTERVAL_DEFAULT, INTERVAL_MIN, INTERVAL_MAX = timedelta(seconds=60), timedelta(seconds=1), timedelta(hours=1)
TIMEOUT_DEFAULT, TIMEOUT_MIN, TIMEOUT_MAX = timedelta(seconds=10), timedelta(milliseconds=100), timedelta(seconds=30)
PAIRS_MAX = 64
MESSAGE_CHARS_MAX = 200
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
HEADER_VALUE = re.compile(r"[\x20-\x7e]{0,4096}")
UNITS = {"seconds": "s", "ratio": "1"}


class OtlpSettings(Strict):
    """Where metrics go. `headers` usually hold a key."""

    url: SecretStr
    headers: dict[str, SecretStr]
    resource: dict[str, str]
    interval: timedelta
    timeout: timedelta
    compress: bool


def otlp_settings(variables: Mapping[str, str]) -> OtlpSettings | None:
    """None where nobody asks for it. Raises ConfigError, one sentence naming the variable, never its value.

    Variables as in OpenTelemetry's specification, "OTLP Exporter": an empty one is not set, and the one of metrics alone
    stands before the one of all signals. `*_FILE` is ours.
    """
    # OpenTelemetry takes an empty variable for one that is not set.
    env = Environment({name: value for name, value in variables.items() if value.strip()})
    if (env.get("OTEL_SDK_DISABLED") or "").lower() == "true" or env.get("OTEL_METRICS_EXPORTER") == "none":
        return None
    url = endpoint(env)
    if url is None:
        return None
    name, protocol = first(env, "PROTOCOL")
    if protocol not in (None, "http/protobuf"):
        raise ConfigError(
            f"{name} must be http/protobuf, which is all that is spoken here; a collector takes it at port 4318"
        )
    name, compression = first(env, "COMPRESSION")
    if compression not in (None, "none", "gzip"):
        raise ConfigError(f"{name} must be gzip or none")
    preference = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    if (env.get(preference) or "cumulative").lower() != "cumulative":
        raise ConfigError(
            f"{preference} must be cumulative: send to a collector or an agent, which makes deltas of it where they are"
            " wanted"
        )
    name, headers = first(env, "HEADERS")
    resource = pairs("OTEL_RESOURCE_ATTRIBUTES", env.get("OTEL_RESOURCE_ATTRIBUTES"))
    service_name = env.get("OTEL_SERVICE_NAME") or resource.get("service.name") or SERVICE_NAME
    name_of_timeout, timeout = first(env, "TIMEOUT")
    interval = env.get("OTEL_METRIC_EXPORT_INTERVAL")
    return OtlpSettings(
        url=SecretStr(url),
        headers={key: SecretStr(value) for key, value in header_pairs(name, headers).items()},
        resource={**resource, "service.name": service_name},
        interval=milliseconds("OTEL_METRIC_EXPORT_INTERVAL", interval, INTERVAL_DEFAULT, INTERVAL_MIN, INTERVAL_MAX),
        timeout=milliseconds(name_of_timeout, timeout, TIMEOUT_DEFAULT, TIMEOUT_MIN, TIMEOUT_MAX),
        compress=compression == "gzip",
    )


def endpoint(env: Environment) -> str | None:
    """That of metrics as it stands, else the base with the path of metrics behind its own."""
    whole = env.url("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https", "http")
    base = env.url("OTEL_EXPORTER_OTLP_ENDPOINT", "https", "http")
    if whole is not None or base is None:
        return whole
    parts = urlsplit(base)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{PATH}", "", ""))


def first(env: Environment, what: str) -> tuple[str, str | None]:
    """The name of the variable that counts, and its value."""
    names = (f"OTEL_EXPORTER_OTLP_METRICS_{what}", f"OTEL_EXPORTER_OTLP_{what}")
    values = [env.get(name) for name in names]
    return (names[0], values[0]) if values[0] is not None else (names[1], values[1])


def pairs(name: str, written: str | None) -> dict[str, str]:
    """`key=value,key=value`, percent-encoded, as W3C Baggage has it."""
    found: dict[str, str] = {}
    for number, item in enumerate((written or "").split(","), 1):
        if not item.strip():
            continue
        key, equals, value = (part.strip() for part in item.partition("="))
        if not key or not equals:
            raise ConfigError(f"{name}: entry {number} is not of the form key=value; write %2C for a comma in a value")
        found[unquote(key)] = unquote(value)
    if len(found) > PAIRS_MAX:
        raise ConfigError(f"{name} has more than {PAIRS_MAX} entries")
    return found


def header_pairs(name: str, written: str | None) -> dict[str, str]:
    found = pairs(name, written)
    for number, (key, value) in enumerate(found.items(), 1):
        if not HEADER_NAME.fullmatch(key) or not HEADER_VALUE.fullmatch(value):
            raise ConfigError(f"{name}: entry {number} cannot be an HTTP header; write name=value in ASCII")
    return {key.lower(): value for key, value in found.items()}


def milliseconds(name: str, written: str | None, default: timedelta, least: timedelta, most: timedelta) -> timedelta:
    if written is None:
        return default
    if written.isascii() and written.isdigit() and len(written) < 10:
        value = timedelta(milliseconds=int(written))
        if least <= value <= most:
            return value
    low, high = least // timedelta(milliseconds=1), most // timedelta(milliseconds=1)
    raise ConfigError(f"{name} must be a whole number of milliseconds from {low} to {high}")


def body_of(families: Sequence[Family], settings: OtlpSettings, *, now: datetime, since: datetime) -> bytes:
    """An ExportMetricsServiceRequest. Counters are cumulative from `since` on, whoever of several workers sends them:
    it is one stream, of one resource."""
    metrics = [to_metric(family, nanoseconds(now), nanoseconds(since)) for family in families if family.samples]
    scope = ScopeMetrics(scope=InstrumentationScope(name="authwatch"), metrics=metrics)
    resource = Resource(attributes=attributes(settings.resource))
    request = ExportMetricsServiceRequest(resource_metrics=[ResourceMetrics(resource=resource, scope_metrics=[scope])])
    body = request.SerializeToString()
    return gzip.compress(body, mtime=0) if settings.compress else body


def headers_of(settings: OtlpSettings) -> dict[str, str]:
    ours = {"content-type": "application/x-protobuf"} | ({"content-encoding": "gzip"} if settings.compress else {})
    return {key: value.get_secret_value() for key, value in settings.headers.items()} | ours


def to_metric(family: Family, now: int, since: int) -> Metric:
    """Named as in Prometheus text, less the ending that its readers of OTLP put there themselves."""
    counts = family.type == "counter"
    points = [
        NumberDataPoint(
            attributes=attributes(sample.labels),
            start_time_unix_nano=since if counts else 0,
            time_unix_nano=now,
            as_double=float(sample.value),
        )
        for sample in family.samples
    ]
    unit = next((unit for ending, unit in UNITS.items() if family.name.endswith(f"_{ending}")), "")
    metric = Metric(name=family.name, description=family.documentation, unit=unit)
    if counts:
        cumulative = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        metric.sum.CopyFrom(Sum(data_points=points, aggregation_temporality=cumulative, is_monotonic=True))
    else:
        metric.gauge.CopyFrom(Gauge(data_points=points))
    return metric


def attributes(values: Mapping[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in values.items()]


def nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000


def refused(body: bytes) -> tuple[int, str]:
    """(data points that the collector took no more of, why) as its answer has it. Raises ValueError for no such answer."""
    answer = ExportMetricsServiceResponse()
    try:
        answer.ParseFromString(body)
    except DecodeError as exc:
        raise ValueError("the answer is no ExportMetricsServiceResponse") from exc
    partial = answer.partial_success
    return partial.rejected_data_points, redact_text(partial.error_message)[:MESSAGE_CHARS_MAX]
