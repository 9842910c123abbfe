"""Silences and muted times: what keeps a message from being sent although a route takes the alert. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from service.routing.intervals import Clock
from service.routing.matchers import Labels, Matcher, all_match
from service.routing.tree import Node

SilenceState = Literal["pending", "active", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Mutes messages about what it matches, from `start` to `end`; with a `clock`, only while that runs.

    `mutes_pauses`: no workflow is paused either because of what begins meanwhile; what is paused already stays so.
    """

    id: str
    matchers: tuple[Matcher, ...]
    start: datetime
    end: datetime
    author: str
    comment: str
    created_at: datetime
    clock: Clock | None = None
    time_intervals: tuple[str, ...] = ()
    mutes_pauses: bool = False
    declared: bool = False

    def state(self, now: datetime) -> SilenceState:
        """As Alertmanager; a recurring one is active throughout, and `mutes_at` says whether it is so now."""
        return "pending" if now < self.start else "expired" if now >= self.end else "active"

    def mutes_at(self, now: datetime) -> bool:
        return self.start <= now < self.end and (self.clock is None or self.clock.runs(now))

    def concerns(self, labels: Labels) -> bool:
        return all_match(self.matchers, labels)


def silenced_by(silences: Sequence[Silence], labels: Labels, now: datetime) -> tuple[str, ...]:
    """The ids of the silences that mute it now."""
    return tuple(silence.id for silence in silences if silence.mutes_at(now) and silence.concerns(labels))


def out_of_hours(node: Node, clocks: Mapping[str, Clock], now: datetime) -> tuple[str, ...]:
    """The names of the time intervals because of which this route is quiet now: one that mutes it, or none of those in
    which it is active."""
    muting = tuple(name for name in node.mute if clocks[name].runs(now))
    if muting:
        return muting
    if node.active and not any(clocks[name].runs(now) for name in node.active):
        return node.active
    return ()
