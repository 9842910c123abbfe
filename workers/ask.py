"""Pausing and resuming at an orchestrator: one attempt, made so that a resume puts back what we changed and nothing else.

Asked again under the same idempotency key, an orchestrator does nothing twice. One that knows no such keys is asked first
how the workflow stands, and that is recorded with the action before anything is sent: a pause repeated after a lost answer
does not take our own for a person's. After a 5xx it is asked again at once, since by the next try a person may have
paused it: what is in doubt then is left as it is, and said. What a resume has to do is decided when it is done, from all
that was asked at that place before it: by then the pause before it has been answered, refused or given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from service.errors import DeliveryFailed
from service.orchestrators.base import Answer, Orchestrator, State
from service.orchestrators.webhook import STATE_CHARS_MAX, can_be_kept
from service.runtime import Runtime
from service.store import asks
from service.store.actions import PAUSE, Action
from service.store.asks import (
    ALREADY,
    DOUBTFUL,
    GONE,
    IN_DOUBT,
    IN_STATE,
    LEFT,
    NOT_PAUSED,
    OF_CREDENTIALS,
    UNHEEDED,
    Found,
    Tries,
)
from service.store.session import begin

STATE_SECONDS_MAX = 10.0  # so that the pause after it still has its time
LOOK_SECONDS_MAX = 4.0  # after a 5xx to the pause: with what came before it, inside what an attempt may take
# A proxy's word: what it passed on may still have its effect after we have looked.
MAY_COME_LATE = (502, 504)
LEFT_ALONE = "left as a person had it: it was paused before we paused it"
ALREADY_PAUSED = "it was paused there already, and not by us: nothing was sent, and nothing will be resumed"
LEFT_IN_DOUBT = (
    "our pause was answered with an error, and whether it or a person paused the workflow there cannot be told: it is left as"
    " it is, and is to be started there by hand"
)


async def ask(runtime: Runtime, action: Action) -> dict[str, Any]:
    """The result as it is recorded with the action. Raises `DeliveryFailed`, and `Unavailable` before anything was sent."""
    orchestrator = runtime.orchestrators.get(action.destination)
    if orchestrator is None:
        raise DeliveryFailed(
            f'no orchestrator named "{action.destination}" is configured', code="destination_unknown", permanent=True
        )
    if action.kind == PAUSE and orchestrator.asks_first:
        return await pause_as_found(runtime, orchestrator, action)
    if action.kind == PAUSE:
        return of_pause(await pause(orchestrator, action), orchestrator)
    async with begin(runtime.engine) as conn:
        stands = await asks.standing_before(conn, action, asks_first=orchestrator.asks_first)
    return await resume(orchestrator, action, stands)


async def pause_as_found(runtime: Runtime, orchestrator: Orchestrator, action: Action) -> dict[str, Any]:
    """Of an orchestrator that is asked first. What a person had paused is left alone, and nothing is sent.

    Refused until now, it is asked anew: told that the pause waits for better credentials, a person pauses by hand. So it is
    where nobody can tell what became of the tries before.
    """
    found, in_doubt = asks.found_of(action), False
    if found is None:
        found, in_doubt = await find(runtime, orchestrator, action)
    else:
        tries = await tries_of(runtime, action)
        if tries.in_vain or tries.in_doubt:
            found, in_doubt = await find(runtime, orchestrator, action, tries)
    theirs = {"was_paused": True, "stops": asdict(orchestrator.stops)}
    if found.was_paused:
        status, why = (DOUBTFUL, LEFT_IN_DOUBT) if in_doubt else (ALREADY, ALREADY_PAUSED)
        return not_sent(status, why, found.as_found) | theirs
    try:
        answer = await pause(orchestrator, action, found)
    except DeliveryFailed as exc:
        if not is_error(exc):
            raise
        raise await looked_at(orchestrator, action, exc) from None
    if answer.was_paused:
        return not_sent(ALREADY, answer.detail, answer.prior_state) | theirs
    return of_pause(answer, orchestrator) | {"prior_state": dict(found.as_found), "was_paused": found.was_paused}


async def tries_of(runtime: Runtime, action: Action) -> Tries:
    async with begin(runtime.engine) as conn:
        return await asks.tries_of(conn, action)


def is_error(exc: DeliveryFailed) -> bool:
    """Whether it was answered, with a 5xx or what an orchestrator means by one: something went wrong, and what was done nobody
    knows. An `ambiguous` failure is none: its answer was lost, or we know that it is paused."""
    status = exc.status or 0
    return status >= 400 and not exc.code.startswith("http_4") and not exc.permanent and not exc.ambiguous


async def looked_at(orchestrator: Orchestrator, action: Action, failed: DeliveryFailed) -> DeliveryFailed:
    """At once nobody else can have paused it yet; by the next try somebody may have, so what is seen now is recorded with
    this one, as its code."""
    try:
        async with asyncio.timeout(LOOK_SECONDS_MAX):
            paused = (await orchestrator.state(ref=str(action.payload["ref"]))).paused
    except (DeliveryFailed, TimeoutError):
        paused = None
    if paused:
        return failed
    unheeded = paused is False and failed.status not in MAY_COME_LATE
    then = (
        "right after it the workflow was not paused there" if paused is False else "nor did it say whether it is paused"
    )
    return DeliveryFailed(
        f"{failed}; {then}",
        code=f"{UNHEEDED if unheeded else IN_DOUBT}{failed.code}",
        retry_after_seconds=failed.retry_after_seconds,
        status=failed.status,
    )


async def find(
    runtime: Runtime, orchestrator: Orchestrator, action: Action, tries: Tries | None = None
) -> tuple[Found, bool]:
    """Asked, and recorded in a transaction of its own before anything is changed there; and whether it cannot be told whose
    the pause is that was found. `tries`: of this pause, none of which can be told to have had its effect; it is asked anew.

    Where an earlier pause of ours still stands, what is paused is paused by us: what that one found is the state before us.
    Unless this pause has itself seen it run since. What that one interrupted is still to be taken up again, so it is found
    again, however the workflow stands by now.
    """
    state = await state_of(orchestrator, action)
    async with begin(runtime.engine) as conn:
        stands = (await asks.standing_before(conn, action, asks_first=True)).pause
        own = asks.found_of(action)
        in_doubt = tries is not None and tries.in_doubt
        found = asks.found_now(state.paused, state.as_found, own, stands)
        # A try in vain has interrupted nothing.
        earlier = [stands.found if stands is not None else None, own if in_doubt else None]
        seen = [*(one.as_found for one in earlier if one is not None), state.as_found]
        found = replace(found, as_found=asks.with_interrupted(found.as_found, seen, state.adds_up))
        found = await asks.record_found(conn, action, found, anew=tries is not None)
    return found, in_doubt or (stands is not None and stands.in_doubt)


async def state_of(orchestrator: Orchestrator, action: Action) -> State:
    """A failure of this is without effect there, whatever it is, and its code says that it was."""
    try:
        async with asyncio.timeout(STATE_SECONDS_MAX):
            state = await orchestrator.state(ref=str(action.payload["ref"]))
    except TimeoutError:
        said = f"{orchestrator.name} did not say within {STATE_SECONDS_MAX:g} s how the workflow stands; nothing was paused"
        raise DeliveryFailed(said, code=f"{IN_STATE}timeout") from None
    except DeliveryFailed as exc:
        plain = exc.code == GONE or exc.code in OF_CREDENTIALS
        raise DeliveryFailed(
            str(exc),
            code=exc.code if plain else f"{IN_STATE}{exc.code}",
            permanent=exc.permanent,
            retry_after_seconds=exc.retry_after_seconds,
            status=exc.status,
        ) from None
    if not can_be_kept(dict(state.as_found)):
        said = f"how the workflow stands at {orchestrator.name} cannot be recorded in {STATE_CHARS_MAX} characters of JSON, so it was not paused"
        raise DeliveryFailed(said, code=f"{IN_STATE}unreadable", permanent=True)
    return state


async def resume(orchestrator: Orchestrator, action: Action, stands: asks.Standing) -> dict[str, Any]:
    """Only what we paused, and only if nobody had paused it before us."""
    if stands.pause is None and stands.known:
        return not_sent(NOT_PAUSED, "our pause never took effect there, so there was nothing to resume")
    found: Mapping[str, Any] = {}
    if stands.pause is not None:
        found = stands.pause.action.result or {}
        doubtful = found.get("status") == DOUBTFUL or (stands.pause.action.state != "done" and stands.pause.in_doubt)
        if doubtful and stands.pause.found is not None:
            return not_sent(DOUBTFUL, LEFT_IN_DOUBT, stands.pause.found.as_found)
        if stands.pause.found is not None and not found.get("was_paused"):
            found = {"prior_state": stands.pause.found.as_found, "was_paused": stands.pause.found.was_paused}
        elif stands.pause.found is None and stands.pause.action.state != "done":
            # Given up without an answer, but it may have arrived: under its own key it answers what it found then.
            found = of_pause(await pause(orchestrator, stands.pause.action), orchestrator)
    prior = found.get("prior_state")
    if found.get("was_paused"):
        return not_sent(LEFT, LEFT_ALONE, prior)
    try:
        answer = await orchestrator.resume(**of_action(action), prior_state=prior)
    except DeliveryFailed as exc:
        if exc.code != GONE:
            raise
        return not_sent(GONE, f"nothing to resume: {exc}", prior)
    return of_resume(answer, action, prior)


def of_resume(answer: Answer, action: Action, prior: Mapping[str, Any] | None) -> dict[str, Any]:
    status, detail = answer.status, answer.detail
    if status == LEFT and action.attempts:
        # An earlier try may have done it and lost its answer: that it runs is no proof of a person's hand.
        status, detail = "resumed", f"{detail} (or an earlier try of ours did it)"
    return {
        "status": status,
        "detail": detail,
        "prior_state": answer.prior_state,
        "restored": None if status == LEFT else prior,
        "sent": True,
    }


async def pause(orchestrator: Orchestrator, action: Action, found: Found | None = None) -> Answer:
    return await orchestrator.pause(**of_action(action), found=found.as_found if found is not None else None)


def of_action(action: Action) -> dict[str, str]:
    return {
        "ref": str(action.payload["ref"]),
        "workflow_id": action.workflow_id or "",
        "reason": str(action.payload["reason"]),
        "idempotency_key": action.id,
    }


def of_pause(answer: Answer, orchestrator: Orchestrator) -> dict[str, Any]:
    return {
        "status": answer.status,
        "detail": answer.detail,
        "prior_state": answer.prior_state,
        "was_paused": answer.was_paused,
        "stops": asdict(answer.stops or orchestrator.stops),
        "sent": True,
    }


def not_sent(status: str, why: str, prior_state: Any = None) -> dict[str, Any]:
    return {"status": status, "detail": why, "prior_state": prior_state, "sent": False}
