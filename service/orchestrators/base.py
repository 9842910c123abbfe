"""What every orchestrator takes and gives. "Paused" means different things, so each says which doors it shuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """What a pause stops there: scheduled starts, starts by hand or API, running work. None: it does not say."""

    scheduled_starts: bool | None = None
    manual_starts: bool | None = None
    running_work: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the orchestrator answered.

    To a pause: `prior_state` is its state before us, in its own words, given back to it with the resume; `was_paused`
    whether it was paused already, by somebody else, so that we must not start it (None: it does not say). One that is asked
    first and yet answers so has left it as it was. `stops`: what this pause stops, where that differs from what the
    orchestrator says of all its pauses.
    """

    status: str
    detail: str
    prior_state: Mapping[str, Any] | None = None
    was_paused: bool | None = None
    stops: Stops | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How a workflow stands there now. `paused`: None where it cannot be told. `as_found`: what a resume needs to put exactly
    this back, small JSON in the orchestrator's own words (at most 4,000 characters); it is recorded before anything is
    changed. `detail` is one plain sentence. `adds_up`: names in `as_found` of lists of what a pause interrupts, each with the
    most it may hold: to one of an earlier pause that has not been undone yet they are added, so that nothing is forgotten."""

    paused: bool | None
    as_found: Mapping[str, Any]
    detail: str = ""
    adds_up: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One workflow of theirs. `ref` is what `pause` takes, and survives a rename where the orchestrator has such a thing;
    `other_refs`: what else it takes for this one, by which a person may have registered it."""

    ref: str
    name: str
    tags: tuple[str, ...] = ()
    paused: bool | None = None
    other_refs: tuple[str, ...] = ()


class Orchestrator(Protocol):
    """One system that runs workflows. Every failure is a `DeliveryFailed`; nothing is retried inside.

    Two sorts. One that knows our idempotency key (`asks_first` False): the same key twice has one effect and the same answer,
    and a pause repeated answers what it found the first time. One that does not (`asks_first` True): its `state` is asked and
    recorded before the first pause, so that a pause repeated after a lost answer does not take our own pause for a person's;
    `pause` and `resume` are given what was found, and are idempotent by what they ask for.
    """

    asks_first: bool

    @property
    def at_once(self) -> int | None:
        """Pauses and resumes there at a time, of one process. More would only wait inside for their turn, and be given up for
        it. None: as many as any destination is given (workers/act.py)."""
        ...

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def stops(self) -> Stops: ...

    async def state(self, *, ref: str) -> State:
        """Changes nothing. `DeliveryFailed` with code `workflow_gone`, permanent, where there is no such workflow."""
        ...

    async def pause(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        found: Mapping[str, Any] | None = None,
    ) -> Answer:
        """`found`: `State.as_found`, as recorded before the first try; None for those that are not asked first."""
        ...

    async def resume(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        prior_state: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Back to `prior_state`: what was found before our pause (`as_found`, or its own answer to our pause); None where
        nothing was said. Status `left` where a person has started it since, or changed it so that it is theirs now;
        `workflow_gone` where it was put back, though what it runs is gone. One that is gone altogether is a `DeliveryFailed`
        of that code."""
        ...

    async def list_workflows(self, *, limit: int) -> Sequence[Listed]:
        """What runs there, `limit` at most, for `authwatch orchestrators import`. `DeliveryFailed` with code `cannot_list`,
        permanent, where there is nothing to ask."""
        ...

    async def check(self) -> str:
        """One sentence for `authwatch doctor`, after a harmless call that proves the credentials; changes nothing there.
        Raises `DeliveryFailed` with the mend."""
        ...
