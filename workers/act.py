"""The acting story: claim an action with a lease, do it with no transaction open, record what became of it.

The attempt is recorded before it is made, so that one whose process died is known to be of unknown fate: an
orchestrator is then asked again under the same idempotency key, and a notifier looks for its message first.
"""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from service import views
from service.consequences import Consequences, notify
from service.errors import DeliveryFailed, Unavailable
from service.notify.base import MessageRef, Notifier
from service.observe import log
from service.runtime import Runtime
from service.store import actions, readers
from service.store.actions import NOTIFY, PAUSE, RESUME, Action
from service.store.session import begin
from workers.persist import persist

LEASE = timedelta(seconds=60)
# With what recording it may take, well inside the lease: nobody else starts while we may still be sending.
EFFECT_SECONDS_MAX = 25
CLAIM_MAX = 20
ROUNDS_MAX = 50
BACKOFF_SECONDS = (1, 2, 5, 15, 30, 60, 120, 300)
GIVE_UP_AFTER = timedelta(hours=24)
REPEATS_MAX = 1  # a post whose fate cannot be checked is repeated once
# The message was deleted or can no longer be edited: the state is posted anew.
POST_ANEW = frozenset({"message_not_found", "cant_update_message", "edit_window_closed"})


async def act(runtime: Runtime) -> bool:
    """Whether anything was done."""
    done = False
    for _ in range(ROUNDS_MAX):
        async with begin(runtime.engine) as conn:
            claimed = await actions.claim(conn, await readers.clock(conn), lease=LEASE, limit=CLAIM_MAX)
        if not claimed:
            break
        await asyncio.gather(*(perform(runtime, action) for action, _died in claimed))
        done = True
    return done


async def perform(runtime: Runtime, action: Action) -> None:
    """One attempt, and its outcome recorded in a short transaction of its own."""
    code: str | None = None
    detail: str | None = None
    outcome, retry_after, result = "done", None, None
    try:
        async with asyncio.timeout(EFFECT_SECONDS_MAX):
            result = await effect(runtime, action)
    except TimeoutError:
        outcome, code, detail = "ambiguous", "timeout", f"no answer within {EFFECT_SECONDS_MAX} s"
    except Unavailable as exc:
        outcome, code, detail = "retry", exc.code, "our database was away before anything was sent"
    except DeliveryFailed as exc:
        outcome = "failed" if exc.permanent else "ambiguous" if exc.ambiguous else "retry"
        code, detail, retry_after = exc.code, str(exc), exc.retry_after_seconds

    async def record(conn: AsyncConnection) -> None:
        nonlocal outcome, detail
        now = await readers.clock(conn)
        retry_at = next_try(action, now, retry_after) if outcome in ("retry", "ambiguous") else None
        if retry_at is not None and now - action.created_at > GIVE_UP_AFTER:
            outcome, detail, retry_at = "failed", f"gave up after {GIVE_UP_AFTER}: {detail}", None
        current = await actions.conclude(
            conn, action, now=now, outcome=outcome, code=code, detail=detail, retry_at=retry_at, result=result
        )
        if current and action.kind in (PAUSE, RESUME) and action.alert_id and outcome in ("done", "failed"):
            await notify(conn, Consequences(), [action.alert_id], list(runtime.notifiers), now)

    # What was done is known only here until it is written: a database that is away meanwhile is waited for.
    await persist(runtime, record)
    log.info(
        "action.attempted",
        action=action.id,
        kind=action.kind,
        destination=action.destination,
        outcome=outcome,
        code=code,
    )


async def effect(runtime: Runtime, action: Action) -> dict[str, object] | None:
    """Calls the outside; raises DeliveryFailed. Which kind is made safe to repeat, and how, is said at each."""
    if action.kind == NOTIFY:
        return await tell_people(runtime, action)
    orchestrator = runtime.orchestrators.get(action.destination)
    if orchestrator is None:
        raise DeliveryFailed(
            f'no orchestrator named "{action.destination}" is configured', code="destination_unknown", permanent=True
        )
    # Safe to repeat: the same idempotency key for every attempt of this action, and pausing twice is pausing once.
    call = orchestrator.pause if action.kind == PAUSE else orchestrator.resume
    answer = await call(
        ref=str(action.payload["ref"]),
        workflow_id=action.workflow_id or "",
        reason=str(action.payload["reason"]),
        idempotency_key=action.id,
    )
    return {"status": answer.status, "detail": answer.detail, "prior_state": answer.prior_state}


async def tell_people(runtime: Runtime, action: Action) -> dict[str, object] | None:
    """Posts the alert's one message, or edits it to the state of now. Editing twice is editing once; posting is not."""
    notifier = runtime.notifiers.get(action.destination)
    if notifier is None:
        raise DeliveryFailed(
            f'no notifier named "{action.destination}" is configured', code="destination_unknown", permanent=True
        )
    assert action.alert_id is not None
    async with begin(runtime.engine) as conn:
        view = await views.alert_view(conn, action.alert_id, public_url=runtime.public_url)
        row = await actions.message(conn, action.alert_id, action.destination)
        # Of the whole lane: what an earlier action of this alert may have posted is this one's to find.
        unsure, since = await actions.unsure(conn, action.lane)
    if view is None:
        return {"skipped": "the alert is gone"}
    delivery_id = f"{action.alert_id}:{action.destination}"
    ref = MessageRef(row.channel, row.ts) if row else None
    repeat = False
    if ref is None and since is not None:
        ref, repeat = await look_for(notifier, delivery_id, since - timedelta(minutes=1), unsure)
        if ref is not None:
            await keep(runtime, action, ref)
    if ref is not None:
        try:
            await notifier.update(view, ref)
            return {"channel": ref.channel, "ts": ref.ts, "edited": True}
        except DeliveryFailed as exc:
            if exc.code not in POST_ANEW:
                raise
            repeat = False
    ref = await notifier.post(view, delivery_id=delivery_id, possible_repeat=repeat)
    await keep(runtime, action, ref)
    return {"channel": ref.channel, "ts": ref.ts, "edited": False}


async def look_for(
    notifier: Notifier, delivery_id: str, since: datetime, unsure: int
) -> tuple[MessageRef | None, bool]:
    """(the message an earlier attempt left, whether a new post may be a repeat)."""
    try:
        return await notifier.find(delivery_id, since=since), False
    except DeliveryFailed as exc:
        # Where looking may help later, it is tried again later; only where it never will is the post repeated.
        if exc.code != "fate_unknown" or not exc.permanent:
            raise
        if unsure > REPEATS_MAX:
            raise DeliveryFailed(
                "posted twice without an answer; not posting a third time", code="fate_unknown", permanent=True
            ) from exc
        return None, True


async def keep(runtime: Runtime, action: Action, ref: MessageRef) -> None:
    """The message is out: where it is must be known before anything else is done about this alert."""

    async def write(conn: AsyncConnection) -> None:
        now = await readers.clock(conn)
        await actions.save_message(conn, action.alert_id or "", action.destination, ref.channel, ref.ts, now)

    try:
        await persist(runtime, write)
    except Unavailable as exc:
        raise DeliveryFailed("sent, but it could not be recorded", code="not_recorded", ambiguous=True) from exc


def next_try(action: Action, now: datetime, retry_after_seconds: float | None) -> datetime:
    """What the other side asked for, else our own backoff with jitter; kept in Postgres, never in arq."""
    base = BACKOFF_SECONDS[min(action.attempts, len(BACKOFF_SECONDS) - 1)]
    wait = retry_after_seconds if retry_after_seconds is not None else base * random.uniform(0.8, 1.2)
    return now + timedelta(seconds=wait)
