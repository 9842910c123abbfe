"""Which answers of the gate change, from rows of the log and from what is known now. Pure.

An answer about a workflow and an account has three parts: the workflow's (inactive, paused), the account's own state, and
a hold on the workflow for that account alone. Each row of the log says of some part what it became; the last word on each
part is not the row's but what the database holds now, so that the last answer told is always the gate's own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from service.event import WELL, AccountKey, Event
from service.gate import REASONS, Account, Answer, Asked, Hold, Workflow, decide

SUBJECTS_TOLD_MAX = 50_000
UNKNOWN = ("unknown_workflow", "unknown_account")
ALLOWED = decide(
    Asked(
        workflow_id=None,
        workflow=None,
        holds=(),
        account_id=None,
        account=None,
        alert_ids=(),
        on_unknown="deny",
        evaluation_lag_seconds=0.0,
    )
)


class Subject(NamedTuple):
    """What may be asked of the gate. As a part: a workflow's, an account's, or that of a hold on one for the other."""

    workflow_id: str | None
    account: AccountKey | None


class Touch(NamedTuple):
    """A row of the log changed this part to that denial, None: to none. Without `told` only what is now can say."""

    part: Subject
    denial: Answer | None
    told: bool
    position: int
    at: datetime


class Change(NamedTuple):
    subject: Subject
    answer: Answer
    position: int
    at: datetime


def touches(event: Event) -> list[Touch]:
    """Of what Authwatch itself decided; a provider's event counts once it is evaluated (`touched_account`)."""
    details: Mapping[str, Any] = event.details or {}
    if event.kind == "audit":
        workflow_id = str(details.get("subject") or event.event_id or "")
        changed = str(details.get("action", "")).startswith("workflow.")
        return [Touch(Subject(workflow_id, None), None, False, event.position, event.received_at)] if changed else []
    if event.kind not in ("workflow.paused", "workflow.resumed") or event.event_id is None:
        return []
    alone = details.get("scope") == "account" and event.account is not None
    part = Subject(event.event_id, event.account if alone else None)
    denial = None
    if event.kind == "workflow.paused":
        whom = f" for account {event.account_id}" if alone else ""
        detail = f"workflow {event.event_id} is paused{whom}: {details.get('reason')}"
        denial = Answer(False, "workflow_paused", detail, tuple(map(str, details.get("alert_ids") or ())))
    return [Touch(part, denial, True, event.position, event.received_at)]


def touched_account(event: Event) -> Touch:
    """Of an event that says a status, once it is evaluated."""
    assert event.account is not None
    reason = REASONS.get(event.account_status or "", "unknown_account")
    denial = None
    if event.account_status != WELL:
        denial = Answer(False, reason, f"account {event.account_id} is {event.account_status}")
    return Touch(Subject(None, event.account), denial, True, event.position, event.received_at)


def of_workflow(workflow_id: str, workflow: Workflow | None, holds: Sequence[Hold]) -> Answer | None:
    return denial(workflow_id=workflow_id, workflow=workflow, holds=[one for one in holds if one.scope == "workflow"])


def of_account(key: AccountKey, account: Account | None, alert_ids: Sequence[str]) -> Answer | None:
    return denial(account_id=key.account_id, account=account, alert_ids=alert_ids)


@dataclass(frozen=True, slots=True)
class Well:
    key: AccountKey
    status: str | None = WELL
    status_since: datetime | None = None


def of_hold(key: AccountKey, holds: Sequence[Hold]) -> Answer | None:
    return denial(account_id=key.account_id, account=Well(key), holds=holds)


def denial(
    *,
    workflow_id: str | None = None,
    workflow: Workflow | None = None,
    holds: Sequence[Hold] = (),
    account_id: str | None = None,
    account: Account | None = None,
    alert_ids: Sequence[str] = (),
) -> Answer | None:
    answer = decide(
        Asked(
            workflow_id=workflow_id,
            workflow=workflow,
            holds=holds,
            account_id=account_id,
            account=account,
            alert_ids=alert_ids,
            on_unknown="deny",
            evaluation_lag_seconds=0.0,
        )
    )
    return None if answer.allow else answer


def parts_of(subject: Subject) -> tuple[Subject, ...]:
    """In the order in which the gate asks them."""
    if subject.workflow_id is None or subject.account is None:
        return (subject,)
    return Subject(subject.workflow_id, None), Subject(None, subject.account), subject


def together(denials: Iterable[Answer | None]) -> Answer:
    """As `gate.decide` does: what is known to be broken first, what is not known last."""
    found = [one for one in denials if one is not None]
    return next((one for one in found if one.reason not in UNKNOWN), found[0] if found else ALLOWED)


@dataclass(slots=True)
class Told:
    """The last answer told of each subject, so that only what flips or changes its reason is told. What was forgotten may
    be told once more."""

    _last: OrderedDict[Subject, tuple[bool, str | None]] = field(default_factory=OrderedDict)

    def is_new(self, subject: Subject, answer: Answer) -> bool:
        said = answer.allow, answer.reason
        if self._last.get(subject) == said:
            self._last.move_to_end(subject)
            return False
        self._last[subject] = said
        self._last.move_to_end(subject)
        if len(self._last) > SUBJECTS_TOLD_MAX:
            self._last.popitem(last=False)
        return True


def changes(
    touched: Sequence[Touch],
    now: Mapping[Subject, Answer | None],
    subjects: Mapping[Subject, Sequence[Subject]],
    told: Told,
) -> list[Change]:
    """`touched` in order of position; `now`: every part that is needed, as it is; `subjects`: by part, whose answer it is
    part of."""
    last = {touch.part: number for number, touch in enumerate(touched)}
    was: dict[Subject, Answer | None] = {}
    found: list[Change] = []
    for number, touch in enumerate(touched):
        final = last[touch.part] == number
        if not final and not touch.told:
            continue  # what it was then nobody knows any more, and a later row tells what became of it
        was[touch.part] = now[touch.part] if final else touch.denial
        for subject in subjects[touch.part]:
            # A part that no row has touched yet, and none will, has been all the while as it is now.
            answer = together(
                was[part] if part in was else (None if part in last else now[part]) for part in parts_of(subject)
            )
            if told.is_new(subject, answer):
                found.append(Change(subject, answer, touch.position, touch.at))
    return found
