"""What was paused and where, and what a pause stops there: hope is never written down as fact. Pure."""

from __future__ import annotations

from service.notify.base import AlertView, StopFacts, WorkflowLine
from service.notify.plain import DETAIL_CHARS_MAX, NAME_CHARS_MAX, clean, counted, listed

WORKFLOWS_SHOWN_MAX = 15
NAMES_SHOWN_MAX = 5


def workflows(view: AlertView) -> tuple[str, ...]:
    if not view.workflows:
        return ("No workflow was paused.",) if view.state != "resolved" else ()
    several = view.together is not None and view.together.total > 1
    whom = "these accounts" if several else "this account"
    said = [workflow(line, whom) for line in view.workflows[:WORKFLOWS_SHOWN_MAX]]
    more = len(view.workflows) - len(said)
    return (*said, *((f"… and {counted(more, 'more workflow')}.",) if more else ()))


def workflow(line: WorkflowLine, whom: str) -> str:
    """What happened to one workflow, for `whom` where not for all, and what was really told to stop."""
    who = name_of(line)
    orchestrator = clean(line.orchestrator, NAME_CHARS_MAX) if line.orchestrator else None
    answer = clean(line.orchestrator_state, DETAIL_CHARS_MAX) if line.orchestrator_state else None
    if line.state != "paused":
        now = "active again" if line.state == "active" else clean(line.state, NAME_CHARS_MAX)
        if line.held_elsewhere:
            now = "held by this alert no more; something else still pauses it"
        return f"{who}: {now}" + (f"; {orchestrator}: {answer}." if orchestrator and answer else ".")
    paused = f"paused for {whom} only" if line.scope == "account" else "paused"
    if orchestrator is None:
        return f"{who}: {paused}; the gate denies, nothing else was told to stop."
    if answer is None:
        return f"{who}: {paused}; the gate denies, {orchestrator} was not told to stop."
    there = stopped(line.stops) if line.orchestrator_state == "paused" and line.stops is not None else ""
    return f"{who}: {paused}; the gate denies, {orchestrator}: {answer}.{there}"


def stopped(stops: StopFacts) -> str:
    """The three facts, as that orchestrator says of itself what a pause stops."""
    facts = (
        ("scheduled starts", stops.scheduled_starts),
        ("starts by hand or API", stops.manual_starts),
        ("running work", stops.running_work),
    )
    of_word = {True: "stopped there", False: "not stopped there", None: "not known there"}
    said = [(word, [name for name, value in facts if value is known]) for known, word in of_word.items()]
    text = "; ".join(f"{' and '.join(names)}: {word}" for word, names in said if names)
    return f" {text[0].upper()}{text[1:]}."


def name_of(line: WorkflowLine) -> str:
    workflow_id = clean(line.workflow_id, NAME_CHARS_MAX)
    name = clean(line.name or "", NAME_CHARS_MAX)
    return f"{name} ({workflow_id})" if name and name != workflow_id else workflow_id


def waiting(view: AlertView) -> str | None:
    """The resume that is asked for: what is well again, and what stays paused until somebody resumes it."""
    names = tuple(name_of(line) for line in view.workflows if line.waits)
    if not names:
        return None
    several = view.together is not None and view.together.total > 1
    whose = clean(view.identifier or view.account_id or "", NAME_CHARS_MAX)
    if not whose and view.connection_id and not several:
        whose = f"connection {clean(view.connection_id, NAME_CHARS_MAX)}"
    stay = "stays" if len(names) == 1 else "stay"
    them = "it" if len(names) == 1 else "them"
    return f"{whose or 'What failed'} is well again; {listed(names, NAMES_SHOWN_MAX)} {stay} paused until somebody resumes {them}."
