"""What is allowed in a rule and seldom meant: warnings. Each says why, and what to write instead. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from service.event import DECISION_KINDS, WELL
from service.providers import DETAILS
from service.rules.document import Path
from service.rules.explaining import length
from service.rules.fields import PLACEHOLDER, PLACEHOLDERS
from service.rules.match import COMPARISONS, DETAIL, compile_matches
from service.rules.mistake import close, quoted
from service.rules.model import Rule
from service.rules.triggers.absence import Absence
from service.rules.triggers.count import Count
from service.rules.triggers.quantile import Quantile
from service.rules.triggers.ratio import Ratio
from service.rules.triggers.state import State

# A provider tries a delivery again for up to 22 minutes (Scalekit), and the clocks differ a little.
LATENESS_MIN = timedelta(minutes=25)
FAILURES = frozenset({"token.refresh_failed", "auth.failed", "tool_call.completed"})  # of who tries
STATUSES = (WELL, "EXPIRED", "PENDING_AUTH", "PENDING_VERIFICATION", "DISCONNECTED", "DELETED")
STATUS_FIELDS = ("status", "old_status", "became")


@dataclass(frozen=True, slots=True)
class Advice:
    """`path` leads from the rule to the words it is about; `word` is one of them."""

    path: Path
    message: str
    mend: str
    on_key: bool = False
    word: str | None = None


def advise(rule: Rule) -> Iterator[Advice]:
    yield from averages(rule)
    if rule.allowed_lateness < LATENESS_MIN:
        yield Advice(
            ("allowed_lateness",),
            "a provider tries again for up to 22 minutes, and what comes later than this is not judged again",
            "write at least 25m, or take it out (1h)",
        )
    if rule.annotations.summary is None:
        yield Advice(
            ("id",),
            "people will read its id, and nothing else",
            'add annotations: {summary: "..."}, one sentence for who is woken by it',
        )
    if rule.actions and rule.what_to_do is None:
        yield Advice(
            ("annotations",),
            "the rule acts by itself and does not say what people should do",
            "add what_to_do, the first thing to do when this is read",
            on_key=True,
        )
    yield from statuses(rule)
    yield from details(rule)
    yield from kinds_of_details(rule)
    yield from unheard(rule)
    yield from changes(rule)
    yield from recoveries(rule)
    yield from silence_is_no_recovery(rule)
    yield from never_good(rule)
    yield from never_for_so_long(rule)
    yield from placeholders(rule)


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
    for path, match in rule.matches_of(rule.condition):
        for name in STATUS_FIELDS:
            value = match.get(name)
            for number, status in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(status, str):
                    yield (*path, name, number), status


def details(rule: Rule) -> Iterator[Advice]:
    """A detail that nobody sends: the rule would be quiet for ever, and its own tests would not show it."""
    for path, name, on_key in details_read(rule):
        if (found := DETAIL.fullmatch(name)) is None:
            continue
        if (holds := DETAILS.get(found[1])) is None:
            near = close(found[1], tuple(DETAILS))
            known = ", ".join(f"details.{one}" for one in DETAILS)
            yield Advice(
                path,
                f"no provider is known to send {name}, and without it the rule is never told anything",
                f'did you mean "details.{near}"?' if near else f"known: {known}",
                on_key=on_key,
            )
        elif isinstance(rule.condition, Quantile) and path == ("quantile", "field") and holds != "number":
            yield Advice(path, f"{name} holds a {holds}, and only numbers have a quantile", "name lag_seconds")


def details_read(rule: Rule) -> Iterator[tuple[Path, str, bool]]:
    for path, match in rule.matches_of(rule.condition):
        yield from (((*path, name), name, True) for name in match)
    yield from ((("group_by", index), name, False) for index, name in enumerate(rule.group_by))
    for key in ("distinct", "field", "deadline"):
        if isinstance(name := getattr(rule.condition, key, None), str):
            yield (rule.kind, key), name, False


# What a detail holds -> what a value of a match must be to be ever equal to it, and how it is written.
HOLDS: dict[str, tuple[tuple[type, ...], str]] = {
    "number": ((int, float), "write a number, no quotes"),
    "text": ((str,), "put it in quotes"),
    "truth value": ((bool,), "write true or false, no quotes"),
    "time": ((str,), "a time is written as text; whether it has passed is what an absence asks"),
}


def kinds_of_details(rule: Rule) -> Iterator[Advice]:
    """`details.http_status: "500"` is text, and no number is ever equal to it."""
    for path, match in rule.matches_of(rule.condition):
        for name, condition in match.items():
            found = DETAIL.fullmatch(name)
            holds = DETAILS.get(found[1]) if found is not None else None
            if holds is None:
                continue
            kinds, mend = HOLDS[holds]
            for where, value in values_of(condition):
                if type(value) not in kinds:
                    yield Advice(
                        (*path, name, *where),
                        f"{name} holds a {holds}, which {quoted(value)} is not: never equal",
                        mend,
                    )
            for operator in condition if isinstance(condition, dict) else ():
                if operator in COMPARISONS and holds != "number":
                    message = f"{name} holds a {holds}, which is not more or less than anything"
                    mend = "compare it with ne, exists or glob, or with a value"
                    yield Advice((*path, name, operator), message, mend, on_key=True)


def values_of(condition: Any) -> Iterator[tuple[Path, Any]]:
    """The values that a field is compared with for equality, and where each stands."""
    if isinstance(condition, dict):
        yield from ((("ne", *where), value) for where, value in values_of(condition["ne"])) if "ne" in condition else ()
    elif isinstance(condition, list):
        yield from (((number,), value) for number, value in enumerate(condition))
    else:
        yield (), condition


def unheard(rule: Rule) -> Iterator[Advice]:
    """What Authwatch decides stands on the same log, and is not judged: a rule would set itself off."""
    for path, match in rule.matches_of(rule.condition):
        value = match.get("kind")
        for number, kind in enumerate(value if isinstance(value, list) else [value]):
            if kind in DECISION_KINDS:
                yield Advice(
                    (*path, "kind", number),
                    f"{kind} is what Authwatch itself decided, and no rule is judged by that",
                    "match what a provider sends",
                )


def changes(rule: Rule) -> Iterator[Advice]:
    """An account that is ACTIVE already never becomes it, and what was expected would be missed for nothing."""
    if not isinstance(rule.condition, Absence):
        return
    if all("became" in match for match in rule.condition.expect):
        yield Advice(
            ("absence", "expect", 0, "became"),
            "became is only a change: an account that is so already does not become it, and this fires",
            "name the kinds that say it, such as [{kind: account.authorized}, {kind: account.updated, status: ACTIVE}]",
            on_key=True,
        )


def recoveries(rule: Rule) -> Iterator[Advice]:
    condition, resolve = rule.condition, rule.resolve
    if not isinstance(condition, Count) or resolve is None or resolve.event is None:
        return
    if "account_id" not in rule.group_by and condition.distinct is None:
        yield Advice(
            ("resolve", "event"),
            "one such event of any account of the group ends the alert of all of them",
            "take resolve out (it ends when fewer are left in the window), write after: 30m, or count with distinct: account_id",
            on_key=True,
        )


def never_good(rule: Rule) -> Iterator[Advice]:
    """What is good is counted only where it is one of all: of other kinds the share is nothing, and it fires for ever."""
    if not isinstance(rule.condition, Ratio):
        return
    good, total = compile_matches(rule.condition.good).kinds, compile_matches(rule.condition.total).kinds
    if good is not None and total is not None and not good & total:
        yield Advice(
            ("ratio", "total"),
            "no event of good is one of total, so that the share is always 0",
            f"add to total what is good: kind: [{', '.join(sorted(good | total))}]",
            on_key=True,
        )


def never_for_so_long(rule: Rule) -> Iterator[Advice]:
    if isinstance(rule.condition, Count) and rule.resolve is None and rule.for_ >= rule.condition.within:
        yield Advice(
            ("for",),
            f"what was counted has left the window by then ({length(rule.condition.within)}): a single burst never opens it",
            "write a for that is shorter than within, or say with resolve how it ends",
        )


def silence_is_no_recovery(rule: Rule) -> Iterator[Advice]:
    condition = rule.condition
    if (
        not isinstance(condition, Count)
        or condition.distinct is not None
        or not rule.actions
        or rule.resolve is not None
    ):
        return
    if (condition.matcher.kinds or frozenset()) & FAILURES:
        yield Advice(
            ("actions",),
            "what is paused makes no more failures, and without resolve this silence ends the alert, and the pause",
            "add what says that it is well again, such as resolve: {event: {kind: [token.refresh_succeeded, account.authorized]}}",
            on_key=True,
        )


def placeholders(rule: Rule) -> Iterator[Advice]:
    """An alert of a group knows what it is grouped by, and nothing of an account."""
    if rule.kind != "gauge" and "account_id" in rule.group_by:
        return
    filled = {"value", "group", *rule.group_by}
    if "connection_id" in rule.group_by:
        filled |= {"source", "environment_id"}
    for name in ("summary", "what_to_do"):
        for word in PLACEHOLDER.findall(getattr(rule.annotations, name) or ""):
            if word not in filled:
                yield Advice(
                    ("annotations", name),
                    f"{word} is empty: this rule has one alert for {said_of(rule)}",
                    f"write one of {', '.join(one for one in PLACEHOLDERS if one in filled)}",
                    word=word,
                )


def said_of(rule: Rule) -> str:
    return f"each {' and '.join(rule.group_by)}" if rule.group_by else "all"
