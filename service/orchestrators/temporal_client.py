"""The connection to a Temporal server, by temporalio: bounded calls, none repeated, and failures told apart by gRPC status.

The SDK is loaded only where a section names such a server: it takes a while, and threads. Its own retries and log are off.
Facts: temporalio/service.py of 1.35, and ClientConnectError of its core.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from google.protobuf.message import DecodeError
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from service.errors import DeliveryFailed
from service.redact import MASK, redact_text

if TYPE_CHECKING:
    from temporalio.runtime import Runtime
    from temporalio.service import RPCError, ServiceClient

# One attempt is a connect and three calls at most, which must fit into what the worker gives it (25 s).
CALL_SECONDS = 6.0
CONNECT_SECONDS = 5.0
ID_BYTES_MAX = 1_000  # limit.maxIDLength of the server, of schedules and of request ids
EXCERPT_CHARS_MAX = 200
SECRET_FILE_BYTES_MAX = 64 * 1024
ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+):(?P<port>[0-9]{1,5})")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
# What the server answered to the first call, which `connect` makes, is told only as text.
CODE_AT_CONNECT = re.compile(r"call error after connection: .*?code: '?([A-Za-z ]+)")
AS_WORDS = {"Unauthenticated": "UNAUTHENTICATED", "PermissionDenied": "PERMISSION_DENIED"}
# "Not this", whenever it is asked; the others say "not now".
PERMANENT = frozenset(
    {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"}
)


class TemporalConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    kind: Literal["temporal"] = "temporal"
    name: str = Field(default="temporal", min_length=1, max_length=80)
    address: str = Field(max_length=300)
    namespace: str = Field(default="default", min_length=1, max_length=ID_BYTES_MAX)
    api_key: SecretStr | None = None
    api_key_file: Path | None = Field(default=None, strict=False)
    tls: bool | None = None  # None: with an API key or a certificate
    tls_ca_file: Path | None = Field(default=None, strict=False)
    tls_cert_file: Path | None = Field(default=None, strict=False)
    tls_key_file: Path | None = Field(default=None, strict=False)
    tls_server_name: str | None = Field(default=None, min_length=1, max_length=300)

    @field_validator("address")
    @classmethod
    def address_can_be_right(cls, address: str) -> str:
        found = ADDRESS.fullmatch(address)
        if found is None or not 0 < int(found["port"]) < 65_536:
            raise ValueError("not of the form host:port, without a scheme, such as temporal.example.com:7233")
        return address

    @field_validator("api_key")
    @classmethod
    def key_can_be_right(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None:
            check_key(key.get_secret_value())
        return key

    @model_validator(mode="after")
    def parts_fit(self) -> TemporalConfig:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("api_key and api_key_file are both given: keep one")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together: give both")
        if self.tls is False and (self.tls_ca_file or self.tls_cert_file or self.tls_server_name):
            raise ValueError("tls is false, and tls_... files or a name are given: remove one of them")
        if self.has_key and not self.with_tls and self.host not in LOOPBACK:
            raise ValueError("with tls false the API key would be readable on the way: remove tls")
        return self

    @property
    def has_key(self) -> bool:
        return self.api_key is not None or self.api_key_file is not None

    @property
    def with_tls(self) -> bool:
        if self.tls is not None:
            return self.tls
        return bool(self.has_key or self.tls_ca_file or self.tls_cert_file or self.tls_server_name)

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0]


class TemporalClient:
    """One connection, made with the first call and anew after each failure that may be the connection's or the key's; so a key
    or certificate that was replaced in its file is taken up. There is nothing to close: it goes with the last reference."""

    def __init__(self, config: TemporalConfig, *, timeout_seconds: float) -> None:
        self._config = config
        self._timeout_seconds = timeout_seconds
        self._service: ServiceClient | None = None
        self._connecting = asyncio.Lock()
        self._confided: tuple[str, ...] = ()

    async def call(self, rpc: str, request: Any, *, ref: str | None = None, writes: bool = False) -> Any:
        """Once: the SDK's own retries are off. `DeliveryFailed` is ambiguous only where something may have changed."""
        from temporalio.service import RPCError

        service = await self._connected()
        call: Callable[..., Any] = getattr(service.workflow_service, rpc)
        try:
            # The SDK tells the server the same time; this holds should it not come back itself.
            async with asyncio.timeout(self._timeout_seconds + 1.0):
                return await call(request, retry=False, timeout=timedelta(seconds=self._timeout_seconds))
        except TimeoutError:
            self._service = None
            raise self._no_answer(writes) from None
        except RPCError as exc:
            failed = self._judge(exc, ref, writes)
            if not failed.permanent or failed.code in ("http_401", "http_403"):
                self._service = None
            raise failed from None

    async def _connected(self) -> ServiceClient:
        if self._service is not None:
            return self._service
        try:
            async with asyncio.timeout(min(CONNECT_SECONDS, self._timeout_seconds + 1.0)), self._connecting:
                if self._service is None:
                    self._service = await self._connect()
                return self._service
        except TimeoutError:
            raise self._unreachable("no answer") from None

    async def _connect(self) -> ServiceClient:
        from temporalio.service import ConnectConfig, GrpcCompression, RetryConfig, ServiceClient, TLSConfig

        config = self._config
        key = config.api_key.get_secret_value() if config.api_key else read_key(config.api_key_file)
        self._confided = (key,) if key else ()
        tls: bool | TLSConfig = False
        if config.with_tls:
            tls = TLSConfig(
                server_root_ca_cert=read_file(config.tls_ca_file, "tls_ca_file"),
                client_cert=read_file(config.tls_cert_file, "tls_cert_file"),
                client_private_key=read_file(config.tls_key_file, "tls_key_file"),
                domain=config.tls_server_name,
            )
        try:
            return await ServiceClient.connect(
                ConnectConfig(
                    target_host=config.address,
                    api_key=key,
                    tls=tls,
                    retry_config=RetryConfig(max_retries=1),
                    identity="authwatch",
                    runtime=sdk_runtime(),
                    grpc_compression=GrpcCompression.NONE,
                    connect_timeout=timedelta(seconds=min(CONNECT_SECONDS, self._timeout_seconds)),
                )
            )
        except (RuntimeError, ValueError) as exc:  # what the SDK raises from connecting; its text may hold anything
            raise self._judge_connect(str(exc)) from None

    def _judge_connect(self, text: str) -> DeliveryFailed:
        found = CODE_AT_CONNECT.search(text)
        if found is not None and found[1] in AS_WORDS:
            return self._refused(AS_WORDS[found[1]], "")
        lower = text.lower()
        if "dns error" in lower or "failed to lookup" in lower:
            return self._unreachable("its name is unknown")
        if self._config.with_tls and "connection refused" not in lower:
            # Why a certificate of ours is refused, the other side often only says by hanging up.
            return self._unreachable("no TLS connection: one of the two sides refused the other's certificate, perhaps")
        return self._unreachable("refused, or no gRPC server there")

    def _judge(self, exc: RPCError, ref: str | None, writes: bool) -> DeliveryFailed:
        """By the gRPC status; what the server said is shown bounded, and without what we confided to it."""
        status, said = exc.status.name, self._excerpt(exc.message)
        where = f"{self._config.name} ({self._config.address})"
        lower = exc.message.lower()
        if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return self._refused(status, said)
        if status == "NOT_FOUND" and is_of_the_namespace(exc):
            message = f"{where} has no namespace {self._config.namespace}; correct `namespace` in its section"
            return DeliveryFailed(message, code="namespace_unknown", permanent=True)
        if ref is not None and (status == "NOT_FOUND" or (status == "FAILED_PRECONDITION" and "closed" in lower)):
            message = f"{where} has no schedule {ref}; register the workflow with the id that it has now"
            return DeliveryFailed(message, code="workflow_gone", permanent=True)
        if status in ("DEADLINE_EXCEEDED", "CANCELLED"):
            return self._no_answer(writes)
        if status == "UNAVAILABLE" and ("connect error" in lower or "connection refused" in lower):
            return self._unreachable("refused or unreachable")
        transient = status not in PERMANENT
        return DeliveryFailed(
            f"{where} answered {status}{said}",
            code=f"grpc_{status.lower()}",
            permanent=not transient,
            # Out of room means not taken; of the others nobody knows.
            ambiguous=writes and transient and status != "RESOURCE_EXHAUSTED",
        )

    def _refused(self, status: str, said: str) -> DeliveryFailed:
        mend = (
            "renew api_key, or the client certificate"
            if status == "UNAUTHENTICATED"
            else f"give its key write access to namespace {self._config.namespace}"
        )
        http = 401 if status == "UNAUTHENTICATED" else 403
        where = f"{self._config.name} ({self._config.address})"
        return DeliveryFailed(f"{where} answered {status}{said}; {mend}", code=f"http_{http}", permanent=True)

    def _no_answer(self, writes: bool) -> DeliveryFailed:
        what = "; it may have taken what we sent" if writes else ""
        message = (
            f"{self._config.name} ({self._config.address}) did not answer within {self._timeout_seconds:g} s{what}"
        )
        return DeliveryFailed(message, code="timeout", ambiguous=writes)

    def _unreachable(self, why: str) -> DeliveryFailed:
        message = f"cannot connect to {self._config.name} at {self._config.address} ({why}); check the address, the port and the network"
        return DeliveryFailed(message, code="connect_failed")

    def _excerpt(self, text: str) -> str:
        for secret in self._confided:
            text = text.replace(secret, MASK)
        text = "".join(char if char.isprintable() else " " for char in redact_text(text))
        return f": {text[:EXCERPT_CHARS_MAX]}" if text.strip() else ""


@lru_cache(maxsize=1)  # it holds threads of its own
def sdk_runtime() -> Runtime:
    """With the SDK's log off: it writes to our standard output, and what it was answered with it."""
    from temporalio.runtime import Runtime, TelemetryConfig

    return Runtime(telemetry=TelemetryConfig(logging=None, metrics=None), worker_heartbeat_interval=None)


def check_key(key: str) -> None:
    """It goes into a header."""
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("the API key is too short, or holds spaces or characters that no key holds")


def read_key(path: Path | None) -> str | None:
    content = read_file(path, "api_key_file")
    if content is None:
        return None
    key = content.decode("utf-8", "replace").strip()
    try:
        check_key(key)
    except ValueError as exc:
        raise DeliveryFailed(f"api_key_file: {exc}", code="http_401", permanent=True) from None
    return key


def read_file(path: Path | None, what: str) -> bytes | None:
    """At each connect, so that what was replaced there is taken up. Small, and only after a failure or a start."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return file.read(SECRET_FILE_BYTES_MAX)
    except OSError as exc:
        # As credentials that are refused: somebody mends the file, and what waits is tried again.
        raise DeliveryFailed(f"{what} cannot be read: {type(exc).__name__}", code="http_401", permanent=True) from None


def is_of_the_namespace(exc: RPCError) -> bool:
    from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure

    try:
        return any(detail.Is(NamespaceNotFoundFailure.DESCRIPTOR) for detail in exc.grpc_status.details)
    except DecodeError:
        return False
