"""An account under judgement: its row, and as much of its history as the verdict can depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service.event import KINDS, WELL, AccountKey, Event
from service.heard import HOUR, hear
from service.rules import Ruleset
from service.rules.given import Armed, Sample
from service.rules.lateness import is_late, samples_in_time
from service.rules.story import Initial, Story, tell
from service.store import accounts as account_store
from service.store.accounts import BEGINNING, EVENTS_PER_ACCOUNT_MAX, Account


@dataclass(slots=True)  # not frozen, for the speed of building one
class Subject:
    """One account under judgement: its row before and after, its story, and from when on it is judged."""

    before: Account | None
    after: Account
    story: Story
    initial: Initial
    new: Sequence[Event]
    judge_from: datetime
    armed: Mapping[str, Armed] = field(default_factory=dict)  # by rule: what waited where the story begins
    arms: Mapping[str, Sequence[Sample]] = field(default_factory=dict)  # told by its row alone: samples of absences


def by_row(key: AccountKey, row: Account | None, new: Sequence[Event], rules: Ruleset, now: datetime) -> Subject | None:
    """An account without an alert whose row and new events tell all there is to judge by: nearly every one. None where
    its history has a say: the events are not newer than all that is known, something is not well, or one of them counts
    together with earlier ones.
    """
    if not new or (row is not None and row.not_well):
        return None
    times = [event.occurred_at for event in new]
    start = min(times)
    if row is not None and row.last_event_at is not None and start <= row.last_event_at:
        return None
    initial = Initial(status=row.status, status_since=row.status_since) if row is not None else Initial()
    story = tell(initial, new)
    arms: dict[str, list[Sample]] = {}
    _, most = hear(row.heard, row.last_event_at, times) if row is not None else hear(None, None, times)
    for step in story.steps:
        for rule in rules.opening_for(step):
            if rule.events_needed > most and rule.condition.lookback <= HOUR and not is_late(rule, step.event):
                continue  # a window that all it may have had lately could not fill
            if not (found := rule.samples(step)):
                continue
            if rule.kind == "absence":
                arms.setdefault(rule.id, []).extend(found)
            elif any(sample.role == "match" for sample in found):
                return None
    return Subject(
        before=row,
        after=project(row, key, story, new, now),
        story=story,
        initial=initial,
        new=new,
        judge_from=start,
        arms=arms,
    )


async def gather(
    conn: AsyncConnection,
    rows: Mapping[AccountKey, Account],
    new_events: Mapping[AccountKey, Sequence[Event]],
    starts: Mapping[AccountKey, datetime],
    lookbacks: Mapping[AccountKey, timedelta],
    rules: Ruleset,
    upto: int,
    now: datetime,
) -> dict[AccountKey, Subject]:
    """Reads as much of each account's history as its verdict can depend on; `starts` are those to be judged."""
    judge_from = dict(starts)
    since: dict[AccountKey, datetime] = {}
    known: dict[AccountKey, Initial] = {}
    unknown: dict[AccountKey, datetime] = {}
    for key, start in judge_from.items():
        row, begin = rows.get(key), max(start - lookbacks[key], BEGINNING)
        known_before = row is not None and (row.last_status_at is None or row.last_status_at < begin)
        if row is not None and known_before and (new_events[key] or not row.not_well):
            # Nothing in the slice precedes what the row already knows: the row is where the story starts.
            since[key] = begin
            known[key] = Initial(status=row.status, status_since=row.status_since, not_well=row.not_well)
        else:
            unknown[key] = begin
    wells = await account_store.last_well(conn, unknown, upto)
    for key in unknown:
        # Told again from the last time it was well, so that the whole of a break is in sight.
        well, row = wells.get(key), rows.get(key)
        since[key] = well or BEGINNING
        known[key] = Initial()
        if well is not None:
            # It may have been well for longer than this slice shows.
            before = row.status_since if row is not None and row.status == WELL else None
            known[key] = Initial(status=WELL, status_since=min(well, before or well))
    events = await account_store.history(conn, since, upto)
    armed = await armed_before(conn, rules, since, upto)
    subjects: dict[AccountKey, Subject] = {}
    for key in judge_from:
        if len(events[key]) >= EVENTS_PER_ACCOUNT_MAX:
            # Only the newest were read: what lies before them was judged when it was new and stays as it is.
            judge_from[key] = max(judge_from[key], min(event.occurred_at for event in events[key]))
        story, new, row = tell(known[key], events[key]), new_events[key], rows.get(key)
        if row is not None and not new and story.final.not_well != row.not_well:
            # The log no longer reaches back to where this began: of the account's state the row alone tells.
            known[key] = Initial(status=row.status, status_since=row.status_since, not_well=row.not_well)
            story = Story(tuple(replace(step, became=None) for step in story.steps), known[key])
        subjects[key] = Subject(
            before=row,
            after=project(row, key, story, new, now),
            story=story,
            initial=known[key],
            new=new,
            judge_from=judge_from[key],
            armed=armed.get(key, {}),
        )
    return subjects


async def armed_before(
    conn: AsyncConnection, rules: Ruleset, since: Mapping[AccountKey, datetime], upto: int
) -> dict[AccountKey, dict[str, Armed]]:
    """What each account's absences waited for as its slice of history begins: a deadline may have been named long ago."""
    asked = [rule for rule in rules.absences if rule.names_deadlines]
    if not asked or not since:
        return {}
    kinds: set[str] = set()
    for rule in asked:
        kinds |= rule.kinds if rule.kinds is not None else set(KINDS)
    found: dict[AccountKey, dict[str, Armed]] = {}
    for key, events in (await account_store.last_of_kinds(conn, since, sorted(kinds), upto)).items():
        waits: dict[str, Armed] = {}
        for step in tell(Initial(), events).steps:
            for rule in asked:
                for sample in samples_in_time(rule, step)[0]:
                    if (now_armed := rule.arm(waits.get(rule.id), sample)) is None:
                        waits.pop(rule.id, None)
                    else:
                        waits[rule.id] = now_armed
        found[key] = waits
    return found


def words_of(account: Account) -> dict[str, str]:
    """What a rule's texts may name of an account."""
    return {
        "account_id": account.key.account_id,
        "environment_id": account.key.environment_id,
        "source": account.key.source,
        "connection_id": account.connection_id or "",
        "provider": account.provider or "",
        "identifier": account.identifier or account.key.account_id,
        "organization_id": account.organization_id or "",
        "status": account.status or "",
    }


def project(row: Account | None, key: AccountKey, story: Story, new: Sequence[Event], now: datetime) -> Account:
    """The account's row after its events: state by the story, names by whoever spoke last."""
    account = row or Account(key=key, first_seen_at=now)
    if not new:
        return account
    steps = [step.event for step in story.steps]
    latest = max(event.occurred_at for event in new)
    newer = account.last_event_at is None or latest >= account.last_event_at
    refreshes = [event for event in steps if event.kind in ("token.refresh_succeeded", "token.refresh_failed")]
    said = [event.occurred_at for event in steps if event.account_status is not None]
    if account.last_status_at is not None:
        said.append(account.last_status_at)
    connection_id, provider, identifier = account.connection_id, account.provider, account.identifier
    organization_id, token_expires_at = account.organization_id, account.token_expires_at
    for event in sorted(new, key=lambda event: event.occurred_at):
        if newer or connection_id is None:
            connection_id = connection_of(connection_id, event)
            provider = event.provider or provider
            identifier = event.identifier or identifier
            organization_id = event.organization_id or organization_id
            token_expires_at = (event.details or {}).get("token_expires_at") or token_expires_at
    last = refreshes[-1] if refreshes else None
    succeeded = last is not None and last.kind == "token.refresh_succeeded"
    # Built whole: nearly every event makes one, and `replace` is several times as slow.
    return Account(
        key=key,
        first_seen_at=account.first_seen_at,
        status=story.final.status,
        status_since=story.final.status_since,
        not_well=dict(story.final.not_well),
        last_status_at=max(said, default=None),
        last_event_at=latest if newer else account.last_event_at,
        failures_in_a_row=failures_in_a_row(account, refreshes, new),
        last_refresh_at=last.occurred_at if last is not None else account.last_refresh_at,
        last_refresh_outcome=account.last_refresh_outcome if last is None else "success" if succeeded else "failure",
        connection_id=connection_id,
        provider=provider,
        identifier=identifier,
        organization_id=organization_id,
        token_expires_at=token_expires_at,
        heard=hear(account.heard, account.last_event_at, (event.occurred_at for event in new))[0],
    )


def connection_of(known: str | None, event: Event) -> str | None:
    """An event that names only the account holds its id in both columns: that never takes its connection away."""
    if event.connection_id is None or (event.connection_id == event.account_id and known is not None):
        return known
    return event.connection_id


def failures_in_a_row(account: Account, refreshes: Sequence[Event], new: Sequence[Event]) -> int:
    """Refresh failures since the last success. Counted on from the row when everything new is newer than it."""
    fresh = {event.id for event in new}
    tail = 0
    for event in reversed(refreshes):
        if event.kind == "token.refresh_succeeded":
            return tail
        tail += 1
    added = sum(1 for event in refreshes if event.id in fresh)
    return max(tail, account.failures_in_a_row + added)
