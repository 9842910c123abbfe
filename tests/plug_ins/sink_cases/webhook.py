"""Anybody's receiver, its requests checked by the Standard Webhooks package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.sinks.webhook import BATCH_ITEMS_MAX, BODY_BYTES_MAX
from tests.fakes.batches import PATH, SECRET, FakeBatches
from tests.fakes.hec import Scripted
from tests.plug_ins.sink_cases.base import Cases

ANOTHER = "whsec_" + "YW5vdGhlci1zZWNyZXQtdGhhbi10aGUtcmVjZWl2ZXJzIQ=="


def section(url: str) -> dict[str, Any]:
    return {"kind": "webhook", "url": url + PATH, "secret": SECRET, "timeout_seconds": 5.0}


def answers(fake: FakeBatches, status: int | None, headers: Mapping[str, str], body: str) -> None:
    fake.always = None if status is None else Scripted(status, body.encode(), dict(headers))


def refuse(fake: FakeBatches, word: str) -> None:
    fake.refuse_items_with = word


def slow(fake: FakeBatches, seconds: float) -> None:
    fake.slow_seconds = seconds


def break_off(fake: FakeBatches) -> None:
    fake.break_off = True


CASES = Cases(
    section=section,
    secrets=(SECRET, SECRET.removeprefix("whsec_"), PATH),
    fake=FakeBatches,
    taken=lambda fake: [item["metadata"]["uid"] for item in fake.items],
    said=lambda fake: "".join(fake.wire),
    requests=lambda fake: fake.requests,
    answers=answers,
    statuses={
        **dict.fromkeys((200, 202, 204), "done"),
        **dict.fromkeys((301, 302, 303, 307, 308), "refused"),
        **dict.fromkeys((400, 413, 422), "aside"),
        **dict.fromkeys((401, 402, 403, 404, 405, 407, 409, 410, 415), "refused"),
        **dict.fromkeys((408, 425, 429, 500, 502, 503, 504, 529), "retry"),
    },
    refuse=refuse,
    slow=slow,
    break_off=break_off,
    drops_repeats=True,
    item_bytes_max=BODY_BYTES_MAX,
    request_bytes_max=BODY_BYTES_MAX,
    request_items_max=BATCH_ITEMS_MAX,
    wrong=({"url": "siem.example"}, {"secret": "not-a-secret-at-all"}, {"secret": "whsec_c2hvcnQ="}),
    misconfigured=(({"secret": ANOTHER}, "the same secret"), ({"url": "{}/nowhere"}, "receiver's address")),
)
