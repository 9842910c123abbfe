"""Temporal: the schedules of one namespace, with an API key, over gRPC on loopback."""

from __future__ import annotations

from typing import Any

import httpx
from temporalio.api.schedule.v1 import ScheduleState

from service.orchestrators.temporal import TemporalOrchestrator
from service.orchestrators.temporal_client import TemporalConfig
from tests.fakes.temporal import KEY, NAMESPACE, REF, FakeTemporal, serve
from tests.plug_ins.orchestrator_cases.base import GRPC_STATUSES_MIN, Cases


def section(address: str) -> dict[str, Any]:
    at = address.removeprefix("http://")
    return {"kind": "temporal", "name": "ops", "address": at, "namespace": NAMESPACE, "api_key": KEY, "tls": False}


def open_within(address: str, _http: httpx.AsyncClient, timeout_seconds: float) -> TemporalOrchestrator:
    return TemporalOrchestrator(TemporalConfig.model_validate(section(address)), timeout_seconds=timeout_seconds)


def looks(fake: FakeTemporal) -> tuple[bool, str] | None:
    state = fake.schedules.get(REF)
    return None if state is None else (state.paused, state.notes)


def answers(
    fake: FakeTemporal, status: str, headers: object = None, body: bytes | str = b"", *, always: bool = False
) -> None:
    said = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    fake.answer_next(status, said, always=always)


def fill(fake: FakeTemporal, count: int) -> None:
    fake.schedules |= {f"import-{number}": ScheduleState() for number in range(count)}


def slow(fake: FakeTemporal, seconds: float) -> None:
    fake.slow_seconds = seconds


def break_off(fake: FakeTemporal) -> None:
    fake.break_next = True


CASES = Cases(
    section=section,
    secrets=(KEY,),
    ref=REF,
    gone_ref="deleted-long-ago",
    fake=FakeTemporal,
    serve=serve,
    open=open_within,
    paused=lambda fake: not fake.starts(REF),
    looks=looks,
    writes=lambda fake: len(fake.patches),
    by_hand=lambda fake, paused: fake.by_hand(REF, paused=paused),
    delete=lambda fake: fake.schedules.pop(REF),
    fill=fill,
    answers=answers,
    slow=slow,
    break_off=break_off,
    statuses={
        "INVALID_ARGUMENT": "permanent",
        "ALREADY_EXISTS": "permanent",
        "OUT_OF_RANGE": "permanent",
        "FAILED_PRECONDITION": "permanent",
        "UNIMPLEMENTED": "permanent",
        "UNAUTHENTICATED": "refused",
        "PERMISSION_DENIED": "refused",
        "NOT_FOUND": "gone",
        # It is looked at first, and a look that fails changed nothing.
        "RESOURCE_EXHAUSTED": "retry",
        "UNAVAILABLE": "retry",
        "DEADLINE_EXCEEDED": "retry",
        "CANCELLED": "retry",
        "ABORTED": "retry",
        "UNKNOWN": "retry",
        "INTERNAL": "retry",
        "DATA_LOSS": "retry",
    },
    statuses_min=frozenset(GRPC_STATUSES_MIN),
    credentials_refused="UNAUTHENTICATED",
    too_many=None,
    nowhere="127.0.0.1:9",
    timeout_seconds=0.5,
)
