"""`count`: so many matching events within a window, with nothing in between that says it is well again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from service.rules.story import Initial, Step
from service.rules.triggers.base import EVIDENCE_MAX, Episode, Judged

if TYPE_CHECKING:
    from service.rules.model import Rule


def judge_count(
    rule: Rule,
    *,
    initial: Initial,
    open_since: datetime | None,
    steps: Sequence[Step],
    judge_from: datetime,
    now: datetime,
    dependents: bool,
) -> Judged:
    """With `resolve.event` only such an event ends an episode: a paused agent makes no more failures, and silence is
    not recovery. Without it, it ends when the window has emptied, `keep_firing_for` later."""
    assert rule.count is not None
    within, gte = rule.count.within, rule.count.gte
    window: deque[tuple[datetime, str]] = deque()
    done: list[Episode] = []
    current: Episode | None = None
    waiting = open_since  # what was open comes in at its own time: failures before it belong to others
    until: datetime | None = None  # when too few are left in the window, `keep_firing_for` included
    for step in steps:
        at = step.event.occurred_at
        current = subsided(rule, current, until, done, at)
        if waiting is not None and at >= waiting:
            current, waiting = Episode(opened_at=waiting), None
        if rule.resolves(step):
            window.clear()
            if current is not None and at >= judge_from:
                done.append(replace(current, ended_at=at, end_reason="recovered"))
                current = None
        elif rule.count_matches(step):
            window.append((at, step.event.id))
            while at - window[0][0] > within:
                window.popleft()
            if len(window) >= gte:
                until = window[-gte][0] + within + rule.keep_firing_for
            if current is not None:
                evidence = (*current.evidence, step.event.id) if at >= judge_from else current.evidence
                current = replace(
                    current, evidence=evidence[-EVIDENCE_MAX:], value=float(max(current.value, len(window)))
                )
            elif len(window) >= gte and at >= judge_from:
                current = Episode(
                    opened_at=at,
                    evidence=tuple(id_ for _, id_ in window)[-EVIDENCE_MAX:],
                    value=float(len(window)),
                    trigger_event_id=step.event.id,
                )
    if waiting is not None:
        current = Episode(opened_at=waiting)
    current = subsided(rule, current, until, done, now)
    if current is not None and not rule.resolve_events and until is None:
        # Too few are left even in sight: it ended while nobody looked.
        done.append(replace(current, ended_at=now, end_reason="subsided"))
        current = None
    return Judged(
        (*done, *([current] if current is not None else [])),
        until if current is not None and not rule.resolve_events else None,
    )


def subsided(
    rule: Rule, current: Episode | None, until: datetime | None, done: list[Episode], at: datetime
) -> Episode | None:
    """The episode that is open, unless its window had emptied before `at`."""
    if current is None or rule.resolve_events or until is None or until >= at:
        return current
    done.append(replace(current, ended_at=until, end_reason="subsided"))
    return None
