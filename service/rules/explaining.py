"""Why a rule fires, or what is missing for it, in sentences. Pure: each condition says it of itself (`Condition.explain`),
here are the words they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from service.rules.given import EVIDENCE_MAX, Episode, Given, Judged

State = Literal["firing", "pending", "resolved", "inactive", "unknown"]
OPERATOR_WORDS = {
    "ne": "is not",
    "gt": "is above",
    "gte": "is at least",
    "lt": "is below",
    "lte": "is at most",
    "glob": "looks like",
}
END_WORDS = {
    "recovered": "it recovered",
    "no_active_workflow": "no active workflow depended on it any more",
    "subsided": "too few events were left in the window",
    "quiet": "it had been quiet for long enough",
    "called_off": "an event called it off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a rule says of its group at `given.now`. `because` are facts, `missing` what it would have needed to fire.

    `value` is what was measured against `needs`, over `since` to `until`; `event_ids` are what it was measured of, oldest
    first. `unknown`: too little is known to say either. `pending`: true, and not yet for as long as the rule asks.
    """

    state: State
    because: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    value: float | None = None
    needs: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    event_ids: tuple[str, ...] = ()
    episode: Episode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one condition found at `given.now`: its half of an Explanation. `true`: whether it holds in that instant."""

    true: bool = False
    known: bool = True
    because: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    value: float | None = None
    needs: str | None = None
    since: datetime | None = None
    event_ids: tuple[str, ...] = ()


def conclude(rule: Any, given: Given, judged: Judged, found: Found) -> Explanation:
    """The condition's finding and the latch's verdict together."""
    now = given.now
    last = judged.episodes[-1] if judged.episodes else None
    because, missing = list(found.because), list(found.missing)
    state: State = "inactive" if found.known else "unknown"
    event_ids = found.event_ids
    if last is not None and last.ended_at is None:
        state = "firing"
        because.insert(0, f"it has held since {when(last.opened_at)}")
        if missing:
            because.extend(f"it would not fire now: {sentence}" for sentence in missing)
            if rule.resolve is not None:
                because.append(f"it stays open: {resolve_words(rule)}")
            elif rule.keep_firing_for:
                because.append(f"it stays open for {length(rule.keep_firing_for)} after it was last true")
        missing = []
        event_ids = last.evidence or event_ids
    elif last is not None:
        state = "resolved"
        assert last.ended_at is not None
        because.append(
            f"it held from {when(last.opened_at)} to {when(last.ended_at)}: "
            f"{END_WORDS.get(last.end_reason or '', last.end_reason or 'it ended')}"
        )
    if state != "firing" and found.true and rule.for_:
        # Without its `for` it would have fired when it became true.
        at_once = rule.condition.judge(rule.model_copy(update={"for_": timedelta(0)}), given).episodes
        if at_once and at_once[-1].ended_at is None:
            state = "pending"
            missing.append(f"true for {seconds(now - at_once[-1].opened_at)} of {length(rule.for_)}")
    return Explanation(
        state=state,
        because=tuple(because),
        missing=tuple(missing),
        value=found.value,
        needs=found.needs,
        since=found.since,
        until=now,
        event_ids=event_ids[-EVIDENCE_MAX:],
        episode=last,
    )


def rule_words(rule: Any) -> str:
    """The whole rule as one sentence."""
    said = rule.condition.in_words()
    if rule.for_:
        said += f", for {length(rule.for_)}"
    if rule.group_by != ["account_id"] and rule.group_by:
        said += f", for each {' and '.join(rule.group_by)}"
    if rule.resolve is not None:
        said += f"; {resolve_words(rule)}"
    if rule.keep_firing_for:
        said += f"; kept for {length(rule.keep_firing_for)} after it was last true"
    return str(said)


def resolve_words(rule: Any) -> str:
    resolve = rule.resolve
    ways: list[str] = []
    if resolve.event is not None:
        ways.append(f"an event with {matches_words(resolve.event)}")
    if resolve.after is not None:
        ways.append(f"{length(resolve.after)} without a match")
    if resolve.manual:
        ways.append("a person")
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", resolve.gt), (">=", resolve.gte), ("<", resolve.lt), ("<=", resolve.lte))
        if bound is not None
    ]
    if bounds:
        ways.append(f"a value {' and '.join(bounds)}")
    return f"ended by {' or '.join(ways) or 'nothing'}"


def matches_words(matches: Sequence[Mapping[str, Any]]) -> str:
    return "; or ".join(" and ".join(field_words(name, value) for name, value in match.items()) for match in matches)


def field_words(name: str, condition: Any) -> str:
    if isinstance(condition, list):
        return f"{name} one of {', '.join(map(str, condition))}"
    if isinstance(condition, Mapping):
        return " and ".join(operator_words(name, operator, value) for operator, value in condition.items())
    return f"{name} {condition}"


def operator_words(name: str, operator: str, value: Any) -> str:
    if operator == "exists":
        return f"{name} {'there' if value else 'absent'}"
    shown = " nor ".join(map(str, value)) if isinstance(value, list) else value
    return f"{name} {OPERATOR_WORDS.get(operator, operator)} {shown}"


def when(at: datetime) -> str:
    """`2026-11-01 12:00:00Z`, with a fraction only where there is one."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ") + "Z"


def length(span: timedelta) -> str:
    """As a rule file writes it: 30s, 15m, 2h, 1d."""
    whole = int(span.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if whole and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{span.total_seconds():g}s"


def seconds(span: timedelta) -> str:
    return f"{round(max(span.total_seconds(), 0.0), 1):g} s"


def many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
