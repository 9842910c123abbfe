"""Pausing and resuming at an orchestrator: one attempt, made so that a resume puts back what we changed and nothing else.

Asked again under the same idempotency key, an orchestrator does nothing twice. What a resume has to do is decided when it
is done, from all that was asked at that place before it: by then the pause before it has been answered, refused or given up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from service.errors import DeliveryFailed
from service.orchestrators.base import Answer, Orchestrator
from service.runtime import Runtime
from service.store import asks
from service.store.actions import PAUSE, Action
from service.store.asks import LEFT, NOT_PAUSED
from service.store.session import begin


async def ask(runtime: Runtime, action: Action) -> dict[str, Any]:
    """The result as it is recorded with the action. Raises `DeliveryFailed`, and `Unavailable` before anything was sent."""
    orchestrator = runtime.orchestrators.get(action.destination)
    if orchestrator is None:
        raise DeliveryFailed(
            f'no orchestrator named "{action.destination}" is configured', code="destination_unknown", permanent=True
        )
    if action.kind == PAUSE:
        return of_pause(await pause(orchestrator, action), orchestrator)
    async with begin(runtime.engine) as conn:
        stands = await asks.standing_before(conn, action)
    return await resume(orchestrator, action, stands)


async def resume(orchestrator: Orchestrator, action: Action, stands: asks.Standing) -> dict[str, Any]:
    """Only what we paused, and only if nobody had paused it before us."""
    if stands.pause is None and stands.known:
        return not_sent(NOT_PAUSED, "our pause never took effect there, so there was nothing to resume")
    found: Mapping[str, Any] = {}
    if stands.pause is not None:
        found = stands.pause.action.result or {}
        if stands.pause.action.state != "done":
            # Given up without an answer, but it may have arrived: under its own key it answers what it found then.
            found = of_pause(await pause(orchestrator, stands.pause.action), orchestrator)
    if found.get("was_paused"):
        return not_sent(LEFT, "left as a person had it: it was paused before we paused it", found.get("prior_state"))
    answer = await orchestrator.resume(**of_action(action), prior_state=found.get("prior_state"))
    return {
        "status": answer.status,
        "detail": answer.detail,
        "prior_state": answer.prior_state,
        "restored": found.get("prior_state"),
        "sent": True,
    }


async def pause(orchestrator: Orchestrator, action: Action) -> Answer:
    return await orchestrator.pause(**of_action(action))


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
