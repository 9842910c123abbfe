"""An alert in plain language: who, what, since when, what was really stopped, what to do now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from service.notify.base import AlertView, Together
from service.notify.evidence_words import evidence
from service.notify.next_step import WORDS, next_step
from service.notify.plain import DETAIL_CHARS_MAX, NAME_CHARS_MAX, ago, clean, counted, cut, span, utc
from service.notify.workflow_words import waiting, workflows

TITLE_CHARS_MAX = 140
WHAT_TO_DO_CHARS_MAX = 1000
LATE_WORTH_SAYING_SECONDS = 30.0  # contract: an alert is open within 30 s of its event, unless the event came late

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
# Why it ended, where our own word for it (alerts.resolved_reason) would not be read as one.
REASONS: Mapping[str, str] = {
    "recovered": "recovered, it works again",
    "manual": "by hand",
    "quiet": "quiet, nothing more of it came",
    "subsided": "subsided, fewer fail now",
    "called_off": "called off, it is no longer expected",
    "late_arrival": "late arrival, an event that came late shows that it never was",
}
STILL_PAUSED = (
    "what resumes by itself does so once the account has been well for a while, the rest when a person says so."
)
# Where the rule says nothing.
OF_STEP: Mapping[str, str] = {
    "reauthorize": "Ask the owner of the account to authorize it again, and watch here that it becomes ACTIVE.",
    "look": "Look at the account's status first: if it is not ACTIVE, ask its owner to authorize it again.",
}
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
    next_step: str | None
    what_to_do: str | None
    footer: str
    url: str | None

    def text(self) -> str:
        """All of it as plain text, one thought a line."""
        step = f"Next step: {self.next_step}" if self.next_step else None
        to_do = f"What to do now: {self.what_to_do}" if self.what_to_do else None
        facts = (self.title, self.status, self.who, self.since, self.evidence, self.late)
        lines = (*facts, *self.workflows, step, to_do, self.footer, self.url)
        return "\n".join(line for line in lines if line)


def word(view: AlertView, now: datetime) -> Wording:
    return Wording(
        title=title(view),
        status=status(view, now),
        who=who(view),
        since=since(view, now),
        evidence=evidence(view),
        late=late(view),
        workflows=workflows(view),
        next_step=step_words(view),
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


def late(view: AlertView) -> str | None:
    if view.discovered_late:
        return "It was already over when we learned of it: nothing was paused for it."
    if view.late_detection:
        return f"Its deadline had passed {span((view.fired_at - view.opened_at).total_seconds())} before it was judged."
    if view.late_seconds is None or view.late_seconds < LATE_WORTH_SAYING_SECONDS:
        return None
    return f"Late news: this event reached us {span(view.late_seconds)} after it happened."


def status(view: AlertView, now: datetime) -> str | None:
    flaps = FLAPS if view.flapping and view.state != "resolved" else None
    said = (DRILL_STATUS if view.drill else None, flaps, kind_words(view), counts(view) or state_words(view, now))
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


def state_words(view: AlertView, now: datetime) -> str | None:
    if view.state == "acknowledged":
        person = clean(view.acknowledged_by or "somebody", NAME_CHARS_MAX)
        return f"Acknowledged by {person}. What is paused stays paused."
    if view.state == "firing" and view.snoozed_until is not None and view.snoozed_until > now:
        return f"Snoozed until {utc(view.snoozed_until)}. What is paused stays paused."
    if view.state != "resolved":
        return None
    said = "Resolved"
    if view.resolved_at is not None:
        lasted = (view.resolved_at - view.opened_at).total_seconds()
        said += f" at {utc(view.resolved_at)}, {span(lasted)} after it began"
    return said + (f": {why}." if (why := why_resolved(view.resolved_reason, view.resolved_by)) else ".")


def why_resolved(reason: str | None, person: str | None) -> str | None:
    if person is not None:
        return f"by {clean(person, NAME_CHARS_MAX)}"
    return clean(REASONS.get(reason, reason), DETAIL_CHARS_MAX) if reason else None


def step_words(view: AlertView) -> str | None:
    """The one right next step; of a resume that is asked for, of what and why."""
    step = next_step(view)
    if step is None:
        return None
    return f"{WORDS[step]} {waiting(view) or ''}".rstrip()


def what_to_do(view: AlertView) -> str | None:
    if view.state == "resolved":
        held = sum(line.state == "paused" and not line.waits for line in view.workflows)
        return f"{counted(held, 'workflow')} still paused: {STILL_PAUSED}" if held else None
    if view.what_to_do:
        # The rule's author wrote this, so a runbook link in it stays.
        return clean(view.what_to_do, WHAT_TO_DO_CHARS_MAX, links=True)
    if view.account_id is None:
        return None  # of what is about no account nobody but the rule's author can say it
    return OF_STEP.get(next_step(view) or "")
