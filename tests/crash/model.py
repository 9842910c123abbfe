"""What must have come of the events, told by their own times and by nothing else: the story without any weather.

Written from the contract and the rules of these tests, and sharing no code with the judging it is the measure of.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tests.crash.history import History, Sent, own_workflow, through_connection

WITHIN, FAILURES = timedelta(minutes=15), 3  # token-refresh-failing
FLAPS_WITHIN, FLAPS_MOVES = timedelta(minutes=15), 4
COUNTS_AT_ONCE, COUNTS_AFTER = ("DISCONNECTED", "DELETED"), {"EXPIRED": timedelta(seconds=1)}
FAILING, BROKEN = "token-refresh-failing", "account-disconnected-active-workflow"


@dataclass(frozen=True, slots=True, order=True)
class Episode:
    rule: str
    account_id: str
    opened_at: datetime
    ended_at: datetime | None

    def __str__(self) -> str:
        return f"{self.rule} of {self.account_id} from {self.opened_at} to {self.ended_at}"


@dataclass(slots=True)
class Expected:
    """`accounts`: status and failures in a row. `paused`: workflows; `paused_accounts`: of the one through a connection.

    `not_well`: accounts that had an episode and are not ACTIVE at the end. A hold lets go only once its account has been
    well for a while, so whether one of theirs went before they left ACTIVE depends on the weather. What flaps is judged
    by tests/properties; here its episodes are not compared.
    """

    accounts: dict[str, tuple[str | None, int]] = field(default_factory=dict)
    episodes: set[Episode] = field(default_factory=set)
    paused: set[str] = field(default_factory=set)
    paused_accounts: set[str] = field(default_factory=set)
    not_well: set[str] = field(default_factory=set)
    flapping: set[tuple[str, str]] = field(default_factory=set)  # rule and account: told as fewer and longer episodes


def tell(history: History) -> Expected:
    expected = Expected()
    events: dict[str, list[Sent]] = defaultdict(list)
    for sent in history.sent.values():
        if sent.account_id is not None:
            events[sent.account_id].append(sent)
    for number, account_id in enumerate(history.accounts):
        mine = sorted(events.get(account_id, ()), key=lambda sent: sent.occurred_at)
        if not mine:
            continue
        expected.accounts[account_id] = (last_status(mine), failures_in_a_row(mine))
        episodes = set(failing(account_id, mine))
        if own_workflow(number) or through_connection(number):
            episodes |= set(broken(account_id, mine))
        expected.episodes |= episodes
        expected.flapping |= {(rule, account_id) for rule in (FAILING, BROKEN) if flaps(rule, episodes)}
        if episodes and last_status(mine) != "ACTIVE":
            expected.not_well.add(account_id)
        if any(episode.ended_at is None for episode in episodes):
            if own_workflow(number):
                expected.paused.add(workflow_of(account_id))
            if through_connection(number):
                expected.paused_accounts.add(account_id)
    return expected


def flaps(rule: str, episodes: Iterable[Episode]) -> bool:
    """Whether it opened and ended more than so often within the time; from then on its episodes are held open."""
    mine = [episode for episode in episodes if episode.rule == rule]
    moves = sorted(at for one in mine for at in (one.opened_at, one.ended_at) if at is not None)
    return any(last - first <= FLAPS_WITHIN for first, last in zip(moves, moves[FLAPS_MOVES:], strict=False))


def workflow_of(account_id: str) -> str:
    return f"wf_{account_id}"


def status_of(sent: Sent) -> str | None:
    """The status an event gives its account: the examples of every other type say ACTIVE."""
    if sent.what in ("failed", "magic_link"):
        return None
    if sent.what == "deleted":
        return "DELETED"
    return "ACTIVE" if sent.what == "succeeded" else sent.what


def last_status(mine: Iterable[Sent]) -> str | None:
    return next(reversed([status for sent in mine if (status := status_of(sent)) is not None]), None)


def failures_in_a_row(mine: Iterable[Sent]) -> int:
    count = 0
    for sent in mine:
        count = 0 if sent.what == "succeeded" else count + (sent.what == "failed")
    return count


def failing(account_id: str, mine: Iterable[Sent]) -> Iterable[Episode]:
    """Three failures within the window; over as soon as anything says that the account works."""
    window: deque[datetime] = deque()
    opened: datetime | None = None
    for sent in mine:
        if status_of(sent) == "ACTIVE":
            window.clear()
            if opened is not None:
                yield Episode(FAILING, account_id, opened, sent.occurred_at)
                opened = None
        elif sent.what == "failed":
            window.append(sent.occurred_at)
            while sent.occurred_at - window[0] > WITHIN:
                window.popleft()
            if opened is None and len(window) >= FAILURES:
                opened = sent.occurred_at
    if opened is not None:
        yield Episode(FAILING, account_id, opened, None)


def broken(account_id: str, mine: Iterable[Sent]) -> Iterable[Episode]:
    """From the first status that counts, after its wait, until ACTIVE; what comes in between ends nothing."""
    since: dict[str, datetime] = {}  # each status since the account was last ACTIVE, and when first
    for sent in mine:
        status = status_of(sent)
        if status == "ACTIVE":
            opened = counts_from(since)
            if opened is not None and opened < sent.occurred_at:
                yield Episode(BROKEN, account_id, opened, sent.occurred_at)
            since = {}
        elif status is not None:
            since.setdefault(status, sent.occurred_at)
    opened = counts_from(since)
    if opened is not None:
        yield Episode(BROKEN, account_id, opened, None)


def counts_from(since: dict[str, datetime]) -> datetime | None:
    at_once = [at for status, at in since.items() if status in COUNTS_AT_ONCE]
    after = [since[status] + wait for status, wait in COUNTS_AFTER.items() if status in since]
    return min([*at_once, *after], default=None)
