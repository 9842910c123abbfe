"""What every notifier takes and gives: an alert as values in, a reference to the one message that stands for it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, TypeGuard

AlertState = Literal["firing", "acknowledged", "resolved"]
HoldScope = Literal["workflow", "account"]
NullMeans = Literal["not_told", "not_answered", "pause_failed", "does_not_say"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopFacts:
    """What the pause at the orchestrator stops: scheduled starts, starts by hand or API, running work.

    `null_means` says what a None among them means: `not_told` (there is no orchestrator, or it was asked nothing),
    `not_answered` (not yet), `pause_failed`, `does_not_say`; None where none of them is None.
    """

    scheduled_starts: bool | None = None
    manual_starts: bool | None = None
    running_work: bool | None = None
    null_means: NullMeans | None = "not_told"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowLine:
    """One workflow this alert touched. `state` is `paused` while the alert's hold is on it, or `active`, `inactive`.

    With scope `account`, `paused` means: paused for the alert's account, while the workflow runs on for the others.
    `orchestrator_state` is what the orchestrator was really told and answered: `pause asked`, `paused`,
    `pause failed: ...`, `resume asked`, `resumed`, `resume failed: ...`, `left as a person had it` (paused before us, so
    not resumed), `nothing to resume` (our pause never took effect); None when it was told nothing.
    """

    workflow_id: str
    name: str | None
    state: str
    scope: HoldScope = "workflow"
    orchestrator: str | None = None
    orchestrator_state: str | None = None
    stops: StopFacts | None = None  # while it is paused as a whole
    waits: bool = False  # what it was paused for is well again, and only a person resumes it
    held_elsewhere: bool = False  # this alert holds it no more, and something else does


PostKind = Literal["first", "repeat", "growth", "escalation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """What a message says beyond its one alert. `kind`: why it is a message of its own, since `since`.

    With a `total` above 1 it tells of several alerts of one group: how they stand, and by `names` whose some of them are.
    """

    kind: PostKind = "first"
    since: datetime | None = None
    total: int = 1
    firing: int = 0
    acknowledged: int = 0
    resolved: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    names: tuple[str, ...] = ()
    all_accounts: bool = True
    of_calls: bool = False  # what broke is calls, and not the accounts they were made with


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Events of one kind (`token.refresh_failed`, ...) among the evidence: how many, and when the first and the last."""

    kind: str
    count: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertView:
    """One alert as the on-call should see it now. Every time is aware UTC."""

    id: str
    rule_id: str
    severity: str
    state: AlertState
    summary: str
    opened_at: datetime  # when the break happened
    fired_at: datetime  # when we judged it
    what_to_do: str | None = None
    account_id: str | None = None
    connection_id: str | None = None
    environment_id: str | None = None
    source: str | None = None
    provider: str | None = None
    identifier: str | None = None
    account_status: str | None = None
    group: tuple[tuple[str, str], ...] = ()  # what it is about, where that is no account
    resolved_at: datetime | None = None
    resolved_reason: str | None = None
    acknowledged_by: str | None = None
    late_seconds: float | None = None  # how late the event that fired it reached us
    evidence_count: int = 0
    seen: tuple[Seen, ...] = ()  # of the evidence that is still in the log, oldest first
    last_refresh_at: datetime | None = (
        None  # the account's last token refresh, and whether it was a `success` or `failure`
    )
    last_refresh_outcome: str | None = None
    provider_action: str | None = None  # the playbook's, where the provider gave a reason (service/playbook/words.py)
    reauthorizable: bool = False  # a link to authorize the account again can be made
    snoozed_until: datetime | None = None
    resolved_by: str | None = None  # the person who did, None where it ended by itself
    discovered_late: bool = False
    late_detection: bool = False  # its deadline had passed long before somebody judged it
    flapping: bool = False
    drill: bool = False  # fired for practice: said first in every message
    workflows: tuple[WorkflowLine, ...] = ()
    url: str | None = None
    together: Together | None = None
    # The alert that its message was first about, the same whoever of a group leads now; None: this one.
    incident_id: str | None = None


@dataclass(frozen=True, slots=True)
class MessageRef:
    """Where a message is, in the notifier's own words: kept, so that later states edit it and never post again.

    `said`: which state it last told there, where the notifier goes by that; else whoever keeps it notes the state told.
    """

    channel: str
    ts: str
    said: str | None = None


class Notifier(Protocol):
    """One destination for people. Every failure is a `DeliveryFailed`; the retries are the actions' business.

    `idempotent`: the same `delivery_id` twice has one effect there, so a post of unknown fate is simply sent again, and
    `find` is never asked. `one_incident`: what is told of one group is one incident there, which pages by itself until
    somebody has it in hand: repeats, growth and escalations to who was told already are edits of that. `threads`: it keeps
    what happens since beside the message, and is `Threaded`.
    """

    @property
    def threads(self) -> bool: ...

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def idempotent(self) -> bool: ...

    @property
    def one_incident(self) -> bool: ...

    async def post(self, view: AlertView, *, delivery_id: str, possible_repeat: bool) -> MessageRef:
        """Post once. `possible_repeat` is said in the message: an earlier try may have arrived all the same."""
        ...

    async def update(self, view: AlertView, ref: MessageRef) -> MessageRef:
        """Edit that message to the alert's state now; safe to repeat."""
        ...

    async def find(self, delivery_id: str, *, since: datetime | None = None) -> MessageRef | None:
        """The message an earlier try left, or None when there surely is none.

        `since` is when the first try may have begun. Raises `DeliveryFailed`, code `fate_unknown`, when it cannot look.
        """
        ...

    async def check(self) -> str:
        """One sentence for `authwatch doctor`; posts nothing. Raises `DeliveryFailed` with the mend."""
        ...


class Threaded(Notifier, Protocol):
    """A notifier with threads: what happened since is replied to the message, which itself says how things stand."""

    async def thread(
        self, view: AlertView, ref: MessageRef, lines: Sequence[str], *, delivery_id: str, possible_repeat: bool = False
    ) -> MessageRef:
        """Reply once, in plain text, a line each. As with `post`, an ambiguous failure is looked for before a repeat."""
        ...

    async def find_reply(
        self, delivery_id: str, ref: MessageRef, *, since: datetime | None = None
    ) -> MessageRef | None:
        """As `find`, among the replies to that message."""
        ...


def has_threads(notifier: Notifier) -> TypeGuard[Threaded]:
    return notifier.threads
