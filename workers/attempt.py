"""One attempt at one action, and what came of it: calls the outside with no transaction open, and tries once.

Its being made was recorded before; so that one whose process died is known to be of unknown fate, an orchestrator is
asked again under the same idempotency key, and a notifier looks for its message first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from service import thread, together
from service.errors import DeliveryFailed, Unavailable
from service.notify.base import AlertView, MessageRef, Notifier, has_threads
from service.notify.refusals import is_of_the_destination, of_a_channel
from service.provider_apis import sources_of
from service.runtime import Runtime
from service.store import asks, messages, readers, showing
from service.store.actions import NOTIFY, PEOPLE, THREAD, Action, NewAction
from service.store.messages import Message
from service.store.session import begin
from service.together import MessageParts, ToTell, message_id
from workers.ask import ask
from workers.persist import persist

EFFECT_SECONDS_MAX = 25
BEFORE = timedelta(minutes=1)  # the first attempt that is looked for, by whatever clock its message has
REPEATS_MAX = 1  # a post whose fate cannot be checked is repeated once
# The message was deleted or can no longer be edited: the state is posted anew.
POST_ANEW = frozenset({"message_not_found", "cant_update_message", "edit_window_closed"})
NOTHING_TO_REPLY_TO = POST_ANEW | {"thread_not_found", "cannot_reply_to_message"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """`outcome`: `refused` is what every message there would be answered. `message`: posted or told anew by this attempt,
    and known nowhere else until it is written. `reached`: the other side did take something. `reply`: what its thread is to
    be told of what happened since, which is an action of its own."""

    action: Action
    outcome: str = "done"
    code: str | None = None
    detail: str | None = None
    retry_after_seconds: float | None = None
    result: Mapping[str, Any] | None = None
    message: Message | None = None
    reached: bool = False
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
                return Ended(action=action, result=await ask(runtime, action))
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
            outcome=outcome_of(action, exc),
            code=exc.code,
            detail=str(exc),
            retry_after_seconds=exc.retry_after_seconds,
        )


def outcome_of(action: Action, exc: DeliveryFailed) -> str:
    if not exc.permanent:
        return "ambiguous" if exc.ambiguous else "retry"
    if action.kind in asks.KINDS and exc.code in asks.OF_CREDENTIALS:
        return "retry"  # by itself it never helps, but whoever mends them must not have to find what was never resumed
    return "refused" if action.kind == NOTIFY and is_of_the_destination(exc.code) else "failed"


async def tell_people(runtime: Runtime, action: Action, known: ToTell) -> Ended:
    """Posts the alert's one message, or edits it to the state of now. Editing twice is editing once; posting is not."""
    notifier = runtime.notifiers.get(action.destination)
    if notifier is None:
        raise unknown("notifier", action)
    if known.parts is None:
        return Ended(action=action, result={"skipped": "the alert is gone"})
    view = replace(view_of(runtime, known.parts), incident_id=action.alert_id)
    delivery_id = f"{message_id(action)}:{action.destination}"
    ref, repeat = known.ref, False
    if ref is None and known.since is not None and not notifier.idempotent:
        looking = notifier.find(delivery_id, since=known.since - BEFORE)
        ref, repeat = await look_for(looking, known.unsure)
        if ref is not None:
            await keep(runtime, message_of(action, ref))
    if ref is None and is_old_news(runtime, action, known, view):
        return Ended(action=action, result={"skipped": "it was over before it could be told there"})
    if ref is not None:
        try:
            return await edit(runtime, notifier, action, known, view, ref)
        except DeliveryFailed as exc:
            if exc.code not in POST_ANEW:
                raise
            repeat = False
    ref = await notifier.post(view, delivery_id=delivery_id, possible_repeat=repeat)
    result = {"channel": ref.channel, "ts": ref.ts, "edited": False}
    # Kept in the transaction that concludes this action: until then nothing else is done in its lane.
    return Ended(action=action, result=result, message=message_of(action, ref, view, known.keys), reached=True)


async def edit(
    runtime: Runtime, notifier: Notifier, action: Action, known: ToTell, view: AlertView, ref: MessageRef
) -> Ended:
    try:
        after = await notifier.update(view, ref)
    except DeliveryFailed as exc:
        if of_a_channel(exc.code) and await is_elsewhere(runtime, action, ref):
            # Messages go to another channel by now: that this one is gone says nothing of the destination.
            said = f"{exc}; this message is in a channel that messages no longer go to"
            raise DeliveryFailed(said, code="channel_left", permanent=True, status=exc.status) from None
        raise
    result = {"channel": after.channel, "ts": after.ts, "edited": True}
    if notifier.threads:
        return edited(action, known, view, after, result)
    message = message_of(action, after, view)
    same = message == message_of(action, ref)  # what it said last, and where, is what it says now
    # A notifier that has nothing to say of an edit gives back what it was given.
    return Ended(action=action, result=result, message=None if same else message, reached=after is not ref)


def is_old_news(runtime: Runtime, action: Action, known: ToTell, view: AlertView) -> bool:
    """Whether it is over and nobody there ever heard of it, because nothing was taken there for a while."""
    if view.state != "resolved" or known.since is not None:
        return False
    refused = is_of_the_destination(action.last_code)
    return refused or runtime.refusing.waited(action.destination, action.created_at)


async def is_elsewhere(runtime: Runtime, action: Action, ref: MessageRef) -> bool:
    """Whether the newest message of this destination is in another channel than this one."""
    async with begin(runtime.engine) as conn:
        newest = await showing.newest_channel(conn, action.destination)
    return newest is not None and newest != ref.channel


def edited(action: Action, known: ToTell, view: AlertView, ref: MessageRef, result: Mapping[str, Any]) -> Ended:
    """The edit was made. What its thread has not been told yet is told by an action of its own, written with it: what of
    it goes out, and in which order, is then a row like any other effect."""
    if known.ref is None:  # only found now: what it says, it says as of now
        message = message_of(action, ref, view, known.keys)
        return Ended(action=action, result=result, message=message, reached=True)
    new = thread.untold(known.lines, known.told, known.posted_at)
    told = known.told if known.told is not None else known.keys - {line.key for line in new}
    lines, keys = thread.tell(new, len(told))
    return Ended(
        action=action,
        result=result,
        message=message_of(action, ref, view, told.union(keys)),
        reached=True,
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
    return together.view_of(parts, public_url=runtime.public_url, reauthorizable=reauthorizable)


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


def message_of(
    action: Action, ref: MessageRef, view: AlertView | None = None, told: Collection[str] | None = None
) -> Message:
    """`view`: what it was told just now, where the notifier itself does not say what it made of that. `told`: keys of what
    the message or its thread tells by now."""
    said = ref.said or (view.state if view is not None else None)
    keys = tuple(sorted(told)) if told is not None else None
    return Message(message_id(action), action.destination, ref.channel, ref.ts, said, keys)


def unknown(what: str, action: Action) -> DeliveryFailed:
    return DeliveryFailed(
        f'no {what} named "{action.destination}" is configured', code="destination_unknown", permanent=True
    )
