"""What Slack's answers mean to us: done, not now, never, or perhaps. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from service.errors import DeliveryFailed
from service.notify.base import MessageRef

RETRY_AFTER_DEFAULT_SECONDS = 30.0
RETRY_AFTER_MAX_SECONDS = 3_600.0
REFERENCE_CHARS_MAX = 64
CODE = re.compile(r"[a-z][a-z0-9_]{0,79}")

# What only a person can mend. Of the last two lines the first means that the message cannot be edited any more, so post
# anew; the second that there is nothing to reply to.
PERMANENT = frozenset(
    {
        *("invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "org_login_required"),
        *("missing_scope", "no_permission", "access_denied", "ekm_access_denied", "not_allowed_token_type"),
        *("team_access_not_granted", "channel_not_found", "not_in_channel", "is_archived"),
        *("msg_too_long", "msg_blocks_too_long", "invalid_blocks", "invalid_blocks_format", "invalid_arguments"),
        *("no_text", "too_many_attachments", "invalid_metadata_format", "metadata_too_large"),
        *("message_not_found", "cant_update_message", "edit_window_closed"),
        *("thread_not_found", "cannot_reply_to_message"),
    }
)
PERMANENT_PREFIX = "restricted_action"
RATE_LIMITED = frozenset({"ratelimited", "rate_limited", "message_limit_exceeded"})
# Slack says of these that some of the work may have been done before the error was raised.
HALF_DONE = frozenset({"internal_error", "fatal_error", "request_timeout", "service_unavailable"})
MEND = {
    "channel_not_found": "check the channel, and invite the bot to it (/invite); a private one is hidden from others",
    "not_in_channel": "invite the bot to the channel (/invite)",
    "is_archived": "the channel is archived; name another one",
    "missing_scope": "give the Slack app the scopes chat:write, channels:history, groups:history; install it again",
    "invalid_auth": "the bot token is wrong; copy it again from the Slack app's page",
    "not_authed": "the bot token is missing; set SLACK_BOT_TOKEN",
    "token_revoked": "the bot token was revoked; install the Slack app again",
    "token_expired": "the bot token has expired; install the Slack app again",
    "account_inactive": "the bot's user or workspace is switched off; install the Slack app again",
    "http_404": "nothing is at that address; check SLACK_API_URL",
}


def refused(response: Any) -> DeliveryFailed:
    """What Slack's answer means: the table of its errors, then the HTTP status."""
    status = getattr(response, "status_code", None) or getattr(response, "status", None) or 0
    data = getattr(response, "data", None)
    said = data.get("error") if isinstance(data, dict) else None
    # The code is shown and stored: only what looks like one of Slack's words is taken over.
    code = said if isinstance(said, str) and CODE.fullmatch(said) else None
    if status == 429 or code in RATE_LIMITED:
        wait = retry_after(getattr(response, "headers", {}))
        return DeliveryFailed(
            f"Slack: {code or 'ratelimited'}: trying again in {wait:.0f} s",
            code=code or "ratelimited",
            retry_after_seconds=wait,
            status=status,
        )
    if code is None and status == 200:
        return unreadable()
    shown = code or f"http_{status}"
    server_side = status >= 500 or status == 408
    permanent = (
        code in PERMANENT or bool(code and code.startswith(PERMANENT_PREFIX)) or (code is None and not server_side)
    )
    mend = f": {MEND[shown]}" if shown in MEND else ""
    return DeliveryFailed(
        f"Slack: {shown}{mend}",
        code=shown,
        permanent=permanent,
        ambiguous=not permanent and (server_side or code in HALF_DONE),
        status=status,
    )


def retry_after(headers: Mapping[str, str]) -> float:
    try:
        seconds = float(headers.get("Retry-After") or RETRY_AFTER_DEFAULT_SECONDS)
    except ValueError:
        return RETRY_AFTER_DEFAULT_SECONDS
    return min(max(seconds, 1.0), RETRY_AFTER_MAX_SECONDS) if math.isfinite(seconds) else RETRY_AFTER_DEFAULT_SECONDS


def reference(answer: Mapping[str, Any]) -> MessageRef:
    channel, ts = answer.get("channel"), answer.get("ts")
    for part in (channel, ts):
        if not isinstance(part, str) or not 0 < len(part) <= REFERENCE_CHARS_MAX or not part.isprintable():
            raise unreadable()
    return MessageRef(channel=str(channel), ts=str(ts))


def unreadable() -> DeliveryFailed:
    return DeliveryFailed(
        "Slack's answer cannot be read; check SLACK_API_URL", code="unreadable_answer", ambiguous=True
    )
