"""What judging takes and gives, as values: samples and buckets in, episodes out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from service.rules.story import Initial, Step

EVIDENCE_MAX = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A rule held from `opened_at` to `ended_at` (None: it still does), by `occurred_at`.

    `end_reason`: `recovered`, `no_active_workflow`, `subsided`, `quiet` or `called_off`. `evidence`: ids of events,
    oldest first. `flapping`: it opened as one of many in a short time, and is held open until it has been quiet.
    """

    opened_at: datetime
    ended_at: datetime | None = None
    end_reason: str | None = None
    evidence: tuple[str, ...] = ()
    value: float = 0.0
    trigger_event_id: str | None = None
    flapping: bool = False


@dataclass(slots=True)  # not frozen, for the speed of building one
class Sample:
    """What one event means to one condition. `role` is the condition's own word; `due` is the deadline it arms."""

    at: datetime
    role: str
    id: str
    value: float = 0.0
    distinct: str | None = None
    due: datetime | None = None


@dataclass(slots=True)
class Bucket:
    """The samples of one group in [at, at + width): how many, how many were good, or how large they were.

    `sizes` counts values by the logarithm of their size (see `quantile`); `examples` are ids of a few that were bad.
    """

    at: datetime
    total: int = 0
    good: int = 0
    sizes: dict[int, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()


@dataclass(slots=True)  # not frozen, for the speed of building one
class Armed:
    """An absence that waits: since when, by which event, and until when the expected event may come."""

    at: datetime
    id: str
    due: datetime


@dataclass(slots=True, kw_only=True)  # not frozen, for the speed of building one
class Given:
    """What is judged: one rule and one group, from `judge_from` on.

    What lies before `judge_from` was judged when it was new and only fills windows. `open_since`: an episode that was
    open when `judge_from` came. `recent`: when episodes opened and ended in the time before. `armed`: what waited
    before the first of `samples`. `dependents`: whether an active workflow depends on the account.
    """

    judge_from: datetime
    now: datetime
    open_since: datetime | None = None
    recent: Sequence[datetime] = ()
    samples: Sequence[Sample] = ()
    buckets: Sequence[Bucket] = ()
    initial: Initial = field(default_factory=Initial)
    steps: Sequence[Step] = ()
    dependents: bool = True
    armed: Armed | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """`wake_at`: the earliest instant at which the answer may change with no new event. `armed`: what waits now."""

    episodes: tuple[Episode, ...]
    wake_at: datetime | None = None
    armed: Armed | None = None
    value: float | None = None  # of the window, at the end: what `explain` shows
