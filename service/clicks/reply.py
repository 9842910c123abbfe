"""What only the person who clicked hears, by the click's own `response_url`: tried once, and only to Slack itself.

Slack shows nobody what a click's answer says (bolt-js#132); a response_url is good five times, for half an hour.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from service import outbound
from service.errors import DeliveryFailed
from service.notify.slack import SlackConfig
from service.notify.slack_blocks import escape
from service.observe import log

SLACKS_HOST = "hooks.slack.com"
URL_CHARS_MAX = 2_000
WORDS_CHARS_MAX = 1_500
SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Said:
    """`code` is for our log. `link` authorizes as somebody: it is shown to the clicker, as a button, and to nobody else."""

    code: str
    text: str
    link: str | None = field(default=None, repr=False)


async def say(http: httpx.AsyncClient, url: str | None, notifiers: Iterable[SlackConfig], said: Said) -> bool:
    """Whether Slack took it. Never raises: the click itself is done, and where its words went is no part of that."""
    if url is None or not is_slacks(url, notifiers):
        log.warning("slack.nowhere_to_answer", code=said.code)
        return False
    content = json.dumps(message(said)).encode()
    try:
        answer = await outbound.post(
            http, url, content=content, headers={"content-type": "application/json"}, timeout_seconds=SECONDS_MAX
        )
    except DeliveryFailed as exc:
        log.warning("slack.not_answered", code=said.code, reason=exc.code)
        return False
    if answer.status != 200:
        log.warning("slack.not_answered", code=said.code, reason=f"http_{answer.status}")
    return answer.status == 200


def message(said: Said) -> dict[str, Any]:
    text = escape([said.text], WORDS_CHARS_MAX)
    made: dict[str, Any] = {"response_type": "ephemeral", "replace_original": False, "text": text}
    if said.link is not None:
        # As a button: a link in the text would be unfurled, which opens it before its reader does.
        button = {
            "type": "button",
            "action_id": "authwatch_open",
            "style": "primary",
            "text": {"type": "plain_text", "text": "Re-authorize"},
            "url": said.link,
        }
        made["blocks"] = [
            {"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}},
            {"type": "actions", "elements": [button]},
        ]
    return made


def is_slacks(url: str, notifiers: Iterable[SlackConfig]) -> bool:
    """Slack's own host over https, or the place the notifier's API is configured at. Read by the parser of the client that
    will go there, so that the two cannot take one URL for two places."""
    if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable():
        return False
    try:
        asked = httpx.URL(url)
        bases = [httpx.URL(config.api_url) for config in notifiers]
    except httpx.InvalidURL:
        return False
    if asked.userinfo:
        return False
    if (asked.scheme, asked.host, asked.port) == ("https", SLACKS_HOST, None):
        return True
    return any((asked.scheme, asked.host, asked.port) == (base.scheme, base.host, base.port) for base in bases)
