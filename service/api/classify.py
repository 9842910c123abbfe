"""`POST /v1/classify`: what a provider's answer means, and the one right response. It stores nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service.api.http import Call, Strict, read_json, safe_json
from service.playbook import classify
from service.playbook.writes import OPERATION_CHARS_MAX

HEADERS_MAX = 100


class ClassifyBody(Strict):
    """`body` as the provider sent it: JSON, or text. `http_status` null: there was no answer. `operation` is
    `read` or `write`; what is neither, and none, is taken for a write, and the answer says so."""

    provider: str = Field("", max_length=200)
    http_status: int | None = Field(None, ge=100, le=599)
    headers: dict[str, Any] = Field(default_factory=dict, max_length=HEADERS_MAX)
    body: Any = None
    operation: str | None = Field(None, max_length=OPERATION_CHARS_MAX)
    attempt: int = Field(1, ge=1, le=1000)
    verification: Literal["verified", "pending", "missing", "mismatch", "none"] | None = None
    idempotency_key: bool | str | None = None


async def classify_answer(request: Request) -> Response:
    asked = await read_json(request, ClassifyBody)
    answer = classify(
        asked.provider,
        asked.http_status,
        asked.headers,
        asked.body,
        operation=asked.operation,
        attempt=asked.attempt,
        verification=asked.verification,
        idempotency_key=asked.idempotency_key,
        now=datetime.now(UTC),
    )
    return safe_json(answer.to_json())


CALLS = (
    Call(
        "POST",
        "/v1/classify",
        classify_answer,
        "read",
        "What a provider's answer means, and the one right response",
        body=ClassifyBody,
    ),
)
