"""The buttons under an alert's message. Pure: which there are follows from how the alert stands.

`value` is the alert's id and nothing else: what a click means is decided by rows, when it comes.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from service.notify.base import AlertView
from service.notify.next_step import next_step

ACKNOWLEDGE = "authwatch_acknowledge"
SNOOZE = "authwatch_snooze"
RESOLVE = "authwatch_resolve"
RESUME = "authwatch_resume"
REAUTHORIZE = "authwatch_reauthorize"
OPEN = "authwatch_open"
URL_CHARS_MAX = 300  # Slack allows 3,000; a longer one is none of ours
VALUE_CHARS_MAX = 255


def buttons(view: AlertView) -> list[dict[str, Any]]:
    """As one `actions` block, or none where there is nothing to click."""
    if view.drill or not 0 < len(view.id) <= VALUE_CHARS_MAX or not view.id.isprintable():
        return []
    step, paused = next_step(view), [line for line in view.workflows if line.state == "paused"]
    shown: list[dict[str, Any]] = []
    if view.state != "resolved" and step == "reauthorize" and view.reauthorizable:
        shown.append(button(view, REAUTHORIZE, "Re-authorize", style="primary"))
    if view.state == "firing":
        shown.append(button(view, ACKNOWLEDGE, "Acknowledge"))
        shown.append(button(view, SNOOZE, "Snooze"))
    if paused:
        style = "primary" if step == "resume" else None
        shown.append(button(view, RESUME, "Resume workflows", style=style, confirm=resume_confirm(len(paused))))
    if view.state != "resolved":
        shown.append(button(view, RESOLVE, "Resolve", confirm=RESOLVE_CONFIRM))
    if (url := safe_url(view.url)) is not None:
        shown.append(button(view, OPEN, "Open") | {"url": url})
    return [{"type": "actions", "elements": shown}] if shown else []


def button(
    view: AlertView, action_id: str, label: str, *, style: str | None = None, confirm: dict[str, Any] | None = None
) -> dict[str, Any]:
    made = {"type": "button", "action_id": action_id, "text": plain(label), "value": view.id}
    return made | ({"style": style} if style else {}) | ({"confirm": confirm} if confirm else {})


def resume_confirm(workflows: int) -> dict[str, Any]:
    what = "the workflow" if workflows == 1 else f"{workflows} workflows"
    return confirm(
        "Resume workflows?",
        f"This lifts what this alert holds: {what}. If the account still fails, they fail with it, and this alert"
        " will not pause them again.",
        "Resume",
    )


def confirm(title: str, text: str, yes: str) -> dict[str, Any]:
    return {"title": plain(title), "text": plain(text), "confirm": plain(yes), "deny": plain("Cancel")}


def plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text}


RESOLVE_CONFIRM = confirm(
    "Resolve this alert?",
    "It closes for everybody. What is paused stays paused until the account is well or somebody resumes it.",
    "Resolve",
)


def safe_url(url: str | None) -> str | None:
    """A link to the alert in Authwatch itself; None where it cannot be written safely."""
    if not url or len(url) > URL_CHARS_MAX or any(c in '<>|"\\' or c.isspace() or not c.isprintable() for c in url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.netloc else None
