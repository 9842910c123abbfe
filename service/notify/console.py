"""Alerts as text on standard error: what happens to them while no Slack channel is configured."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field

from service.errors import DeliveryFailed
from service.notify.base import AlertView, MessageRef
from service.notify.wording import word

CHANNEL = "console"


class ConsoleConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    kind: Literal["console"] = "console"
    name: str = Field(default="console", min_length=1, max_length=80)


class ConsoleNotifier:
    kind = "console"
    idempotent = False
    one_incident = False
    threads = False

    def __init__(self, config: ConsoleConfig) -> None:
        self.name = config.name

    async def post(self, view: AlertView, *, delivery_id: str, possible_repeat: bool) -> MessageRef:
        show(view, "(possible repeat) " if possible_repeat else "")
        return MessageRef(channel=CHANNEL, ts=delivery_id)

    async def update(self, view: AlertView, ref: MessageRef) -> MessageRef:
        """What is printed cannot be edited, so the new state is printed below it."""
        show(view, "")
        return ref

    async def find(self, delivery_id: str, *, since: datetime | None = None) -> MessageRef | None:
        """Nobody but this process wrote there: what did not come back as a reference was not printed."""
        return None

    async def check(self) -> str:
        return (
            "Alerts are printed here and shown by the API; set SLACK_BOT_TOKEN and SLACK_CHANNEL to tell the on-call."
        )


def open_console(config: ConsoleConfig, http: httpx.AsyncClient | None = None) -> ConsoleNotifier:
    return ConsoleNotifier(config)


def show(view: AlertView, mark: str) -> None:
    text = word(view, datetime.now(UTC)).text().replace("\n", "\n    ")
    try:
        # The standard error of now, not of import time; its error handler escapes what the terminal cannot show.
        print(f"\n{mark}{text}\n", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        raise DeliveryFailed(
            "standard error is closed, so the alert cannot be printed", code="console_closed"
        ) from None
