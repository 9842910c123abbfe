"""What a trigger promises: from one account's story to the episodes it holds. Pure; takes `now`, gives values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from service.rules.story import Initial, Step

EVIDENCE_MAX = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A rule held from `opened_at` to `ended_at` (None: it still does), by `occurred_at`.

    `end_reason`: `recovered`, `no_active_workflow` or `subsided`. `evidence`: ids of events, oldest first.
    """

    opened_at: datetime
    ended_at: datetime | None = None
    end_reason: str | None = None
    evidence: tuple[str, ...] = ()
    value: float = 0.0
    trigger_event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """`wake_at`: the earliest instant at which the answer may change with no new event."""

    episodes: tuple[Episode, ...]
    wake_at: datetime | None = None


class Trigger(Protocol):
    def __call__(
        self,
        rule: Any,
        *,
        initial: Initial,
        open_since: datetime | None,
        steps: Sequence[Step],
        judge_from: datetime,
        now: datetime,
        dependents: bool,
    ) -> Judged:
        """`steps` before `judge_from` only fill windows: they were judged when they were new. `open_since`: an episode
        that was open when `judge_from` came."""
        ...
