"""Prefect 3, against a strict fake of its REST API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from service.orchestrators.base import Orchestrator
from service.orchestrators.prefect import PrefectConfig, PrefectOrchestrator
from tests.fakes.prefect import AUTH_STRING, Deployed, FakePrefect
from tests.plug_ins.orchestrator_cases.base import Cases

REF = "0199aaaa-0000-7000-8000-000000000a01"


def fake() -> FakePrefect:
    made = FakePrefect()
    made.deployments[REF] = Deployed("nightly-report", "production", ("tier:1", "google-ads"), id=REF)
    return made


def one(fake: FakePrefect) -> Deployed:
    return next(iter(fake.deployments.values()))


def section(url: str) -> dict[str, Any]:
    return {"kind": "prefect", "name": "ops", "url": url + "/api", "auth_string": AUTH_STRING}


def open_(url: str, http: httpx.AsyncClient, timeout_seconds: float) -> Orchestrator:
    return PrefectOrchestrator(PrefectConfig.model_validate(section(url)), http, timeout_seconds=timeout_seconds)


def by_hand(fake: FakePrefect, paused: bool) -> None:
    one(fake).paused, one(fake).booked = paused, 0 if paused else 3


def answers(
    fake: FakePrefect, status: int, headers: Mapping[str, str], body: str = "", *, always: bool = False
) -> None:
    fake.answer_next(status, headers, body, always=always)


def slow(fake: FakePrefect, seconds: float) -> None:
    fake.slow_seconds = seconds


def break_off(fake: FakePrefect) -> None:
    fake.break_off = True


def fill(fake: FakePrefect, count: int) -> None:
    for number in range(count):
        fake.add(f"flow-{number % 7}", f"deployment-{number}")


CASES = Cases(
    section=section,
    secrets=(AUTH_STRING, AUTH_STRING.partition(":")[2]),
    ref=REF,
    gone_ref="0199aaaa-0000-7000-8000-00000000dead",
    fake=fake,
    open=open_,
    paused=lambda fake: one(fake).paused and not one(fake).booked,
    looks=lambda fake: [one.json() | {"booked": one.booked} for one in fake.deployments.values()],
    writes=lambda fake: fake.writes,
    by_hand=by_hand,
    answers=answers,
    slow=slow,
    break_off=break_off,
    statuses={
        **dict.fromkeys((301, 302, 307, 308), "permanent"),
        # Without Prefect's own words a 404 is somebody else's: a proxy's, or that of an address Prefect does not have.
        **dict.fromkeys((400, 404, 405, 409, 410, 413, 422), "permanent"),
        **dict.fromkeys((401, 403), "refused"),
        **dict.fromkeys((408, 425, 429, 500, 502, 503, 504), "retry"),
    },
    delete=lambda fake: fake.deployments.clear(),
    fill=fill,
)
