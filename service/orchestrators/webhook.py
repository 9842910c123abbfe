"""Any orchestrator that can take a signed webhook (Standard Webhooks): `workflow.pause` and `workflow.resume`.

The receiver drops what it has seen under the same `webhook-id`, and that id is our idempotency key, the same at every
try. So nothing has to be looked up after a failure whose outcome is unknown: the same message is simply sent again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from service import outbound
from service.errors import DeliveryFailed
from service.event import rfc3339
from service.orchestrators.base import Answer, Listed, State, Stops
from service.signatures import check_secret, parse_secret, sign

TIMEOUT_SECONDS = 15.0
ANSWER_BYTES_MAX = 16 * 1024
DETAIL_CHARS_MAX = 300
STATE_CHARS_MAX = 4_000
KEY_CHARS_MAX = 255
GONE = 410


class WebhookConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    kind: Literal["webhook"] = "webhook"
    name: str = Field(default="webhook", min_length=1, max_length=80)
    url: str = Field(max_length=2_000)
    secret: SecretStr

    @field_validator("url")
    @classmethod
    def url_can_be_right(cls, url: str) -> str:
        outbound.check_url(url)
        return url

    @field_validator("secret")
    @classmethod
    def secret_can_be_right(cls, secret: SecretStr) -> SecretStr:
        check_secret(secret.get_secret_value(), name="of this orchestrator")
        return secret


class WebhookOrchestrator:
    kind = "webhook"
    asks_first = False
    at_once = None
    stops = Stops()  # the receiver is somebody's own code: only its answer tells what it stopped

    def __init__(
        self, config: WebhookConfig, http: httpx.AsyncClient, *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self.name = config.name
        self._url = config.url
        text = config.secret.get_secret_value()
        self._secret = parse_secret(text, name="of this orchestrator")
        self._private = (text, text.removeprefix("whsec_"))
        self._http = http
        self._timeout_seconds = timeout_seconds

    async def state(self, *, ref: str) -> State:
        """It is told, and never asked."""
        return State(
            paused=None, as_found={}, detail="a webhook cannot be asked; its answer to a pause says what it found"
        )

    async def pause(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        found: Mapping[str, Any] | None = None,
    ) -> Answer:
        data = {"workflow_id": workflow_id, "ref": ref, "reason": reason, "idempotency_key": idempotency_key}
        return await self._tell("workflow.pause", "paused", data, idempotency_key)

    async def resume(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        prior_state: Mapping[str, Any] | None = None,
    ) -> Answer:
        data = {"workflow_id": workflow_id, "ref": ref, "reason": reason, "idempotency_key": idempotency_key}
        state = dict(prior_state) if prior_state is not None else None
        return await self._tell("workflow.resume", "resumed", {**data, "prior_state": state}, idempotency_key)

    async def list_workflows(self, *, limit: int) -> Sequence[Listed]:
        raise DeliveryFailed(
            f"{self.name} is a webhook, which cannot be asked what runs there; register its workflows with PUT /v1/workflows",
            code="cannot_list",
            permanent=True,
        )

    async def check(self) -> str:
        """A webhook has nothing to ask that changes nothing, so this says what would be called and proves no more."""
        host = urlsplit(self._url).hostname
        return (
            f"{self.name}: pauses and resumes are posted, signed, to {host}; that it listens shows with the first one."
        )

    async def _tell(self, type_: str, done: str, data: Mapping[str, Any], key: str) -> Answer:
        if not 0 < len(key) <= KEY_CHARS_MAX or not key.isascii() or not key.isprintable() or set(key) & set(". "):
            # The signed text joins its parts by dots, so a dot in the id would make two messages sign alike.
            raise DeliveryFailed("the idempotency key cannot be a webhook-id", code="key_invalid", permanent=True)
        now = datetime.now(UTC)
        body = json.dumps({"type": type_, "timestamp": rfc3339(now), "data": dict(data)}).encode()
        timestamp = int(now.timestamp())
        response = await outbound.post(
            self._http,
            self._url,
            content=body,
            headers={
                "content-type": "application/json",
                "webhook-id": key,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": sign(self._secret, key, timestamp, body),
                "idempotency-key": key,
            },
            timeout_seconds=self._timeout_seconds,
        )
        if response.status == GONE:
            raise DeliveryFailed(
                f"{self.name} answered 410: it takes no more webhooks; remove or replace it in `orchestrators`",
                code="gone",
                permanent=True,
                status=GONE,
            )
        said = response.body.decode("utf-8", "replace")
        if any(private in said for private in self._private):
            response = replace(response, excerpt="")  # it is cut somewhere, and may be cut within one
        outbound.raise_for_status(response)
        return read_answer(response.body, done)


def open_webhook(config: WebhookConfig, http: httpx.AsyncClient) -> WebhookOrchestrator:
    return WebhookOrchestrator(config, http)


def read_answer(body: bytes, done: str) -> Answer:
    """A 2xx is done. Its body is a courtesy: `detail`, `state`, `was_paused` and `stops` are kept, and what cannot be read is
    no failure (docs/orchestrators.md)."""
    said: Any = None
    if len(body) <= ANSWER_BYTES_MAX:
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            said = None
    if not isinstance(said, Mapping):
        return Answer(status=done, detail="")
    detail, state = said.get("detail"), said.get("state")
    return Answer(
        status=done,
        detail="".join(c for c in detail[:DETAIL_CHARS_MAX] if c.isprintable()) if isinstance(detail, str) else "",
        prior_state=state if isinstance(state, dict) and can_be_kept(state) else None,
        was_paused=true_or_false(said.get("was_paused")),
        stops=read_stops(said.get("stops")),
    )


def read_stops(said: Any) -> Stops | None:
    if not isinstance(said, Mapping):
        return None
    return Stops(
        scheduled_starts=true_or_false(said.get("scheduled_starts")),
        manual_starts=true_or_false(said.get("manual_starts")),
        running_work=true_or_false(said.get("running_work")),
    )


def true_or_false(said: Any) -> bool | None:
    """Nothing but JSON's own: a word that only looks like one must not decide whether something is started."""
    return said if isinstance(said, bool) else None


def can_be_kept(state: dict[str, Any]) -> bool:
    """Small enough, and JSON as Postgres holds it: no NaN, no half characters, no zero byte."""
    try:
        text = json.dumps(state, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        return False
    return len(text) <= STATE_CHARS_MAX and "\\u0000" not in text
