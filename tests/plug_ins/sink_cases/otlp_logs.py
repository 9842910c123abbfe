"""OTLP logs over HTTP, against a strict fake of a receiver; its own traps are in tests/plug_ins/test_otlp_logs.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.sinks.otlp_logs import BATCH_ITEMS_MAX, BODY_BYTES_MAX
from tests.fakes.hec import Scripted
from tests.fakes.otlp_logs import FakeOtlpLogs, attributes_of
from tests.plug_ins.sink_cases.base import Cases, Trouble

KEY = "Bearer THE-OTLP-KEY-77aa"


def section(url: str) -> dict[str, Any]:
    headers = {"Authorization": KEY}
    return {"kind": "otlp_logs", "url": url, "headers": headers, "format": "ocsf", "timeout_seconds": 5.0}


def answers(fake: FakeOtlpLogs, status: int | None, headers: Mapping[str, str], body: str) -> None:
    fake.always = None if status is None else Scripted(status, body.encode(), dict(headers))


def says(body: bytes, kind: str) -> Any:
    def begin(fake: FakeOtlpLogs) -> None:
        fake.always = Scripted(200, body, {"content-type": kind})

    return begin


def drops_all(fake: FakeOtlpLogs) -> None:
    fake.drop_first = [(2, "no room in the store")]


CASES = Cases(
    section=section,
    secrets=(KEY, KEY.removeprefix("Bearer ")),
    fake=lambda: FakeOtlpLogs({"authorization": KEY}),
    taken=lambda fake: [attributes_of(record)["log.record.uid"] for record in fake.records],
    said=lambda fake: "".join(fake.wire),
    requests=lambda fake: fake.posts,
    answers=answers,
    statuses={
        **dict.fromkeys((301, 302, 303, 307, 308), "refused"),
        **dict.fromkeys((400, 401, 402, 403, 404, 405, 408, 409, 410, 415, 422, 425, 500, 501), "refused"),
        413: "aside",
        **dict.fromkeys((429, 502, 503, 504), "retry"),
    },
    troubles={
        "a login page": Trouble(
            begin=says(b"<html>Please log in</html>", "text/html"), verdict="retry", code="answer_unexpected"
        ),
        "a login page that says it is protobuf": Trouble(
            begin=says(b"<html>Please log in</html>", "application/x-protobuf"),
            verdict="retry",
            code="answer_unexpected",
        ),
        "JSON that is none": Trouble(
            begin=says(b"[" * 50_000, "application/json"), verdict="retry", code="answer_unexpected"
        ),
        "JSON of somebody else": Trouble(
            begin=says(b'{"partialSuccess":{"rejectedLogRecords":"many"}}', "application/json"),
            verdict="retry",
            code="answer_unexpected",
        ),
        "an empty yes": Trouble(begin=says(b"", "application/x-protobuf"), verdict="done"),
        "an empty yes in JSON": Trouble(begin=says(b"{}", "application/json"), verdict="done"),
        "every record dropped": Trouble(begin=drops_all, verdict="aside"),
    },
    slow=lambda fake, seconds: fake.slow_next(seconds),
    break_off=lambda fake: fake.break_off_next(),
    request_bytes_max=BODY_BYTES_MAX,
    request_items_max=BATCH_ITEMS_MAX,
    timeout_seconds=1.5,
    wrong=(
        {"url": "siem.example"},
        {"url": "https://user:pw@siem.example"},
        {"url": "https://siem.example/?key=x"},
        {"headers": {"a name": KEY}},
        {"headers": {"x-key": f"{KEY}\n"}},
        {"headers": {"Content-Type": "application/json"}},
        {"headers": {"X-Key": KEY, "x-key": KEY}},
        {"resource": {"much": "x" * 10_000}},
    ),
    misconfigured=(({"url": "{}/wrong"}, "is this its address"),),
)
