"""What must hold of the messages that came through bad weather: each once, in order per alert, the last one true. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

STATES = ("firing", "acknowledged", "resolved")  # in this order; none goes back
SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class Heard:
    """One message or edit that a destination took. `at`: wall clock, seconds; `post`: it made a message, or a page."""

    alert_id: str
    at: float
    state: str
    post: bool
    marked: bool = False  # as a possible repeat


def by_alert(heard: Iterable[Heard]) -> dict[str, list[Heard]]:
    """Each alert's, in the order in which they came."""
    found: dict[str, list[Heard]] = {}
    for one in heard:
        found.setdefault(one.alert_id, []).append(one)
    return found


def once_each(heard: Sequence[Heard]) -> list[Heard]:
    """At a destination where the same key twice has one effect: without what came again under its key."""
    seen: set[tuple[str, str]] = set()
    found = []
    for one in heard:
        if (one.alert_id, one.state) not in seen:
            seen.add((one.alert_id, one.state))
            found.append(one)
    return found


def problems(name: str, alert_ids: Collection[str], heard: Sequence[Heard], *, keyed: bool = False) -> list[str]:
    """`keyed`: a destination where a key has one effect; what was in hand or over before it came back pages nobody there."""
    told, found = by_alert(once_each(heard) if keyed else heard), list[str]()
    for alert_id in alert_ids:
        mine = told.get(alert_id, [])
        posts = sum(one.post for one in mine)
        if not mine or not (posts == 1 or (keyed and posts == 0)):
            found.append(f"{name}: {posts} messages about alert {alert_id}, and not one")
            continue
        if posts and not mine[0].post:
            found.append(f"{name}: alert {alert_id} was edited before it was posted")
        ranks = [STATES.index(one.state) for one in mine]
        if any(later < earlier for earlier, later in pairwise(ranks)):
            found.append(f"{name}: alert {alert_id} went back: {', '.join(one.state for one in mine)}")
        if mine[-1].state != STATES[-1]:
            found.append(f"{name}: alert {alert_id} is resolved and stands there as {mine[-1].state}")
        if any(one.marked for one in mine):
            found.append(f"{name}: alert {alert_id} is marked as a possible repeat, and its history could be read")
    return shortened(found)


def asked_too_early(refused_at: Sequence[float], came_at: Sequence[float], retry_after_seconds: float) -> int:
    """How many calls came while the destination had asked for quiet. What was under way when it first said so is not
    counted: the first half of each wait. Times in seconds, each sorted."""
    early = 0
    for at in came_at:
        said = [one for one in refused_at if one < at]
        if said and retry_after_seconds / 2 < at - said[-1] < retry_after_seconds * 0.95:
            early += 1
    return early


def delays(fired_at: Mapping[str, float], heard: Iterable[Heard], since: float, until: float) -> list[float]:
    """Seconds from each alert's verdict in [since, until) to its first message."""
    first: dict[str, float] = {}
    for one in heard:
        if one.post:
            first.setdefault(one.alert_id, one.at)
    return [first[name] - at for name, at in fired_at.items() if since <= at < until and name in first]


def shortened(found: Sequence[str]) -> list[str]:
    more = len(found) - SHOWN_MAX
    return [*found[:SHOWN_MAX], *([f"... and {more} more"] if more > 0 else [])]
