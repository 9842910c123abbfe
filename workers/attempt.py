"""One attempt at one action, and what came of it: calls the outside with no transaction open, and tries once.

Its being made was recorded before; so that one whose process died is known to be of unknown fate, an orchestrator is
asked again under the same idempotency key, and a notifier looks for its message first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from service import thread, together
from service.errors import DeliveryFailed, Unavailable
from service.notify.base import AlertView, MessageRef, Notifier, has_threads
from service.provider_apis import sources_of
from service.runtime import Runtime
from service.store import messages, readers
from service.store.actions import NOTIFY, PAUSE, PEOPLE, THREAD, Action, NewAction
from service.store.messages import Message
from service.store.session import begin
from service.together import MessageParts, ToTell, message_id
from workers.persist import persist

EFFECT_SECONDS_MAX = 25
BEFORE = timedelta(minutes=1)  # the first attempt that is looked for, by whatever clock its message has
REPEATS_MAX = 1  # a post whose fate cannot be checked is repeated once
# The message was deleted or can no longer be edited: the state is posted anew.
POST_ANEW = frozenset({"message_not_found", "cant_update_message", "edit_window_closed"})
NOTHING_TO_REPLY_TO = POST_ANEW | {"thread_not_found", "cannot_reply_to_message"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """`message`: written by this attempt, and known nowhere else until it is recorded. `reply`: what its thread is to be told
    of what happened since, which is an action of its own."""

    action: Action
    outcome: str = "done"
    code: str | None = None
    detail: str | None = None
    retry_after_seconds: float | None = None
    result: Mapping[str, Any] | None = None
    message: Message | None = None
    reply: NewAction | None = None


async def read(runtime: Runtime, claimed: Sequence[Action]) -> dict[str, ToTell]:
    """By action id, for any number of actions that tell people in the same few statements. After their claim is committed: what
    changes from then on has an action of its own."""
    async with begin(runtime.engine) as conn:
        threaded = [name for name, notifier in runtime.notifiers.items() if notifier.threads]
        return await together.to_tell(conn, claimed, threaded)


async def attempt(
    runtime: Runtime, action: Action, reading: Awaitable[Mapping[str, ToTell]] | None, until: float
) -> Ended:
    """`reading` gives what an action that tells people tells; `until` is a time of the event loop's clock."""
    try:
        async with asyncio.timeout_at(until):
            if action.kind not in PEOPLE:
                return await ask(runtime, action)
            assert reading is not None
            known = (await reading)[action.id]
            return await (tell_people if action.kind == NOTIFY else reply)(runtime, action, known)
    except TimeoutError:
        detail = f"no answer within {EFFECT_SECONDS_MAX} s"
        return Ended(action=action, outcome="ambiguous", code="timeout", detail=detail)
    except Unavailable as exc:
        detail = "our database was away before anything was sent"
        return Ended(action=action, outcome="retry", code=exc.code, detail=detail)
    except DeliveryFailed as exc:
        return Ended(
            action=action,
            outcome="failed" if exc.permanent else "ambiguous" if exc.ambiguous else "retry",
            code=exc.code,
            detail=str(exc),
            retry_after_seconds=exc.retry_after_seconds,
        )


async def ask(runtime: Runtime, action: Action) -> Ended:
    orchestrator = runtime.orchestrators.get(action.destination)
    if orchestrator is None:
        raise unknown("orchestrator", action)
    # Safe to repeat: the same idempotency key for every attempt of this action, and pausing twice is pausing once.
    call = orchestrator.pause if action.kind == PAUSE else orchestrator.resume
    answer = await call(
        ref=str(action.payload["ref"]),
        workflow_id=action.workflow_id or "",
        reason=str(action.payload["reason"]),
        idempotency_key=action.id,
    )
    result = {"status": answer.status, "detail": answer.detail, "prior_state": answer.prior_state}
    return Ended(action=action, result=result)


async def tell_people(runtime: Runtime, action: Action, known: ToTell) -> Ended:
    """Posts the alert's one message, or edits it to the state of now. Editing twice is editing once; posting is not."""
    notifier = runtime.notifiers.get(action.destination)
    if notifier is None:
        raise unknown("notifier", action)
    if known.parts is None:
        return Ended(action=action, result={"skipped": "the alert is gone"})
    view = view_of(runtime, known.parts)
    delivery_id = f"{message_id(action)}:{action.destination}"
    ref, repeat = known.ref, False
    if ref is None and known.since is not None:
        looking = notifier.find(delivery_id, since=known.since - BEFORE)
        ref, repeat = await look_for(looking, known.unsure)
        if ref is not None:
            await keep(runtime, message_of(action, ref))
    if ref is not None:
        try:
            await notifier.update(view, ref)
            return edited(notifier, action, known, ref)
        except DeliveryFailed as exc:
            if exc.code not in POST_ANEW:
                raise
            repeat = False
    ref = await notifier.post(view, delivery_id=delivery_id, possible_repeat=repeat)
    result = {"channel": ref.channel, "ts": ref.ts, "edited": False}
    # Kept in the transaction that concludes this action: until then nothing else is done in its lane.
    return Ended(action=action, result=result, message=message_of(action, ref, known.keys))


def edited(notifier: Notifier, action: Action, known: ToTell, ref: MessageRef) -> Ended:
    """The edit was made. What its thread has not been told yet is told by an action of its own, written with it: what of
    it goes out, and in which order, is then a row like any other effect."""
    result = {"channel": ref.channel, "ts": ref.ts, "edited": True}
    if known.ref is None or not notifier.threads:  # only found now: what it says, it says as of now
        return Ended(action=action, result=result, message=message_of(action, ref, known.keys))
    new = thread.untold(known.lines, known.told, known.posted_at)
    told = known.told if known.told is not None else known.keys - {line.key for line in new}
    lines, keys = thread.tell(new, len(told))
    return Ended(
        action=action,
        result=result,
        message=message_of(action, ref, told.union(keys)),
        reply=reply_action(action, lines) if lines else None,
    )


def reply_action(action: Action, lines: Sequence[str]) -> NewAction:
    message = message_id(action)
    return NewAction(
        kind=THREAD,
        destination=action.destination,
        lane=f"{THREAD}:{action.destination}:{message}",
        alert_id=action.alert_id,
        payload={"post": message, "lines": list(lines)},
    )


async def reply(runtime: Runtime, action: Action, known: ToTell) -> Ended:
    """Replies once to the message, wherever it is by now; one whose fate is unknown is looked for first."""
    notifier = runtime.notifiers.get(action.destination)
    if notifier is None:
        raise unknown("notifier", action)
    if not has_threads(notifier) or known.parts is None or known.ref is None:
        return Ended(action=action, result={"skipped": "there is no message to reply to"})
    ref, repeat = known.ref, False
    if known.since is not None:
        found, repeat = await look_for(notifier.find_reply(action.id, ref, since=known.since - BEFORE), known.unsure)
        if found is not None:
            return Ended(action=action, result={"channel": found.channel, "ts": found.ts, "found": True})
    view, lines = view_of(runtime, known.parts), [str(line) for line in action.payload.get("lines") or ()]
    try:
        sent = await notifier.thread(view, ref, lines, delivery_id=action.id, possible_repeat=repeat)
    except DeliveryFailed as exc:
        if exc.code not in NOTHING_TO_REPLY_TO:
            raise
        return Ended(action=action, result={"skipped": "the message is gone"})
    return Ended(action=action, result={"channel": sent.channel, "ts": sent.ts, "found": False})


def view_of(runtime: Runtime, parts: MessageParts) -> AlertView:
    settings = runtime.settings
    # The one API that we know of makes the links.
    reauthorizable = sources_of(settings, "scalekit") if settings.provider_api is not None else ()
    return together.view_of(
        parts, public_url=runtime.public_url, orchestrators=runtime.orchestrators, reauthorizable=reauthorizable
    )


async def look_for(looking: Awaitable[MessageRef | None], unsure: int) -> tuple[MessageRef | None, bool]:
    """(the message an earlier attempt left, whether a new post may be a repeat)."""
    try:
        return await looking, False
    except DeliveryFailed as exc:
        # Where looking may help later, it is tried again later; only where it never will is the post repeated.
        if exc.code != "fate_unknown" or not exc.permanent:
            raise
        if unsure > REPEATS_MAX:
            raise DeliveryFailed(
                "posted twice without an answer; not posting a third time", code="fate_unknown", permanent=True
            ) from exc
        return None, True


async def keep(runtime: Runtime, message: Message) -> None:
    """Found where an attempt left it: where it is must be known before anything else is done about this alert."""

    async def write(conn: AsyncConnection) -> None:
        await messages.save(conn, [message], await readers.clock(conn))

    try:
        await persist(runtime, write)
    except Unavailable as exc:
        raise DeliveryFailed("sent, but it could not be recorded", code="not_recorded", ambiguous=True) from exc


def message_of(action: Action, ref: MessageRef, told: Collection[str] | None = None) -> Message:
    keys = tuple(sorted(told)) if told is not None else None
    return Message(message_id(action), action.destination, ref.channel, ref.ts, keys)


def unknown(what: str, action: Action) -> DeliveryFailed:
    return DeliveryFailed(
        f'no {what} named "{action.destination}" is configured', code="destination_unknown", permanent=True
    )
