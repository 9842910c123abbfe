"""PagerDuty's Events API v2, rebuilt strictly: what it refuses, and what of an event becomes an incident and a page.

By its developer documentation: events of one `dedup_key` apply to the alert that is open under it; once that is resolved a
trigger opens another, and an acknowledge or resolve is dropped. Nobody is paged again for what is open or acknowledged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.weather import Weather

ROUTING_KEY = "R0utingKeyOfTheTests0123456789ab"
BODY_BYTES_MAX = 512 * 1024
SEVERITIES = ("critical", "error", "warning", "info")
TOP = {"routing_key", "event_action", "dedup_key", "payload", "links", "images", "client", "client_url"}
OPTIONAL = {"timestamp", "component", "group", "class", "custom_details"}


@dataclass
class Incident:
    """`said`: every event that was applied to it, in order."""

    key: str
    summary: str
    severity: str
    state: str = "triggered"
    said: list[dict[str, Any]] = field(default_factory=list)


class FakePagerDuty:
    """`events` is every one that was accepted, `dropped` those of them that applied to nothing, `pages` who was woken."""

    def __init__(self, *, routing_key: str = ROUTING_KEY) -> None:
        self.routing_key = routing_key
        self.weather = Weather()
        self.events: list[dict[str, Any]] = []
        self.dropped: list[dict[str, Any]] = []
        self.incidents: list[Incident] = []
        self.pages: list[str] = []
        self.calls = 0
        self.app = Starlette(routes=[Route("/v2/enqueue", self._take, methods=["POST"])])

    def states(self) -> list[str]:
        return [incident.state for incident in self.incidents]

    def text(self) -> str:
        """Everything a reader sees of what was triggered."""
        return "\n".join(json.dumps(event, ensure_ascii=False) for event in self.events)

    async def _take(self, request: Request) -> Response:
        self.calls += 1
        body = await request.body()

        async def work() -> Response:
            errors = self._errors(request.headers.get("content-type", ""), body)
            if errors:
                said = {"status": "invalid event", "message": "Event object is invalid", "errors": errors}
                return JSONResponse(said, 400)
            event = json.loads(body)
            self.events.append(event)
            self._apply(event)
            answer = {"status": "success", "message": "Event processed", "dedup_key": event["dedup_key"]}
            return JSONResponse(answer, 202)

        return await self.weather.over(work)

    def _errors(self, content_type: str, body: bytes) -> list[str]:
        if not content_type.startswith("application/json"):
            return ["not JSON"]
        if len(body) > BODY_BYTES_MAX:
            return ["too large"]
        try:
            event = json.loads(body)
        except ValueError:
            return ["not JSON"]
        if event.get("routing_key") != self.routing_key:
            return ["Invalid routing key"]
        errors = [f"unknown {name}" for name in set(event) - TOP]
        if event.get("event_action") not in ("trigger", "acknowledge", "resolve"):
            errors.append("event_action")
        key = event.get("dedup_key")
        if not isinstance(key, str) or not 0 < len(key) <= 255:
            errors.append("dedup_key")
        errors += [f"link {link}" for link in event.get("links", []) if not str(link.get("href")).startswith("http")]
        return errors + (payload_errors(event.get("payload")) if event.get("event_action") == "trigger" else [])

    def _apply(self, event: dict[str, Any]) -> None:
        key, action = event["dedup_key"], event["event_action"]
        found = next((one for one in self.incidents if one.key == key and one.state != "resolved"), None)
        if found is None:
            if action != "trigger":
                self.dropped.append(event)
                return
            payload = event["payload"]
            found = Incident(key, payload["summary"], payload["severity"])
            self.incidents.append(found)
            self.pages.append(payload["summary"])
        found.said.append(event)
        if action != "trigger":
            found.state = {"acknowledge": "acknowledged", "resolve": "resolved"}[action]


def payload_errors(payload: Any) -> list[str]:
    if not isinstance(payload, dict):
        return ["payload"]
    errors = [f"unknown {name}" for name in set(payload) - OPTIONAL - {"summary", "source", "severity"}]
    summary, source = payload.get("summary"), payload.get("source")
    if not isinstance(summary, str) or not 0 < len(summary) <= 1024:
        errors.append("summary")
    if not isinstance(source, str) or not source:
        errors.append("source")
    if payload.get("severity") not in SEVERITIES:
        errors.append("severity")
    try:
        datetime.fromisoformat(payload.get("timestamp", "2026-01-01T00:00:00Z"))
    except (TypeError, ValueError):
        errors.append("timestamp")
    return errors
