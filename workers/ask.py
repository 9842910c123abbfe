"""Pausing and resuming at an orchestrator: one attempt, made so that a resume puts back what we changed and nothing else.

Asked again under the same idempotency key, an orchestrator does nothing twice. One that knows no such keys is asked first
how the workflow stands, and that is recorded with the action before anything is sent: a pause repeated after a lost answer
does not take our own for a person's. What a resume has to do is decided when it is done, from all that was asked at that
place before it: by then the pause before it has been answered, refused or given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from service.errors import DeliveryFailed
from service.orchestrators.base import Answer, Orchestrator, State
from service.orchestrators.webhook import STATE_CHARS_MAX, can_be_kept
from service.runtime import Runtime
from service.store import asks
from service.store.actions import PAUSE, Action
from service.store.asks import ALREADY, GONE, IN_STATE, LEFT, NOT_PAUSED, OF_CREDENTIALS, Found
from service.store.session import begin

STATE_SECONDS_MAX = 10.0  # so that the pause after it still has its time
LEFT_ALONE = "left as a person had it: it was paused before we paused it"


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

    Refused until now, it is asked anew: told that the pause waits for better credentials, a person pauses by hand.
    """
    found = asks.found_of(action)
    if found is None:
        found = await find(runtime, orchestrator, action)
    elif await tried_in_vain(runtime, action):
        found = await find(runtime, orchestrator, action, anew=True)
    if found.was_paused:
        why = "it was paused there already, and not by us: nothing was sent, and nothing will be resumed"
        return not_sent(ALREADY, why, found.as_found) | {"was_paused": True, "stops": asdict(orchestrator.stops)}
    answer = await pause(orchestrator, action, found)
    return of_pause(answer, orchestrator) | {"prior_state": dict(found.as_found), "was_paused": found.was_paused}


async def tried_in_vain(runtime: Runtime, action: Action) -> bool:
    async with begin(runtime.engine) as conn:
        return await asks.tried_in_vain(conn, action)


async def find(runtime: Runtime, orchestrator: Orchestrator, action: Action, *, anew: bool = False) -> Found:
    """Asked, and recorded in a transaction of its own before anything is changed there.

    Where an earlier pause of ours still stands, what is paused is paused by us: what that one found is the state before us.
    """
    state = await state_of(orchestrator, action)
    async with begin(runtime.engine) as conn:
        stands = (await asks.standing_before(conn, action, asks_first=True)).pause
        found = Found(state.as_found, state.paused)
        if state.paused is not False and stands is not None and stands.found is not None:
            found = stands.found
        return await asks.record_found(conn, action, found, anew=anew)


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
        if stands.pause.found is not None:
            found = {"prior_state": stands.pause.found.as_found, "was_paused": stands.pause.found.was_paused}
        elif stands.pause.action.state != "done":
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
