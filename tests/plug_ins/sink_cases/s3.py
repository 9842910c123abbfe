"""S3, against a strict store; moto's server is in tests/plug_ins/test_s3_moto.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from service.sinks.s3 import BATCH_ITEMS_MAX, OBJECT_BYTES_MAX
from tests.fakes.hec import Scripted
from tests.fakes.s3 import ACCESS_KEY_ID, BUCKET, REGION, SECRET_ACCESS_KEY, FakeS3
from tests.plug_ins.sink_cases.base import Cases, Trouble


def section(url: str) -> dict[str, Any]:
    return {
        "kind": "s3",
        "bucket": BUCKET,
        "region": REGION,
        "endpoint_url": url,
        "access_key_id": ACCESS_KEY_ID,
        "secret_access_key": SECRET_ACCESS_KEY,
        "timeout_seconds": 5.0,
    }


def answers(fake: FakeS3, status: int | None, headers: Mapping[str, str], body: str) -> None:
    fake.always = None if status is None else Scripted(status, body.encode(), dict(headers))


def says(status: int, code: str) -> Callable[[FakeS3], None]:
    body = f"<Error><Code>{code}</Code><Message>{SECRET_ACCESS_KEY}</Message></Error>".encode()

    def begin(fake: FakeS3) -> None:
        fake.always = Scripted(status, body)

    return begin


def slow(fake: FakeS3, seconds: float) -> None:
    fake.slow_seconds = seconds


def break_off(fake: FakeS3) -> None:
    fake.break_off = True


CASES = Cases(
    section=section,
    secrets=(SECRET_ACCESS_KEY,),
    fake=FakeS3,
    taken=lambda fake: [line["metadata"]["uid"] for line in fake.lines],
    said=lambda fake: b"".join(fake.texts).decode(),
    requests=lambda fake: [(text.count(b"\n"), len(text)) for text in fake.texts],
    answers=answers,
    statuses={
        **dict.fromkeys((200, 204, 412), "done"),
        **dict.fromkeys((301, 302, 303, 307, 308), "refused"),
        **dict.fromkeys((400, 401, 402, 403, 404, 405, 407, 410, 415, 422, 501), "refused"),
        413: "aside",
        **dict.fromkeys((408, 409, 425, 429, 500, 502, 503, 504, 529), "retry"),
    },
    troubles={
        "not allowed": Trouble(
            begin=says(403, "AccessDenied"), verdict="refused", code="http_403", says="s3:PutObject"
        ),
        "no such bucket": Trouble(
            begin=says(404, "NoSuchBucket"), verdict="refused", code="http_404", says="check bucket"
        ),
        "a clock that is wrong": Trouble(
            begin=says(403, "RequestTimeTooSkewed"), verdict="refused", code="http_403", says="clock"
        ),
        "temporary keys that ran out": Trouble(
            begin=says(400, "ExpiredToken"), verdict="refused", code="http_400", says="renew"
        ),
        "another region's bucket": Trouble(
            begin=says(301, "PermanentRedirect"), verdict="refused", code="redirected", says="redirect"
        ),
        "too many requests": Trouble(begin=says(503, "SlowDown"), verdict="retry", code="http_503", says="SlowDown"),
        "a request that S3 waited for": Trouble(begin=says(400, "RequestTimeout"), verdict="retry", code="http_400"),
        "an earlier try that is still at it": Trouble(
            begin=says(409, "ConditionalRequestConflict"), verdict="retry", code="http_409"
        ),
        "a store that knows no conditions": Trouble(
            begin=says(501, "NotImplemented"), verdict="refused", code="http_501", says="conditional_writes: false"
        ),
    },
    slow=slow,
    break_off=break_off,
    drops_repeats=True,
    request_bytes_max=OBJECT_BYTES_MAX,
    request_items_max=BATCH_ITEMS_MAX,
    wrong=(
        {"bucket": "No_Bucket"},
        {"prefix": "../up"},
        {"prefix": "two words"},
        {"region": "eu central"},
        {"endpoint_url": "minio.example"},
        {"endpoint_url": "https://minio.example/bucket"},
    ),
    misconfigured=(
        ({"secret_access_key": "another"}, "check secret_access_key"),
        ({"access_key_id": "another"}, "check access_key_id"),
        ({"bucket": "another-bucket"}, "check bucket"),
        ({"region": "us-east-1"}, "check region"),
    ),
)
