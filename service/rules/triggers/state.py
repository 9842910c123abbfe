"""`state`: an account has been in a status for so long; judged again when the account or what depends on it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from service.event import WELL
from service.rules.explaining import Found, length, seconds, when
from service.rules.fields import Duration, Strict, one_or_many
from service.rules.given import EVIDENCE_MAX, Episode, Given, Judged
from service.rules.story import Step, chain
from service.rules.triggers.base import ZERO, Condition

DELETED = "DELETED"


class Comparison(Strict):
    gte: int = Field(ge=1, le=1, strict=True)


class StateMatch(Strict):
    """A status (or several) of the account, for so long; with `active_workflows`, only while one depends on it."""

    status: Annotated[list[str], BeforeValidator(one_or_many), Field(min_length=1, max_length=20)]
    active_workflows: Comparison | None = None
    for_: Duration = Field(ZERO, alias="for")


class State(Condition):
    """The account is, and has been for so long, in one of these statuses; judged again when what depends on it changes."""

    NAME: ClassVar[str] = "state"
    GROUPS: ClassVar[bool] = False

    of: Literal["account"]
    match: Annotated[list[StateMatch], BeforeValidator(one_or_many), Field(min_length=1, max_length=50)]

    def alternatives(self, dependents: bool) -> list[StateMatch]:
        return [one for one in self.match if dependents or one.active_workflows is None]

    def ends(self, status: str) -> bool:
        """An account that is gone waits for nothing: only a rule that names DELETED goes on asking for it."""
        return status == DELETED and not any(DELETED in one.status for one in self.match)

    def still_wrong(self, not_well: Mapping[str, datetime]) -> dict[str, datetime]:
        gone = not_well.get(DELETED) if self.ends(DELETED) else None
        return {status: at for status, at in not_well.items() if gone is None or at > gone}

    def judge(self, rule: Any, given: Given) -> Judged:
        """A break is the chain of statuses since the account was last ACTIVE. It counts from the first instant at which
        one of them has a matching alternative whose `for` has passed; PENDING_* and unknown statuses never end it."""
        done: list[Episode] = []
        open_since, judge_from, now = given.open_since, given.judge_from, given.now
        alternatives = self.alternatives(given.dependents)
        current = Episode(opened_at=open_since, value=1.0) if open_since is not None else None
        not_well = self.still_wrong(given.initial.not_well)
        causes: list[Step] = []
        for step in given.steps:
            if step.became is None:
                continue
            at = step.event.occurred_at
            before, not_well = not_well, chain(not_well, step.became, at)
            if step.became == WELL or self.ends(step.became):
                not_well = {}
                opened = satisfied_at(alternatives, rule.for_, before)
                if current is None and opened is not None and opened < at:
                    current = episode(opened, causes)
                if current is not None and at >= judge_from:
                    reason = "recovered" if step.became == WELL else "called_off"
                    done.append(replace(current, ended_at=at, end_reason=reason))
                current, causes = (
                    (current if current is not None and at < judge_from and open_since is not None else None),
                    [],
                )
            else:
                causes.append(step)
        wake_at: datetime | None = None
        if not_well:
            opened = satisfied_at(alternatives, rule.for_, not_well)
            if current is None and opened is not None:
                if opened <= now:
                    current = episode(opened, causes)
                else:
                    wake_at = opened
            elif current is not None and causes:
                current = replace(current, evidence=evidence(causes))
        if not alternatives:
            # Nothing active depends on it: what was open closes now, and what is past concerned nobody.
            ended = (
                [replace(current, ended_at=now, end_reason="no_active_workflow")]
                if current is not None and open_since is not None
                else []
            )
            mine = tuple(past for past in done if open_since is not None and past.opened_at == open_since)
            return Judged(mine or tuple(ended))
        return Judged((*done, *([current] if current is not None else [])), wake_at, value=1.0 if not_well else 0.0)

    def in_words(self) -> str:
        return "account is " + ", or ".join(
            "/".join(one.status)
            + (f" for {length(one.for_)}" if one.for_ else "")
            + (" while an active workflow depends on it" if one.active_workflows is not None else "")
            for one in self.match
        )

    def find(self, rule: Any, given: Given, judged: Judged) -> Found:
        status, since, not_well = given.initial.status, given.initial.status_since, dict(given.initial.not_well)
        causes: list[Step] = []
        for step in given.steps:
            if step.became is not None:
                status, since = step.became, step.event.occurred_at
                not_well = chain(not_well, status, since)
                causes = [*causes, step] if not_well else []
        if status is None:
            return Found(known=False, missing=("no event has said what status the account has",))
        now = f"status {status}" + (f" since {when(since)}" if since is not None else "")
        if status == WELL:
            return Found(missing=(now,), value=0.0, since=since, event_ids=())
        held = satisfied_at(self.alternatives(given.dependents), rule.for_, not_well)
        base: dict[str, Any] = {
            "value": 1.0,
            "since": min(not_well.values(), default=since),
            "event_ids": evidence(causes),
        }
        if held is not None and held <= given.now:
            return Found(true=True, because=(now,), **base)
        wanted = [one for one in self.match if any(name in one.status for name in not_well)]
        missing: list[str] = []
        for one in wanted:
            wait = max(one.for_, rule.for_)
            for name, at in not_well.items():
                if name in one.status and at + wait > given.now:
                    missing.append(f"{name} for {seconds(given.now - at)} of {seconds(wait)}")
        if not given.dependents and any(one.active_workflows is not None for one in wanted):
            missing.append("no active workflow depends on it")
        if not wanted:
            asked = sorted({name for one in self.match for name in one.status})
            missing.append(f"{now}; the rule asks for {', '.join(asked)}")
        return Found(because=(now,), missing=tuple(missing), **base)


def satisfied_at(
    alternatives: Sequence[StateMatch], for_: timedelta, not_well: Mapping[str, datetime]
) -> datetime | None:
    """The earliest instant at which an alternative of the rule holds for this chain."""
    return min(
        (
            at + max(alternative.for_, for_)
            for alternative in alternatives
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
