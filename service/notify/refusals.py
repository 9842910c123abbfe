"""Which refusals are of the destination, so that every message there would be refused, and which of one message. Pure.

Of a message: it is too long, or can no longer be edited; the next may well be taken. Of the destination: the token, the
channel, the address; nothing is taken until a person has mended it.
"""

from __future__ import annotations

from datetime import timedelta

# Slack's words (docs.slack.dev, errors of chat.postMessage and of every method), then our own for a notifier's answers.
OF_THE_DESTINATION = frozenset(
    {
        *("invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "org_login_required"),
        *("missing_scope", "no_permission", "access_denied", "ekm_access_denied", "not_allowed_token_type"),
        *("team_access_not_granted", "channel_not_found", "not_in_channel", "is_archived"),
        *("http_401", "http_402", "http_403", "http_404", "http_405", "http_407", "http_410"),
        *("redirected", "request_invalid", "gone", "key_refused"),
    }
)
RESTRICTED = "restricted_action"  # and what begins with it: a channel into which not everybody may write
OF_A_CHANNEL = frozenset({"channel_not_found", "not_in_channel", "is_archived"})
GONE = "gone"
# One message is tried so often while a notifier refuses: a revoked token is noticed to be back within a minute.
PROBE_EVERY = timedelta(seconds=60)
# Who answered 410 asked for no more: that is heard, but people do say it by mistake.
PROBE_GONE_EVERY = timedelta(hours=1)


def is_of_the_destination(code: str | None) -> bool:
    return code is not None and (code in OF_THE_DESTINATION or code.startswith(RESTRICTED))


def of_a_channel(code: str | None) -> bool:
    """Refused because of the one channel, of which there may have been others."""
    return code is not None and (code in OF_A_CHANNEL or code.startswith(RESTRICTED))


def probe_after(code: str | None) -> timedelta:
    return PROBE_GONE_EVERY if code == GONE else PROBE_EVERY
