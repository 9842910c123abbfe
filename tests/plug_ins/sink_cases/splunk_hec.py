"""Splunk's HTTP Event Collector, against a strict fake of it; more of its own traps are in tests/plug_ins/test_splunk_hec.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.sinks.splunk_hec import BATCH_ITEMS_MAX, BODY_BYTES_MAX
from tests.fakes.hec import FakeHec, Scripted
from tests.plug_ins.sink_cases.base import Cases, Trouble

TOKEN = "b5ca1d7e-THE-HEC-TOKEN-9f3a"


def section(url: str) -> dict[str, Any]:
    return {"kind": "splunk_hec", "url": url, "token": TOKEN, "format": "ocsf", "timeout_seconds": 5.0}


def answers(fake: FakeHec, status: int | None, headers: Mapping[str, str], body: str) -> None:
    fake.always = None if status is None else Scripted(status, body.encode(), dict(headers))


def says(body: bytes, status: int = 200) -> Any:
    def begin(fake: FakeHec) -> None:
        fake.always = Scripted(status, body)

    return begin


def taken(fake: FakeHec) -> list[str]:
    return [event["metadata"]["uid"] for event in fake.events]


def refuse(fake: FakeHec, word: str) -> None:
    fake.refuse_events_with = word


def refuse_and_say_not_which(fake: FakeHec) -> None:
    fake.say_which, fake.refuse_events_with = False, "ca_"


def slow(fake: FakeHec, seconds: float) -> None:
    fake.slow_next(seconds)


def disabled(fake: FakeHec) -> None:
    fake.enabled = False


CASES = Cases(
    section=section,
    secrets=(TOKEN,),
    fake=lambda: FakeHec(TOKEN),
    taken=taken,
    said=lambda fake: "".join(fake.wire),
    requests=lambda fake: list(zip(fake.posts, fake.sizes, strict=True)),
    answers=answers,
    statuses={
        **dict.fromkeys((301, 302, 303, 307, 308), "refused"),
        **dict.fromkeys((400, 401, 402, 403, 404, 405, 407, 409, 410, 415, 422), "refused"),
        413: "aside",
        **dict.fromkeys((408, 425, 429, 500, 502, 503, 504, 529), "retry"),
    },
    troubles={
        "a login page": Trouble(begin=says(b"<html>Please log in</html>"), verdict="retry", code="answer_unexpected"),
        "an empty yes": Trouble(begin=says(b""), verdict="retry", code="answer_unexpected"),
        "a deep answer": Trouble(begin=says(b"[" * 50_000), verdict="retry", code="answer_unexpected"),
        "busy under a 200": Trouble(
            begin=says(b'{"text":"Server is busy","code":9}'), verdict="retry", code="hec_9", says="busy"
        ),
        "a wrong token under a 200": Trouble(
            begin=says(b'{"text":"Invalid token","code":4}'), verdict="refused", code="hec_4", says="check it"
        ),
        "a token that is switched off": Trouble(
            begin=disabled, verdict="refused", code="http_403", says="enable it in Splunk"
        ),
        "items of a bad form": Trouble(begin=refuse_and_say_not_which, verdict="aside"),
    },
    refuse=refuse,
    slow=slow,
    break_off=lambda fake: fake.break_off_next(),
    item_bytes_max=BODY_BYTES_MAX,
    request_bytes_max=BODY_BYTES_MAX,
    request_items_max=BATCH_ITEMS_MAX,
    wrong=(
        {"token": f"Splunk {TOKEN}"},
        {"token": "abc"},
        {"url": "siem.example"},
        {"url": "https://siem.example/services/collector/raw"},
    ),
    misconfigured=(
        ({"token": "another-token-1234"}, "does not know this HEC token"),
        ({"url": "{}/wrong"}, "is this its address"),
    ),
)
