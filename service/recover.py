"""Fetching what we missed: a span of a source's events from the provider's API, and the state its accounts have now.

Events go the way of webhooks (the same adapter reads them, under the same dedup key), so that an event that came both
ways is one. Where an account's state differs from ours although every event is in, an event of our own making says so,
and the evaluator judges it by the log like everything else. Everything here may be repeated: a second run finds duplicates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from service import queue
from service.errors import DeliveryFailed, PayloadUnreadable
from service.event import ProviderEvent, judge_clock
from service.observe import log as logger
from service.provider_apis.base import ProviderApi, RemoteAccount
from service.providers.base import Provider
from service.queue import Nudger
from service.sources import Source
from service.store import log, readers, recoveries
from service.store.log import Receipt
from service.store.recoveries import MARGIN, Ours
from service.store.session import begin

OVERLAP = timedelta(seconds=2)
BATCH_EVENTS_MAX = 200
WIDTH_FIRST, WIDTH_MIN, WIDTH_MAX = timedelta(minutes=15), timedelta(seconds=1), timedelta(days=1)
SLICE_PAGES_MAX = 50  # what one slice may hold in memory: 5,000 events
LIST_PAGES_MAX = 20_000
DETAILS_MAX = 20_000  # calls for one account each, in one run
ACCOUNTS_SEEN_MAX = 500_000  # beyond it, nobody is looked for who is missing from the list
GONE_MIN, GONE_SHARE_MAX = 10, 0.5  # a list that misses more than this is not believed
STATE_TYPE = "authwatch.account_state"  # no word of a provider's: no webhook is ever taken for it


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose events, from whom, into which log. `nudge` wakes the evaluator."""

    engine: AsyncEngine
    source: str
    provider: Provider
    api: ProviderApi
    nudge: Callable[[], None]
    dry_run: bool = False


def scope_of(engine: AsyncEngine, nudger: Nudger, source: Source, api: ProviderApi, *, dry_run: bool = False) -> Scope:
    return Scope(
        engine=engine,
        source=source.name,
        provider=source.provider,
        api=api,
        nudge=lambda: nudger.nudge(queue.EVALUATE),
        dry_run=dry_run,
    )


@dataclass(frozen=True, slots=True)
class Tally:
    """`found` events, `added` of them new to us; `accounts` looked at, `changed` of them were not as we had them."""

    found: int = 0
    added: int = 0
    unreadable: int = 0
    accounts: int = 0
    changed: int = 0

    def plus(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


# Told after every step: up to where events are in, the page a listing goes on with, what the step brought.
# It may raise to stop the run.
Progress = Callable[[datetime | None, str | None, Tally], Awaitable[None]]


async def recover_events(scope: Scope, since: datetime, until: datetime, progress: Progress) -> Tally:
    """The events of a span, oldest first, slice by slice. Raises DeliveryFailed; what came before it is in."""
    total, low, end, width = Tally(), since - MARGIN, until + MARGIN, WIDTH_FIRST
    while low < end:
        high = min(low + width, end)
        # Whether the provider's ends belong to the span, and to how many digits, is not documented.
        bodies = await fetch_slice(scope.api, low - OVERLAP, high + OVERLAP)
        if bodies is None and width > WIDTH_MIN:
            width = max(width / 4, WIDTH_MIN)
            continue
        if bodies is None:
            step = await keep_page_by_page(scope, low, high)
        else:
            step = await keep_events(scope, bodies, low, high)
        total, low = total.plus(step), high
        await progress(min(high, until), None, step)
        width = wider(width, step.found)
    return total


def wider(width: timedelta, events: int) -> timedelta:
    """Quiet spans are crossed in strides, so that three months of silence are a hundred calls and not ten thousand."""
    return min(width * 2, WIDTH_MAX) if events < 200 else width


async def fetch_slice(api: ProviderApi, low: datetime, high: datetime) -> list[bytes] | None:
    """Every event of it, newest first; None when it holds too many for one piece."""
    bodies: list[bytes] = []
    token: str | None = None
    for _ in range(SLICE_PAGES_MAX):
        page = await api.events_page(low, high, token)
        bodies += page.bodies
        token = page.next_page_token
        if token is None:
            return bodies
    return None


async def keep_page_by_page(scope: Scope, low: datetime, high: datetime) -> Tally:
    """What is too much for one piece and cannot be cut any more: newest first, which judging by time makes up for."""
    total, token = Tally(), None
    for _ in range(LIST_PAGES_MAX):
        page = await scope.api.events_page(low - OVERLAP, high + OVERLAP, token)
        total = total.plus(await keep_events(scope, page.bodies, low, high))
        token = page.next_page_token
        if token is None:
            return total
    raise DeliveryFailed(
        f"more than {LIST_PAGES_MAX} pages of events within {WIDTH_MIN.total_seconds():.0f} s",
        code="too_many_events",
        permanent=True,
    )


async def keep_events(scope: Scope, bodies: Sequence[bytes], low: datetime, high: datetime) -> Tally:
    """Newest first comes in, oldest first goes out; all that is new, whatever time the provider meant by its span.
    Batches are transactions of their own."""
    async with begin(scope.engine) as conn:
        now = await readers.clock(conn)
    read: dict[tuple[str, str, str], Receipt] = {}
    for body in reversed(bodies):
        receipt = to_receipt(scope, body, now)
        read.setdefault((receipt.event.environment_id or "", receipt.event.event_id, receipt.event.type), receipt)
    receipts = sorted(read.items(), key=lambda item: item[1].event.occurred_at or now)
    added = unreadable = 0
    for start in range(0, len(receipts), BATCH_EVENTS_MAX):
        batch = receipts[start : start + BATCH_EVENTS_MAX]
        async with begin(scope.engine) as conn:
            # Looked up first: a webhook's bytes and the API's differ, and that is no conflict worth an alert.
            known = await recoveries.known(conn, scope.source, [receipt.event for _, receipt in batch])
            fresh = [receipt for key, receipt in batch if key not in known]
            if scope.dry_run:
                added += sum(not beside(receipt.event.occurred_at, low, high) for receipt in fresh)
                continue
            kept = await log.accept(conn, fresh) if fresh else []
        accepted = [receipt for receipt, outcome in zip(fresh, kept, strict=True) if outcome.accepted]
        added += len(accepted)
        unreadable += sum(receipt.event.kind == "quarantine" for receipt in accepted)
        if accepted:
            scope.nudge()
    # The neighbouring slices count what lies in the overlap.
    overlap = sum(beside(receipt.event.occurred_at, low, high) for _, receipt in receipts)
    return Tally(found=len(receipts) - overlap, added=added, unreadable=unreadable)


def beside(at: datetime | None, low: datetime, high: datetime) -> bool:
    return at is not None and (low - OVERLAP <= at < low or high <= at <= high + OVERLAP)


def to_receipt(scope: Scope, body: bytes, now: datetime) -> Receipt:
    """Read as the webhook would have been; what cannot be read is kept aside under a name that a repeat finds again."""
    digest = hashlib.sha256(body).digest()
    name = f"recovered_{digest.hex()[:40]}"
    try:
        event = scope.provider.normalise(body, name)
        occurred_at, clock_suspect = judge_clock(event.occurred_at, now)
    except PayloadUnreadable as exc:
        event = ProviderEvent(event_id=name, type="quarantine", kind="quarantine", details={"reason": exc.code})
        occurred_at, clock_suspect = None, True
    return make_receipt(scope, replace(event, occurred_at=occurred_at), body, clock_suspect)


def make_receipt(scope: Scope, event: ProviderEvent, body: bytes, clock_suspect: bool = False) -> Receipt:
    return Receipt(
        source=scope.source,
        origin="recovery",
        event=event,
        clock_suspect=clock_suspect,
        headers={},
        body=body,
        body_sha256=hashlib.sha256(body).digest(),
        secret_name=None,
        attempted_at=None,
    )


@dataclass(frozen=True, slots=True)
class Environment:
    """`named`: by the API itself, else it is the only one we know of this source."""

    id: str
    named: bool


async def environment_of(scope: Scope) -> Environment | None:
    """The environment of the credentials. Raises DeliveryFailed also when this source, which has sent something, never
    sent anything of it: its events would come in through the wrong door, and its list would miss all our accounts."""
    named = await scope.api.environment_id()
    async with begin(scope.engine) as conn:
        known = await recoveries.environments(conn, scope.source)
    if named is None:
        return Environment(known.pop(), named=False) if len(known) == 1 else None
    if known - {""} and named not in known:
        raise DeliveryFailed(
            f"the credentials are for the environment {named}, of which {scope.source} never sent anything;"
            " mend SCALEKIT_ENV_URL, SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET",
            code="environment_foreign",
            permanent=True,
        )
    return Environment(named, named=True)


async def reconcile_all(
    scope: Scope, environment_id: str, page_token: str | None, progress: Progress, *, missing_too: bool
) -> Tally:
    """Goes through the provider's list. The list is the sieve: an account that is not as we have it is asked for by
    itself, and with `missing_too` one of ours that the list does not have: only where the API itself named the
    environment, or an end of all accounts is believed of whoever's list this is."""
    total, seen, details = Tally(), set[str](), 0
    for _ in range(LIST_PAGES_MAX):
        async with begin(scope.engine) as conn:
            asked_at = await readers.clock(conn)
        page = await scope.api.accounts_page(page_token)
        ids = [account.account_id for account in page.accounts]
        if len(seen) <= ACCOUNTS_SEEN_MAX:
            seen.update(ids)
        async with begin(scope.engine) as conn:
            ours = await recoveries.ours(conn, scope.source, environment_id, ids)
        changed, new = 0, []
        for account in page.accounts:
            event = state_event(account.account_id, environment_id, ours.get(account.account_id), account, asked_at)
            if event is None:
                continue
            if account.account_id not in ours:
                new.append((event, account.body))
            elif details < DETAILS_MAX:
                details += 1
                changed += await reconcile(scope, environment_id, account.account_id, listed=True)
        changed += await keep_states(scope, environment_id, new, asked_at)
        step = Tally(accounts=len(ids), changed=changed)
        total, page_token = total.plus(step), page.next_page_token
        await progress(None, page_token, step)
        if page_token is None:
            break
    else:
        logger.error("recover.list_endless", source=scope.source, pages=LIST_PAGES_MAX)
        return total  # who is missing from a list that was not read to its end is not missing
    if missing_too and not seen:
        # Nobody has an account there: so it is with the credentials of another place, and never where a source sent.
        logger.error("recover.list_empty", source=scope.source)
    elif missing_too and len(seen) <= ACCOUNTS_SEEN_MAX:
        total = total.plus(await reconcile_missing(scope, environment_id, seen, DETAILS_MAX - details, progress))
    return total


async def reconcile_missing(
    scope: Scope, environment_id: str, seen: set[str], details_max: int, progress: Progress
) -> Tally:
    """Accounts of ours that the list does not have: each is asked for, and deleted when the provider does not know it."""
    missing, after, mine = [], "", 0
    while True:
        async with begin(scope.engine) as conn:
            ids = await recoveries.accounts_after(conn, scope.source, environment_id, after, 1000)
        if not ids:
            break
        mine, after = mine + len(ids), ids[-1]
        missing += [id_ for id_ in ids if id_ not in seen]
    if len(missing) > GONE_MIN and len(missing) > mine * GONE_SHARE_MAX:
        # Credentials of another environment, or a list cut short, would end every workflow at once.
        logger.error("recover.list_implausible", source=scope.source, accounts=mine, missing=len(missing))
        return Tally()
    total = Tally()
    for id_ in missing[:details_max]:
        step = Tally(accounts=1, changed=await reconcile(scope, environment_id, id_))
        total = total.plus(step)
        await progress(None, None, step)
    return total


async def reconcile(scope: Scope, environment_id: str, account_id: str, *, listed: bool = False) -> int:
    """Asks for one account now, and appends an event if it is not as we have it; how many (0 or 1)."""
    async with begin(scope.engine) as conn:
        asked_at = await readers.clock(conn)
        ours = (await recoveries.ours(conn, scope.source, environment_id, [account_id])).get(account_id)
    remote = await scope.api.account(account_id)
    if remote is None and listed:
        logger.warning("recover.details_missing", source=scope.source, account_id=account_id)
        return 0
    event = state_event(account_id, environment_id, ours, remote, asked_at)
    if event is None:
        return 0
    body = remote.body if remote is not None else json.dumps({"id": account_id, "status": "DELETED"}).encode()
    return await keep_states(scope, environment_id, [(event, body)], asked_at)


async def keep_states(
    scope: Scope, environment_id: str, said: Sequence[tuple[ProviderEvent, bytes]], asked_at: datetime
) -> int:
    if not said or scope.dry_run:
        return len(said)
    async with begin(scope.engine) as conn:
        ids = [event.account_id or "" for event, _ in said]
        fresher = await recoveries.heard_since(conn, scope.source, environment_id, ids, asked_at)
        known = await recoveries.known(conn, scope.source, [event for event, _ in said])
        receipts = [
            make_receipt(scope, event, body)
            for event, body in said
            if event.account_id not in fresher and (environment_id, event.event_id, event.type) not in known
        ]
        kept = await log.accept(conn, receipts) if receipts else []
    if kept:
        scope.nudge()
    return sum(outcome.accepted for outcome in kept)


def state_event(
    account_id: str, environment_id: str, ours: Ours | None, remote: RemoteAccount | None, asked_at: datetime
) -> ProviderEvent | None:
    """The event that brings our account to the provider's state; None when it has it, or the provider did not say.

    It happened when the provider last updated the account, if that can be and is news to us, else when we asked. The id
    follows from the state alone: whoever comes to the same conclusion again makes a duplicate.
    """
    status = remote.status if remote is not None else ("DELETED" if ours is not None else None)
    if status is None or (ours is not None and ours.status == status):
        return None
    said_at = ours.said_at if ours is not None else None
    updated_at = remote.updated_at if remote is not None else None
    usable, suspect = judge_clock(updated_at, asked_at)
    if usable is None or suspect or (said_at is not None and usable <= said_at):
        # An older time would lose against what we were told since, and the difference would stay for ever.
        occurred_at, basis = asked_at, f"after {said_at.isoformat() if said_at else 'nothing'}"
        if said_at is not None and asked_at <= said_at:
            return None  # what we were told is newer than our question
    else:
        occurred_at, basis = usable, f"at {usable.isoformat()}"
    name = hashlib.sha256("\n".join((environment_id, account_id, status, basis)).encode()).hexdigest()[:32]
    connection_id = (remote.connection_id if remote is not None else None) or (ours.connection_id if ours else None)
    return ProviderEvent(
        event_id=f"state_{name}",
        type=STATE_TYPE,
        kind=remote.kind if remote is not None else "account.deleted",
        account_id=account_id,
        connection_id=connection_id or account_id,
        provider=remote.provider if remote is not None else None,
        identifier=remote.identifier if remote is not None else None,
        environment_id=environment_id or None,
        status=status,
        old_status=ours.status if ours is not None else None,
        account_status=status,
        occurred_at=occurred_at,
    )
