"""What is allowed in a rule and seldom meant: warnings. Each says why, and what to write instead. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from service.event import WELL
from service.rules.document import Path
from service.rules.mistake import close
from service.rules.model import Rule
from service.rules.triggers.count import Count
from service.rules.triggers.state import State

# A provider tries a delivery again for up to 22 minutes (Scalekit), and the clocks differ a little.
LATENESS_MIN = timedelta(minutes=25)
STATUSES = (WELL, "EXPIRED", "PENDING_AUTH", "PENDING_VERIFICATION", "DISCONNECTED", "DELETED")
STATUS_FIELDS = ("status", "old_status", "became")


@dataclass(frozen=True, slots=True)
class Advice:
    """`path` leads from the rule to the words it is about."""

    path: Path
    message: str
    mend: str
    on_key: bool = False


def advise(rule: Rule) -> Iterator[Advice]:
    yield from averages(rule)
    if rule.allowed_lateness < LATENESS_MIN:
        yield Advice(
            ("allowed_lateness",),
            "a provider tries again for up to 22 minutes, and what comes later than this is not judged again",
            "write at least 25m, or take it out (1h)",
        )
    if rule.actions and rule.what_to_do is None:
        yield Advice(
            ("annotations",),
            "the rule acts by itself and does not say what people should do",
            "add what_to_do, the first thing to do when this is read",
            on_key=True,
        )
    yield from statuses(rule)


def averages(rule: Rule) -> Iterator[Advice]:
    if rule.kind == "gauge" or "connection_id" not in rule.group_by or "account_id" in rule.group_by:
        return
    if isinstance(rule.condition, Count) and rule.condition.distinct == "account_id":
        return
    yield Advice(
        ("group_by", rule.group_by.index("connection_id")),
        "it averages over users: every account of a connection counts together, and one broken account drowns",
        "group by account_id, or count with distinct: account_id"
        if isinstance(rule.condition, Count)
        else "group by account_id",
    )


def statuses(rule: Rule) -> Iterator[Advice]:
    """A status nobody has sent yet may come one day, and is probably a slip of the pen."""
    for path, status in statuses_named(rule):
        if status not in STATUSES and (near := close(status, STATUSES)) is not None:
            yield Advice(path, f'no provider is known to send the status "{status[:60]}"', f'did you mean "{near}"?')


def statuses_named(rule: Rule) -> Iterator[tuple[Path, str]]:
    if isinstance(rule.condition, State):
        for index, one in enumerate(rule.condition.match):
            for number, status in enumerate(one.status):
                yield ("state", "match", index, "status", number), status
        return
    matches: list[tuple[Path, Any]] = [
        ((rule.kind, name), getattr(rule.condition, name, None))
        for name in ("match", "good", "total", "after", "expect", "unless")
    ]
    matches.append((("resolve", "event"), rule.resolve.event if rule.resolve is not None else None))
    for path, found in matches:
        for index, match in enumerate(found or []):
            for name in STATUS_FIELDS:
                value = match.get(name)
                for number, status in enumerate(value if isinstance(value, list) else [value]):
                    if isinstance(status, str):
                        yield (*path, index, name, number), status
