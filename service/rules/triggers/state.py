"""`state`: an account is broken while something active depends on it; judged again when either side changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from service.event import WELL
from service.rules.story import Initial, Step, chain
from service.rules.triggers.base import EVIDENCE_MAX, Episode, Judged

if TYPE_CHECKING:
    from service.rules.model import Rule


def judge_state(
    rule: Rule,
    *,
    initial: Initial,
    open_since: datetime | None,
    steps: Sequence[Step],
    judge_from: datetime,
    now: datetime,
    dependents: bool,
) -> Judged:
    """A break is the chain of statuses since the account was last ACTIVE. It counts from the first instant at which one
    of them has a matching alternative whose `for` has passed; PENDING_* and unknown statuses never end it."""
    done: list[Episode] = []
    current = Episode(opened_at=open_since, value=1.0) if open_since is not None else None
    not_well: dict[str, datetime] = dict(initial.not_well)
    causes: list[Step] = []
    for step in steps:
        if step.became is None:
            continue
        at = step.event.occurred_at
        before, not_well = not_well, chain(not_well, step.became, at)
        if step.became == WELL:
            if current is None and (opened := satisfied_at(rule, before)) is not None and opened < at:
                current = episode(opened, causes)
            if current is not None and at >= judge_from:
                done.append(replace(current, ended_at=at, end_reason="recovered"))
            current, causes = (
                (current if current is not None and at < judge_from and open_since is not None else None),
                [],
            )
        else:
            causes.append(step)
    wake_at: datetime | None = None
    if not_well:
        opened = satisfied_at(rule, not_well)
        if current is None and opened is not None:
            if opened <= now:
                current = episode(opened, causes)
            else:
                wake_at = opened
        elif current is not None and causes:
            current = replace(current, evidence=evidence(causes))
    if not dependents:
        # Nothing active depends on it: what was open closes now, and what is past concerned nobody.
        ended = (
            [replace(current, ended_at=now, end_reason="no_active_workflow")]
            if current is not None and open_since is not None
            else []
        )
        return Judged(
            tuple(past for past in done if open_since is not None and past.opened_at == open_since) or tuple(ended),
            None,
        )
    return Judged((*done, *([current] if current is not None else [])), wake_at)


def satisfied_at(rule: Rule, not_well: Mapping[str, datetime]) -> datetime | None:
    """The earliest instant at which an alternative of the rule holds for this chain."""
    assert rule.state is not None
    return min(
        (
            at + alternative.for_
            for alternative in rule.state.match
            for status, at in not_well.items()
            if status in alternative.status
        ),
        default=None,
    )


def episode(opened: datetime, causes: Sequence[Step]) -> Episode:
    return Episode(
        opened_at=opened,
        evidence=evidence(causes),
        value=1.0,
        trigger_event_id=causes[0].event.id if causes else None,
    )


def evidence(causes: Sequence[Step]) -> tuple[str, ...]:
    return tuple(step.event.id for step in causes[:EVIDENCE_MAX])
