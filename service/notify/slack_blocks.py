"""An alert's wording as Slack Block Kit: within Slack's limits for any input, and nothing from outside is markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from service.notify.plain import clean
from service.notify.slack_buttons import safe_url
from service.notify.wording import Wording

# Slack's own limits are 150 for a header, 3,000 for a section's text, 50 blocks, and, undocumented, about 13,000
# characters for all blocks together. The budgets below are ours; with the JSON around them they stay under the total.
HEADER_CHARS_MAX = 150
FACTS_CHARS_MAX = 1_700
WORKFLOWS_CHARS_MAX = 2_000
NEXT_STEP_CHARS_MAX = 700
WHAT_TO_DO_CHARS_MAX = 1_200
STATUS_CHARS_MAX = 600
CONTEXT_CHARS_MAX = 500
REPLY_CHARS_MAX = 2_900
LINE_CHARS_MAX = 800
FALLBACK_CHARS_MAX = 1_000
BLOCKS_CHARS_MAX = 10_000

ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
TRANSLATED = str.maketrans(ESCAPES)
JSON_DOUBLED = frozenset('"\\\n')
REPEAT_MARK = "(possible repeat)"


def blocks(
    wording: Wording, *, possible_repeat: bool = False, buttons: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """`buttons`: as slack_buttons.py makes them; none where no click could be answered."""
    facts = [wording.who, wording.since, wording.evidence, *([wording.late] if wording.late else [])]
    if possible_repeat:
        facts.insert(0, f"{REPEAT_MARK} An earlier try to post this may have arrived.")
    return [
        {"type": "header", "text": {"type": "plain_text", "text": escape([wording.title], HEADER_CHARS_MAX)}},
        *section(None, [wording.status] if wording.status else [], STATUS_CHARS_MAX),
        *section(None, facts, FACTS_CHARS_MAX),
        *section("Workflows", [f"• {line}" for line in wording.workflows], WORKFLOWS_CHARS_MAX),
        *section("Next step", [wording.next_step] if wording.next_step else [], NEXT_STEP_CHARS_MAX),
        *section("What to do now", [wording.what_to_do] if wording.what_to_do else [], WHAT_TO_DO_CHARS_MAX),
        *buttons,
        {"type": "context", "elements": [mrkdwn(escape([wording.footer], CONTEXT_CHARS_MAX) + link(wording.url))]},
    ]


def fallback(wording: Wording, *, possible_repeat: bool = False) -> str:
    """The message as a notification or a screen reader gives it; never empty."""
    lines = [f"{wording.title} {REPEAT_MARK}" if possible_repeat else wording.title]
    lines += [wording.status] if wording.status else [wording.since, *wording.workflows]
    return escape(lines, FALLBACK_CHARS_MAX)


def section(heading: str | None, lines: list[str], chars_max: int) -> list[dict[str, Any]]:
    if not lines:
        return []
    head = f"*{heading}*\n" if heading else ""
    return [{"type": "section", "text": mrkdwn(head + escape(lines, chars_max - len(head) - head.count("\n")))}]


def mrkdwn(text: str) -> dict[str, Any]:
    # `verbatim`: Slack must not turn names and words like @here in a provider's text into links and mentions.
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def link(url: str | None) -> str:
    safe = safe_url(url)
    return f" · <{safe.replace('&', '&amp;')}|Open in Authwatch>" if safe else ""


def reply_blocks(lines: Sequence[str], *, possible_repeat: bool = False) -> list[dict[str, Any]]:
    return [{"type": "section", "text": mrkdwn(reply(lines, REPLY_CHARS_MAX, possible_repeat))}]


def reply_fallback(lines: Sequence[str], *, possible_repeat: bool = False) -> str:
    return reply(lines, FALLBACK_CHARS_MAX, possible_repeat)


def reply(lines: Sequence[str], chars_max: int, possible_repeat: bool) -> str:
    """What happened since, a line each; Slack takes no empty text."""
    cleaned = [clean(line, LINE_CHARS_MAX) for line in lines]
    said = [line for line in cleaned if line] or ["Something changed; the message above says how it stands."]
    return escape([REPEAT_MARK, *said] if possible_repeat else said, chars_max)


def escape(lines: Iterable[str], chars_max: int) -> str:
    """The lines joined and escaped as Slack asks, cut so that an escape is never cut in two."""
    text = "\n".join(lines)
    escaped = text.translate(TRANSLATED)
    if len(escaped) + sum(map(text.count, JSON_DOUBLED)) + (0 if text.isascii() else len(text)) < chars_max:
        return escaped  # nearly always: it fits however it is counted
    out: list[str] = []
    spent = 0
    for char in text:
        piece = ESCAPES.get(char, char)
        # Counted as the JSON string holds it, in UTF-16 units: the strictest way the other side may count.
        cost = 2 if char in JSON_DOUBLED or ord(char) > 0xFFFF else len(piece)
        if spent + cost > chars_max - 1:
            return "".join(out).rstrip() + "…"
        out.append(piece)
        spent += cost
    return "".join(out)
