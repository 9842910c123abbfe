"""OTLP logs over HTTP: each event a log record whose body is the item as JSON, sent to a collector or to who speaks as one.

The messages are those of opentelemetry-proto and the call is our own, for the reasons that service/otlp.py gives of
metrics; the SDK's exporter of logs does not look at a partial success at all. OTLP has no key to drop repeats by: an item
carries its event id as `log.record.uid`, the name that the conventions have for it.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

import httpx
import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from pydantic import Field, SecretStr, field_validator

from service.errors import DeliveryFailed
from service.event import Event
from service.otlp import HEADER_NAME, HEADER_VALUE, MESSAGE_CHARS_MAX, PAIRS_MAX, SERVICE_NAME, attributes, nanoseconds
from service.outbound import Response, check_url, post, raise_for_status
from service.redact import redact_text
from service.sinks.base import Poison, Progress, Sent, SinkConfig
from service.sinks.batches import Bounds, Piece, halves, pieces_of, send_each
from service.sinks.formats import ENCODED
from service.sinks.severity import CAPTIONS, HIGH, INFORMATIONAL, LOW, MEDIUM, security_severity

PATH = "/v1/logs"
BATCH_ITEMS_MAX = 500
BODY_BYTES_MAX = 2_000_000  # before gzip; collectors take 20 MB, and 4 MB where they hand on by gRPC
AROUND_BYTES_MAX = 16_384  # the resource, the scope, and the length in front of each
GZIP_BYTES_MIN = 4096
BOUNDS = Bounds(BATCH_ITEMS_MAX, BODY_BYTES_MAX - AROUND_BYTES_MAX)
# OTLP 1.x, "Retryable Response Codes"; whatever else is no success is not to be sent again by itself.
RETRYABLE = frozenset({429, 502, 503, 504})
SEVERITIES = {
    INFORMATIONAL: SeverityNumber.SEVERITY_NUMBER_INFO,
    LOW: SeverityNumber.SEVERITY_NUMBER_WARN,
    MEDIUM: SeverityNumber.SEVERITY_NUMBER_WARN2,
    HIGH: SeverityNumber.SEVERITY_NUMBER_ERROR,
}
HINTS = {
    401: "its key is not right; check the sink's headers",
    403: "its key may not write logs; check the sink's headers",
    404: "is this its address? /v1/logs is put behind what the sink's url says",
    415: "it takes no protobuf; is it an OTLP receiver?",
}


class OtlpLogsConfig(SinkConfig):
    """`url`: the base, as OTEL_EXPORTER_OTLP_ENDPOINT has it, or the whole address of logs. `headers` usually hold a
    key. `resource`: attributes beside `service.name`."""

    kind: Literal["otlp_logs"] = "otlp_logs"
    name: str = Field(default="otlp_logs", min_length=1, max_length=64)
    url: str
    headers: dict[str, SecretStr] = Field(default_factory=dict, max_length=PAIRS_MAX)
    resource: dict[str, str] = Field(default_factory=dict, max_length=PAIRS_MAX)
    compress: bool = True

    @field_validator("url")
    @classmethod
    def _of_logs(cls, value: str) -> str:
        check_url(value)
        parts = urlsplit(value)
        if parts.query:
            raise ValueError("must hold no query; what is confidential goes into headers")
        path = parts.path.rstrip("/")
        return urlunsplit((parts.scheme, parts.netloc, path if path.endswith(PATH) else path + PATH, "", ""))

    @field_validator("headers")
    @classmethod
    def _can_be_headers(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for number, (name, secret) in enumerate(value.items(), 1):
            if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(secret.get_secret_value()):
                raise ValueError(f"entry {number} cannot be an HTTP header; write `name: value` in ASCII")
        lowered = {name.lower(): secret for name, secret in value.items()}
        if len(lowered) < len(value) or lowered.keys() & {"content-type", "content-encoding", "content-length", "host"}:
            raise ValueError("names one twice, or one that is set here: content-type, content-encoding, host")
        return lowered

    @field_validator("resource")
    @classmethod
    def _is_small(cls, value: dict[str, str]) -> dict[str, str]:
        if sum(len(name.encode()) + len(said.encode()) + 16 for name, said in value.items()) > AROUND_BYTES_MAX // 2:
            raise ValueError(f"is larger than {AROUND_BYTES_MAX // 2} bytes")
        return value


class OtlpLogs:
    """A Sink. Holds no state between batches."""

    kind = "otlp_logs"
    batch_items_max = BATCH_ITEMS_MAX

    def __init__(self, config: OtlpLogsConfig, client: httpx.AsyncClient) -> None:
        self.name = config.name
        self._config = config
        self._client = client
        self._shape = ENCODED[config.format]
        self._resource = Resource(attributes=attributes({"service.name": SERVICE_NAME, **config.resource}))
        self._headers = {name: secret.get_secret_value() for name, secret in config.headers.items()}

    def __repr__(self) -> str:
        return f"OtlpLogs(name={self.name!r})"

    async def send(self, items: Sequence[Event]) -> Sent:
        progress = Progress()
        pieces = pieces_of(items, self._write, BOUNDS, progress)
        return await send_each(pieces, self._send_piece, progress, keyed=False)

    async def check(self) -> str:
        """A request with no logs in it, which a receiver takes as it takes any other."""
        response = await self._post(b"")
        self._raise_for(response)
        _rejected(response)
        return f"{response.host} takes OTLP logs from us"

    def _write(self, event: Event) -> bytes:
        """One record, framed as the element of the list that it will stand in."""
        severity = security_severity(event)
        record = LogRecord(
            time_unix_nano=nanoseconds(event.occurred_at),
            observed_time_unix_nano=nanoseconds(event.received_at),
            severity_number=SEVERITIES[severity],
            severity_text=CAPTIONS[severity],
            event_name=f"authwatch.{event.kind}",
            body=AnyValue(string_value=self._shape(event).decode()),
            attributes=[
                KeyValue(key="log.record.uid", value=AnyValue(string_value=event.id)),
                # Of receivers from before `event_name` was a field of its own.
                KeyValue(key="event.name", value=AnyValue(string_value=f"authwatch.{event.kind}")),
                KeyValue(key="authwatch.position", value=AnyValue(int_value=event.position)),
                KeyValue(key="authwatch.format", value=AnyValue(string_value=self._config.format)),
            ],
        )
        return ScopeLogs(log_records=[record]).SerializeToString()

    def _request(self, piece: Piece) -> bytes:
        """Serialized messages of one kind, put one behind the other, are one message with all their list elements."""
        scope = ScopeLogs(scope=InstrumentationScope(name="authwatch"))
        scope.MergeFromString(b"".join([one.body for one in piece]))
        logs = ResourceLogs(resource=self._resource, scope_logs=[scope])
        return ExportLogsServiceRequest(resource_logs=[logs]).SerializeToString()

    async def _send_piece(self, piece: Piece, progress: Progress) -> None:
        """Bounded: every turn finishes a piece or halves it. What was taken in part is never sent again."""
        waiting = [piece]
        while waiting:
            part = waiting.pop()
            response = await self._post(self._request(part))
            if response.status == 413 and len(part) > 1:
                waiting += reversed(halves(part))
                continue
            if response.status == 413:
                reason = response.excerpt or "refused with 413, too large"
                progress.refused(part[0].index, reason, host=response.host, status=413)
                progress.settled(part[0].index + 1)
                continue
            self._raise_for(response)
            rejected, why = _rejected(response)
            self._count(part, min(rejected, len(part)), why, response, progress)
            progress.settled(part[-1].index + 1)  # also where a later part fails: it is never sent again

    @staticmethod
    def _count(part: Piece, rejected: int, why: str, response: Response, progress: Progress) -> None:
        """OTLP says how many it dropped and not which. Where it was not all of them, the first of the request stand for
        as many as were dropped, and the reason says so: the number is right, and the names may not be."""
        progress.accepted += len(part) - rejected
        said = f": {why}" if why else ""
        if rejected < len(part):
            first, last = part[0].event.position, part[-1].event.position
            said = (
                f" {rejected} of the {len(part)} items at positions {first} to {last}, and OTLP does not say which; it"
                f" may not be this one{said}"
            )
        # Not by way of `refused`, which sends the batch again where all of it is: OTLP forbids that.
        progress.poison += [
            Poison(one.index, f"dropped by {response.host}{said}", dropped=True) for one in part[:rejected]
        ]

    async def _post(self, content: bytes) -> Response:
        headers = {**self._headers, "content-type": "application/x-protobuf"}
        if self._config.compress and len(content) >= GZIP_BYTES_MIN:
            content = gzip.compress(content, compresslevel=3, mtime=0)
            headers["content-encoding"] = "gzip"
        return await post(
            self._client,
            self._config.url,
            content=content,
            headers=headers,
            timeout_seconds=self._config.timeout_seconds,
        )

    @staticmethod
    def _raise_for(response: Response) -> None:
        permanent = () if response.status in RETRYABLE else (response.status,)
        raise_for_status(response, permanent_statuses=permanent, hint=HINTS.get(response.status, ""))


def _rejected(response: Response) -> tuple[int, str]:
    """(records that it dropped, why). An empty answer is a message with nothing in it: all of them were taken. Raises
    DeliveryFailed for what is no answer to OTLP, such as the login page of a proxy."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        rejected, why = _read_json(response)
    elif response.body and kind not in ("application/x-protobuf", "application/protobuf", ""):
        raise _unexpected(response)
    else:
        answer = ExportLogsServiceResponse()
        try:
            answer.ParseFromString(response.body)
        except DecodeError:
            raise _unexpected(response) from None
        rejected, why = answer.partial_success.rejected_log_records, answer.partial_success.error_message
    why = "".join(char if char.isprintable() else " " for char in redact_text(why))
    return max(rejected, 0), why[:MESSAGE_CHARS_MAX]


def _read_json(response: Response) -> tuple[int, str]:
    """Some answer so whatever they were sent. A number of 64 bits is text in protobuf's JSON."""
    try:
        answer = orjson.loads(response.body or b"{}")
        partial = answer.get("partialSuccess") or {}
        return int(partial.get("rejectedLogRecords") or 0), str(partial.get("errorMessage") or "")
    except (ValueError, TypeError, AttributeError):
        raise _unexpected(response) from None


def _unexpected(response: Response) -> DeliveryFailed:
    return DeliveryFailed(
        f"{response.host} answered {response.status}, but not as OTLP is answered; check the sink's url",
        code="answer_unexpected",
        status=response.status,
    )
