"""The story of one account: its events in their own order, and the status they leave it in. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from service.event import WELL, AccountKey, Event, order_key
from service.report import OUTWEIGHED_BY, OUTWEIGHED_WITHIN, OUTWEIGHING

REFRESHES = ("token.refresh_succeeded", "token.refresh_failed")


@dataclass(slots=True, kw_only=True)  # not frozen, for the speed of building one
class Initial:
    """Where a story starts, or what it ends in. `not_well`: since the account was last ACTIVE, each status it had and
    when first; empty while it is ACTIVE, or while nothing is known (status None)."""

    status: str | None = None
    status_since: datetime | None = None
    not_well: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(slots=True)  # not frozen, for the speed of building one
class Step:
    """One event in order. `became`: the status it moved the account to, None when it moved nothing."""

    event: Event
    became: str | None
    status: str | None


@dataclass(slots=True)  # not frozen, for the speed of building one
class Story:
    steps: tuple[Step, ...]
    final: Initial


def tell(initial: Initial, events: Iterable[Event]) -> Story:
    """By `occurred_at`, a break after a recovery in a tie, each event once; the order of arrival does not matter."""
    now, steps = initial, []
    seen: set[str] = set()
    for event in believed(sorted(events, key=order_key)):
        if event.id in seen:
            continue
        seen.add(event.id)
        status, became = event.account_status, None
        if status is not None and status != now.status:
            became = status
            now = Initial(
                status=status, status_since=event.occurred_at, not_well=chain(now.not_well, status, event.occurred_at)
            )
        steps.append(Step(event, became, now.status))
    return Story(tuple(steps), now)


def believed(events: Sequence[Event]) -> Sequence[Event]:
    """Without the reports of refreshes that the provider's own word outweighs, whichever of the two came first."""
    reported = [event for event in events if is_reported(event)]
    if not reported:
        return events
    told = [event.occurred_at for event in events if event.origin in OUTWEIGHING and event.kind in OUTWEIGHED_BY]
    outweighed = {
        event.id for event in reported if any(abs(event.occurred_at - at) <= OUTWEIGHED_WITHIN for at in told)
    }
    return [event for event in events if event.id not in outweighed] if outweighed else events


def believed_in_order(events: Iterable[Event]) -> Iterator[Event]:
    """The same of a whole log, account by account and each in order, holding no more of it than may still be outweighed."""
    account_id: str | None = None
    told: dict[AccountKey, deque[datetime]] = {}
    waiting: deque[Event] = deque()

    def outweighed(event: Event) -> bool:
        near = told.get(event.account, ()) if event.account is not None and is_reported(event) else ()
        return any(abs(event.occurred_at - at) <= OUTWEIGHED_WITHIN for at in near)

    for event in events:
        if event.account_id != account_id:
            yield from (one for one in waiting if not outweighed(one))
            waiting.clear()
            told.clear()
            account_id = event.account_id
        at = event.occurred_at
        while waiting and at - waiting[0].occurred_at > OUTWEIGHED_WITHIN:
            one = waiting.popleft()
            if not outweighed(one):
                yield one
        if event.account is not None and event.origin in OUTWEIGHING and event.kind in OUTWEIGHED_BY:
            mine = told.setdefault(event.account, deque())
            while mine and at - mine[0] > 2 * OUTWEIGHED_WITHIN:
                mine.popleft()
            mine.append(at)
        if waiting or is_reported(event):
            waiting.append(event)
        else:
            yield event
    yield from (one for one in waiting if not outweighed(one))


def is_reported(event: Event) -> bool:
    return event.origin == "report" and event.kind in REFRESHES


def chain(not_well: Mapping[str, datetime], status: str, at: datetime) -> dict[str, datetime]:
    """What has been wrong since the account was last well; ACTIVE ends it, nothing else does."""
    if status == WELL:
        return {}
    return {status: at, **not_well} if status not in not_well else dict(not_well)
