"""Anybody's receiver, its requests checked by the Standard Webhooks package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from service.notify.base import Notifier
from service.notify.webhook import WebhookConfig, WebhookNotifier
from tests.fakes.receiver import PATH, SECRET, FakeReceiver
from tests.plug_ins.notifier_cases.base import Cases


def section(url: str) -> dict[str, Any]:
    return {"kind": "webhook", "name": "on-call", "url": url + PATH, "secret": SECRET}


def open_(url: str, http: httpx.AsyncClient, timeout_seconds: float) -> Notifier:
    given = section(url) | {"timeout_seconds": timeout_seconds}
    return WebhookNotifier(WebhookConfig.model_validate(given), http)


def answers(
    fake: FakeReceiver, status: int, headers: Mapping[str, str], body: str = "", after_the_work: bool = False
) -> None:
    fake.weather.answer_next(status, headers=headers, body=body, after_the_work=after_the_work)


def slow(fake: FakeReceiver, seconds: float) -> None:
    fake.weather.slow_seconds = seconds


CASES = Cases(
    section=section,
    seen=lambda fake, _printed: fake.text(),
    secrets=(SECRET, SECRET.removeprefix("whsec_"), PATH),
    fake=FakeReceiver,
    open=open_,
    effects=lambda fake: len(fake.taken),
    answers=answers,
    slow=slow,
    break_off=lambda fake: fake.weather.break_off_next(),
    statuses={
        **dict.fromkeys((200, 202), "done"),
        **dict.fromkeys((301, 302, 303, 307, 308), "refused"),
        **dict.fromkeys((400, 409, 413, 422), "permanent"),
        **dict.fromkeys((401, 402, 403, 404, 405, 407, 410), "refused"),
        **dict.fromkeys((408, 425, 429, 500, 502, 503, 504, 529), "retry"),
    },
    facts=("Token refresh is failing", "clark@example.com", "Nightly report", "what_to_do"),
    opened_as="2026-11-22T10:00:00Z",
    resolved_as='"type": "alert.resolved"',
)
