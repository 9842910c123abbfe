"""n8n, against a strict fake of its public API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from service.orchestrators.base import Orchestrator
from service.orchestrators.n8n import N8nConfig, N8nOrchestrator
from tests.fakes.n8n import API_KEY, REF, FakeN8n, Workflow
from tests.plug_ins.orchestrator_cases.base import Cases


def section(url: str) -> dict[str, Any]:
    return {"kind": "n8n", "name": "ops", "url": url, "api_key": API_KEY}


def open_(url: str, http: httpx.AsyncClient, timeout_seconds: float) -> Orchestrator:
    return N8nOrchestrator(N8nConfig.model_validate(section(url)), http, timeout_seconds=timeout_seconds)


def looks(fake: FakeN8n) -> Any:
    return fake.as_json(fake.workflows[REF])


def by_hand(fake: FakeN8n, paused: bool) -> None:
    workflow = fake.workflows[REF]
    workflow.published = None if paused else workflow.draft


def answers(fake: FakeN8n, status: int, headers: Mapping[str, str], body: str = "", *, always: bool = False) -> None:
    own = '{"message": "Not Found"}' if status == 404 and not body else body  # else it is not n8n's API that said it
    fake.answer(status, headers, own, always=always)


def slow(fake: FakeN8n, seconds: float) -> None:
    fake.slow_seconds = seconds


def break_off(fake: FakeN8n) -> None:
    fake.break_off_next = True


def delete(fake: FakeN8n) -> None:
    del fake.workflows[REF]


def fill(fake: FakeN8n, count: int) -> None:
    for number in range(count):
        ref = f"Filler{number:010}"
        fake.workflows[ref] = Workflow(ref, f"Filler {number}", published=None if number % 2 else "v1")


CASES = Cases(
    section=section,
    secrets=(API_KEY,),
    ref=REF,
    gone_ref="NoSuchWorkflow00",
    fake=FakeN8n,
    open=open_,
    paused=lambda fake: fake.workflows[REF].published is None,
    looks=looks,
    writes=lambda fake: len(fake.writes),
    by_hand=by_hand,
    answers=answers,
    slow=slow,
    break_off=break_off,
    delete=delete,
    fill=fill,
    timeout_seconds=1.0,  # the first call of a process reads the certificates
    statuses={
        204: "retry",  # what n8n answers to whom it takes for a bot
        **dict.fromkeys((301, 302, 307, 308), "permanent"),
        400: "retry",  # n8n's word for whatever goes wrong inside
        **dict.fromkeys((401, 403), "refused"),
        404: "gone",
        **dict.fromkeys((405, 409, 410, 413, 415, 422), "permanent"),
        **dict.fromkeys((408, 425, 429, 500, 502, 503, 504), "retry"),
    },
)
