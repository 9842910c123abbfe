"""One attempt at one action, and what came of it: calls the outside with no transaction open, and tries once.

Its being made was recorded before; so that one whose process died is known to be of unknown fate, an orchestrator is
asked again under the same idempotency key, and a notifier looks for its message first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from service import together
from service.errors import DeliveryFailed, Unavailable
from service.notify.base import AlertView, MessageRef, Notifier
from service.notify.refusals import is_of_the_destination, of_a_channel
from service.runtime import Runtime
from service.store import actions, readers, showing
from service.store.actions import NOTIFY, Action, Message
from service.store.session import begin
from service.together import ToTell, message_id
from workers.ask import ask
from workers.persist import persist

EFFECT_SECONDS_MAX = 25
REPEATS_MAX = 1  # a post whose fate cannot be checked is repeated once
# The message was deleted or can no longer be edited: the state is posted anew.
POST_ANEW = frozenset({"message_not_found", "cant_update_message", "edit_window_closed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """`outcome`: `refused` is what every message there would be answered. `message`: posted or told anew by this attempt,
    and known nowhere else until it is written. `reached`: the other side did take something."""

    action: Action
    outcome: str = "done"
    code: str | None = None
    detail: str | None = None
    retry_after_seconds: float | None = None
    result: Mapping[str, Any] | None = None
    message: Message | None = None
    reached: bool = False


async def read(runtime: Runtime, claimed: Sequence[Action]) -> dict[str, ToTell]:
    """By action id, for any number of NOTIFY actions in the same few statements. After their claim is committed: what
    changes from then on has an action of its own."""
    async with begin(runtime.engine) as conn:
        return await together.to_tell(conn, claimed)


async def attempt(
    runtime: Runtime, action: Action, reading: Awaitable[Mapping[str, ToTell]] | None, until: float
) -> Ended:
    """`reading` gives what a NOTIFY action tells; `until` is a time of the event loop's clock."""
    try:
        async with asyncio.timeout_at(until):
            if action.kind != NOTIFY:
                return Ended(action=action, result=await ask(runtime, action))
            assert reading is not None
            return await tell_people(runtime, action, (await reading)[action.id])
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
    return "refused" if action.kind == NOTIFY and is_of_the_destination(exc.code) else "failed"


async def tell_people(runtime: Runtime, action: Action, known: ToTell) -> Ended:
    """Posts the alert's one message, or edits it to the state of now. Editing twice is editing once; posting is not."""
    notifier = runtime.notifiers.get(action.destination)
    if notifier is None:
        raise unknown("notifier", action)
    if known.parts is None:
        return Ended(action=action, result={"skipped": "the alert is gone"})
    view = replace(together.view_of(known.parts, public_url=runtime.public_url), incident_id=action.alert_id)
    delivery_id = f"{message_id(action)}:{action.destination}"
    ref, repeat = known.ref, False
    if ref is None and known.since is not None and not notifier.idempotent:
        ref, repeat = await look_for(notifier, delivery_id, known.since - timedelta(minutes=1), known.unsure)
        if ref is not None:
            await keep(runtime, message_of(action, ref))
    if ref is None and is_old_news(runtime, action, known, view):
        return Ended(action=action, result={"skipped": "it was over before it could be told there"})
    if ref is not None:
        try:
            return await edit(runtime, notifier, action, view, ref)
        except DeliveryFailed as exc:
            if exc.code not in POST_ANEW:
                raise
            repeat = False
    ref = await notifier.post(view, delivery_id=delivery_id, possible_repeat=repeat)
    result = {"channel": ref.channel, "ts": ref.ts, "edited": False}
    # Kept in the transaction that concludes this action: until then nothing else is done in its lane.
    return Ended(action=action, result=result, message=message_of(action, ref, view), reached=True)


async def edit(runtime: Runtime, notifier: Notifier, action: Action, view: AlertView, ref: MessageRef) -> Ended:
    try:
        after = await notifier.update(view, ref)
    except DeliveryFailed as exc:
        if of_a_channel(exc.code) and await is_elsewhere(runtime, action, ref):
            # Messages go to another channel by now: that this one is gone says nothing of the destination.
            said = f"{exc}; this message is in a channel that messages no longer go to"
            raise DeliveryFailed(said, code="channel_left", permanent=True, status=exc.status) from None
        raise
    message = message_of(action, after, view)
    known = message == message_of(action, ref)  # what it said last, and where, is what it says now
    result = {"channel": after.channel, "ts": after.ts, "edited": True}
    # A notifier that has nothing to say of an edit gives back what it was given.
    return Ended(action=action, result=result, message=None if known else message, reached=after is not ref)


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


async def keep(runtime: Runtime, message: Message) -> None:
    """Found where an attempt left it: where it is must be known before anything else is done about this alert."""

    async def write(conn: AsyncConnection) -> None:
        await actions.save_messages(conn, [message], await readers.clock(conn))

    try:
        await persist(runtime, write)
    except Unavailable as exc:
        raise DeliveryFailed("sent, but it could not be recorded", code="not_recorded", ambiguous=True) from exc


def message_of(action: Action, ref: MessageRef, view: AlertView | None = None) -> Message:
    """`view`: what it was told just now, where the notifier itself does not say what it made of that."""
    said = ref.said or (view.state if view is not None else None)
    return Message(message_id(action), action.destination, ref.channel, ref.ts, said)


def unknown(what: str, action: Action) -> DeliveryFailed:
    return DeliveryFailed(
        f'no {what} named "{action.destination}" is configured', code="destination_unknown", permanent=True
    )
