"""The notifiers we have, by the `kind` a config section names. A new one is a file, one line below, and its cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel

from service.notify.base import Notifier
from service.notify.console import ConsoleConfig, open_console
from service.notify.pagerduty import PagerDutyConfig, open_pagerduty
from service.notify.slack import SlackConfig, open_slack
from service.notify.webhook import WebhookConfig, open_webhook


@dataclass(frozen=True, slots=True)
class NotifierKind:
    """`Config` validates a section (its `kind` and `name` included), `open(config, http)` makes the notifier."""

    Config: type[BaseModel]
    open: Callable[[Any, httpx.AsyncClient | None], Notifier]


NOTIFIERS: dict[str, NotifierKind] = {
    "slack": NotifierKind(SlackConfig, open_slack),
    "pagerduty": NotifierKind(PagerDutyConfig, open_pagerduty),
    "webhook": NotifierKind(WebhookConfig, open_webhook),
    "console": NotifierKind(ConsoleConfig, open_console),
}
