"""Anybody's own receiver: each state of an alert as one signed request (Standard Webhooks), described in docs/notifiers.md.

Its `webhook-id` stands for one message and one state and is the same at every try: a receiver that drops an id it has seen
takes each state once, so a request of unknown fate is simply sent again.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from service import outbound
from service.errors import DeliveryFailed
from service.event import rfc3339
from service.notify.answers import without_secrets
from service.notify.base import AlertView, MessageRef, WorkflowLine
from service.notify.plain import clean
from service.notify.wording import what_to_do
from service.redact import redact_text
from service.signatures import SECRET_PREFIX, check_secret, parse_secret, sign

VERSION = 1
TIMEOUT_SECONDS = 15.0
URL_CHARS_MAX = 2_000
TEXT_CHARS_MAX = 1_000
NAME_CHARS_MAX = 200
WORKFLOWS_MAX = 50
WORKFLOWS_STEPS = (WORKFLOWS_MAX, 10, 0)  # as many as the body has room for
GROUP_MAX = 20
BODY_BYTES_MAX = 64 * 1024
NAMES_MAX = 10
GONE = 410
CHANNEL = "webhook"
STEPS = ("firing", "acknowledged", "resolved")  # a message goes only onwards; what breaks later has one of its own


class WebhookConfig(BaseModel):
    """The URL is kept like a secret: with many receivers its path is one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    kind: Literal["webhook"] = "webhook"
    name: str = Field(default="webhook", min_length=1, max_length=80)
    url: SecretStr
    secret: SecretStr
    timeout_seconds: float = Field(default=TIMEOUT_SECONDS, gt=0, le=20)

    @field_validator("url")
    @classmethod
    def url_can_be_right(cls, url: SecretStr) -> SecretStr:
        outbound.check_url(url.get_secret_value())
        if len(url) > URL_CHARS_MAX:
            raise ValueError(f"longer than {URL_CHARS_MAX} characters")
        return url

    @field_validator("secret")
    @classmethod
    def secret_can_be_right(cls, secret: SecretStr) -> SecretStr:
        check_secret(secret.get_secret_value(), name="of this notifier")
        return secret


class WebhookNotifier:
    kind = "webhook"
    idempotent = True
    one_incident = False
    threads = False

    def __init__(self, config: WebhookConfig, http: httpx.AsyncClient) -> None:
        self.name = config.name
        self._url = config.url.get_secret_value()
        self._secret = parse_secret(config.secret.get_secret_value(), name="of this notifier")
        given = config.secret.get_secret_value()
        self._private = (given, given.removeprefix(SECRET_PREFIX))
        self._timeout_seconds = config.timeout_seconds
        self._http = http

    async def post(self, view: AlertView, *, delivery_id: str, possible_repeat: bool) -> MessageRef:
        await self._send(view, delivery_id)
        return MessageRef(channel=CHANNEL, ts=delivery_id, said=view.state)

    async def update(self, view: AlertView, ref: MessageRef) -> MessageRef:
        """Sends what is a new state; an edit within a state is silent."""
        if ref.said in STEPS and STEPS.index(view.state) <= STEPS.index(ref.said):
            return ref
        await self._send(view, ref.ts)
        return MessageRef(channel=ref.channel, ts=ref.ts, said=view.state)

    async def find(self, delivery_id: str, *, since: datetime | None = None) -> MessageRef | None:
        """Never needed: what may have arrived is sent again under its id."""
        return None

    async def check(self) -> str:
        """A webhook has nothing to ask that tells nobody, so this says what would be called and proves no more."""
        host = urlsplit(self._url).hostname
        return f"Alerts are posted, signed, to {host}; that it listens shows with the first one."

    async def _send(self, view: AlertView, delivery_id: str) -> None:
        now = datetime.now(UTC)
        timestamp, message_id = int(now.timestamp()), webhook_id(delivery_id, view.state)
        body = encoded(view, delivery_id, now)
        answer = await outbound.post(
            self._http,
            self._url,
            content=body,
            headers={
                "content-type": "application/json",
                "webhook-id": message_id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": sign(self._secret, message_id, timestamp, body),
            },
            timeout_seconds=self._timeout_seconds,
        )
        if answer.status == GONE:
            raise DeliveryFailed(
                f"{answer.host} answered 410: it takes no more webhooks; remove or replace it in `notifiers`",
                code="gone",
                permanent=True,
                status=GONE,
            )
        outbound.raise_for_status(without_secrets(answer, self._private))


def open_webhook(config: WebhookConfig, http: httpx.AsyncClient | None) -> WebhookNotifier:
    assert http is not None, "whoever opens it has the process's client"
    return WebhookNotifier(config, http)


def webhook_id(delivery_id: str, state: str) -> str:
    """Letters and digits alone: a notifier's name may hold a dot, which would make two messages sign alike."""
    return f"msg_{hashlib.sha256(json.dumps([delivery_id, state]).encode()).hexdigest()[:40]}"


def encoded(view: AlertView, delivery_id: str, now: datetime) -> bytes:
    """At most BODY_BYTES_MAX: what there may be many of are the workflows, and how many there are is said beside them."""
    body = b""
    for most in WORKFLOWS_STEPS:
        said = message(view, delivery_id, now, workflows_max=most)
        body = json.dumps(said, ensure_ascii=False).encode("utf-8", "replace")
        if len(body) <= BODY_BYTES_MAX:
            break
    return body


def message(view: AlertView, delivery_id: str, now: datetime, *, workflows_max: int = WORKFLOWS_MAX) -> dict[str, Any]:
    """The body, by docs/notifiers.md. Text that came from outside is one line without links, token-like parts masked."""
    return {
        "type": f"alert.{view.state}",
        "version": VERSION,
        "timestamp": rfc3339(now),
        "data": {"message": told(view, delivery_id), "alert": alert(view, workflows_max)},
    }


def told(view: AlertView, delivery_id: str) -> dict[str, Any]:
    """Which message it is: the same `id` in each of its states. `incident_id` is the same for repeats and escalations."""
    together = view.together
    return {
        "id": webhook_id(delivery_id, ""),
        "incident_id": view.incident_id or view.id,
        "kind": together.kind if together else "first",
        "alerts": {
            "total": together.total if together else 1,
            "firing": together.firing if together else int(view.state == "firing"),
            "acknowledged": together.acknowledged if together else int(view.state == "acknowledged"),
            "resolved": together.resolved if together else int(view.state == "resolved"),
            "names": [text(name, NAME_CHARS_MAX) for name in together.names[:NAMES_MAX]] if together else [],
        },
    }


def alert(view: AlertView, workflows_max: int) -> dict[str, Any]:
    return {
        "id": view.id,
        "rule": view.rule_id,
        "severity": view.severity,
        "state": view.state,
        "summary": text(view.summary),
        "what_to_do": what_to_do(view),
        "opened_at": rfc3339(view.opened_at),
        "fired_at": rfc3339(view.fired_at),
        "resolved_at": rfc3339(view.resolved_at),
        "resolved_reason": text(view.resolved_reason),
        "acknowledged_by": text(view.acknowledged_by, NAME_CHARS_MAX),
        "source": text(view.source, NAME_CHARS_MAX),
        "environment_id": text(view.environment_id, NAME_CHARS_MAX),
        "account_id": text(view.account_id, NAME_CHARS_MAX),
        "account_status": text(view.account_status, NAME_CHARS_MAX),
        "connection_id": text(view.connection_id, NAME_CHARS_MAX),
        "provider": text(view.provider, NAME_CHARS_MAX),
        "identifier": text(view.identifier, NAME_CHARS_MAX),
        "group": {
            text(name, NAME_CHARS_MAX) or "": text(value, NAME_CHARS_MAX) for name, value in view.group[:GROUP_MAX]
        },
        "evidence_count": view.evidence_count,
        "late_seconds": view.late_seconds,
        "discovered_late": view.discovered_late,
        "late_detection": view.late_detection,
        "flapping": view.flapping,
        "drill": view.drill,
        "workflows": [workflow(line) for line in view.workflows[:workflows_max]],
        "workflows_total": len(view.workflows),
        "url": view.url,
    }


def workflow(line: WorkflowLine) -> dict[str, Any]:
    return {
        "workflow_id": text(line.workflow_id, NAME_CHARS_MAX),
        "name": text(line.name, NAME_CHARS_MAX),
        "state": line.state,
        "scope": line.scope,
        "orchestrator": text(line.orchestrator, NAME_CHARS_MAX),
        "orchestrator_state": text(line.orchestrator_state),
    }


def text(value: str | None, chars_max: int = TEXT_CHARS_MAX) -> str | None:
    return clean(redact_text(value), chars_max) if value else None
