"""What an alert stands on, in plain words: how many of what, between when and when, and whether it has worked since. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from service.notify.base import AlertView, Seen
from service.notify.plain import NAME_CHARS_MAX, clean, clock, counted

KINDS_SHOWN_MAX = 4
REFRESH_FAILED = "token.refresh_failed"
# Our kinds (contract: Event) as one and as several.
NOUNS: Mapping[str, tuple[str, str]] = {
    "account.created": ("new account", "new accounts"),
    "account.updated": ("change of the account", "changes of the account"),
    "account.authorized": ("authorization", "authorizations"),
    "account.reauth_started": ("authorization begun", "authorizations begun"),
    "account.reauth_required": ("word that it has to be authorized again", "words that it has to be authorized again"),
    "account.disconnected": ("disconnection", "disconnections"),
    "account.deleted": ("deletion", "deletions"),
    "auth.failed": ("failed authorization", "failed authorizations"),
    "auth.scope_changed": ("change of scopes", "changes of scopes"),
    "token.refresh_succeeded": ("token refresh that worked", "token refreshes that worked"),
    REFRESH_FAILED: ("failed token refresh", "failed token refreshes"),
    "tool_call.completed": ("tool call", "tool calls"),
}
OTHER = ("event", "events")


def evidence(view: AlertView) -> str:
    source = f" from {clean(view.source, NAME_CHARS_MAX)}" if view.source else ""
    if view.drill:
        return "Evidence: none, it is a drill."
    if view.together is not None and view.together.total > 1:
        return "Evidence: at least an event of each; each alert names its own."
    if view.seen:
        said = ", ".join(of_kind(one, view) for one in view.seen[:KINDS_SHOWN_MAX])
        more = sum(one.count for one in view.seen[KINDS_SHOWN_MAX:])
        rest = f" and {counted(more, 'more event')}" if more else ""
        return f"Evidence: {said}{rest}{source}{since_then(view)}."
    if view.evidence_count <= 0:
        return f"Evidence: what is missing{source}, not an event that came."
    return f"Evidence: {counted(view.evidence_count, 'event')}{source}."


def of_kind(one: Seen, view: AlertView) -> str:
    """`3 failed token refreshes between 12:01 and 12:09 UTC`; the day is said where it is not the alert's own."""
    noun, plural = NOUNS.get(one.kind, OTHER)
    first, last = clock(one.first_at, view.opened_at), clock(one.last_at, view.opened_at)
    when = f"at {first}" if first == last else f"between {first} and {last}"
    return f"{counted(one.count, noun, plural)} {when} UTC"


def since_then(view: AlertView) -> str:
    """Of failed refreshes: whether one has worked since. Nothing where nobody knows."""
    failed = next((one for one in view.seen if one.kind == REFRESH_FAILED), None)
    if failed is None or view.last_refresh_at is None:
        return ""
    if view.last_refresh_outcome == "failure":
        return ", none since succeeded"
    if view.last_refresh_outcome == "success" and view.last_refresh_at > failed.last_at:
        return f"; one succeeded at {clock(view.last_refresh_at, view.opened_at)} UTC"
    return ""
