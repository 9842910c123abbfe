"""An alert in plain language: who, what, since when, what was really stopped, what to do now. Pure."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime

from service.notify.base import AlertView, Together, WorkflowLine

NAME_CHARS_MAX = 80
TITLE_CHARS_MAX = 140
DETAIL_CHARS_MAX = 300
WHAT_TO_DO_CHARS_MAX = 1000
WORKFLOWS_SHOWN_MAX = 15
LATE_WORTH_SAYING_SECONDS = 30.0  # contract: an alert is open within 30 s of its event, unless the event came late

LINK = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
# Marks that turn the reading direction around can make a name read as another sentence.
TURNING_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
UNPRINTABLE = frozenset({"Cc", "Cs", "Cn", "Co", "Zl", "Zp"})
SIGNS = {"firing": "\N{LARGE RED CIRCLE}", "acknowledged": "\N{LARGE YELLOW CIRCLE}"}
GROUP_WORDS = {
    "account_id": "account",
    "connection_id": "connection",
    "environment_id": "environment",
    "organization_id": "organization",
    "drill": "as if of",
}
FLAPS = "Flapping: it opened and closed again and again, so it stays open until it has been quiet."
DRILL = "DRILL "
DRILL_STATUS = "This is a drill: nothing is broken, and it ends by itself."
KINDS = {"repeat": "Still firing: ", "escalation": "Escalated: ", "growth": "Growing: "}
SIGN_RESOLVED = "\N{LARGE GREEN CIRCLE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The lines of one alert, already cleaned and cut; a notifier only lays them out."""

    title: str
    status: str | None
    who: str
    since: str
    evidence: str
    late: str | None
    workflows: tuple[str, ...]
    what_to_do: str | None
    footer: str
    url: str | None

    def text(self) -> str:
        """All of it as plain text, one thought a line."""
        to_do = f"What to do now: {self.what_to_do}" if self.what_to_do else None
        lines = (self.title, self.status, self.who, self.since, self.evidence, self.late, *self.workflows, to_do)
        return "\n".join(line for line in (*lines, self.footer, self.url) if line)


def word(view: AlertView, now: datetime) -> Wording:
    return Wording(
        title=title(view),
        status=status(view),
        who=who(view),
        since=since(view, now),
        evidence=evidence(view),
        late=late(view),
        workflows=workflows(view),
        what_to_do=what_to_do(view),
        footer=clean(f"{view.severity} · rule {view.rule_id} · alert {view.id}", DETAIL_CHARS_MAX),
        url=view.url,
    )


def title(view: AlertView) -> str:
    mark = f"{DRILL if view.drill else ''}{SIGNS.get(view.state, SIGN_RESOLVED)} "
    lead = "Resolved: " if view.state == "resolved" else ""
    lead += KINDS.get(view.together.kind, "") if view.together is not None and view.state != "resolved" else ""
    if view.together is not None and view.together.total > 1:
        return cut(f"{mark}{lead}{of_several(view, view.together)}", TITLE_CHARS_MAX)
    whose = account_words(view)
    summary = clean(view.summary.removeprefix("DRILL: ") if view.drill else view.summary, TITLE_CHARS_MAX)
    # A rule's summary may name the account already; saying it twice would only push the rest out of sight.
    names = [clean(name, NAME_CHARS_MAX) for name in (view.identifier, view.account_id) if name]
    if any(name and name in summary for name in names):
        whose = ""
    if not whose:
        return cut(mark + lead + summary, TITLE_CHARS_MAX)
    room = TITLE_CHARS_MAX - len(mark) - len(lead) - len(whose) - 3
    return cut(f"{mark}{lead}{cut(summary, max(room, 40))} — {whose}", TITLE_CHARS_MAX)


def of_several(view: AlertView, together: Together) -> str:
    """`20 accounts of conn_x: Account is DISCONNECTED ...`: the count first, it is what an edit changes."""
    what = counted(together.total, "account" if together.all_accounts else "alert")
    where = f" of {clean(view.connection_id, NAME_CHARS_MAX)}" if view.connection_id else ""
    return f"{what}{where}: {clean(view.summary.removeprefix('DRILL: '), TITLE_CHARS_MAX)}"


def account_words(view: AlertView) -> str:
    """`GOOGLE_ADS account of Clark`, or as much of that as is known."""
    provider = clean(view.provider or "", NAME_CHARS_MAX)
    owner = clean(view.identifier or view.account_id or "", NAME_CHARS_MAX)
    if owner:
        return f"{provider} account of {owner}".strip()
    if view.connection_id:
        return f"{provider} connection {clean(view.connection_id, NAME_CHARS_MAX)}".strip()
    return f"{provider} accounts" if provider else ""


def who(view: AlertView) -> str:
    if view.together is not None and view.together.total > 1:
        shown = [clean(name, NAME_CHARS_MAX) for name in view.together.names]
        more = view.together.total - len(shown)
        return "Who: " + ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    parts = (
        ("", view.identifier),
        ("provider ", view.provider),
        ("account ", view.account_id),
        ("connection ", view.connection_id),
        ("environment ", view.environment_id),
        ("status now ", view.account_status),
    )
    said = [f"{label}{clean(value, NAME_CHARS_MAX)}" for label, value in parts if value]
    said += [
        clean(f"{GROUP_WORDS.get(name, name)} {value}", NAME_CHARS_MAX)
        for name, value in view.group
        if value and value != getattr(view, name, None)
    ]
    return "Who: " + (" · ".join(said) if said else "no single account")


def since(view: AlertView, now: datetime) -> str:
    several = view.together
    if several is not None and several.total > 1 and several.first_at is not None and several.last_at is not None:
        return f"First {utc(several.first_at)} ({ago(several.first_at, now)}), last {utc(several.last_at)}."
    said = f"Since {utc(view.opened_at)} ({ago(view.opened_at, now)})"
    noticed = (view.fired_at - view.opened_at).total_seconds()
    if noticed >= 1:
        said += f"; alert raised {span(noticed)} later"
    return said + "."


def evidence(view: AlertView) -> str:
    source = f" from {clean(view.source, NAME_CHARS_MAX)}" if view.source else ""
    if view.drill:
        return "Evidence: none, it is a drill."
    if view.together is not None and view.together.total > 1:
        return "Evidence: at least an event of each; each alert names its own."
    if view.evidence_count <= 0:
        return f"Evidence: what is missing{source}, not an event that came."
    return f"Evidence: {counted(view.evidence_count, 'event')}{source}."


def late(view: AlertView) -> str | None:
    if view.discovered_late:
        return "It was already over when we learned of it: nothing was paused for it."
    if view.late_detection:
        return f"Its deadline had passed {span((view.fired_at - view.opened_at).total_seconds())} before it was judged."
    if view.late_seconds is None or view.late_seconds < LATE_WORTH_SAYING_SECONDS:
        return None
    return f"Late news: this event reached us {span(view.late_seconds)} after it happened."


def status(view: AlertView) -> str | None:
    flaps = FLAPS if view.flapping and view.state != "resolved" else None
    said = (DRILL_STATUS if view.drill else None, flaps, kind_words(view), counts(view) or state_words(view))
    return " ".join(filter(None, said)) or None


def kind_words(view: AlertView) -> str | None:
    """Why this is a message of its own, where it is not the first."""
    together = view.together
    if together is None or view.state == "resolved" or together.kind == "first":
        return None
    since = f" since {utc(together.since)}" if together.since is not None else ""
    if together.kind == "growth":
        return f"It has grown: more have joined{since} than an edit of the first message should say."
    return f"Nobody has acknowledged it{since}."


def counts(view: AlertView) -> str | None:
    """How the alerts of a group stand."""
    together = view.together
    if together is None or together.total <= 1:
        return None
    parts = [
        f"{number} {word}"
        for number, word in (
            (together.firing, "firing"),
            (together.acknowledged, "acknowledged"),
            (together.resolved, "resolved"),
        )
        if number
    ]
    return f"Of {together.total}: {', '.join(parts)}."


def state_words(view: AlertView) -> str | None:
    if view.state == "acknowledged":
        person = clean(view.acknowledged_by or "somebody", NAME_CHARS_MAX)
        return f"Acknowledged by {person}. What is paused stays paused."
    if view.state != "resolved":
        return None
    said = "Resolved"
    if view.resolved_at is not None:
        lasted = (view.resolved_at - view.opened_at).total_seconds()
        said += f" at {utc(view.resolved_at)}, {span(lasted)} after it began"
    return said + (f": {clean(view.resolved_reason, DETAIL_CHARS_MAX)}." if view.resolved_reason else ".")


def what_to_do(view: AlertView) -> str | None:
    if view.state == "resolved":
        held = sum(line.state == "paused" for line in view.workflows)
        return f"{counted(held, 'workflow')} still paused: look, then resume by hand." if held else None
    if view.what_to_do:
        # The rule's author wrote this, so a runbook link in it stays.
        return clean(view.what_to_do, WHAT_TO_DO_CHARS_MAX, links=True)
    if view.account_id is None:
        return None  # of what is about no account nobody but the rule's author can say it
    return "Ask the owner of the account to authorize it again, and watch here that it becomes ACTIVE."


def workflows(view: AlertView) -> tuple[str, ...]:
    if not view.workflows:
        return ("No workflow was paused.",) if view.state != "resolved" else ()
    said = [workflow(line) for line in view.workflows[:WORKFLOWS_SHOWN_MAX]]
    more = len(view.workflows) - len(said)
    return (*said, *((f"… and {counted(more, 'more workflow')}.",) if more else ()))


def workflow(line: WorkflowLine) -> str:
    """What happened to one workflow, and what was really told to stop: hope is not written down as fact."""
    workflow_id = clean(line.workflow_id, NAME_CHARS_MAX)
    name = clean(line.name or "", NAME_CHARS_MAX)
    who = f"{name} ({workflow_id})" if name and name != workflow_id else workflow_id
    orchestrator = clean(line.orchestrator, NAME_CHARS_MAX) if line.orchestrator else None
    answer = clean(line.orchestrator_state, DETAIL_CHARS_MAX) if line.orchestrator_state else None
    if line.state != "paused":
        now = "active again" if line.state == "active" else clean(line.state, NAME_CHARS_MAX)
        return f"{who}: {now}" + (f"; {orchestrator}: {answer}." if orchestrator and answer else ".")
    paused = "paused for this account only" if line.scope == "account" else "paused"
    if orchestrator is None:
        return f"{who}: {paused}; the gate denies, nothing else was told to stop."
    if answer is None:
        return f"{who}: {paused}; the gate denies, {orchestrator} was not told to stop."
    return f"{who}: {paused}; the gate denies, {orchestrator}: {answer}."


def clean(text: str, chars_max: int, *, links: bool = False) -> str:
    """Outside text as one printable line. Links go: an authorization link lets its reader act as that user."""
    text = text[: chars_max * 8]  # before any work on it: the rest would be cut away in any case
    text = "".join(" " if c in TURNING_MARKS or unicodedata.category(c) in UNPRINTABLE else c for c in text)
    text = " ".join(text.split())
    return cut(text if links else LINK.sub("[link removed]", text), chars_max)


def cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1].rstrip() + "…"


def utc(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(at: datetime, now: datetime) -> str:
    seconds = (now - at).total_seconds()
    return "as this was written" if seconds < 1 else f"{span(seconds)} before this was written"


def span(seconds: float) -> str:
    """A duration as a person says it, in its largest unit that fits, and never negative."""
    whole = max(0, round(seconds))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if whole >= 2 * size or (whole >= size and whole % size == 0):
            return f"{whole // size} {unit}"
    return f"{whole} s"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
