"""Airflow 3, against a strict fake of its REST API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from service.orchestrators.airflow import AirflowConfig, AirflowOrchestrator
from service.orchestrators.base import Orchestrator
from tests.fakes.airflow import DAG, PASSWORDS, Dag, FakeAirflow
from tests.plug_ins.orchestrator_cases.base import Cases


def section(url: str) -> dict[str, Any]:
    return {"kind": "airflow", "name": "ops", "url": url, "username": "ops", "password": PASSWORDS["ops"]}


def open_(url: str, http: httpx.AsyncClient, timeout_seconds: float) -> Orchestrator:
    given = section(url) | {"timeout_seconds": timeout_seconds}
    return AirflowOrchestrator(AirflowConfig.model_validate(given), http)


def answers(
    fake: FakeAirflow, status: int, headers: Mapping[str, str] | None = None, body: str = "", always: bool = False
) -> None:
    fake.answer(status, headers, body, always=always)


def slow(fake: FakeAirflow, seconds: float) -> None:
    fake.slow_seconds = seconds


def by_hand(fake: FakeAirflow, paused: bool) -> None:
    fake.dags[DAG].is_paused = paused


def fill(fake: FakeAirflow, count: int) -> None:
    fake.dags |= {f"dag_{n:04}": Dag(f"dag_{n:04}") for n in range(count)}


CASES = Cases(
    section=section,
    secrets=(PASSWORDS["ops"], "eyJ-token-of-the-fake"),
    ref=DAG,
    gone_ref="weekly_report",
    fake=FakeAirflow,
    open=open_,
    paused=lambda fake: bool(fake.dags[DAG].is_paused),
    looks=lambda fake: fake.dags.get(DAG) and fake.dags[DAG].said(),
    writes=lambda fake: int(fake.writes),
    by_hand=by_hand,
    answers=answers,
    slow=slow,
    break_off=lambda fake: fake.break_off(),
    statuses={
        **dict.fromkeys((301, 307, 400, 405, 409, 410, 413, 422), "permanent"),
        404: "permanent",  # without the words that name the DAG: no Airflow 3 at that address
        **dict.fromkeys((401, 403), "refused"),
        **dict.fromkeys((408, 425, 429, 500, 502, 503, 504), "retry"),
    },
    delete=lambda fake: fake.dags.pop(DAG),
    fill=fill,
)
