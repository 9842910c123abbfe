"""Slack, against a strict fake of its Web API; more of its own traps are in tests/plug_ins/test_notifiers.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import httpx
from starlette.responses import PlainTextResponse

from service.notify.base import Notifier
from service.notify.slack import SlackConfig, SlackNotifier
from tests.fakes.slack import CHANNEL, TOKEN, FakeSlack
from tests.plug_ins.notifier_cases.base import Cases


def section(url: str) -> dict[str, Any]:
    return {"kind": "slack", "name": "on-call", "token": TOKEN, "channel": CHANNEL, "api_url": f"{url}/api/"}


def open_(url: str, _http: httpx.AsyncClient, timeout_seconds: float) -> Notifier:
    return SlackNotifier(SlackConfig.model_validate(section(url)), timeout_seconds=math.ceil(timeout_seconds))


def answers(fake: FakeSlack, status: int, headers: Mapping[str, str], body: str = "") -> None:
    fake.answer_next(PlainTextResponse(body, status, headers=dict(headers)))


def slow(fake: FakeSlack, seconds: float) -> None:
    fake.slow_seconds = seconds


CASES = Cases(
    section=section,
    seen=lambda fake, _printed: "\n".join(fake.text_of(message) for message in fake.messages),
    secrets=(TOKEN,),
    fake=FakeSlack,
    open=open_,
    effects=lambda fake: len(fake.messages),
    answers=answers,
    slow=slow,
    break_off=lambda fake: fake.break_off_next(),
    statuses={
        **dict.fromkeys((400, 413, 422), "permanent"),
        **dict.fromkeys((401, 403, 404, 405, 410), "refused"),
        429: "retry",
        # Without one of Slack's own words nobody knows whether Slack or its proxy spoke.
        **dict.fromkeys((408, 500, 502, 503, 504), "ambiguous"),
    },
    timeout_seconds=1.0,
    retry_after_dates=False,
)
