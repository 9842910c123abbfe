"""An S3-compatible store with one bucket, path style. It checks Signature Version 4 by its own reading of it, and holds to
If-None-Match; what it refuses, it refuses in S3's XML."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import hmac
import json
from typing import Any
from urllib.parse import parse_qsl, quote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.fakes.hec import Scripted
from tests.fakes.slack import BreakOff

BUCKET, REGION = "the-siem-copy", "eu-central-1"
ACCESS_KEY_ID, SECRET_ACCESS_KEY = "AKIDOFTESTS", "the/secret+key-of-the-tests"
SIGNED_AT_LEAST = {"host", "x-amz-content-sha256", "x-amz-date"}


class FakeS3:
    """`objects` by key, as stored; `puts` counts every PUT that was allowed, the refused repeats included."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.always: Scripted | None = None
        self.slow_seconds = 0.0
        self.break_off = False
        self.break_after: int | None = None  # so many PUTs, then one breaks off
        self.deny = frozenset[str]()  # methods that these credentials may not
        self.body_bytes_max = 5_000_000_000
        self.app = Starlette(
            routes=[
                Route("/{bucket}", self._bucket, methods=["GET"]),
                Route("/{bucket}/{key:path}", self._object, methods=["PUT"]),
            ]
        )

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for stored in self.objects.values() for line in gzip.decompress(stored).splitlines()]

    @property
    def texts(self) -> list[bytes]:
        return [gzip.decompress(stored) for stored in self.objects.values()]

    async def _bucket(self, request: Request) -> Response:
        refusal = self._refusal(request, await request.body())
        return refusal or Response("<ListBucketResult/>", media_type="application/xml")

    async def _object(self, request: Request) -> Response:
        body = await request.body()
        if (refusal := self._refusal(request, body)) is not None:
            return refusal
        if len(body) > self.body_bytes_max:
            return Response("too large", 413)
        key = request.path_params["key"]
        self.puts.append(key)
        answer = Response(headers={"etag": hashlib.md5(body).hexdigest()})
        if request.headers.get("if-none-match") == "*" and key in self.objects:
            answer = error(412, "PreconditionFailed")
        else:
            self.objects[key] = body
        if self.slow_seconds:
            seconds, self.slow_seconds = self.slow_seconds, 0.0
            await asyncio.sleep(seconds)
        if self.break_after is not None and len(self.puts) > self.break_after:
            self.break_after, self.break_off = None, True
        if self.break_off:
            self.break_off = False
            return BreakOff()
        return answer

    def _refusal(self, request: Request, body: bytes) -> Response | None:
        if self.always is not None:
            return Response(self.always.body, status_code=self.always.status, headers=self.always.headers)
        fault = fault_of(request, body)
        if fault is not None:
            return error(403, fault)
        if request.path_params["bucket"] != BUCKET:
            return error(404, "NoSuchBucket")
        if request.method in self.deny:
            return error(403, "AccessDenied")
        return None


def error(status: int, code: str) -> Response:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>of the tests</Message></Error>"
    return Response(text, status, media_type="application/xml")


def fault_of(request: Request, body: bytes) -> str | None:
    """AWS's "Signature Version 4 signing process", for a header signature; None where it is right."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    said = dict(part.strip().split("=", 1) for part in rest.split(",")) if rest else {}
    if scheme != "AWS4-HMAC-SHA256" or said.keys() != {"Credential", "SignedHeaders", "Signature"}:
        return "AccessDenied"
    access, day, region, service, last = said["Credential"].split("/")
    if access != ACCESS_KEY_ID:
        return "InvalidAccessKeyId"
    if (region, service, last) != (REGION, "s3", "aws4_request"):
        return "AuthorizationHeaderMalformed"
    names = said["SignedHeaders"].split(";")
    wanted = SIGNED_AT_LEAST | ({"if-none-match"} if "if-none-match" in request.headers else set())
    if names != sorted(names) or not wanted <= set(names):
        return "SignatureDoesNotMatch"
    digest = request.headers["x-amz-content-sha256"]
    if digest != hashlib.sha256(body).hexdigest():
        return "XAmzContentSHA256Mismatch"
    query = sorted(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in parse_qsl(request.url.query, keep_blank_values=True)
    )
    canonical = "\n".join(
        (
            request.method,
            quote(request.url.path, safe="/-_.~") if "%" not in request.url.path else request.url.path,
            "&".join(query),
            *(f"{name}:{' '.join(request.headers[name].split())}" for name in names),
            "",
            ";".join(names),
            digest,
        )
    )
    to_sign = "\n".join(
        (
            scheme,
            request.headers["x-amz-date"],
            "/".join((day, region, service, last)),
            hashlib.sha256(canonical.encode()).hexdigest(),
        )
    )
    key = ("AWS4" + SECRET_ACCESS_KEY).encode()
    for part in (day, region, service, last):
        key = hmac.digest(key, part.encode(), "sha256")
    right = hmac.digest(key, to_sign.encode(), "sha256").hex()
    return None if hmac.compare_digest(right, said["Signature"]) else "SignatureDoesNotMatch"
