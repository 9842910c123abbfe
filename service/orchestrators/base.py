"""What every orchestrator takes and gives. "Paused" means different things, so each says which doors it shuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    whether it was paused already, by somebody else, so that we must not start it (None: it does not say); `stops` what this
    pause stops, where that differs from what the orchestrator says of all its pauses.
    """

    status: str
    detail: str
    prior_state: Mapping[str, Any] | None = None
    was_paused: bool | None = None
    stops: Stops | None = None


class Orchestrator(Protocol):
    """One system that runs workflows. Every failure is a `DeliveryFailed`; nothing is retried inside.

    The same `idempotency_key` twice has one effect and the same answer, so an ambiguous failure is simply tried again with
    the same key: a pause answers then what it found the first time, not our own pause.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def stops(self) -> Stops: ...

    async def pause(self, *, ref: str, workflow_id: str, reason: str, idempotency_key: str) -> Answer: ...

    async def resume(
        self,
        *,
        ref: str,
        workflow_id: str,
        reason: str,
        idempotency_key: str,
        prior_state: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Back to `prior_state`, which its own answer to our pause said; None where it said nothing."""
        ...

    async def check(self) -> str:
        """One sentence for `authwatch doctor`; changes nothing there. Raises `DeliveryFailed` with the mend."""
        ...
