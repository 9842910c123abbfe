"""What came too late to count: windows are judged again up to a rule's `allowed_lateness`. Pure."""

from __future__ import annotations

from service.event import Event
from service.rules.given import Sample
from service.rules.model import Rule
from service.rules.story import Step

# What fills a window. What ends an episode or answers a deadline counts at any time, and so does the account's state; what
# arms a deadline does unless that had passed for longer than this when it came.
WINDOW_ROLES = frozenset({"match", "total"})


def is_late(rule: Rule, event: Event) -> bool:
    lag_seconds = event.delivery_lag_seconds
    return lag_seconds is not None and lag_seconds > rule.allowed_lateness.total_seconds()


def samples_in_time(rule: Rule, step: Step) -> tuple[list[Sample], int]:
    """(what the event means to the rule, how much of it came too late and does not count)."""
    samples = rule.samples(step)
    if not samples or not is_late(rule, step.event):
        return samples, 0
    kept = [sample for sample in samples if counts(rule, step.event, sample)]
    return kept, len(samples) - len(kept)


def counts(rule: Rule, event: Event, sample: Sample) -> bool:
    if not is_late(rule, event):
        return True
    forgotten = event.received_at - rule.allowed_lateness
    return sample.role not in WINDOW_ROLES and (sample.due is None or sample.due >= forgotten)
