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
    """What the orchestrator answered. `prior_state` is its state before us, so that resume undoes only what we did."""

    status: str
    detail: str
    prior_state: Mapping[str, Any] | None = None


class Orchestrator(Protocol):
    """One system that runs workflows. Every failure is a `DeliveryFailed`; nothing is retried inside.

    The same `idempotency_key` twice has one effect, so an ambiguous failure is simply tried again with the same key.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def stops(self) -> Stops: ...

    async def pause(self, *, ref: str, workflow_id: str, reason: str, idempotency_key: str) -> Answer: ...

    async def resume(self, *, ref: str, workflow_id: str, reason: str, idempotency_key: str) -> Answer: ...

    async def check(self) -> str:
        """One sentence for `authwatch doctor`; changes nothing there. Raises `DeliveryFailed` with the mend."""
        ...
