"""The conditions a rule may have, one line each: a file with a pure function, and its key in `model.py`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from service.rules.model import Rule
from service.rules.story import Initial, Step
from service.rules.triggers.base import Episode, Judged, Trigger
from service.rules.triggers.count import judge_count
from service.rules.triggers.state import judge_state

__all__ = ["TRIGGERS", "Episode", "Judged", "Trigger", "judge_rule"]

TRIGGERS: dict[str, Trigger] = {
    "count": judge_count,
    "state": judge_state,
}


def judge_rule(
    rule: Rule,
    *,
    initial: Initial,
    open_since: datetime | None,
    steps: Sequence[Step],
    judge_from: datetime,
    now: datetime,
    dependents: bool,
) -> Judged:
    return TRIGGERS[rule.kind](
        rule,
        initial=initial,
        open_since=open_since,
        steps=steps,
        judge_from=judge_from,
        now=now,
        dependents=dependents,
    )
