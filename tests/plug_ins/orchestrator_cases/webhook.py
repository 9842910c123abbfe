"""Anybody's receiver of pauses, its requests checked by the Standard Webhooks package. It can only be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from starlette.responses import Response

from service.orchestrators.base import Orchestrator
from service.orchestrators.webhook import WebhookConfig, WebhookOrchestrator
from tests.fakes.orchestrator import PATH, SECRET, FakeOrchestrator
from tests.fakes.slack import BreakOff
from tests.plug_ins.orchestrator_cases.base import Cases

REF = "deployments/nightly"


def section(url: str) -> dict[str, Any]:
    return {"kind": "webhook", "name": "ops", "url": url + PATH, "secret": SECRET}


def open_(url: str, http: httpx.AsyncClient, timeout_seconds: float) -> Orchestrator:
    return WebhookOrchestrator(WebhookConfig.model_validate(section(url)), http, timeout_seconds=timeout_seconds)


def answers(
    fake: FakeOrchestrator, status: int, headers: Mapping[str, str], body: str = "", *, always: bool = False
) -> None:
    response = Response(body, status, headers=dict(headers))
    if always:
        fake.always = (response, False)
    else:
        fake.answer_next(response)


def slow(fake: FakeOrchestrator, seconds: float) -> None:
    fake.slow_seconds = seconds


CASES = Cases(
    section=section,
    secrets=(SECRET, SECRET.removeprefix("whsec_"), PATH),
    ref=REF,
    gone_ref="deployments/never-was",
    fake=FakeOrchestrator,
    open=open_,
    paused=lambda fake: REF in fake.paused,
    looks=lambda fake: sorted(fake.paused),
    writes=lambda fake: len(fake.pauses) + len(fake.resumes),
    by_hand=lambda fake, paused: fake.by_hand(REF, paused=paused),
    answers=answers,
    slow=slow,
    break_off=lambda fake: fake.answer_next(BreakOff(), after_the_work=True),
    statuses={
        **dict.fromkeys((300, 301, 302, 304, 307, 308), "permanent"),
        **dict.fromkeys((400, 402, 404, 405, 409, 410, 413, 422), "permanent"),
        **dict.fromkeys((401, 403), "refused"),
        **dict.fromkeys((408, 425, 429, 500, 502, 503, 504), "retry"),
    },
    asked=False,
)
