"""S3 and what speaks its protocol: a batch becomes a gzip NDJSON object whose key says which items are in it.

A batch that is sent again has the same key, and `If-None-Match: *` makes the second write a 412: it is there already, and
that is done. Only botocore's signer and its search for credentials are used (service/sinks/aws.py); the request itself goes
through `outbound`, whose failures say what may have arrived.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC
from typing import Literal, NoReturn, Self
from urllib.parse import quote, urlsplit

import httpx
from pydantic import Field, SecretStr, field_validator, model_validator

from service import outbound
from service.errors import DeliveryFailed
from service.event import Event
from service.outbound import Response
from service.sinks.aws import Credentials, Signer
from service.sinks.base import Progress, Sent, SinkConfig
from service.sinks.batches import Bounds, Piece, halves, pieces_of, send_each
from service.sinks.formats import ENCODED

BATCH_ITEMS_MAX = 5_000  # large objects are read faster and cost less: each is a paid request
OBJECT_BYTES_MAX = 8_000_000  # before gzip; what is held in memory at once
GZIP_LEVEL = 6  # it is stored for long, and one batch takes a tenth of a second in a thread
DIGEST_CHARS = 12
KEY_CHARS = re.compile(r"^[0-9A-Za-z!_.*'()=/-]*$")  # what S3 calls safe, and the = of partitioned tables
BUCKET = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
ERROR_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
TOO_LARGE, CONFLICT, THERE_ALREADY, NOT_IMPLEMENTED = 413, 409, 412, 501
# A 4xx by its status, and yet S3 means "not now".
TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "OperationAborted"})
HINTS = {
    "AccessDenied": "allow these credentials s3:PutObject on the bucket's objects (and its KMS key, where it has one)",
    "InvalidAccessKeyId": "S3 does not know this access key; check access_key_id",
    "SignatureDoesNotMatch": "check secret_access_key, and the region",
    "AuthorizationHeaderMalformed": "check region: it is not the bucket's",
    "ExpiredToken": "the temporary credentials have run out; renew them",
    "InvalidToken": "check session_token",
    "NoSuchBucket": "check bucket, and create it if it does not exist",
    "PermanentRedirect": "check region: it is not the bucket's",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "NotImplemented": "if it knows no If-None-Match, set conditional_writes: false; a batch sent again then overwrites itself",
}


class S3Config(SinkConfig):
    """`endpoint_url`: of an S3-compatible store; none: AWS's own of `region`. Without keys, those of the environment are
    looked for, as the AWS tools do it."""

    kind: Literal["s3"] = "s3"
    name: str = Field(default="s3", min_length=1, max_length=64)
    bucket: str = Field(pattern=BUCKET)
    prefix: str = Field(default="authwatch", max_length=512)
    region: str = Field(default="us-east-1", pattern=r"^[a-z0-9-]{1,64}$")
    endpoint_url: str | None = None
    path_style: bool | None = None
    access_key_id: SecretStr | None = Field(default=None, min_length=1)
    secret_access_key: SecretStr | None = Field(default=None, min_length=1)
    session_token: SecretStr | None = Field(default=None, min_length=1)
    conditional_writes: bool = True
    batch_items_max: int = Field(default=BATCH_ITEMS_MAX, ge=1, le=BATCH_ITEMS_MAX)

    @field_validator("endpoint_url")
    @classmethod
    def _endpoint_alone(cls, value: str | None) -> str | None:
        if value is None:
            return None
        outbound.check_url(value)
        if urlsplit(value).query or urlsplit(value).path not in ("", "/"):
            raise ValueError(
                "must be an address alone, such as https://minio.example:9000; the bucket has its own setting"
            )
        return value.rstrip("/")

    @field_validator("prefix")
    @classmethod
    def _prefix_is_plain(cls, value: str) -> str:
        value = value.strip("/")
        if not KEY_CHARS.match(value) or "//" in value or any(part in (".", "..") for part in value.split("/")):
            raise ValueError("may hold letters, digits and !_.*'()=- in parts divided by /")
        return value

    @model_validator(mode="after")
    def _keys_come_in_pairs(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key are given together, or neither")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("session_token needs its access_key_id and secret_access_key")
        return self


class S3:
    """A Sink. Holds nothing between batches but the credentials that were found."""

    kind = "s3"

    def __init__(self, config: S3Config, client: httpx.AsyncClient) -> None:
        self.name = config.name
        self.batch_items_max = config.batch_items_max
        self._config = config
        self._client = client
        self._encoded = ENCODED[config.format]
        self._signer = Signer(config.region, _given(config))
        endpoint = config.endpoint_url or f"https://s3.{config.region}.amazonaws.com"
        # A store of the house has rarely a name for each bucket.
        by_path = config.path_style if config.path_style is not None else config.endpoint_url is not None
        parts = urlsplit(endpoint)
        self._url = f"{endpoint}/{config.bucket}" if by_path else f"{parts.scheme}://{config.bucket}.{parts.netloc}"

    def __repr__(self) -> str:
        return f"S3(name={self.name!r})"

    async def send(self, items: Sequence[Event]) -> Sent:
        """By bytes, in order; the same items always go in the same pieces."""
        progress = Progress()
        bounds = Bounds(BATCH_ITEMS_MAX, OBJECT_BYTES_MAX, between_bytes=1)
        return await send_each(
            pieces_of(items, self._encoded, bounds, progress), self._send_piece, progress, keyed=False
        )

    async def check(self) -> str:
        """Asks for one name out of the bucket: unlike a HEAD, the answer says what is wrong. Who may only write is told
        AccessDenied, which proves all the same that the keys and the bucket are right."""
        response = await self._call("GET", f"{self._url}?list-type=2&max-keys=1", b"", {})
        code = _code(response)
        if response.status == 403 and code == "AccessDenied":
            return (
                f"S3 at {response.host} knows the credentials, which may not list {self._config.bucket}; whether they may"
                " write shows with the first batch"
            )
        if not 200 <= response.status < 300:
            _raise(response, code)
        return f"S3 at {response.host} has the bucket {self._config.bucket}, and the credentials may list it"

    async def _send_piece(self, whole: Piece, progress: Progress) -> None:
        """Bounded: every turn either finishes a piece or halves it."""
        pieces = [whole]
        while pieces:
            piece = pieces.pop()
            response = await self._put(piece)
            if 200 <= response.status < 300 or (response.status == THERE_ALREADY and self._config.conditional_writes):
                progress.accepted += len(piece)
            elif response.status == TOO_LARGE and len(piece) > 1:  # of a proxy: S3 itself takes 5 GB
                earlier, later = halves(piece)
                pieces += [later, earlier]  # the last is popped first
                continue
            elif response.status == TOO_LARGE:
                reason = f"{len(piece[0].body)} bytes are too large for {response.host}"
                progress.refused(piece[0].index, reason, host=response.host, status=TOO_LARGE)
            else:
                _raise(response, _code(response))
            progress.settled(piece[-1].index + 1)

    async def _put(self, piece: Piece) -> Response:
        content = await asyncio.to_thread(_packed, piece)
        # No Content-Encoding: whoever fetches it would get it unpacked under a name that ends in .gz.
        headers = {"content-type": "application/gzip"}
        if self._config.conditional_writes:
            headers["if-none-match"] = "*"
        path = quote(key_of([line.event for line in piece], self._config.prefix, self._config.format), safe="/-_.~")
        return await self._call("PUT", f"{self._url}/{path}", content, headers)

    async def _call(self, method: str, url: str, content: bytes, headers: dict[str, str]) -> Response:
        signed = await self._signer.sign(method, url, content, headers)
        return await outbound.call(
            self._client, method, url, content=content, headers=signed, timeout_seconds=self._config.timeout_seconds
        )


def key_of(events: Sequence[Event], prefix: str, format: str) -> str:
    """`prefix/YYYY/MM/DD/<first>-<last>-<digest>.<format>.ndjson.gz`: the day on which the first was received, the positions
    of the first and the last, and a digest of all ids. The digest tells apart what has the same ends and is not the same:
    another `match` between two tries, or a database that was restored and counts from an earlier position."""
    first, last = events[0], events[-1]
    digest = hashlib.sha256("\n".join(event.id for event in events).encode()).hexdigest()[:DIGEST_CHARS]
    day = first.received_at.astimezone(UTC).strftime("%Y/%m/%d")
    name = f"{first.position:019d}-{last.position:019d}-{digest}.{format}.ndjson.gz"  # sorts by position
    return "/".join(part for part in (prefix, day, name) if part)


def _packed(piece: Piece) -> bytes:
    """The same items give the same bytes: no time of packing is in it."""
    return gzip.compress(b"".join(line.body + b"\n" for line in piece), compresslevel=GZIP_LEVEL, mtime=0)


def _given(config: S3Config) -> Credentials | None:
    if config.access_key_id is None or config.secret_access_key is None:
        return None
    token = config.session_token.get_secret_value() if config.session_token is not None else None
    return Credentials(config.access_key_id.get_secret_value(), config.secret_access_key.get_secret_value(), token)


def _code(response: Response) -> str | None:
    """Of S3's XML error, which is not read further: its text quotes the request."""
    found = ERROR_CODE.search(response.body)
    return found[1].decode() if found else None


def _raise(response: Response, code: str | None) -> NoReturn:
    hint = HINTS.get(code or "", "")
    if response.status == NOT_IMPLEMENTED and not hint:
        hint = HINTS["NotImplemented"]
    # 409: somebody else writes this key just now, which can only be an earlier try of ours.
    if response.status == CONFLICT or (response.status < 500 and code in TRANSIENT_CODES):
        raise DeliveryFailed(
            f"{response.host} answered {response.status} {code or ''}; tried again later",
            code=f"http_{response.status}",
            status=response.status,
        )
    outbound.raise_for_status(replace(response, excerpt=code or ""), permanent_statuses={NOT_IMPLEMENTED}, hint=hint)
    raise DeliveryFailed(  # a 412 although nothing was asked for
        f"{response.host} answered {response.status} unasked", code=f"http_{response.status}", status=response.status
    )
