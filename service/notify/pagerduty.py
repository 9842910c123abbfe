"""PagerDuty by the Events API v2: one incident for what is told together; triggered once, acknowledged, resolved.

Its `dedup_key` is the alert that the message was first about, so the same event sent twice is one incident, and an event
of unknown fate is simply sent again. Source: PagerDuty's developer documentation, Events API v2: events, answers, limits.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from service import outbound
from service.errors import DeliveryFailed
from service.event import rfc3339
from service.notify.answers import without_secrets
from service.notify.base import AlertState, AlertView, MessageRef
from service.notify.plain import clean, cut
from service.notify.wording import SIGNS, Wording, word
from service.routing.grouping import REJOIN_WAIT

EVENTS_URL = "https://events.pagerduty.com/v2/enqueue"
ENQUEUE = "/v2/enqueue"
TIMEOUT_SECONDS = 10.0
ROUTING_KEY = re.compile(r"[A-Za-z0-9]{32}")
BODY_BYTES_MAX = 512 * 1024
SUMMARY_CHARS_MAX = 1024
DEDUP_KEY_CHARS_MAX = 255
NAME_CHARS_MAX = 200
URL_CHARS_MAX = 2_000
BUSY_SECONDS = 120.0  # its documentation asks for a few minutes after a 429 that does not say how long
SEVERITIES = {"P1": "critical", "P2": "error", "P3": "warning", "P4": "info"}
ACTIONS: dict[AlertState, str] = {"firing": "trigger", "acknowledged": "acknowledge", "resolved": "resolve"}
STEPS = ("firing", "acknowledged", "resolved")  # an incident goes only onwards
CHECK_KEY = "authwatch:doctor"  # under which nothing was ever triggered: PagerDuty drops what would resolve it


class PagerDutyConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    kind: Literal["pagerduty"] = "pagerduty"
    name: str = Field(default="pagerduty", min_length=1, max_length=80)
    routing_key: SecretStr
    url: str = Field(default=EVENTS_URL, max_length=URL_CHARS_MAX)
    timeout_seconds: float = Field(default=TIMEOUT_SECONDS, gt=0, le=20)

    @field_validator("routing_key")
    @classmethod
    def routing_key_can_be_right(cls, key: SecretStr) -> SecretStr:
        if ROUTING_KEY.fullmatch(key.get_secret_value()) is None:
            raise ValueError("not an integration key of Events API v2: 32 letters and digits")
        return key

    @field_validator("url")
    @classmethod
    def url_can_be_right(cls, url: str) -> str:
        parts = urlsplit(url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or "@" in parts.netloc
        ):
            raise ValueError(f"not a URL of the form {EVENTS_URL}")
        return urlunsplit(parts._replace(path=ENQUEUE)) if parts.path in ("", "/") else url


class PagerDutyNotifier:
    kind = "pagerduty"
    idempotent = True
    one_incident = True
    threads = False

    def __init__(self, config: PagerDutyConfig, http: httpx.AsyncClient) -> None:
        self.name = config.name
        self._routing_key = config.routing_key.get_secret_value()
        self._url = config.url
        self._timeout_seconds = config.timeout_seconds
        self._http = http

    async def post(self, view: AlertView, *, delivery_id: str, possible_repeat: bool) -> MessageRef:
        """What is acknowledged or over before it could be told pages nobody: PagerDuty drops both of what it has not."""
        key = dedup_key(view)
        await self._send(event(view, key, self._routing_key, datetime.now(UTC)))
        return MessageRef(channel=key, ts=delivery_id, said=view.state)

    async def update(self, view: AlertView, ref: MessageRef) -> MessageRef:
        now = datetime.now(UTC)
        if not is_news(ref.said, view, now):
            return ref
        await self._send(event(view, ref.channel, self._routing_key, now))
        return MessageRef(channel=ref.channel, ts=ref.ts, said=view.state)

    async def find(self, delivery_id: str, *, since: datetime | None = None) -> MessageRef | None:
        """Never needed: what may have arrived is sent again under its key. The Events API tells nothing of what it has."""
        return None

    async def check(self) -> str:
        """Resolves what never was: that is dropped, and a key that is wrong is refused all the same."""
        await self._send({"routing_key": self._routing_key, "event_action": "resolve", "dedup_key": CHECK_KEY})
        return f"{urlsplit(self._url).hostname} takes events with this integration key."

    async def _send(self, said: dict[str, Any]) -> None:
        answer = await outbound.post(
            self._http,
            self._url,
            content=encoded(said),
            headers={"content-type": "application/json"},
            timeout_seconds=self._timeout_seconds,
        )
        judge(answer, self._routing_key)


def open_pagerduty(config: PagerDutyConfig, http: httpx.AsyncClient | None) -> PagerDutyNotifier:
    assert http is not None, "whoever opens it has the process's client"
    return PagerDutyNotifier(config, http)


def is_news(said: str | None, view: AlertView, now: datetime) -> bool:
    """Whether a pager should hear of it. `said`: what it was told last; an edit that says no more than that is silent.

    What was resolved and fires again is another alert that joined its message (an alert never does): it has one of its own
    REJOIN_WAIT later. Where it has not, because the resolve was still on its way when that was decided, it is this one's.
    """
    if said is None:
        return True
    if said == "resolved" and view.state == "firing":
        return now - view.fired_at >= REJOIN_WAIT
    return STEPS.index(view.state) > (STEPS.index(said) if said in STEPS else -1)


def dedup_key(view: AlertView) -> str:
    """Of the episode: the same for trigger, acknowledge and resolve, and for whoever else is told of it there."""
    key = f"authwatch:{view.incident_id or view.id}"
    if len(key) <= DEDUP_KEY_CHARS_MAX and key.isascii() and key.isprintable():
        return key
    return f"authwatch:{hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()}"


def event(view: AlertView, key: str, routing_key: str, now: datetime) -> dict[str, Any]:
    said: dict[str, Any] = {"routing_key": routing_key, "event_action": ACTIONS[view.state], "dedup_key": key}
    if view.state != "firing":
        return said  # PagerDuty has the rest from the trigger
    wording = word(view, now)
    said["client"] = "Authwatch"
    if view.url and len(view.url) <= URL_CHARS_MAX and view.url.startswith(("http://", "https://")):
        said |= {"client_url": view.url, "links": [{"href": view.url, "text": "Open in Authwatch"}]}
    about = {
        "component": view.identifier or view.account_id,
        "group": view.connection_id or view.provider,
        "class": view.rule_id,
    }
    payload: dict[str, Any] = {
        "summary": cut(wording.title.replace(f"{SIGNS['firing']} ", "", 1).strip(), SUMMARY_CHARS_MAX) or "An alert",
        "source": clean(view.source or view.provider or "", NAME_CHARS_MAX) or "authwatch",
        "severity": SEVERITIES.get(view.severity, "error"),
        "timestamp": rfc3339(view.opened_at),
        **{name: clean(value, NAME_CHARS_MAX) for name, value in about.items() if value},
        "custom_details": details(view, wording),
    }
    return said | {"payload": payload}


def details(view: AlertView, wording: Wording) -> dict[str, Any]:
    """What the message says elsewhere, in the same words, already cleaned and cut."""
    found: dict[str, Any] = {
        "status": wording.status,
        "who": wording.who,
        "since": wording.since,
        "evidence": wording.evidence,
        "late": wording.late,
        "workflows": list(wording.workflows),
        "what_to_do": wording.what_to_do,
        "alert": wording.footer,
    }
    return {name: value for name, value in found.items() if value}


def encoded(said: dict[str, Any], bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """At most what PagerDuty takes: the details go first, everything else is short."""
    body = json.dumps(said).encode()
    if len(body) <= bytes_max or "payload" not in said:
        return body
    short = {name: value for name, value in said["payload"].items() if name != "custom_details"}
    return json.dumps(said | {"payload": short}).encode()


def judge(answer: outbound.Response, routing_key: str) -> None:
    """2xx passes. PagerDuty answers 400 to a key it does not know as to an event it cannot read: told apart by its words."""
    said = without_secrets(answer, [routing_key])
    # Looked for in the whole answer, of which `said` is the part that may be shown.
    words = answer.body.decode("utf-8", "replace").lower()
    if answer.status == 400 and ("routing_key" in words or "routing key" in words):
        raise DeliveryFailed(
            "PagerDuty does not take the integration key; copy it again from the service's Events API v2 integration",
            code="key_refused",
            permanent=True,
            status=400,
        )
    if answer.status == 429 and outbound.retry_after_seconds(answer.headers, datetime.now(UTC)) is None:
        raise DeliveryFailed(
            f"PagerDuty is busy (429): trying again in {BUSY_SECONDS:.0f} s",
            code="http_429",
            retry_after_seconds=BUSY_SECONDS,
            status=429,
        )
    outbound.raise_for_status(said, hint="is the url PagerDuty's events endpoint?" if answer.status == 404 else "")
